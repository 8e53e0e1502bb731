"""Archives into a repository: file data to objects as the archive streams by, then rows for its tree.

`read_archive` does the first half. `build_layer_catalog` makes a catalog of its own out of the tree; the same archive
gives the same bytes on every host. `merge_archive` puts the tree into existing catalogs. One thread besides those of
the object writer.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from mica.errors import UserError
from mica.publish.balance import Directory, plan_split
from mica.publish.catalogtree import (
    CatalogTree,
    SealedCatalog,
    base_name,
    directory_entry,
    mountpoint_entry,
    parent_path,
    seal_catalog,
)
from mica.publish.layertree import LayerReport, LayerTree, Mode, Node
from mica.publish.objectwriter import HasContent, ObjectWriter
from mica.publish.rules import LAYER_CATALOGS, CatalogRules
from mica.publish.tagdirectories import RESERVED
from mica.publish.treerows import TreeRows, entry_of, marked_directories
from mica.repo.catalogwriter import CatalogWriter, Stamp, add_counts
from mica.repo.entry import MARKER, Entry, Flag
from mica.store.base import ObjectStore
from mica.streams import Readable
from mica.tarstream import Kind, TarLimits, read_tar
from mica.texts import quoted_path

MARKERS_MAX = 10_000
"""Most directories of a layer with catalogs of their own, which cost some milliseconds each."""
_ROWS_AT_ONCE = 4096


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
    archive: Archive,
    mountpoint: bytes,
    tree_name: bytes,
    files: Sequence[Entry],
    *,
    store: ObjectStore,
    work: Path,
    rules: CatalogRules = LAYER_CATALOGS,
) -> SealedCatalog:
    """Make and store a catalog of its own for `mountpoint`, with the tree under `tree_name` and `files` beside it, the
    first of which is the marker. It is split only if the tree is larger than `rules` allow.

    Its time stamp is that of the newest entry and its algorithm that of its files. So it depends on the archive alone:
    every conversion of a layer gives the same catalog.
    """
    is_large = sum(archive.report.counts.values()) >= rules.most
    parts = _LayerCatalogs(
        archive.tree, mountpoint + b"/" + tree_name, store, work / "layer.sqlite", files[0], rules if is_large else None
    )
    parts.nest_marked()
    return parts.build(mountpoint, directory_entry(base_name(mountpoint)), files)


class _LayerCatalogs:
    """The catalogs of one layer. The stock tools take every entry with a marker's name for a marker, and call it
    abandoned in a directory without a catalog of its own. So each such directory gets one; the entry stays as it was.
    A directory that gets one because of the tree's size gets a marker that is hidden: no container lists it.
    """

    def __init__(
        self, tree: LayerTree, place: bytes, store: ObjectStore, file: Path, marker: Entry, rules: CatalogRules | None
    ) -> None:
        """`place`: the path of the tree in the repository; `file`: for the catalog that is being written; `rules`: None
        if no catalog can be too large."""
        self._tree = tree
        self._place = place
        self._store = store
        self._file = file
        self._algorithm = marker.algorithm
        self._rules = rules
        self._marker = marker._replace(flags=marker.flags | Flag.HIDDEN)
        self._nested: dict[bytes, SealedCatalog] = {}

    def nest_marked(self) -> None:
        """Make the catalogs of all marked directories, inner ones first."""
        marked = marked_directories(self._tree)
        if len(marked) > MARKERS_MAX:
            raise UserError(
                f"The layer has {len(marked)} directories with a {MARKER.decode()}, more than {MARKERS_MAX}.",
                hint="Each of them needs a catalog of its own.",
            )
        for path, node in reversed(marked):
            place = self._place + path
            self._nested[path] = self.build(place, entry_of(node, base_name(place)), (), top=(path, node))

    def build(
        self, mountpoint: bytes, root: Entry, files: Sequence[Entry], *, top: tuple[bytes, Node] | None = None
    ) -> SealedCatalog:
        """The catalog that begins at `top`, which is its root, or at the tree's root, which then is in it."""
        if self._rules is not None:
            self._nest_heavy(top, self._rules)
        rows = TreeRows(self._tree, self._place, top=top, closed=self._nested)
        mounted: dict[bytes, SealedCatalog] = {}
        writer = CatalogWriter.create(self._file, mountpoint, root)
        try:
            writer.put_rows((mountpoint + b"/" + entry.name, entry) for entry in files)
            writer.put_rows(self._below(mountpoint, rows, mounted))
            for path, chunks in rows.chunks:
                writer.put_chunks(path, chunks)
            for path, sealed in mounted.items():
                writer.put_nested(sealed.nested._replace(path=path))
            below = add_counts(sealed.counters.total for sealed in mounted.values())
            return seal_catalog(self._store, writer, Stamp(1, rows.newest_s), below, self._algorithm)
        except BaseException:
            writer.discard()
            raise

    def _nest_heavy(self, top: tuple[bytes, Node] | None, rules: CatalogRules) -> None:
        """Make catalogs of subtrees if the one that begins at `top` would have too many entries."""
        walk = self._tree.walk(top, closed=self._nested)
        nodes = {path: node for path, node in walk if node.kind is Kind.DIRECTORY}
        directories = {
            path: Directory(
                parent_path(path),
                base_name(path),
                0 if path in self._nested else len(node.children),
                path not in self._nested,
            )
            for path, node in nodes.items()
        }
        if sum(directory.entries for directory in directories.values()) < rules.most:
            return
        for path in plan_split(top[0] if top else b"", directories, rules):
            place, node = self._place + path, nodes[path]
            root = entry_of(node, base_name(place))
            self._nested[path] = self.build(place, root, [self._marker], top=(path, node))

    def _below(
        self, mountpoint: bytes, rows: TreeRows, mounted: dict[bytes, SealedCatalog]
    ) -> Iterator[tuple[bytes, Entry]]:
        """The rows of a catalog below its root; `mounted` gets the catalogs that are mounted in it."""
        for path, entry in rows:
            if path == mountpoint:
                continue
            sealed = self._nested.get(path[len(self._place) :]) if self._nested and entry.is_directory else None
            if sealed is None:
                yield path, entry
            else:
                mounted[path] = sealed
                yield path, mountpoint_entry(sealed, entry.name)


def merge_archive(archive: Archive, catalogs: CatalogTree, base: bytes, *, nested: bool, marker: Entry) -> None:
    """Put the tree below a path: directories keep their other entries, everything else is replaced.

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
            _check_marker(path, entry)
            fresh.put(path, entry)
    fresh.flush()
    for path, chunks in rows.chunks:
        found = catalogs.find(path)
        assert found is not None
        catalogs.put(path, found, chunks)
    for path, _ in marked_directories(archive.tree):
        catalogs.nest(base + path)


def _check_base(catalogs: CatalogTree, base: bytes) -> None:
    found = catalogs.find(base)
    if found is None or not found.is_directory:
        raise UserError(f"{quoted_path(base)} in the repository is not a directory.")


def _check_marker(path: bytes, entry: Entry) -> None:
    if entry.name == MARKER and not entry.is_regular:
        raise UserError(f"{quoted_path(path)} is not a regular file, which a catalog marker has to be.")


def _refuse_reserved(path: bytes) -> None:
    if path == RESERVED or path.startswith(RESERVED + b"/"):
        raise UserError(
            f"{quoted_path(path)} cannot be published: the name is reserved for the catalogs of old revisions."
        )


class _FreshRows:
    """Rows on their way into the catalogs. Rows below new directories need no look at old entries."""

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
