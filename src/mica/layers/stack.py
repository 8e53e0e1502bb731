"""The layers that a union is made of: a value that a provider gives to the code that mounts. Pure."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from mica.union.overlay import OverlayOptions


class Method(enum.StrEnum):
    """How layers reach the kernel, the best first (docs/design/dataplane.md)."""

    KERNEL = "kernel"
    """Metadata images mounted from their files; content in data-only layers, with the object filesystem as trigger."""
    LOOP = "loop"
    """The same with loop devices, where EROFS cannot be mounted from a file (before Linux 6.12)."""
    ORDINARY = "ordinary"
    """Metadata images mounted from their files, and the object filesystem as the lowest ordinary layer, where overlayfs
    has no data-only ones or they do not work."""
    ORDINARY_LOOP = "ordinary-loop"
    """The same with loop devices: what Linux can do before 6.5."""
    REPOSITORY = "repository"
    """Layer trees of the repository, mounted as a whole by FUSE: no EROFS."""
    EXTERNAL = "external"
    """Layer trees below a directory where another client, such as the stock one, shows repositories."""

    @property
    def uses_images(self) -> bool:
        return self not in {Method.REPOSITORY, Method.EXTERNAL}

    @property
    def by_loop(self) -> bool:
        """Whether metadata images are mounted through loop devices."""
        return self in {Method.LOOP, Method.ORDINARY_LOOP}

    @property
    def has_data_layers(self) -> bool:
        return self in {Method.KERNEL, Method.LOOP}


@dataclass(frozen=True, slots=True)
class LayerStack:
    """`lower` is top first, and has each directory once: if an image has a layer twice, only the topmost counts, since
    it shows and hides all that the lower one would. `data` are the data-only layers below, in the order in which they
    are asked. `has_stubs`: files of the layers have their content elsewhere, so that overlayfs has to follow redirects.
    `one_by_one`: whether the kernel is known to take layers one by one. `untrusted`: a directory with mounted
    repositories, in which no link is followed when the union is mounted."""

    lower: tuple[Path, ...]
    data: tuple[Path, ...] = ()
    has_stubs: bool = False
    one_by_one: bool | None = None
    untrusted: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lower", tuple(dict.fromkeys(self.lower)))

    def options(self, *, volatile: bool = False, nodev: bool = False) -> "OverlayOptions":
        """The options of the union that is made of these layers."""
        from mica.union.overlay import OverlayOptions

        return OverlayOptions(self.data, self.has_stubs, volatile, nodev, self.one_by_one, self.untrusted)

    def to_json(self) -> dict[str, Any]:
        return {
            "lower": [*map(str, self.lower)],
            "data": [*map(str, self.data)],
            "has_stubs": self.has_stubs,
            "one_by_one": self.one_by_one,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        lower, data = (tuple(map(Path, values[name])) for name in ("lower", "data"))
        one_by_one = values["one_by_one"]
        return cls(lower, data, bool(values["has_stubs"]), None if one_by_one is None else bool(one_by_one))
