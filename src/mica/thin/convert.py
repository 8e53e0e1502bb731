"""Ordinary images into a repository and thin images: each layer once, straight from the stream.

Missing layers are made side by side and staged (thin/building.py, thin/staging.py), without the repository's lock and
whatever becomes of the others; then one transaction attaches them, the chain links and the images' records: all of it
is one revision, or none. Two conversions that share a layer make it once: the second waits for it. The caller's thread
and one for each layer under way.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from mica.errors import TemporaryError, UserError
from mica.oci.image import ImageSource, LayerSource
from mica.publish.catalogtree import CatalogTree, base_name, directory_entry, parent_path
from mica.publish.manager import ReleaseManager
from mica.publish.transaction import Transaction
from mica.repo.entry import Entry, Flag
from mica.thin.building import DEFAULT_LIMITS, ConversionLimits, LayerBuilder
from mica.thin.descriptor import LAYER_LIMIT, ThinDescriptor, ThinLayer
from mica.thin.layout import (
    LAYERS,
    chain_ids,
    chain_path,
    chain_target,
    facts_path,
    hex_of,
    image_path,
    layer_path,
    metadata_image_path,
    trace_path,
    tree_path,
)
from mica.thin.record import ImageRecord, format_record
from mica.thin.staging import StagedLayer, Staging
from mica.thin.trace import ProgramTrace, format_traces

DEFAULT_JOBS = 2


class LayerState(StrEnum):
    """What has to be done for a layer: nothing; nothing but to publish it; all."""

    PUBLISHED = "published"
    STAGED = "staged"
    MISSING = "missing"


class PlannedLayer(NamedTuple):
    """A layer of a conversion, once even if several images have it; the first of them is where it is read from."""

    image: ImageSource
    layer: LayerSource
    state: LayerState


class ConvertedLayer(NamedTuple):
    """`is_new` tells whether this conversion published it."""

    digest: str
    size: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class Conversion:
    """The result: what it took. `changes` are those of the layers made here, by digest."""

    layers: tuple[ConvertedLayer, ...]
    revision: int
    new_objects: int
    stored_bytes: int
    changes: dict[str, Mapping[str, int]]


class WantedImage(NamedTuple):
    """An image, and what is kept of it under its name; `traces` instead of those that it has, if there are any."""

    image: ImageSource
    record: ImageRecord
    traces: tuple[ProgramTrace, ...] = ()


class Observer(Protocol):
    """Told what happens, from several threads; `cli/` draws bars with it."""

    def layer(self, number: int, count: int, layer: LayerSource) -> AbstractContextManager[Callable[[int], None]]: ...


def describe(image: ImageSource, fqrn: str, origin: str) -> ThinDescriptor:
    """The thin image of an image whose layers are, or will be, in a repository. Raises UserError if it has none."""
    if not image.layers:
        raise UserError(f"{image.name} has no layers.", hint="There is nothing to run in an image without files.")
    if len(image.layers) > LAYER_LIMIT:
        raise UserError(f"{image.name} has {len(image.layers)} layers, a union can have {LAYER_LIMIT}.")
    layers = [ThinLayer(hex_of(layer.digest), fqrn, tree_path(layer.digest)) for layer in image.layers]
    return ThinDescriptor(origin, tuple(layers))


def plan_conversion(images: Sequence[ImageSource], manager: ReleaseManager) -> list[PlannedLayer]:
    """What is to be done, lowest layers first. Reads the newest revision and takes no lock."""
    staging = Staging(manager.layers, manager.store)
    planned: dict[str, PlannedLayer] = {}
    with manager.snapshot() as catalogs:
        for image in images:
            for layer in image.layers:
                if layer.digest not in planned:
                    state = _state_of(layer, catalogs, staging)
                    planned[layer.digest] = PlannedLayer(image, layer, state)
    return list(planned.values())


def _state_of(layer: LayerSource, catalogs: CatalogTree, staging: Staging) -> LayerState:
    if catalogs.find(layer_path(layer.digest)) is not None:
        return LayerState.PUBLISHED
    return LayerState.STAGED if staging.has(layer.digest) else LayerState.MISSING


def convert(
    images: Sequence[WantedImage],
    manager: ReleaseManager,
    *,
    observer: Observer,
    limits: ConversionLimits = DEFAULT_LIMITS,
    jobs: int = DEFAULT_JOBS,
    wait_s: float = 0.0,
    stop: threading.Event | None = None,
) -> Conversion:
    """Publish what is missing of some images as one new revision; none if nothing is.

    `wait_s`: how long to wait for who publishes meanwhile; `stop`: set, it ends the work by StoppedError. Raises what
    the first layer that failed did; those that were finished by then stay staged, and so do those that were under way.
    """
    plan = plan_conversion([wanted.image for wanted in images], manager)
    builder = LayerBuilder(manager.store, manager.settings.objects, limits, jobs=jobs, stop=stop)
    making = _Making(manager, builder, observer, plan)
    made = making.run(jobs)
    with manager.transaction(wait_s=wait_s) as transaction:
        published = {digest for digest, layer in made.items() if _attach(layer, transaction)}
        _check_layers(plan, transaction.catalogs)
        changed = bool(published)
        for wanted in images:
            changed |= _publish_chains(wanted.image, transaction.catalogs)
            changed |= _publish_record(transaction, wanted.record)
            changed |= _publish_traces(transaction, wanted)
        if not changed:
            transaction.give_up()
    for digest in made:
        making.staging.forget(digest)
    assert transaction.published is not None
    return Conversion(
        tuple(ConvertedLayer(one.layer.digest, one.layer.size, one.layer.digest in published) for one in plan),
        transaction.published.revision,
        builder.new_objects + transaction.objects.new_objects,
        builder.stored_bytes + transaction.objects.stored_bytes,
        {digest: made[digest].changes for digest in made if digest in published},
    )


class _Making:
    """The layers of a plan that are not published, made side by side."""

    def __init__(
        self, manager: ReleaseManager, builder: LayerBuilder, observer: Observer, plan: Sequence[PlannedLayer]
    ) -> None:
        self.staging = Staging(manager.layers, manager.store)
        self._manager = manager
        self._builder = builder
        self._observer = observer
        self._plan = plan

    def run(self, jobs: int) -> dict[str, StagedLayer]:
        """By digest, in the plan's order; without those that turn out to be published by now."""
        pool = ThreadPoolExecutor(jobs, thread_name_prefix="layer")
        futures: dict[str, Future[StagedLayer | None]] = {}
        try:
            for number, planned in enumerate(self._plan, 1):
                if planned.state is not LayerState.PUBLISHED:
                    futures[planned.layer.digest] = pool.submit(self._make, number, planned)
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        except BaseException:
            self._builder.stop()
            raise
        finally:
            # After a failure those under way are finished and stay staged; those that wait are not begun.
            pool.shutdown(wait=True, cancel_futures=True)
        failed = (future for future in futures.values() if not future.cancelled() and future.exception() is not None)
        for future in failed:
            future.result()
        return {digest: layer for digest, future in futures.items() if (layer := future.result()) is not None}

    def _make(self, number: int, planned: PlannedLayer) -> StagedLayer | None:
        digest = planned.layer.digest
        with self.staging.making(digest) as work:
            if staged := self.staging.find(digest, work):
                return staged
            # Another one may have made and published it while we waited.
            with self._manager.snapshot() as catalogs:
                if catalogs.find(layer_path(digest)) is not None:
                    return None
            with self._observer.layer(number, len(self._plan), planned.layer) as progress:
                layer = self._builder.build(planned.image, planned.layer, work, progress)
            self.staging.keep(layer)
            return layer


