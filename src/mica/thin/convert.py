"""An ordinary image into a repository and a thin image: each layer once, straight from the stream.

Missing layers become objects, a layer tree and a catalog; then come the chain links and the image's record; all of it
is one revision. A layer's catalog depends on the layer alone, so two conversions anywhere give the same objects
(docs/design/publishing.md). A layer is attached only after its digests were verified to the last byte. One thread
besides the object writer's.
"""

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mica.errors import UserError
from mica.oci.image import ImageSource, LayerSource
from mica.publish.catalogtree import CatalogTree, base_name, directory_entry, parent_path
from mica.publish.ingest import Archive, build_layer_catalog, read_archive
from mica.publish.layerimage import write_layer_image
from mica.publish.layertree import CappedList, Mode
from mica.publish.manager import ReleaseManager
from mica.publish.transaction import Transaction
from mica.repo.chunking import STANDARD_RULE, ChunkRule
from mica.repo.entry import Entry, Flag
from mica.tarstream import TarLimits, printable
from mica.thin.descriptor import LAYER_LIMIT, ThinDescriptor, ThinLayer
from mica.thin.layout import (
    LAYERS,
    TREE,
    chain_ids,
    chain_path,
    chain_target,
    facts_path,
    hex_of,
    image_path,
    layer_path,
    metadata_image_path,
    tree_path,
)
from mica.thin.record import ImageRecord, format_record

FORMAT_VERSION = 2
MAX_LAYER_BYTES = 1 << 40
WHOLE_IMAGE_BYTES = 8 << 20
"""A metadata image up to this is one object, for one round trip; larger ones come in several streams at once."""

_UNCUT = ChunkRule(WHOLE_IMAGE_BYTES, WHOLE_IMAGE_BYTES, WHOLE_IMAGE_BYTES)
_TOLD = ("split_hardlinks", "dropped_xattrs", "image_dropped_xattrs", "implied_directories")


@dataclass(frozen=True, slots=True)
class ConversionLimits:
    """What one layer may cost."""

    max_layer_bytes: int = MAX_LAYER_BYTES
    max_entries: int = 4_000_000


class ConvertedLayer(NamedTuple):
    """`is_new` tells whether this conversion published it."""

    digest: str
    size: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class Conversion:
    """The result: the descriptor of the thin image, and what it took."""

    descriptor: ThinDescriptor
    layers: tuple[ConvertedLayer, ...]
    revision: int
    new_objects: int
    stored_bytes: int
    changes: dict[str, dict[str, int]]


class Observer(Protocol):
    """Told what happens; `cli/` draws bars with it."""

    def layer(self, number: int, count: int, layer: LayerSource) -> AbstractContextManager[Callable[[int], None]]: ...


def describe(image: ImageSource, fqrn: str, origin: str) -> ThinDescriptor:
    """The thin image of an image whose layers are, or will be, in a repository. Raises UserError if it has none."""
    if not image.layers:
        raise UserError(f"{image.name} has no layers.", hint="There is nothing to run in an image without files.")
    if len(image.layers) > LAYER_LIMIT:
        raise UserError(f"{image.name} has {len(image.layers)} layers, a union can have {LAYER_LIMIT}.")
    layers = [ThinLayer(hex_of(layer.digest), fqrn, tree_path(layer.digest)) for layer in image.layers]
    return ThinDescriptor(origin, tuple(layers))


def convert(
    image: ImageSource,
    manager: ReleaseManager,
    *,
    record: ImageRecord,
    observer: Observer,
    limits: ConversionLimits = ConversionLimits(),
) -> Conversion:
    """Publish what is missing of an image as one new revision; none if nothing is.

    `record` is kept under the image's name, its descriptor the thin image's.
    """
    with manager.transaction() as transaction:
        layers, changes = _publish_layers(image, transaction, observer, limits)
        changed = any(layer.is_new for layer in layers)
        changed |= _publish_chains(image, transaction.catalogs)
        changed |= _publish_record(transaction, record)
        if not changed:
            transaction.give_up()
    assert transaction.published is not None
    return Conversion(
        record.descriptor, tuple(layers), transaction.published.revision, transaction.objects.new_objects,
        transaction.objects.stored_bytes, changes,
    )  # fmt: skip


def _publish_layers(
    image: ImageSource, transaction: Transaction, observer: Observer, limits: ConversionLimits
) -> tuple[list[ConvertedLayer], dict[str, dict[str, int]]]:
    results = []
    changes = {}
    seen = set()
    for number, layer in enumerate(image.layers, 1):
        path = layer_path(layer.digest)
        is_new = path not in seen and transaction.catalogs.find(path) is None
        seen.add(path)
        if is_new:
            with observer.layer(number, len(image.layers), layer) as progress:
                changes[layer.digest] = _publish_layer(image, layer, transaction, progress, limits)
        results.append(ConvertedLayer(layer.digest, layer.size, is_new))
    return results, changes


def _publish_layer(
    image: ImageSource,
    layer: LayerSource,
    transaction: Transaction,
    progress: Callable[[int], None],
    limits: ConversionLimits,
) -> dict[str, int]:
    path = layer_path(layer.digest)
    tar_limits = TarLimits(max_entries=limits.max_entries, max_bytes=limits.max_layer_bytes)
    with image.open_layer(layer, limits.max_layer_bytes) as stream:
        # Its digest vouches for the whole layer, so an archive without end blocks, as some builders write, is fine.
        archive = read_archive(
            stream, transaction.objects, mode=Mode.LAYER, limits=tar_limits, require_end=False, progress=progress
        )
    marker = transaction.marker()
    sealed = build_layer_catalog(archive, path, TREE, [marker], store=transaction.store, work=transaction.work)
    _make_room(transaction, parent_path(path))
    transaction.catalogs.attach(path, sealed)
    dropped = _publish_image(archive, layer, transaction)
    report = archive.report.to_json() | {"image_dropped_xattrs": dropped.to_json()}
    _publish_facts(layer, report, transaction)
    return {name: report[name]["total"] for name in _TOLD}  # type: ignore[index]


def _publish_image(archive: Archive, layer: LayerSource, transaction: Transaction) -> CappedList:
    """The metadata image beside the layer; returns the attributes that it cannot say."""
    path = metadata_image_path(layer.digest)
    with tempfile.TemporaryFile(dir=transaction.work) as file:
        report = write_layer_image(archive, file)
        file.seek(0)
        rule = STANDARD_RULE if report.file_bytes > WHOLE_IMAGE_BYTES else _UNCUT
        entry, chunks = transaction.store_stream(base_name(path), file, report.file_bytes, rule)
    transaction.catalogs.put(path, entry, chunks)
    dropped = [
        {"path": printable(one.path or b"/"), "name": printable(one.name), "bytes": one.size} for one in report.dropped
    ]
    return CappedList(list(dropped), report.dropped_total)


def _publish_facts(layer: LayerSource, report: dict[str, object], transaction: Transaction) -> None:
    path = facts_path(layer.digest)
    about = {
        "format_version": FORMAT_VERSION,
        "digest": layer.digest,
        "diff_id": layer.diff_id,
        "size": layer.size,
        **report,
    }
    document = json.dumps(about, indent=1, sort_keys=True).encode("utf-8") + b"\n"
    transaction.catalogs.put(path, transaction.store_file(base_name(path), document))


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


def _link_entry(name: bytes, target: bytes) -> Entry:
    return Entry(name, 0o120777, len(target), 0, 0, 0, 0, Flag.FILE | Flag.LINK, target=target)
