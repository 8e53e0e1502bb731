"""Archives into a repository: file data to objects as the archive streams by, then rows for its tree.

`read_archive` does the first half; `build_layer_catalog` makes a catalog of its own out of the tree, the same bytes for
the same archive wherever it is converted; `merge_archive` puts the tree into existing catalogs. One thread besides
those of the object writer.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from mica.errors import UserError
from mica.publish.catalogtree import (
    CatalogTree,
    SealedCatalog,
    base_name,
    directory_entry,
    parent_path,
    seal_catalog,
    shown,
)
from mica.publish.layertree import LayerReport, LayerTree, Mode
from mica.publish.objectwriter import HasContent, ObjectWriter
from mica.publish.treerows import TreeRows, entry_of
from mica.repo.catalogwriter import NO_COUNTS, CatalogWriter, Stamp
from mica.repo.entry import Entry
from mica.store.base import ObjectStore, Readable
from mica.tarstream import Kind, TarLimits, read_tar

_ROWS_AT_ONCE = 4096
RESERVED = b"/.cvmfs"
"""Where old revisions are shown; not for publishers to write to."""


class Archive(NamedTuple):
    """An archive whose file data is stored: the tree, and what was changed to fit."""

    tree: LayerTree
    report: LayerReport


def read_archive(
    stream: Readable,
    objects: ObjectWriter,
    *,
    mode: Mode,
    limits: TarLimits,
    require_end: bool,
    progress: Callable[[int], None] | None = None,
) -> Archive:
    """Read a tar to its end and store the content of every regular file in it. `progress` gets bytes of content."""
    tree = LayerTree(mode)
    for member in read_tar(stream, limits=limits, require_end=require_end):
        node = tree.add(member)
        if node is not None and member.kind is Kind.REGULAR:
            objects.add(cast("HasContent", node), member, member.size)
            if progress is not None:
                progress(member.size)
    objects.finish()
    return Archive(tree, tree.finish())


def build_layer_catalog(
    archive: Archive, mountpoint: bytes, tree_name: bytes, files: Sequence[Entry], *, store: ObjectStore, work: Path
) -> SealedCatalog:
    """Make and store a catalog of its own for `mountpoint`, with the tree under `tree_name` and `files` beside it.

    Its time stamp is that of the newest entry and its algorithm that of its files, so that it depends on nothing but
    the archive: whoever converts a layer gets the same catalog.
    """
    top = mountpoint + b"/" + tree_name
    rows = TreeRows(archive.tree, top)
    writer = CatalogWriter.create(work / "layer.sqlite", mountpoint, directory_entry(base_name(mountpoint)))
    try:
        writer.put_rows((mountpoint + b"/" + entry.name, entry) for entry in files)
        writer.put_rows(rows)
        for path, chunks in rows.chunks:
            writer.put_chunks(path, chunks)
        return seal_catalog(store, writer, Stamp(1, rows.newest_s), NO_COUNTS, files[0].algorithm)
    except BaseException:
        writer.discard()
        raise


def merge_archive(archive: Archive, catalogs: CatalogTree, base: bytes, *, nested: bool, marker: Entry) -> None:
    """Put the tree below a path: directories keep what they hold, everything else is replaced.

    With `nested` the path gets a catalog of its own; so does every directory with a marker file in the archive.
    """
    is_new = catalogs.find(base) is None
    _refuse_reserved(base)
    catalogs.make_directories(base, directory_entry(b""))
    _check_base(catalogs, base)
    if is_new:
        catalogs.set_attributes(base, entry_of(archive.tree.root, base_name(base)))
    if nested:
        catalogs.nest(base, marker)
    rows = TreeRows(archive.tree, base)
    fresh = _FreshRows(catalogs)
    for path, entry in rows:
        if path != base:
            _refuse_reserved(path)
            fresh.put(path, entry)
    fresh.flush()
    for path, chunks in rows.chunks:
        found = catalogs.find(path)
        assert found is not None
        catalogs.put(path, found, chunks)
    for directory in rows.marked:
        catalogs.nest(directory)


def _check_base(catalogs: CatalogTree, base: bytes) -> None:
    found = catalogs.find(base)
    if found is None or not found.is_directory:
        raise UserError(f"{shown(base)} in the repository is not a directory.")


def _refuse_reserved(path: bytes) -> None:
    if path == RESERVED or path.startswith(RESERVED + b"/"):
        raise UserError(f"{shown(path)} cannot be published: the name is reserved for the catalogs of old revisions.")


class _FreshRows:
    """Rows on their way into the catalogs: those below new directories need no look at what was there."""

    def __init__(self, catalogs: CatalogTree) -> None:
        self._catalogs = catalogs
        self._new: set[bytes] = set()
        self._rows: list[tuple[bytes, Entry]] = []
        self._parent = b""
        self._groups: dict[int, int] = {}

    def put(self, path: bytes, entry: Entry) -> None:
        parent = parent_path(path)
        if parent not in self._new:
            self.flush()
            if not self._is_new(path, entry):
                return
        if entry.is_directory:
            self._new.add(path)
        elif entry.group:
            entry = entry._replace(group=self._own_group(entry.group, parent))
        if parent != self._parent or len(self._rows) >= _ROWS_AT_ONCE:
            self.flush()
            self._parent = parent
        self._rows.append((path, entry))

    def flush(self) -> None:
        if self._rows:
            self._catalogs.put_rows(self._parent, self._rows)
            self._rows = []

    def _own_group(self, group: int, parent: bytes) -> int:
        """The archive's number of a hard link group as the catalog has it; a group never leaves its directory."""
        if group not in self._groups:
            self._groups[group] = self._catalogs.new_link_group(parent)
        return self._groups[group]

    def _is_new(self, path: bytes, entry: Entry) -> bool:
        """Whether a row is still to be written; an existing directory gets its attributes here."""
        found = self._catalogs.find(path)
        if found is None:
            return True
        if found.is_directory and entry.is_directory:
            self._catalogs.set_attributes(path, entry)
            return False
        self._catalogs.remove(path)
        return True
