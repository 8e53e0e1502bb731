"""The catalogs of a repository that is being changed: one tree of paths over all its catalog files.

Catalogs are loaded when a path leads into them and written back, children before parents, only if something in them
changed. Paths are absolute bytes without a trailing slash; the root is empty. One thread.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

from mica.digest import Algorithm, Digest, PathHash, Suffix, path_hash
from mica.errors import IntegrityError, NotFoundError, UserError
from mica.fetch.client import catalog_object
from mica.fetch.verify import copy_verified
from mica.files import mapped_os_errors
from mica.publish.balance import Directory, plan_split
from mica.publish.rules import CatalogRules
from mica.repo.catalog import COUNTERS, COUNTERS_SINCE, Catalog, NestedCatalog, Row, is_transition
from mica.repo.catalogwriter import NO_COUNTS, CatalogWriter, Counters, Stamp, add_counts, file_size, tree_below
from mica.repo.entry import AUTO_MARKER, MARKER, Chunk, Entry, Flag
from mica.repo.objects import Compression, pack, pack_stream
from mica.store.base import ObjectSource, ObjectStore
from mica.texts import quoted_path

WHOLE_BYTES = 64 << 20
"""A catalog of at most so many bytes is compressed in memory."""


class SealedCatalog(NamedTuple):
    """A finished catalog: its mountpoint, its object, its size in bytes, its counters, and its root entry."""

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


def mountpoint_entry(sealed: SealedCatalog, name: bytes) -> Entry:
    """The row of the root of a finished catalog in the catalog above."""
    return sealed.root._replace(name=name, flags=_mountpoint_flags(sealed.root))


def base_name(path: bytes) -> bytes:
    return path[path.rfind(b"/") + 1 :]


def parent_path(path: bytes) -> bytes:
    return path[: path.rfind(b"/")]


class CatalogTree:
    """All changes of one transaction."""

    def __init__(self, store: ObjectStore, work: Path, algorithm: Algorithm) -> None:
        """`work` is a directory for the catalog files that are being edited; nothing else uses it."""
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
        """The chunks of a file that has chunks."""
        branch = self._branch_of(path)
        row = branch.view.find(path)
        return tuple(branch.view.chunks(row)) if row is not None and row.entry.flags & Flag.CHUNKED else ()

    def nested_at(self, path: bytes) -> NestedCatalog | None:
        """The catalog that is mounted at a path, as it was loaded."""
        return self._branch_of(path).mountpoints.get(path)

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
            raise UserError(f"{quoted_path(path)} in the repository is not a directory.")
        for new in reversed(missing):
            self.put(new, entry._replace(name=base_name(new)))

    def set_attributes(self, path: bytes, entry: Entry) -> None:
        """Replace the metadata of a directory, also where it is a mountpoint. Raises NotFoundError without one."""
        row = self._existing(self._branch_of(path), path)
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
        """Remove an entry with everything below it; a missing one is no error."""
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
        owner.writer.put(path, mountpoint_entry(sealed, base_name(path)))
        owner.writer.put_nested(nested)
        owner.mountpoints[path] = nested
        owner.below = add_counts([owner.below, sealed.counters.total])
        owner.changed = True

    def bind(self, path: bytes, root: Entry, reference: NestedCatalog) -> None:
        """Show the root of an old revision at a path; an old revision that is bound there goes."""
        self.remove(path)
        owner = self._branch_below(parent_path(path))
        owner.writer.put(path, root._replace(name=base_name(path), flags=Flag.DIRECTORY | Flag.BIND_MOUNTPOINT))
        owner.writer.put_bind(reference._replace(path=path))
        owner.changed = True

    def bound(self, directory: bytes) -> dict[bytes, NestedCatalog]:
        """The old revisions bound below a directory, in its catalog."""
        references = self._branch_below(directory).view.bind_mountpoints()
        return {each.path: each for each in references if each.path.startswith(directory + b"/")}

    def nest(self, path: bytes, marker: Entry | None = None) -> None:
        """Give a directory a catalog of its own, with everything below it; `marker` is added if it has none.

        Raises NotFoundError without the directory.
        """
        owner = self._branch_of(path)
        row = self._existing(owner, path)
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

    def balance(self, rules: CatalogRules, marker: Callable[[], Entry]) -> None:
        """Split catalogs that have become too large, and merge those that were made so and have become small; only
        catalogs that changed. `marker` makes the empty file for a new one. Raises UserError for one that is too large
        and cannot be split."""
        self._balance(self._top, rules, marker)

    def recount(self, tell: Callable[[bytes], object]) -> None:
        """Compare the counters of every catalog with its rows and with the catalogs below it. Those that are wrong are
        told by their mountpoint, and the commit writes them right. Changes come after it, not before."""
        self._recount(self._top, tell)

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

    def _balance(self, branch: _Branch, rules: CatalogRules, marker: Callable[[], Entry]) -> None:
        for child in list(branch.children.values()):
            if any(each.changed for each in _all_branches(child)):
                self._balance(child, rules, marker)
                if _is_automatic(child) and child.view.row_counts()[0] < rules.fewest:
                    self._merge(branch, child)
        if not branch.changed and branch.mountpoint:
            return
        entries, _ = branch.view.row_counts()
        if rules.most and entries > rules.most:
            for path in _plan_split(branch, rules):
                owner = self._existing(branch, path).entry
                new = marker()._replace(uid=owner.uid, gid=owner.gid)
                self.nest(path, new)
                self.put(path + b"/" + AUTO_MARKER, new._replace(name=AUTO_MARKER))
            entries, _ = branch.view.row_counts()
        limit = rules.nested_limit if branch.mountpoint else rules.root_limit
        if limit and entries > limit:
            raise UserError(
                f"The catalog of {quoted_path(branch.mountpoint)} would have {entries} entries, more than {limit}.",
                hint="Every client downloads it whole. Spread the files over several directories.",
            )

    def _merge(self, owner: _Branch, child: _Branch) -> None:
        """Take the entries of a nested catalog into the one above, but for the two markers."""
        path = child.mountpoint
        for name in (MARKER, AUTO_MARKER):
            child.writer.forget(path + b"/" + name)
        root = self._existing(child, path).entry
        owner.below = _changed_by(owner.below, NO_COUNTS, child.before)
        owner.writer.forget_nested(path)
        del owner.children[path], owner.mountpoints[path]
        self._move_rows(child, owner, path, first_group=owner.next_group or owner.writer.next_group())
        owner.writer.put(path, root._replace(flags=root.flags & ~Flag.NESTED_ROOT))
        owner.changed = True
        child.writer.discard()

    def _recount(self, branch: _Branch, tell: Callable[[bytes], object]) -> None:
        below = NO_COUNTS
        for path in list(branch.mountpoints):
            child = self._child(branch, path)
            self._recount(child, tell)
            below = add_counts([below, child.before])
            if not any(each.changed for each in _all_branches(child)):
                # Its counts are known now: one open catalog less.
                child.writer.discard()
                del branch.children[path]
        view, stated = branch.view, branch.view.counters()
        known = [COUNTERS_SINCE.get(name, 0) <= view.schema_revision for name in COUNTERS]
        own = view.count()
        for scope, counts in (("self", own), ("subtree", below)):
            names = [f"{scope}_{name}" for name in COUNTERS]
            if any(is_known and stated.get(name) != n for name, n, is_known in zip(names, counts, known, strict=True)):
                branch.changed = True
        if branch.changed:
            tell(branch.mountpoint)
        else:  # an old catalog does not count everything
            own = tuple(count if is_known else 0 for count, is_known in zip(own, known, strict=True))
        branch.before, branch.below = add_counts([own, below]), below

    def _stamp_for(self, branch: _Branch, stamp: Stamp) -> Stamp:
        """Nested catalogs count their own commits; only the root follows the repository's revision."""
        if not branch.mountpoint:
            return stamp
        previous = None if branch.reference is None else branch.reference.digest
        return Stamp(branch.view.revision + 1, stamp.last_modified, previous)

    def _existing(self, owner: _Branch, path: bytes) -> Row:
        row = owner.view.find(path)
        if row is None:
            raise NotFoundError(f"There is no {quoted_path(path)} in the repository.")
        return row

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
        name = f"{reference.digest} of {quoted_path(reference.path)}"
        path = self._new_path()
        load_catalog(self._store, reference, path)
        writer = CatalogWriter.edit(path, name)
        view = writer.view(name)
        if view.root_prefix != reference.path:
            raise IntegrityError(f"Catalog {name} says it belongs to {quoted_path(view.root_prefix)}.")
        if view.find(reference.path) is None:
            raise IntegrityError(f"Catalog {name} has no row for its own root.")
        counters = view.counters()
        own = tuple(counters.get(f"self_{counter}", 0) for counter in COUNTERS)
        below = tuple(counters.get(f"subtree_{counter}", 0) for counter in COUNTERS)
        mountpoints = {nested.path: nested for nested in view.nested()}
        return _Branch(reference.path, writer, view, reference, add_counts([own, below]), below, mountpoints)

    def _drop_nested(self, owner: _Branch, path: bytes) -> None:
        if path not in owner.mountpoints:  # an old revision is bound there: its catalogs do not belong to this one
            owner.writer.forget_bind(path)
            return
        child = self._child(owner, path)
        owner.below = _changed_by(owner.below, NO_COUNTS, child.before)
        owner.writer.forget_nested(path)
        del owner.children[path], owner.mountpoints[path]
        for branch in _all_branches(child):
            branch.writer.discard()

    def _move_rows(self, owner: _Branch, branch: _Branch, path: bytes, *, first_group: int = 1) -> None:
        """Everything below a directory into another catalog; hard link groups are counted from a number there."""
        groups: dict[int, int] = {}
        plain: list[tuple[bytes, Entry]] = []
        for below, row in list(tree_below(owner.view, path)):
            entry = row.entry
            if entry.group:
                group = groups.setdefault(entry.group, len(groups) + first_group)
                entry = entry._replace(group=group)
            if entry.flags & Flag.CHUNKED:
                branch.writer.put(below, entry, owner.view.chunks(row))
                owner.writer.forget(below)
            else:
                plain.append((below, entry))
            if is_transition(entry):
                self._move_nested(owner, branch, below)
        branch.writer.put_rows(plain)
        owner.writer.forget_rows(below for below, _ in plain)
        branch.next_group = max(branch.next_group, first_group + len(groups))

    def _move_nested(self, owner: _Branch, branch: _Branch, path: bytes) -> None:
        if path not in owner.mountpoints:  # an old revision is bound there
            (bound,) = (each for each in owner.view.bind_mountpoints() if each.path == path)
            branch.writer.put_bind(bound)
            owner.writer.forget_bind(path)
            return
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


