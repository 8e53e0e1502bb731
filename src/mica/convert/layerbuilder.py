"""One layer of an image into the store: objects, catalog, metadata image, facts. Nothing is published here.

The layer streams from where it is straight into objects: inflating and hashing in the caller's thread, compressing and
storing in those of an object writer, no copy on disk. The result depends on the layer alone, so two conversions
anywhere give the same objects (docs/design/publishing.md), and it exists only after the layer's digests were verified
to the last byte. One thread for each layer, any number of layers.
"""

import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mica.oci.image import ImageSource, LayerSource
from mica.oci.layerstream import LayerStream
from mica.publish.catalogtree import base_name
from mica.publish.ingest import Archive, build_layer_catalog, read_archive
from mica.publish.layerimage import write_layer_image
from mica.publish.layertree import CappedList, Mode
from mica.publish.objectwriter import IN_FLIGHT_BYTES, ObjectRules, ObjectWriter
from mica.publish.storedfiles import store_marker, store_stream
from mica.repo.chunking import STANDARD_RULE, ChunkRule
from mica.repo.entry import Chunk, Entry
from mica.store.base import ObjectStore
from mica.tarstream import TarLimits, printable
from mica.thin.layout import TREE, layer_path, metadata_image_path
from mica.thin.staging import StagedLayer, format_facts

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


DEFAULT_LIMITS = ConversionLimits()


class StoppedError(Exception):
    """Somebody wants the work to end; never shown to anybody."""


class LayerBuilder:
    """What all layers of a conversion have in common. `jobs` of them are made at a time and share its memory.

    `stop` may come from outside; set, it does what the method of that name does.
    """

    def __init__(
        self,
        store: ObjectStore,
        rules: ObjectRules,
        limits: ConversionLimits,
        *,
        jobs: int,
        stop: threading.Event | None = None,
    ) -> None:
        self._store = store
        self._rules = rules
        self._limits = limits
        self._in_flight_bytes = IN_FLIGHT_BYTES // jobs
        self._lock = threading.Lock()
        self._stop = stop or threading.Event()
        self.new_objects = 0
        self.stored_bytes = 0

    def stop(self) -> None:
        """Make every `build` end soon, by StoppedError."""
        self._stop.set()

    def build(self, image: ImageSource, layer: LayerSource, work: Path, progress: Callable[[int], None]) -> StagedLayer:
        """`progress` gets compressed bytes. Raises what reading the layer raises."""
        with ObjectWriter(self._store, self._rules, in_flight_bytes=self._in_flight_bytes) as objects:
            archive = self._read(image, layer, objects, progress)
            path = layer_path(layer.digest)
            marker = store_marker(objects)
            sealed = build_layer_catalog(archive, path, TREE, [marker], store=self._store, work=work)
            stored = _store_image(archive, layer, objects, work)
            with self._lock:
                self.new_objects += objects.new_objects
                self.stored_bytes += objects.stored_bytes
        report = archive.report.to_json() | {"image_dropped_xattrs": stored.dropped.to_json()}
        changes = {name: report[name]["total"] for name in _TOLD}  # type: ignore[index]
        facts = format_facts(
            {
                "format_version": FORMAT_VERSION,
                "digest": layer.digest,
                "diff_id": layer.diff_id,
                "size": layer.size,
                **report,
            }
        )
        return StagedLayer(layer.digest, sealed, stored.entry, stored.chunks, facts, changes)

    def _read(
        self, image: ImageSource, layer: LayerSource, objects: ObjectWriter, progress: Callable[[int], None]
    ) -> Archive:
        limits = TarLimits(max_entries=self._limits.max_entries, max_bytes=self._limits.max_layer_bytes)
        with image.open_layer(layer, self._limits.max_layer_bytes) as stream:
            watched = _WatchedStream(stream, progress, self._stop)
            # Its digest vouches for the whole layer, so an archive without end blocks, as some builders write, is fine.
            return read_archive(watched, objects, mode=Mode.LAYER, limits=limits, require_end=False)


class _WatchedStream:
    """Tells how far a layer is, and ends where it must not go on."""

    def __init__(self, stream: LayerStream, progress: Callable[[int], None], stop: threading.Event) -> None:
        self._stream = stream
        self._progress = progress
        self._stop = stop
        self._told = 0

    def read(self, size: int, /) -> bytes:
        if self._stop.is_set():
            raise StoppedError
        data = self._stream.read(size)
        if (done := self._stream.stored_size) != self._told:
            self._progress(done - self._told)
            self._told = done
        return data


class _StoredImage(NamedTuple):
    """`dropped` are the attributes that the image cannot say."""

    entry: Entry
    chunks: tuple[Chunk, ...]
    dropped: CappedList


def _store_image(archive: Archive, layer: LayerSource, objects: ObjectWriter, work: Path) -> _StoredImage:
    """The metadata image that is to lie beside the layer."""
    name = base_name(metadata_image_path(layer.digest))
    with tempfile.TemporaryFile(dir=work) as file:
        report = write_layer_image(archive, file)
        file.seek(0)
        rule = STANDARD_RULE if report.file_bytes > WHOLE_IMAGE_BYTES else _UNCUT
        entry, chunks = store_stream(objects, name, file, report.file_bytes, rule)
    dropped = [
        {"path": printable(one.path or b"/"), "name": printable(one.name), "bytes": one.size} for one in report.dropped
    ]
    return _StoredImage(entry, chunks, CappedList(list(dropped), report.dropped_total))
