"""Layers that are finished and not yet in any revision: what lets a conversion go on where an earlier one stopped.

    <home>/layers/<hex>.lock       held by who makes the layer; others wait and find it done
    <home>/layers/<hex>.work/      its scratch, emptied by the next who takes the lock
    <home>/layers/<hex>.json       a staged layer: its catalog and metadata image by digest, all their objects stored

`<hex>` is that of the compressed layer's digest. A staged layer is written after its objects are safe on disk and
removed when a revision holds it. Its objects are referred to by nothing else: who collects garbage empties this
directory first (`clear_staged`), under the repository's lock. Any thread, any process.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mica.digest import Digest
from mica.errors import MicaError
from mica.files import locked, mapped_os_errors, replace_file
from mica.publish.catalogtree import SealedCatalog, load_sealed
from mica.repo.catalog import NestedCatalog
from mica.repo.entry import Chunk, Entry, Flag
from mica.store.base import ObjectStore
from mica.thin.layout import hex_of, layer_path, metadata_image_path

_VERSION = 1
_PATIENCE_S = 24 * 3600.0
"""How long to wait for who makes the same layer: as long as the largest one takes; a dead maker holds no lock."""


@dataclass(frozen=True, slots=True)
class StagedLayer:
    """`facts` is the document `<d>.json`; `changes` counts what was changed to fit."""

    digest: str
    sealed: SealedCatalog
    image: Entry
    image_chunks: tuple[Chunk, ...]
    facts: bytes
    changes: Mapping[str, int]


class Staging:
    """The directory of one repository. `store` is where the objects of its layers are."""

    def __init__(self, directory: Path, store: ObjectStore) -> None:
        self._directory = directory
        self._store = store

    @contextlib.contextmanager
    def making(self, digest: str) -> Iterator[Path]:
        """Be the one who makes a layer, for a block that gets an empty scratch directory."""
        name = hex_of(digest)
        lock = self._directory / f"{name}.lock"
        work = self._directory / f"{name}.work"
        with locked(lock, what=f"Layer {digest}", wait_s=_PATIENCE_S, transient=True):
            with mapped_os_errors(f"make {work}"):
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir(parents=True)
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def has(self, digest: str) -> bool:
        return self._path(digest).exists()

    def find(self, digest: str, work: Path) -> StagedLayer | None:
        """A staged layer; None if there is none, or one that is of no use any more, which is then forgotten."""
        try:
            data = self._path(digest).read_bytes()
        except FileNotFoundError:
            return None
        try:
            return _parse(data, digest, self._store, work)
        except (MicaError, ValueError, KeyError, TypeError):
            self.forget(digest)
            return None

    def keep(self, layer: StagedLayer) -> None:
        """Remember a layer whose objects are all stored."""
        self._store.sync()
        with mapped_os_errors(f"stage layer {layer.digest}"):
            replace_file(self._path(layer.digest), _format(layer))

    def forget(self, digest: str) -> None:
        self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._directory / f"{hex_of(digest)}.json"


def clear_staged(directory: Path) -> None:
    """Forget all staged layers: before garbage is collected, under the repository's lock."""
    for path in directory.glob("*.json"):
        path.unlink(missing_ok=True)


def _format(layer: StagedLayer) -> bytes:
    nested = layer.sealed.nested
    document = {
        "version": _VERSION,
        "digest": layer.digest,
        "catalog": {"digest": nested.digest.text, "bytes": nested.size},
        "image": {
            "bytes": layer.image.size,
            "flags": layer.image.flags,
            "digest": layer.image.digest.text if layer.image.digest else None,
            "chunks": [[chunk.offset, chunk.size, chunk.digest.text] for chunk in layer.image_chunks],
        },
        "facts": json.loads(layer.facts),
        "changes": dict(layer.changes),
    }
    return json.dumps(document).encode("utf-8") + b"\n"


def format_facts(facts: Mapping[str, object]) -> bytes:
    return json.dumps(facts, indent=1, sort_keys=True).encode("utf-8") + b"\n"


def _parse(data: bytes, digest: str, store: ObjectStore, work: Path) -> StagedLayer:
    document: dict[str, Any] = json.loads(data)
    if document["version"] != _VERSION or document["digest"] != digest:
        raise ValueError("another layer, or another version")
    catalog, image = document["catalog"], document["image"]
    nested = NestedCatalog(layer_path(digest), Digest.parse(catalog["digest"]), int(catalog["bytes"]))
    content = Digest.parse(image["digest"]) if image["digest"] else None
    name = metadata_image_path(digest).rpartition(b"/")[2]
    entry = Entry(name, 0o100644, int(image["bytes"]), 0, 0, 0, 0, Flag(int(image["flags"])), content)
    chunks = tuple(Chunk(int(offset), int(size), Digest.parse(text)) for offset, size, text in image["chunks"])
    sealed = load_sealed(store, work, nested)
    return StagedLayer(digest, sealed, entry, chunks, format_facts(document["facts"]), dict(document["changes"]))