def seal_catalog(
    store: ObjectStore, writer: CatalogWriter, stamp: Stamp, below: Sequence[int], algorithm: Algorithm
) -> SealedCatalog:
    """Finish a catalog, compress and store it, and delete its file."""
    sealed = writer.seal(stamp, below)
    size = file_size(writer.path)
    digest = _store_catalog(store, writer.path, size, algorithm)
    writer.path.unlink()
    return SealedCatalog(NestedCatalog(b"", digest, size), sealed.counters, sealed.root)


def _store_catalog(store: ObjectStore, path: Path, size: int, algorithm: Algorithm) -> Digest:
    """A large catalog is compressed from file to file. It must depend on the size alone which one is large."""
    if size <= WHOLE_BYTES:
        packed = pack(path.read_bytes(), algorithm, Compression.ZLIB)
        store.put(packed.digest.object_path(Suffix.CATALOG), packed.stored)
        return packed.digest
    target = path.with_suffix(".packed")
    try:
        doing = mapped_os_errors(f"compress {path}", when_full="nothing was published")
        with doing, path.open("rb") as plain, target.open("wb") as file:
            digest = pack_stream(plain, file.write, algorithm)
        store.put_file(digest.object_path(Suffix.CATALOG), target)
    finally:
        target.unlink(missing_ok=True)
    return digest


