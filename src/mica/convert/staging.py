"""Layers that are finished and not yet in any revision: a conversion goes on where an earlier one stopped.

A staged layer is a document with all that a commit needs, so that none reads the layer's catalog. It is kept in files:

    <home>/layers/<hex>.lock       held by the maker of the layer; others wait and find it done
    <home>/layers/<hex>.work/      its scratch; the next holder of the lock empties it
    <home>/layers/<hex>.json       a staged layer: its catalog and metadata image by digest, all their objects stored

`<hex>` is that of the compressed layer's digest. A staged layer is written after its objects are safe on disk and
removed when a revision holds it. Nothing else refers to its objects. So one that is found after a while is taken only
when all its objects are there, and each gets the present time: a collection of garbage leaves them alone then, and
forgets documents that are older than its grace period. Where a queue hands out layers, its table has the documents in
place of the files (`jobs/layertable.py`). Any thread, any process.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mica.digest import Digest, Suffix
from mica.files import locked, mapped_os_errors, replace_file
from mica.publish.catalogtree import SealedCatalog, base_name
from mica.publish.rootcatalog import refresh_tree
from mica.repo.catalog import COUNTERS, NestedCatalog
from mica.repo.catalogwriter import Counters
from mica.repo.entry import Chunk, Entry, Flag
from mica.store.base import REFRESH_AFTER_S, ObjectStore
from mica.thin.layout import hex_of, layer_path

STAGING_DIRECTORY = "layers"
"""Its name in a repository's directory (`ReleaseManager.directory`)."""
_VERSION = 3
_ROOT_FIELDS = ("mode", "size", "mtime_s", "mtime_ns", "uid", "gid", "flags", "links")
"""The directory of a layer is mica's own: it has no attributes and no content."""
STAGED_FOR_S = REFRESH_AFTER_S / 2
"""How long a staged layer is taken as it is."""
_PATIENCE_S = 24 * 3600.0
"""How long to wait for the maker of the same layer: as long as the largest one takes; a dead maker holds no lock."""


class StagedFile(NamedTuple):
    """A file that is to lie beside the layer."""

    entry: Entry
    chunks: tuple[Chunk, ...] = ()


@dataclass(frozen=True, slots=True)
class StagedLayer:
    """`beside`: its metadata image and its facts; `changes` counts what was changed to fit. All objects are stored."""

    digest: str
    diff_id: str
    sealed: SealedCatalog
    beside: tuple[StagedFile, ...]
    changes: Mapping[str, int]


class Staging:
    """The directory of one repository. `store` has the objects of its layers."""

    def __init__(self, directory: Path, store: ObjectStore) -> None:
        self._directory = directory
        self._store = store

    @contextlib.contextmanager
    def making(self, digest: str) -> Iterator[Path]:
        """Become the only maker of a layer, for a block that gets an empty scratch directory."""
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
        """A staged layer; None if there is none. A damaged one, or one that has lost objects, is forgotten.

        `work` is a directory for its catalogs. Raises UserError or TemporaryError if the store cannot be asked now;
        then the layer stays.
        """
        path = self._path(digest)
        with mapped_os_errors(f"read the staged layer {digest}"):
            try:
                data, stored_at = path.read_bytes(), path.stat().st_mtime
            except FileNotFoundError:
                return None
        layer = parse_staged(data, digest)
        is_young = stored_at > time.time() - STAGED_FOR_S
        if layer is None or not (is_stored(layer, self._store) if is_young else renew(layer, self._store, work)):
            self.forget(digest)
            return None
        if not is_young:
            with mapped_os_errors(f"touch {path}"):
                os.utime(path)
        return layer

    def keep(self, layer: StagedLayer) -> None:
        """Remember a layer whose objects are all stored."""
        self._store.sync()
        with mapped_os_errors(f"stage layer {layer.digest}"):
            replace_file(self._path(layer.digest), format_staged(layer))

    def forget(self, digest: str) -> None:
        self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._directory / f"{hex_of(digest)}.json"


def is_stored(layer: StagedLayer, store: ObjectStore) -> bool:
    """Whether the store still has the layer's catalog: who removes objects that nothing refers to removes it too."""
    return store.has(layer.sealed.nested.digest.object_path(Suffix.CATALOG))


def renew(layer: StagedLayer, store: ObjectStore, work: Path) -> bool:
    """Give all objects of a layer the present time; False if one is missing, or a catalog is damaged."""
    for file in layer.beside:
        objects = [(file.entry.digest, Suffix.FILE), *((chunk.digest, Suffix.CHUNK) for chunk in file.chunks)]
        if not all(store.refresh(digest.object_path(suffix)) for digest, suffix in objects if digest is not None):
            return False
    return refresh_tree(store, work, layer.sealed.nested._replace(path=layer_path(layer.digest)))


def format_staged(layer: StagedLayer) -> bytes:
    nested, counters = layer.sealed.nested, layer.sealed.counters
    document = {
        "version": _VERSION,
        "digest": layer.digest,
        "diff_id": layer.diff_id,
        "catalog": {
            "digest": nested.digest.text,
            "bytes": nested.size,
            "root": {name: int(getattr(layer.sealed.root, name)) for name in _ROOT_FIELDS},
            "own": dict(zip(COUNTERS, counters.own, strict=True)),
            "subtree": dict(zip(COUNTERS, counters.subtree, strict=True)),
        },
        "beside": [_format_file(file) for file in layer.beside],
        "changes": dict(layer.changes),
    }
    return json.dumps(document).encode("utf-8") + b"\n"


def parse_staged(data: bytes | str, digest: str) -> StagedLayer | None:
    """None for what `format_staged` of this version did not write for this layer."""
    try:
        return _staged_from(json.loads(data), digest)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _staged_from(document: dict[str, Any], digest: str) -> StagedLayer:
    if document["version"] != _VERSION or document["digest"] != digest:
        raise ValueError("another layer, or another version")
    catalog = document["catalog"]
    own, subtree = (tuple(int(catalog[name][counter]) for counter in COUNTERS) for name in ("own", "subtree"))
    root: dict[str, Any] = {name: int(catalog["root"][name]) for name in _ROOT_FIELDS}
    sealed = SealedCatalog(
        NestedCatalog(b"", Digest.parse(catalog["digest"]), int(catalog["bytes"])),
        Counters(own, subtree),
        Entry(base_name(layer_path(digest)), **root),
    )
    beside = tuple(_file_from(file, digest) for file in document["beside"])
    changes = {str(name): int(count) for name, count in document["changes"].items()}
    return StagedLayer(digest, str(document["diff_id"]), sealed, beside, changes)


def _format_file(file: StagedFile) -> dict[str, object]:
    entry = file.entry
    return {
        "name": entry.name.decode("ascii"),
        "bytes": entry.size,
        "flags": int(entry.flags),
        "digest": entry.digest.text if entry.digest else None,
        "chunks": [[chunk.offset, chunk.size, chunk.digest.text] for chunk in file.chunks],
    }


def _file_from(document: dict[str, Any], digest: str) -> StagedFile:
    name = str(document["name"]).encode("ascii")
    if not name.startswith(hex_of(digest).encode("ascii") + b".") or b"/" in name:
        raise ValueError("a file of another layer")
    content = Digest.parse(document["digest"]) if document["digest"] else None
    entry = Entry(name, 0o100644, int(document["bytes"]), 0, 0, 0, 0, Flag(int(document["flags"])), content)
    chunks = tuple(Chunk(int(offset), int(size), Digest.parse(text)) for offset, size, text in document["chunks"])
    return StagedFile(entry, chunks)
