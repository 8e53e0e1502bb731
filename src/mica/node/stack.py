"""What a union is made of: the value that passes between a node and whoever mounts. Pure."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mica.node.directory import ANY_DIRECTORY, ERROR_DIRECTORY, NodeDirectory

if TYPE_CHECKING:
    from mica.fetch.cache import Cache


class Method(enum.StrEnum):
    """How layers reach the kernel, the best first (docs/design/dataplane.md)."""

    KERNEL = "kernel"
    """Metadata images mounted from their files; content in data-only layers, with the object filesystem as trigger."""
    LOOP = "loop"
    """The same with loop devices, where EROFS cannot be mounted from a file (before Linux 6.12)."""
    ORDINARY = "ordinary"
    """The object filesystem as the lowest ordinary layer, where overlayfs has no data-only ones (before 6.5)."""
    REPOSITORY = "repository"
    """Layer trees of the repository, mounted as a whole by FUSE: no EROFS."""
    EXTERNAL = "external"
    """Layer trees below a directory where another client, such as the stock one, shows repositories."""

    @property
    def uses_images(self) -> bool:
        return self in {Method.KERNEL, Method.LOOP, Method.ORDINARY}


@dataclass(frozen=True, slots=True)
class LayerStack:
    """`lower` is top first; `data` are the data-only layers below, in the order in which they are asked. `has_stubs`:
    files of the layers have their content elsewhere, so that overlayfs has to follow redirects."""

    lower: tuple[Path, ...]
    data: tuple[Path, ...] = ()
    has_stubs: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"lower": [*map(str, self.lower)], "data": [*map(str, self.data)], "has_stubs": self.has_stubs}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(tuple(map(Path, values["lower"])), tuple(map(Path, values["data"])), bool(values["has_stubs"]))


def plan_stack(
    images: Sequence[Path],
    cache: "Cache",
    node: NodeDirectory,
    repositories: Sequence[int],
    *,
    mask: Path | None = None,
) -> LayerStack:
    """A union of mounted metadata images, top first, whose content is in these repositories, by number.

    Without data-only layers there is `mask`, a mounted image that hides the directories of objects. It has to be the
    top one: overlayfs looks a redirect up in all layers below the file's, and would stop at its whiteouts.
    """
    if mask is not None:
        return LayerStack((mask, *images, node.objects / ANY_DIRECTORY), has_stubs=True)
    triggers = [node.objects / str(number) for number in repositories]
    data = (cache.root / "objects", *triggers, cache.root / "handover", node.objects / ERROR_DIRECTORY)
    return LayerStack(tuple(images), data, has_stubs=True)
