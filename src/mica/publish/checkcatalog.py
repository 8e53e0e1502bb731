"""Rules for one catalog (docs/format/catalog.md): every row, its place in the tree, and the counters.

`CatalogCheck.run` walks the tree of one catalog and yields faults and the objects that have to exist; afterwards
`mountpoints` has the nested catalogs to check next. Memory: the paths of directories that are not yet walked, and one
number for each hard link group. Called by `check.py`; no I/O but SQLite; one thread.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mica.digest import NULL_PATH_HASH, path_hash
from mica.errors import IntegrityError
from mica.publish.checkentry import broken_rules
from mica.publish.checkobjects import Finding, Wanted
from mica.repo.catalog import COUNTERS, COUNTERS_SINCE, Catalog, NestedCatalog, Row, is_transition
from mica.repo.catalogwriter import NO_COUNTS
from mica.repo.entry import MARKER, Chunk, Entry, Flag
from mica.repo.objectname import chunk_object, file_object
from mica.texts import printable, printable_path

NESTED_ENTRIES = 500_000
ROOT_ENTRIES = 200_000
FILE_BYTES = 1024 << 20
"""The reference checker warns above these limits: a catalog or file is downloaded whole, or opened slowly."""


class Mountpoint(NamedTuple):
    """A nested catalog and the entry that its parent has for it."""

    reference: NestedCatalog
    entry: Entry


class CatalogCheck:
    def __init__(self, catalog: Catalog, mounted: Mountpoint | None) -> None:
        """`mounted` is None for the root catalog."""
        self._catalog = catalog
        self._mounted = mounted
        self._top = mounted.reference.path if mounted else b""
        self._own = dict.fromkeys(COUNTERS, 0)
        self._groups: set[int] = set()
        self._nested = {nested.path: nested for nested in catalog.nested()}
        self._binds = {bind.path: bind for bind in catalog.bind_mountpoints()}
        self._is_whole = True
        self._visited = 0
        self._subdirectories = 0
        self._has_marker = False
        self._pending: list[tuple[bytes, int]] = []
        self.mountpoints: list[Mountpoint] = []
        """Filled by `run`: the catalogs mounted in this one, bind mountpoints left out."""

    @property
    def entries(self) -> int:
        return self._visited

    @property
    def total(self) -> tuple[int, ...]:
        """Own and subtree counters as the catalog states them, in the order of COUNTERS."""
        stated = self._catalog.counters()
        return tuple(stated.get(f"self_{name}", 0) + stated.get(f"subtree_{name}", 0) for name in COUNTERS)

    @property
    def below(self) -> tuple[int, ...]:
        """Subtree counters as the catalog states them."""
        stated = self._catalog.counters()
        return tuple(stated.get(f"subtree_{name}", 0) for name in COUNTERS)

    def run(self) -> Iterator[Finding | Wanted]:
        if damage := self._catalog.damage():
            yield self._error(self._top, f"its catalog {self._catalog.name} is damaged: {damage}")
        if self._catalog.root_prefix != self._top:
            yield self._error(self._top, f"its catalog says it belongs to {printable_path(self._catalog.root_prefix)}")
            return
        if set(self._nested) & set(self._binds):
            yield self._error(self._top, "its catalog has a nested catalog and a bind mountpoint at one path")
        root = self._catalog.find(self._top)
        if root is None:
            yield self._error(self._top, "its catalog has no entry for its own root")
            return
        yield from self._check_root(root)
        self._pending.append((self._top, root.entry.links))
        while self._pending:
            yield from self._check_directory(*self._pending.pop())
        yield from self._check_whole()

    def _check_root(self, row: Row) -> Iterator[Finding | Wanted]:
        entry = row.entry
        parent = path_hash(self._top[: self._top.rfind(b"/")]) if self._top else NULL_PATH_HASH
        if self._catalog.parent_of(row.rowid) != parent:
            yield self._error(self._top, "the root of its catalog has a wrong parent")
        if entry.name != self._top[self._top.rfind(b"/") + 1 :]:
            yield self._error(self._top, f"the root of its catalog has the name {printable(entry.name)}")
        if not entry.is_directory or bool(entry.flags & Flag.NESTED_ROOT) != bool(self._top) or is_transition(entry):
            yield self._error(self._top, f"the root of its catalog has wrong flags {entry.flags:#x}")
        if self._mounted is not None:
            yield from self._check_transition(self._mounted.entry, entry)
        yield from self._check_entry(self._top, row)

    def _check_transition(self, above: Entry, below: Entry) -> Iterator[Finding]:
        role = Flag.MOUNTPOINT | Flag.NESTED_ROOT
        above, below = above._replace(flags=above.flags & ~role), below._replace(flags=below.flags & ~role)
        for name, theirs, ours in zip(Entry._fields, above, below, strict=True):
            if theirs != ours:
                problem = f"its mountpoint and the root of its catalog differ in {name}: {theirs!r}, {ours!r}"
                yield self._error(self._top, problem)

    def _check_directory(self, path: bytes, links: int) -> Iterator[Finding | Wanted]:
        """Checks the children of a directory; directories among them are left pending."""
        children = self._catalog.children_by_name(path_hash(path))
        subdirectories = 0
        last = b""
        groups: dict[int, list[Row]] = {}
        while True:
            try:
                child = next(children, None)
            except IntegrityError as error:
                self._is_whole = False
                yield Finding("error", printable_path(path), str(error))
                return
            if child is None:
                break
            below = path + b"/" + child.entry.name
            if not child.entry.name:
                yield self._error(path, "it holds an entry without a name")
                self._is_whole = False
                continue
            if child.key != path_hash(below):
                yield self._error(below, "its key is not the hash of its path")
                self._is_whole = False
                continue
            if child.entry.name == last:
                # A catalog without a primary key. To walk both would take 2^n steps for n such directories in a row.
                yield self._error(below, "it is in its directory twice")
                self._is_whole = False
                continue
            last = child.entry.name
            yield from self._check_entry(below, child)
            if child.entry.group:
                groups.setdefault(child.entry.group, []).append(child)
            if child.entry.is_directory:
                subdirectories += 1
                if is_transition(child.entry):
                    yield from self._check_mountpoint(below, child)
                else:
                    self._pending.append((below, child.entry.links))
        yield from self._check_groups(path, groups)
        if links != subdirectories + 2:
            yield self._error(path, f"it has {links} links but {subdirectories} subdirectories")

    def _check_entry(self, path: bytes, row: Row) -> Iterator[Finding | Wanted]:
        self._visited += 1
        entry = row.entry
        self._count(entry)
        problems = list(broken_rules(entry))
        for problem in problems:
            yield self._error(path, f"it {problem}")
        if entry.name == MARKER and path != self._top:
            yield from self._check_marker(path)
        if entry.flags & Flag.NESTED_ROOT and path != self._top:
            yield self._error(path, "it is flagged as the root of a catalog but lies inside one")
        if entry.is_regular and entry.size > FILE_BYTES:
            yield Finding("warning", printable_path(path), f"It has {entry.size} bytes, more than {FILE_BYTES}.")
        if entry.is_regular and not problems:
            yield from self._wanted_objects(path, row)

    def _wanted_objects(self, path: bytes, row: Row) -> Iterator[Finding | Wanted]:
        entry = row.entry
        chunks: Sequence[Chunk] = ()
        if entry.flags & Flag.CHUNKED:
            try:
                chunks = self._catalog.chunks(row)
            except IntegrityError as error:
                self._is_whole = False
                yield Finding("error", printable_path(path), str(error))
                return
        self._own["chunks"] += len(chunks)
        if entry.flags & Flag.EXTERNAL:
            return
        for chunk in chunks:
            yield Wanted(printable_path(path), chunk_object(chunk, entry.compression))
        whole = file_object(entry)
        if whole is not None:
            yield Wanted(printable_path(path), whole)

    def _check_marker(self, path: bytes) -> Iterator[Finding]:
        """Only the name counts, as for the stock checker: a layer may have a directory or a link of that name."""
        if path == b"/" + MARKER:
            yield Finding("warning", printable_path(path), "A marker of a nested catalog means nothing at the top.")
        elif path != self._top + b"/" + MARKER:
            yield self._error(path, "it is a marker of a nested catalog where there is none")
        self._has_marker = True

    def _check_mountpoint(self, path: bytes, row: Row) -> Iterator[Finding]:
        is_bind = bool(row.entry.flags & Flag.BIND_MOUNTPOINT)
        reference = (self._binds if is_bind else self._nested).pop(path, None)
        if reference is None:
            yield self._error(path, "it is a mountpoint but its catalog is not listed")
        elif not is_bind:
            self.mountpoints.append(Mountpoint(reference, row.entry))
        if self._catalog.children(path_hash(path)):
            yield self._error(path, "it is a mountpoint but its parent's catalog has entries below it")

    def _check_groups(self, path: bytes, groups: dict[int, list[Row]]) -> Iterator[Finding]:
        for group, members in groups.items():
            first = members[0].entry
            if group in self._groups:
                yield self._error(path, f"it shares hard link group {group} with another directory")
            self._groups.add(group)
            if any(member.entry.links != len(members) for member in members):
                yield self._error(path, f"hard link group {group} has {len(members)} members and says {first.links}")
            if any(_same_file(first) != _same_file(member.entry) for member in members):
                yield self._error(path, f"the members of hard link group {group} differ")

    def _check_whole(self) -> Iterator[Finding]:
        """Checks that need all rows."""
        if self._top and not self._has_marker:
            yield self._error(self._top, f"its nested catalog has no {MARKER.decode()}")
        for path in (*self._nested, *self._binds):
            yield self._error(path, "a catalog is listed for it but it is no mountpoint")
        self._own["nested"] += len(self.mountpoints)
        rows, chunks = self._catalog.row_counts()
        if self._is_whole and rows != self._visited:
            yield self._error(self._top, f"its catalog has {rows - self._visited} entries that no directory holds")
        elif self._is_whole and chunks != self._own["chunks"]:
            extra = chunks - self._own["chunks"]
            yield self._error(self._top, f"its catalog has {extra} chunks that belong to no chunked file")
        elif self._is_whole:
            yield from self._check_counters()
        limit = NESTED_ENTRIES if self._top else ROOT_ENTRIES
        if self._visited > limit:
            yield Finding(
                "warning", printable_path(self._top), f"Its catalog has {self._visited} entries, more than {limit}."
            )

    def _check_counters(self) -> Iterator[Finding]:
        stated = self._catalog.counters()
        revision = self._catalog.schema_revision
        for name, value in self._own.items():
            if revision < COUNTERS_SINCE.get(name, 0):
                continue
            if f"self_{name}" not in stated or f"subtree_{name}" not in stated:
                yield self._error(self._top, f"its catalog lacks the counter {name}")
            elif stated[f"self_{name}"] != value:
                yield self._error(self._top, f"its catalog counts {stated[f'self_{name}']} {name}, there are {value}")

    def _count(self, entry: Entry) -> None:
        own = self._own
        own["xattr"] += entry.xattrs is not None
        if entry.is_regular:
            own["regular"] += 1
            own["file_size"] += entry.size
            if entry.flags & Flag.CHUNKED:
                own["chunked"] += 1
                own["chunked_size"] += entry.size
            if entry.flags & Flag.EXTERNAL:
                own["external"] += 1
                own["external_file_size"] += entry.size
        else:
            own["dir" if entry.is_directory else "symlink" if entry.target else "special"] += 1

    @staticmethod
    def _error(path: bytes, problem: str) -> Finding:
        return Finding("error", printable_path(path), f"{problem[0].upper()}{problem[1:]}.")


def check_subtree(mountpoint: bytes, stated: tuple[int, ...], children: tuple[int, ...]) -> Iterator[Finding]:
    """Subtree counters against the sums over the catalogs mounted directly below."""
    for name, ours, theirs in zip(COUNTERS, stated or NO_COUNTS, children, strict=True):
        if ours != theirs:
            sentence = f"Its catalog counts {ours} {name} in the catalogs below it, they say {theirs}."
            yield Finding("error", printable_path(mountpoint), sentence)


def _same_file(entry: Entry) -> Entry:
    return entry._replace(name=b"")