def load_catalog(store: ObjectSource, reference: NestedCatalog, path: Path) -> None:
    """Write a catalog to a local file, verified and piece by piece."""
    stored = reference.digest.object_path(Suffix.CATALOG)
    doing = mapped_os_errors(f"write {path}", when_full="nothing was published")
    with store.open(stored) as stream, doing, path.open("wb") as file:
        try:
            copy_verified(stream, file, catalog_object(reference))
        except BaseException:
            path.unlink()
            raise


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


def _is_automatic(branch: _Branch) -> bool:
    return branch.view.find(branch.mountpoint + b"/" + AUTO_MARKER) is not None


def _plan_split(branch: _Branch, rules: CatalogRules) -> list[bytes]:
    """Paths of the directories that get catalogs of their own, inner ones first."""
    directories = {
        key: Directory(parent, name, entries, is_open)
        for key, parent, name, is_open, entries in branch.view.directories()
    }
    top = path_hash(branch.mountpoint)

    def path_of(key: PathHash) -> bytes:
        names = []
        while key != top:
            parent, name, *_ = directories[key]
            names.append(b"/" + name)
            key = cast("PathHash", parent)
        return branch.mountpoint + b"".join(reversed(names))

    return [path_of(key) for key in plan_split(top, directories, rules)]


def _mountpoint_flags(root: Entry) -> int:
    return root.flags & ~Flag.NESTED_ROOT | Flag.MOUNTPOINT
