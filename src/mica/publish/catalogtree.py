"""The catalogs of a repository being changed: one tree of paths over as many catalog files as it takes.

Catalogs are loaded when a path leads into them and written back, children before parents, only if something in them
changed. Paths are absolute bytes without a trailing slash; the root is empty. One thread.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mica.digest import Algorithm, Digest, Suffix, path_hash
from mica.errors import IntegrityError, UserError
from mica.repo.catalog import COUNTERS, Catalog, NestedCatalog, is_transition
from mica.repo.catalogwriter import NO_COUNTS, CatalogWriter, Counters, Stamp, add_counts, file_size, tree_below
from mica.repo.entry import MARKER, Chunk, Entry, Flag
from mica.repo.objects import Compression, pack, unpack
from mica.store.base import ObjectStore, read_limited

CATALOG_LIMIT = 4 << 30
"""Bytes of a catalog file, and of its object, that are accepted at most."""


class SealedCatalog(NamedTuple):
    """A finished catalog: where it is mounted, its object, its size in bytes, its counters, and its root entry."""

    nested: NestedCatalog
    counters: Counters
    root: Entry


@dataclass(slots=True)
class _Branch:
    """One loaded catalog: `before` its totals when it was loaded, `below` the subtree counters kept by differences."""

    mountpoint: bytes
    writer: CatalogWriter
    view: Catalog
    reference: NestedCatalog | None
    before: tuple[int, ...]
    below: tuple[int, ...]
    mountpoints: dict[bytes, NestedCatalog] = field(default_factory=dict)
    children: dict[bytes, "_Branch"] = field(default_factory=dict)
    changed: bool = False
    next_group: int = 0


def directory_entry(name: bytes, mode: int = 0o755, *, uid: int = 0, gid: int = 0, mtime_s: int = 0) -> Entry:
    return Entry(name, 0o040000 | mode, 4096, mtime_s, 0, uid, gid, Flag.DIRECTORY, links=2)


def base_name(path: bytes) -> bytes:
    return path[path.rfind(b"/") + 1 :]


def parent_path(path: bytes) -> bytes:
    return path[: path.rfind(b"/")]


class CatalogTree:
    """All changes of one transaction."""

    def __init__(self, store: ObjectStore, work: Path, algorithm: Algorithm) -> None:
        """`work` is a directory of our own for catalog files being edited."""
        self._store = store
        self._work = work
        self._algorithm = algorithm
        self._serial = 0
        self._root: _Branch | None = None

    def load(self, root: NestedCatalog) -> None:
        self._root = self._load(root._replace(path=b""))

    def begin(self, root: Entry) -> None:
        """Start an empty repository."""
        writer = CatalogWriter.create(self._new_path(), b"", root)
        self._root = _Branch(b"", writer, writer.view("(new)"), None, NO_COUNTS, NO_COUNTS, changed=True)

    @property
    def root_catalog(self) -> Catalog:
        return self._top.view

    def find(self, path: bytes) -> Entry | None:
        row = self._branch_of(path).view.find(path)
        return None if row is None else row.entry

    def children(self, path: bytes) -> list[Entry]:
        return [row.entry for row in self._branch_below(path).view.children(path_hash(path))]

    def chunks(self, path: bytes) -> tuple[Chunk, ...]:
        """Those of a file that has some."""
        branch = self._branch_of(path)
        row = branch.view.find(path)
        return tuple(branch.view.chunks(row)) if row is not None and row.entry.flags & Flag.CHUNKED else ()

    def put(self, path: bytes, entry: Entry, chunks: Sequence[Chunk] = ()) -> None:
        """Add or replace an entry that is no mountpoint; its parent must be a directory."""
        branch = self._branch_below(parent_path(path))
        branch.writer.put(path, entry, chunks)
        branch.changed = True

    def put_rows(self, parent: bytes, rows: list[tuple[bytes, Entry]]) -> None:
        """Add many entries without chunks that lie below `parent` in the same catalog as its children."""
        branch = self._branch_below(parent)
        branch.writer.put_rows(rows)
        branch.changed = True

    def new_link_group(self, directory: bytes) -> int:
        """A number for a hard link group among the children of a directory, free in their catalog."""
        branch = self._branch_below(directory)
        number = branch.next_group or branch.writer.next_group()
        branch.next_group = number + 1
        return number

    def make_directories(self, path: bytes, entry: Entry) -> None:
        """Make a directory and the missing ones above it, all with the metadata of `entry`."""
        missing = []
        while path and (found := self.find(path)) is None:
            missing.append(path)
            path = parent_path(path)
        if path and found is not None and not found.is_directory:
            raise UserError(f"{shown(path)} in the repository is not a directory.")
        for new in reversed(missing):
            self.put(new, entry._replace(name=base_name(new)))

    def set_attributes(self, path: bytes, entry: Entry) -> None:
        """Replace the metadata of an existing directory, also where it is a mountpoint."""
        row = self._branch_of(path).view.find(path)
        assert row is not None
        transition = row.entry.flags & (Flag.MOUNTPOINT | Flag.BIND_MOUNTPOINT | Flag.NESTED_ROOT)
        kept = entry._replace(name=row.entry.name, links=row.entry.links)
        owner = self._branch_of(path)
        owner.writer.put(path, kept._replace(flags=Flag.DIRECTORY | transition))
        owner.changed = True
        if is_transition(row.entry):
            child = self._branch_below(path)
            child.writer.put(path, kept._replace(flags=Flag.DIRECTORY | Flag.NESTED_ROOT))
            child.changed = True

    def remove(self, path: bytes) -> None:
        """Remove an entry with everything below it; one that is not there is no error."""
        owner = self._branch_of(path)
        row = owner.view.find(path)
        if row is None:
            return
        if is_transition(row.entry):
            self._drop_nested(owner, path)
        elif row.entry.is_directory:
            for below, child in list(tree_below(owner.view, path)):
                if is_transition(child.entry):
                    self._drop_nested(owner, below)
                owner.writer.forget(below)
        owner.writer.forget(path)
        owner.changed = True

    def attach(self, path: bytes, sealed: SealedCatalog) -> None:
        """Mount a finished catalog at a path that does not exist yet."""
        owner = self._branch_below(parent_path(path))
        nested = sealed.nested._replace(path=path)
        owner.writer.put(path, sealed.root._replace(name=base_name(path), flags=_mountpoint_flags(sealed.root)))
        owner.writer.put_nested(nested)
        owner.mountpoints[path] = nested
        owner.below = add_counts([owner.below, sealed.counters.total])
        owner.changed = True

    def nest(self, path: bytes, marker: Entry | None = None) -> None:
        """Give a directory a catalog of its own, with everything below it; `marker` is added if it has none."""
        owner = self._branch_of(path)
        row = owner.view.find(path)
        assert row is not None
        if is_transition(row.entry) or not path:
            return
        writer = CatalogWriter.create(self._new_path(), path, row.entry)
        branch = _Branch(path, writer, writer.view("(new)"), None, NO_COUNTS, NO_COUNTS, changed=True)
        self._move_rows(owner, branch, path)
        if marker is not None and branch.view.find(path + b"/" + MARKER) is None:
            writer.put(path + b"/" + MARKER, marker)
        owner.writer.put(path, row.entry._replace(flags=_mountpoint_flags(row.entry)))
        owner.children[path] = branch
        owner.mountpoints[path] = NestedCatalog(path, Digest(b"", self._algorithm), 0)  # known at commit
        owner.changed = True

    def commit(self, stamp: Stamp) -> SealedCatalog:
        """Store every changed catalog, children first, and return the root. The tree is used up."""
        top = self._top
        top.changed = True
        sealed = self._commit(top, stamp)
        self._root = None
        return sealed

    def close(self) -> None:
        """Drop everything that was not committed."""
        if self._root is not None:
            for branch in list(_all_branches(self._root)):
                branch.writer.discard()
            self._root = None

    @property
    def _top(self) -> _Branch:
        assert self._root is not None, "load or begin comes first"
        return self._root

    def _commit(self, branch: _Branch, stamp: Stamp) -> SealedCatalog:
        for path, child in branch.children.items():
            if not any(each.changed for each in _all_branches(child)):
                for each in _all_branches(child):
                    each.writer.discard()
                continue
            sealed = self._commit(child, stamp)
            branch.below = _changed_by(branch.below, sealed.counters.total, child.before)
            branch.writer.put_nested(sealed.nested._replace(path=path))
            branch.writer.put(path, sealed.root._replace(flags=_mountpoint_flags(sealed.root)))
        return seal_catalog(self._store, branch.writer, self._stamp_for(branch, stamp), branch.below, self._algorithm)

    def _stamp_for(self, branch: _Branch, stamp: Stamp) -> Stamp:
        """Nested catalogs count their own commits; only the root follows the repository's revision."""
        if not branch.mountpoint:
            return stamp
        previous = None if branch.reference is None else branch.reference.digest
        return Stamp(branch.view.revision + 1, stamp.last_modified, previous)

    def _branch_of(self, path: bytes) -> _Branch:
        """The catalog that holds the row of a path; for a mountpoint that is the parent."""
        return self._descend([path[:at] for at in _slashes(path)])

    def _branch_below(self, path: bytes) -> _Branch:
        """The catalog that holds the children of a directory."""
        return self._descend([path[:at] for at in (*_slashes(path), len(path))])

    def _descend(self, prefixes: list[bytes]) -> _Branch:
        branch = self._top
        for prefix in prefixes:
            if prefix in branch.mountpoints:
                branch = self._child(branch, prefix)
        return branch

    def _child(self, branch: _Branch, path: bytes) -> _Branch:
        child = branch.children.get(path)
        if child is None:
            child = branch.children[path] = self._load(branch.mountpoints[path])
        return child

    def _load(self, reference: NestedCatalog) -> _Branch:
        name = f"{reference.digest} of {shown(reference.path)}"
        stored = read_limited(self._store, reference.digest.object_path(Suffix.CATALOG), CATALOG_LIMIT)
        path = self._new_path()
        path.write_bytes(unpack(stored, reference.digest, limit=reference.size or CATALOG_LIMIT))
        writer = CatalogWriter.edit(path, name)
        view = writer.view(name)
        if view.root_prefix != reference.path:
            raise IntegrityError(f"Catalog {name} says it belongs to {shown(view.root_prefix)}.")
        counters = view.counters()
        own = tuple(counters.get(f"self_{counter}", 0) for counter in COUNTERS)
        below = tuple(counters.get(f"subtree_{counter}", 0) for counter in COUNTERS)
        mountpoints = {nested.path: nested for nested in view.nested()}
        return _Branch(reference.path, writer, view, reference, add_counts([own, below]), below, mountpoints)

    def _drop_nested(self, owner: _Branch, path: bytes) -> None:
        if path not in owner.mountpoints:  # an old revision bound there: its catalogs are nobody's below this one
            owner.writer.forget_bind(path)
            return
        child = self._child(owner, path)
        owner.below = _changed_by(owner.below, NO_COUNTS, child.before)
        owner.writer.forget_nested(path)
        del owner.children[path], owner.mountpoints[path]
        for branch in _all_branches(child):
            branch.writer.discard()

    def _move_rows(self, owner: _Branch, branch: _Branch, path: bytes) -> None:
        groups: dict[int, int] = {}
        for below, row in list(tree_below(owner.view, path)):
            entry = row.entry
            if entry.group:
                group = groups.setdefault(entry.group, len(groups) + 1)
                entry = entry._replace(group=group)
            chunks = owner.view.chunks(row) if entry.flags & Flag.CHUNKED else ()
            branch.writer.put(below, entry, chunks)
            owner.writer.forget(below)
            if is_transition(entry):
                self._move_nested(owner, branch, below)

    def _move_nested(self, owner: _Branch, branch: _Branch, path: bytes) -> None:
        child = self._child(owner, path)
        owner.below = _changed_by(owner.below, NO_COUNTS, child.before)
        branch.below = add_counts([branch.below, child.before])
        owner.writer.forget_nested(path)
        branch.writer.put_nested(owner.mountpoints[path])
        branch.mountpoints[path] = owner.mountpoints.pop(path)
        branch.children[path] = owner.children.pop(path)

    def _new_path(self) -> Path:
        self._serial += 1
        return self._work / f"catalog-{self._serial}.sqlite"


