"""Converts ordinary images into a repository and thin images: each layer once, straight from the stream.

A maker makes the missing layers (`making.py`), without the repository's lock; a layer stays staged even if another one
fails. Then one transaction attaches them, the chain links and the images' records: all of it becomes one revision, or
none. Two conversions that share a layer make it once: the second waits for it. The caller's thread.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from mica.convert.attaching import attach_layer
from mica.convert.layerfacts import DiffIds, check_diff_ids
from mica.convert.making import LayerMaker
from mica.convert.plan import LayerState, Observer, Plan, plan_conversion
from mica.errors import TemporaryError, UserError
from mica.oci.image import ImageSource
from mica.publish.catalogtree import CatalogTree, base_name, directory_entry, parent_path
from mica.publish.duration import PublicationTimer
from mica.publish.manager import ReleaseManager
from mica.publish.storedfiles import load_file
from mica.publish.transaction import Transaction
from mica.repo.entry import Entry, Flag
from mica.thin.descriptor import LAYER_LIMIT, ThinDescriptor, ThinLayer
from mica.thin.layout import (
    chain_ids,
    chain_path,
    chain_target,
    chained_layer,
    hex_of,
    image_path,
    layer_path,
    trace_path,
    tree_path,
)
from mica.thin.record import RECORD_LIMIT, ImageRecord, format_record, parse_record
from mica.thin.trace import ProgramTrace, format_traces


class ConvertedLayer(NamedTuple):
    """`is_new` tells whether this conversion published it."""

    digest: str
    size: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class Conversion:
    """The result of a conversion. `changes` are those of the layers made here, by digest; `descriptors` are those of
    the images, by the digests of their manifests."""

    layers: tuple[ConvertedLayer, ...]
    revision: int
    new_objects: int
    stored_bytes: int
    changes: dict[str, Mapping[str, int]]
    descriptors: dict[str, ThinDescriptor]


class WantedImage(NamedTuple):
    """An image, and its record's name; `traces`, if there are any, replace those that it has."""

    image: ImageSource
    record: ImageRecord
    traces: tuple[ProgramTrace, ...] = ()


def describe(image: ImageSource, fqrn: str, origin: str) -> ThinDescriptor:
    """The thin image of an image whose layers are, or will be, in a repository. Raises UserError if it has none."""
    if not image.layers:
        raise UserError(f"{image.name} has no layers.", hint="There is nothing to run in an image without files.")
    if len(image.layers) > LAYER_LIMIT:
        raise UserError(f"{image.name} has {len(image.layers)} layers, a union can have {LAYER_LIMIT}.")
    layers = [ThinLayer(hex_of(layer.digest), fqrn, tree_path(layer.digest)) for layer in image.layers]
    return ThinDescriptor(origin, tuple(layers))


def convert(
    images: Sequence[WantedImage],
    manager: ReleaseManager,
    maker: LayerMaker,
    *,
    source: str = "",
    observer: Observer,
    wait_s: float = 0.0,
    stop: threading.Event,
) -> Conversion:
    """Publish the missing parts of some images as one new revision; no revision if nothing is missing.

    `source`: what the images were opened from. `wait_s`: how long to wait for another publisher. `stop`: once set, it
    ends the work by StoppedError. Raises the errors of making layers.
    """
    timer = PublicationTimer(manager.store)
    plan = plan_conversion([wanted.image for wanted in images], manager, maker.find_staged, source=source)
    made = maker.make(plan, observer, stop)
    with manager.transaction(wait_s=wait_s, timer=timer) as transaction:
        # Others' layers that wait: one revision for all of them.
        layers = {layer.digest: layer for layer in maker.waiting()} | dict(made.layers)
        published = {digest for digest, layer in layers.items() if attach_layer(layer, transaction)}
        _check_layers(plan, transaction.catalogs)
        diff_ids = DiffIds(transaction.catalogs, transaction.store)
        diff_ids.know({digest: layers[digest].diff_id for digest in published})
        check_diff_ids([wanted.image for wanted in images], diff_ids)
        changed = bool(published)
        descriptors: dict[str, ThinDescriptor] = {}
        new = {one.layer.digest for one in plan.layers if one.state is not LayerState.PUBLISHED}
        for wanted in images:
            changed |= _publish_chains(wanted.image, transaction.catalogs, diff_ids)
            is_new = not new.isdisjoint(layer.digest for layer in wanted.image.layers)
            # A record with a revision that the plan did not know is of another conversion, which had the same layers.
            still_good = plan.revision + 1 if is_new else 0
            descriptor, is_other = _publish_record(transaction, wanted.record, oldest_revision=still_good)
            descriptors[wanted.image.manifest_digest] = descriptor
            changed |= is_other
            changed |= _publish_traces(transaction, wanted)
        if not changed:
            transaction.give_up()
    assert transaction.published is not None
    maker.settle(layers, transaction.published.revision)
    return Conversion(
        tuple(ConvertedLayer(one.layer.digest, one.layer.size, one.layer.digest in published) for one in plan.layers),
        transaction.published.revision,
        made.new_objects + transaction.objects.new_objects,
        made.stored_bytes + transaction.objects.stored_bytes,
        {digest: layer.changes for digest, layer in made.layers.items() if digest in published},
        descriptors,
    )


