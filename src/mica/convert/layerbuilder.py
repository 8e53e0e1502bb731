"""Stores one layer of an image: objects, catalog, metadata image, facts. Nothing is published here.

The layer streams from its source straight into objects, without a copy on disk: the caller's thread inflates and
hashes, those of an object writer compress and store. The result depends on the layer alone, so any two conversions
give the same objects (docs/design/publishing.md). It exists only after the layer's digests were verified to the last
byte. One thread for each layer, any number of layers.
"""

import contextlib
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mica.convert.layerfacts import FORMAT_VERSION, format_facts
from mica.convert.staging import StagedFile, StagedLayer
from mica.errors import UserError
from mica.files import mapped_os_errors
from mica.oci.image import ImageSource, LayerSource
from mica.oci.layerstream import LayerStream
from mica.publish.catalogtree import base_name
from mica.publish.duration import LONGEST_MAKING_S, PublicationTimer
from mica.publish.ingest import Archive, build_layer_catalog, read_archive
from mica.publish.layertree import CappedList, Mode
from mica.publish.objectwriter import IN_FLIGHT_BYTES, ObjectWriter
from mica.publish.rules import ObjectRules
from mica.publish.storedfiles import store_file, store_marker, store_stream
from mica.publish.treerows import write_layer_image
from mica.repo.cutting import STANDARD_RULE, ChunkRule
from mica.store.base import ObjectStore
from mica.tarstream import TarLimits
from mica.texts import printable, printable_path
from mica.thin.layout import TREE, facts_path, layer_path, metadata_image_path

MAX_LAYER_BYTES = 1 << 40
WHOLE_IMAGE_BYTES = 8 << 20
"""A metadata image up to this size is one object and costs one round trip; larger ones are fetched in parallel."""

_UNCUT = ChunkRule(WHOLE_IMAGE_BYTES, WHOLE_IMAGE_BYTES, WHOLE_IMAGE_BYTES)
_TOLD = ("split_hardlinks", "dropped_xattrs", "image_dropped_xattrs", "changed_times", "implied_directories")


@dataclass(frozen=True, slots=True)
class ConversionLimits:
    """Limits of one layer."""

    max_layer_bytes: int = MAX_LAYER_BYTES
    max_entries: int = 4_000_000


DEFAULT_LIMITS = ConversionLimits()


class StoppedError(Exception):
    """The conversion was stopped from outside; this error is never shown."""


class LayerBuilder:
    """The common part of all layers of a conversion. `jobs` of them are made at a time and share its memory.

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
        """`progress` gets compressed bytes. Raises the errors of reading the layer; for a refused layer, a UserError
        with its name."""
        timer = PublicationTimer(self._store, LONGEST_MAKING_S)
        with (
            _named(image, layer),
            ObjectWriter(self._store, self._rules, in_flight_bytes=self._in_flight_bytes) as objects,
        ):
            archive = self._read(image, layer, objects, progress)
            path = layer_path(layer.digest)
            marker = store_marker(objects)
            sealed = build_layer_catalog(archive, path, TREE, [marker], store=self._store, work=work)
            image_file, dropped = _store_image(archive, layer, objects, work)
            report = archive.report.to_json() | {"image_dropped_xattrs": dropped.to_json()}
            facts = StagedFile(store_file(objects, base_name(facts_path(layer.digest)), _facts(layer, report)))
            with self._lock:
                self.new_objects += objects.new_objects
                self.stored_bytes += objects.stored_bytes
        timer.check()
        changes = {name: report[name]["total"] for name in _TOLD}  # type: ignore[index]
        return StagedLayer(layer.digest, layer.diff_id, sealed, (image_file, facts), changes)

    def _read(
        self, image: ImageSource, layer: LayerSource, objects: ObjectWriter, progress: Callable[[int], None]
    ) -> Archive:
        limits = TarLimits(max_entries=self._limits.max_entries, max_bytes=self._limits.max_layer_bytes)
        with image.open_layer(layer, self._limits.max_layer_bytes) as stream:
            watched = _WatchedStream(stream, progress, self._stop)
            # The digest proves that the layer is whole, so end blocks, which some builders omit, are not needed.
            return read_archive(watched, objects, mode=Mode.LAYER, limits=limits, require_end=False)


@contextlib.contextmanager
def _named(image: ImageSource, layer: LayerSource) -> Iterator[None]:
    """Adds the layer's name to an error, because errors of an archive name only its members. A disk of this host that
    is full or fails is no error of the layer."""
    try:
        yield
    except UserError as error:
        is_refusal = type(error) is UserError and not isinstance(error.__cause__, OSError | sqlite3.Error)
        if not is_refusal or layer.digest in str(error):
            raise
        message = f"Layer {layer.digest} of {image.name} cannot be converted: {error}"
        raise UserError(message, hint=error.hint) from error


class _WatchedStream:
    """Reports the progress of a layer, and ends the layer when the conversion is stopped."""

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


def _facts(layer: LayerSource, report: Mapping[str, object]) -> bytes:
    stated = {
        "format_version": FORMAT_VERSION, "digest": layer.digest, "diff_id": layer.diff_id, "size": layer.size,
    }  # fmt: skip
    return format_facts({**stated, **report})


def _store_image(
    archive: Archive, layer: LayerSource, objects: ObjectWriter, work: Path
) -> tuple[StagedFile, CappedList]:
    """The metadata image that is to lie beside the layer, and the attributes that it cannot hold."""
    doing = f"write the metadata image of layer {layer.digest}"
    with mapped_os_errors(doing, when_full="nothing was published"), tempfile.TemporaryFile(dir=work) as file:
        report = write_layer_image(archive.tree, file)
        file.seek(0)
        name = base_name(metadata_image_path(layer.digest, report.version))
        rule = STANDARD_RULE if report.file_bytes > WHOLE_IMAGE_BYTES else _UNCUT
        entry, chunks = store_stream(objects, name, file, report.file_bytes, rule)
    dropped = CappedList()
    for one in report.dropped:
        dropped.append({"path": printable_path(one.path), "name": printable(one.name), "bytes": one.size})
    dropped.total = report.dropped_total
    return StagedFile(entry, chunks), dropped