def shown(path: bytes) -> str:
    """A path for messages: text as far as it is text, quoted."""
    return repr((path or b"/").decode("utf-8", "surrogateescape"))


def seal_catalog(
    store: ObjectStore, writer: CatalogWriter, stamp: Stamp, below: Sequence[int], algorithm: Algorithm
) -> SealedCatalog:
    """Finish a catalog, compress and store it, and delete its file."""
    sealed = writer.seal(stamp, below)
    size = file_size(writer.path)
    packed = pack(writer.path.read_bytes(), algorithm, Compression.ZLIB)
    store.put(packed.digest.object_path(Suffix.CATALOG), packed.stored)
    writer.path.unlink()
    return SealedCatalog(NestedCatalog(b"", packed.digest, size), sealed.counters, sealed.root)


def load_sealed(store: ObjectStore, work: Path, nested: NestedCatalog) -> SealedCatalog:
    """A finished catalog from its object, as `seal_catalog` returned it; `nested.path` is where it is mounted.

    Raises NotFoundError if the store does not have it, IntegrityError if it is not that catalog.
    """
    what = f"{nested.digest} of {shown(nested.path)}"
    stored = read_limited(store, nested.digest.object_path(Suffix.CATALOG), CATALOG_LIMIT)
    path = work / "sealed.sqlite"
    path.write_bytes(unpack(stored, nested.digest, limit=nested.size))
    try:
        with contextlib.closing(Catalog.open(path, what)) as catalog:
            row = catalog.find(nested.path)
            if row is None:
                raise IntegrityError(f"Catalog {what} says it belongs to {shown(catalog.root_prefix)}.")
            counts = catalog.counters()
            own = tuple(counts.get(f"self_{counter}", 0) for counter in COUNTERS)
            below = tuple(counts.get(f"subtree_{counter}", 0) for counter in COUNTERS)
            return SealedCatalog(nested._replace(path=b""), Counters(own, below), row.entry)
    finally:
        path.unlink()


def _slashes(path: bytes) -> Iterator[int]:
    at = path.find(b"/", 1)
    while at > 0:
        yield at
        at = path.find(b"/", at + 1)


def _all_branches(branch: _Branch) -> Iterator[_Branch]:
    yield branch
    for child in branch.children.values():
        yield from _all_branches(child)


def _changed_by(counts: Sequence[int], new: Sequence[int], old: Sequence[int]) -> tuple[int, ...]:
    return tuple(count + plus - minus for count, plus, minus in zip(counts, new, old, strict=True))


def _mountpoint_flags(root: Entry) -> int:
    return root.flags & ~Flag.NESTED_ROOT | Flag.MOUNTPOINT