def _check_layers(plan: Plan, catalogs: CatalogTree) -> None:
    """Raises TemporaryError if a layer that was published when the plan was made was removed since."""
    for planned in plan.layers:
        if catalogs.find(layer_path(planned.layer.digest)) is None:
            raise TemporaryError(
                f"Layer {planned.layer.digest} was removed from the repository meanwhile.",
                hint="Try again: the next conversion publishes it again.",
            )


def _publish_chains(image: ImageSource, catalogs: CatalogTree, diff_ids: DiffIds) -> bool:
    """Links to layers whose facts have a verified diff id: a chain id is only as true as its diff ids.

    A link that leads to a layer with the right diff id stays, also where this image has it compressed otherwise.
    """
    changed = False
    chains = chain_ids([layer.diff_id for layer in image.layers])
    for layer, chain_id in zip(image.layers, chains, strict=True):
        path = chain_path(chain_id)
        found = catalogs.find(path)
        linked = "" if found is None else diff_ids.of(chained_layer(found.target))
        if diff_ids.of(layer.digest) == layer.diff_id != linked:
            target = chain_target(layer.digest)
            catalogs.make_directories(parent_path(path), directory_entry(b""))
            catalogs.put(path, _link_entry(base_name(path), target))
            changed = True
    return changed


def _publish_record(
    transaction: Transaction, record: ImageRecord, *, oldest_revision: int
) -> tuple[ThinDescriptor, bool]:
    """Publish the image's record, unless it is there already. Returns its descriptor with the revision that has its
    layers, and whether anything changed. An image that stays as it is keeps its revision, if it is not older than
    `oldest_revision`: so its thin image stays, too.

    The time of the conversion is the file's time, so that its content stays the same. That somebody asked for an image
    by its digest stays known when it comes once more as one of an index.
    """
    path = image_path(record.reference)
    former = _known_record(transaction, path)
    known = None if former is None else former.descriptor
    if record.index is None and former is not None and former.index is not None:
        record = replace(record, index=())
    (fqrn,) = record.descriptor.repositories
    is_same = known is not None and replace(known, revisions=()) == record.descriptor
    if known is not None and is_same and known.revision_of(fqrn) >= oldest_revision:
        revisions = known.revisions
    else:
        revisions = ((fqrn, transaction.next_revision),)
    descriptor = replace(record.descriptor, revisions=revisions)
    content = format_record(replace(record, descriptor=descriptor))
    entry = transaction.store_file(base_name(path), content, mtime_s=int(time.time()))
    found = transaction.catalogs.find(path)
    if found is not None and found.digest == entry.digest:
        return descriptor, False
    transaction.catalogs.make_directories(parent_path(path), directory_entry(b""))
    transaction.catalogs.put(path, entry)
    return descriptor, True


def _known_record(transaction: Transaction, path: bytes) -> ImageRecord | None:
    """The record at a path; none for one that is of another tool."""
    data = load_file(transaction.catalogs, transaction.store, path, limit=RECORD_LIMIT)
    if data is None:
        return None
    try:
        return parse_record(data, path.decode("utf-8", "replace"))
    except UserError:
        return None


def _publish_traces(transaction: Transaction, wanted: WantedImage) -> bool:
    """Put the traces beside the top layer."""
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