def _attach(layer: StagedLayer, transaction: Transaction) -> bool:
    """Put a staged layer where it belongs; False if another conversion did."""
    path = layer_path(layer.digest)
    if transaction.catalogs.find(path) is not None:
        return False
    _make_room(transaction, parent_path(path))
    transaction.catalogs.attach(path, layer.sealed)
    transaction.catalogs.put(metadata_image_path(layer.digest), layer.image, layer.image_chunks)
    facts = facts_path(layer.digest)
    transaction.catalogs.put(facts, transaction.store_file(base_name(facts), layer.facts))
    return True


def _check_layers(plan: Sequence[PlannedLayer], catalogs: CatalogTree) -> None:
    """What was published when the plan was made may have been removed since."""
    for planned in plan:
        if catalogs.find(layer_path(planned.layer.digest)) is None:
            raise TemporaryError(
                f"Layer {planned.layer.digest} was removed from the repository meanwhile.",
                hint="Try again: it is published anew.",
            )


def _make_room(transaction: Transaction, directory: bytes) -> None:
    """`.layers` and `.layers/xx`, each with a catalog of its own, so that no catalog grows with all layers."""
    for path in (LAYERS, directory):
        if transaction.catalogs.find(path) is None:
            transaction.catalogs.put(path, directory_entry(base_name(path)))
            transaction.catalogs.nest(path, transaction.marker())


def _publish_chains(image: ImageSource, catalogs: CatalogTree) -> bool:
    changed = False
    chains = chain_ids([layer.diff_id for layer in image.layers])
    for layer, chain_id in zip(image.layers, chains, strict=True):
        path = chain_path(chain_id)
        target = chain_target(layer.digest)
        found = catalogs.find(path)
        if found is None or found.target != target:
            catalogs.make_directories(parent_path(path), directory_entry(b""))
            catalogs.put(path, _link_entry(base_name(path), target))
            changed = True
    return changed


def _publish_record(transaction: Transaction, record: ImageRecord) -> bool:
    """The image under its name. When it was converted is the file's time, so that its content stays the same."""
    path = image_path(record.reference)
    entry = transaction.store_file(base_name(path), format_record(record), mtime_s=int(time.time()))
    found = transaction.catalogs.find(path)
    if found is not None and found.digest == entry.digest:
        return False
    transaction.catalogs.make_directories(parent_path(path), directory_entry(b""))
    transaction.catalogs.put(path, entry)
    return True


def _publish_traces(transaction: Transaction, wanted: WantedImage) -> bool:
    """Beside the top layer."""
    if not wanted.traces:
        return False
    path = trace_path(wanted.image.layers[-1].digest)
    entry = transaction.store_file(base_name(path), format_traces(wanted.traces))
    found = transaction.catalogs.find(path)
    if found is not None and found.digest == entry.digest:
        return False
    transaction.catalogs.put(path, entry)
    return True


def _link_entry(name: bytes, target: bytes) -> Entry:
    return Entry(name, 0o120777, len(target), 0, 0, 0, 0, Flag.FILE | Flag.LINK, target=target)


class SilentObserver:
    """Tells nobody anything."""

    @contextlib.contextmanager
    def layer(self, number: int, count: int, layer: LayerSource) -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        yield lambda _done: None
