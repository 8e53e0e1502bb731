"""Where the content of a stack of metadata images is: in the cache, or behind the object filesystem. Pure."""

from collections.abc import Sequence
from pathlib import Path

from mica.cache.cache import Cache
from mica.cache.shown import ANY_DIRECTORY
from mica.dataplane.nodedirectory import ERROR_DIRECTORY, NodeDirectory
from mica.layers.stack import LayerStack


def plan_stack(
    images: Sequence[Path],
    cache: Cache,
    node: NodeDirectory,
    repositories: Sequence[int],
    *,
    mask: Path | None = None,
    one_by_one: bool | None = None,
) -> LayerStack:
    """A union of mounted metadata images, top first, whose content is in these repositories, by number.

    Without data-only layers there is `mask`, a mounted image that hides the directories of objects. It has to be the
    top one: overlayfs looks a redirect up in all layers below the file's, and would stop at its whiteouts.
    """
    if mask is not None:
        return LayerStack((mask, *images, node.objects / ANY_DIRECTORY), (), has_stubs=True, one_by_one=one_by_one)
    triggers = [node.objects / str(number) for number in repositories]
    data = (cache.root / "objects", *triggers, cache.root / "handover", node.objects / ERROR_DIRECTORY)
    return LayerStack(tuple(images), data, has_stubs=True, one_by_one=one_by_one)
