"""The work that some images need: which of their layers are published, finished, or still to be made."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import NamedTuple, Protocol

from mica.convert.layerfacts import DiffIds, check_diff_ids
from mica.oci.image import ImageSource, LayerSource
from mica.publish.manager import ReleaseManager
from mica.thin.layout import layer_path


class LayerState(StrEnum):
    """The work for a layer: nothing; only to publish it; all."""

    PUBLISHED = "published"
    STAGED = "staged"
    MISSING = "missing"


class PlannedLayer(NamedTuple):
    """A layer of a conversion, once even if several images have it; it is read from the first of them."""

    image: ImageSource
    layer: LayerSource
    state: LayerState


class Observer(Protocol):
    """Is called about progress, from several threads; `cli/` draws bars with it."""

    def layer(self, number: int, count: int, layer: LayerSource) -> AbstractContextManager[Callable[[int], None]]: ...


class SilentObserver:
    """An observer that does nothing."""

    @contextlib.contextmanager
    def layer(self, number: int, count: int, layer: LayerSource) -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        yield lambda _done: None


class Plan(NamedTuple):
    """Lowest layers first. `revision` is the one that was looked at; `source` is what the images were opened from, if
    another process can open it too."""

    layers: tuple[PlannedLayer, ...]
    revision: int
    source: str


def plan_conversion(
    images: Sequence[ImageSource],
    manager: ReleaseManager,
    find_staged: Callable[[Collection[str]], Collection[str]],
    *,
    source: str = "",
) -> Plan:
    """The work for some images. Reads the newest revision and takes no lock. `find_staged` tells which of some digests
    are finished and in no revision yet.

    Raises IntegrityError if an image states another diff id than a published layer has.
    """
    layers: dict[str, tuple[ImageSource, LayerSource]] = {}
    for image in images:
        for layer in image.layers:
            layers.setdefault(layer.digest, (image, layer))
    with manager.snapshot() as catalogs:
        check_diff_ids(images, DiffIds(catalogs, manager.store))
        published = {digest for digest in layers if catalogs.find(layer_path(digest)) is not None}
        revision = catalogs.root_catalog.revision
    staged = find_staged(layers.keys() - published)

    def state_of(digest: str) -> LayerState:
        if digest in published:
            return LayerState.PUBLISHED
        return LayerState.STAGED if digest in staged else LayerState.MISSING

    planned = [PlannedLayer(image, layer, state_of(digest)) for digest, (image, layer) in layers.items()]
    return Plan(tuple(planned), revision, source)
