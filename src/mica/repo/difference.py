"""What two trees of catalogs differ in: paths added, removed and changed, in the order of a walk.

A nested catalog that both trees have at the same place, with the same digest, is not opened: what is equal costs
nothing. In catalogs that differ, directories are walked side by side, so the order is that of the tree: a directory
before its members, siblings by bytes. Memory: a few rows for each directory on the way down; the catalogs on the way
down are open. The caller says how a catalog is opened. One thread.

Link counts and sizes of directories, numbers of hard link groups and the places where nested catalogs begin say nothing
about files and are not compared. Old revisions that are shown inside of a tree are not looked into, and `/.cvmfs`, the
place of them, is left out.
"""

import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mica.digest import PathHash, path_hash
from mica.errors import IntegrityError
from mica.repo.catalog import Catalog, NestedCatalog, RawRow, Row
from mica.repo.entry import Entry, Flag
from mica.texts import quoted, quoted_path

OpenCatalog = Callable[[NestedCatalog], AbstractContextManager[Catalog]]
_LEFT_OUT = b"/.cvmfs"
_LOOKS = Flag.EXTERNAL | Flag.DIRECT_IO | Flag.HIDDEN


class Found(NamedTuple):
    """A row and the catalog that has it, which is open until the next change is asked for."""

    catalog: Catalog
    row: Row

    @property
    def entry(self) -> Entry:
        return self.row.entry


class Change(NamedTuple):
    """One of the two is None for a path that only one tree has. `differs` names type, content, metadata."""

    path: bytes
    before: Found | None
    after: Found | None
    differs: tuple[str, ...] = ()


class _Place(NamedTuple):
    """A directory in one of the trees: its children's catalog."""

    catalog: Catalog
    nested: Callable[[], dict[bytes, NestedCatalog]]


@dataclass(slots=True)
class _Level:
    """A directory that is being walked, in both trees or in one of them."""

    path: bytes
    places: tuple[_Place | None, _Place | None]
    pairs: Iterator[tuple[Row | None, Row | None]]
    opened: ExitStack = field(default_factory=ExitStack)


def differences(
    before: NestedCatalog, after: NestedCatalog, open_catalog: OpenCatalog
) -> Generator[Change, None, None]:
    """From one root catalog to another; who stops early closes the generator. Raises what opening catalogs raises, and
    IntegrityError for rows that cannot be files."""
    if before.digest == after.digest:
        return
    with ExitStack() as opened:
        walk = _Walk(open_catalog)
        opened.callback(walk.close)
        yield from walk.run(before._replace(path=b""), after._replace(path=b""))


class _Walk:
    def __init__(self, open_catalog: OpenCatalog) -> None:
        self._open = open_catalog
        self._levels: list[_Level] = []

    def close(self) -> None:
        while self._levels:
            self._levels.pop().opened.close()

    def run(self, before: NestedCatalog, after: NestedCatalog) -> Iterator[Change]:
        with ExitStack() as opened:
            places = self._enter(before, opened), self._enter(after, opened)
            tops = [_found(place, place.catalog.find(b"")) for place in places]
            if None in tops:
                raise IntegrityError(f"Catalog {before.digest} or {after.digest} has no entry for its own root.")
            yield from self._compared(b"", tops[0], tops[1])
            self._begin(b"", places, opened.pop_all())
        while self._levels:
            level = self._levels[-1]
            pair = next(level.pairs, None)
            if pair is None:
                self._levels.pop().opened.close()
                continue
            rows = [_found(place, row) for place, row in zip(level.places, pair, strict=True)]
            name = next(found.entry.name for found in rows if found is not None)
            path = level.path + b"/" + name
            if path == _LEFT_OUT:
                continue
            yield from self._compared(path, rows[0], rows[1])
            self._descend(path, level, rows)

    def _compared(self, path: bytes, before: Found | None, after: Found | None) -> Iterator[Change]:
        if before is None or after is None:
            yield Change(path, before, after)
        elif differs := tuple(_differing(before, after)):
            yield Change(path, before, after, differs)

    def _descend(self, path: bytes, level: _Level, rows: Sequence[Found | None]) -> None:
        """Go into a directory of either tree, unless it is the same catalog in both."""
        below = [
            self._below(path, place, found) if found is not None and place is not None else None
            for place, found in zip(level.places, rows, strict=True)
        ]
        references = [each if isinstance(each, NestedCatalog) else None for each in below]
        if None not in references and references[0].digest == references[1].digest:  # type: ignore[union-attr]
            return
        with ExitStack() as opened:
            places = [self._enter(each, opened) if isinstance(each, NestedCatalog) else each for each in below]
            if places[0] is not None or places[1] is not None:
                self._begin(path, (places[0], places[1]), opened.pop_all())

    @staticmethod
    def _below(path: bytes, place: _Place, found: Found) -> "_Place | NestedCatalog | None":
        """Where the children of a row are; None if it has none that are to be looked at."""
        flags = found.entry.flags
        if not found.entry.is_directory or flags & Flag.BIND_MOUNTPOINT:
            return None
        if not flags & Flag.MOUNTPOINT:
            return place
        reference = place.nested().get(path)
        if reference is None:
            raise IntegrityError(f"Catalog {place.catalog.name} does not list its mountpoint {quoted_path(path)}.")
        return reference

    def _enter(self, reference: NestedCatalog, opened: ExitStack) -> _Place:
        catalog = opened.enter_context(self._open(reference))
        if catalog.root_prefix != reference.path:
            raise IntegrityError(f"Catalog {catalog.name} says it belongs to {quoted_path(catalog.root_prefix)}.")
        known: list[dict[bytes, NestedCatalog]] = []

        def nested() -> dict[bytes, NestedCatalog]:
            if not known:
                known.append({each.path: each for each in catalog.nested()})
            return known[0]

        return _Place(catalog, nested)

    def _begin(self, path: bytes, places: tuple[_Place | None, _Place | None], opened: ExitStack) -> None:
        self._levels.append(_Level(path, places, _pairs(path, places), opened))


def _pairs(path: bytes, places: tuple[_Place | None, _Place | None]) -> Iterator[tuple[Row | None, Row | None]]:
    """The members of a directory in both trees by name; those whose rows are equal only if they are directories."""
    key = path_hash(path)
    sides = [iter(()) if place is None else _members(place.catalog, key) for place in places]
    one, other = (next(side, None) for side in sides)
    while one is not None or other is not None:
        if one is not None and (other is None or one.name < other.name):
            yield one.row(), None
            one = next(sides[0], None)
        elif other is not None and (one is None or other.name < one.name):
            yield None, other.row()
            other = next(sides[1], None)
        else:
            assert one is not None
            assert other is not None
            if one.is_directory or one.columns != other.columns or one.is_chunked:
                yield one.row(), other.row()
            one, other = next(sides[0], None), next(sides[1], None)


def _members(catalog: Catalog, key: PathHash) -> Iterator[RawRow]:
    """Of a name that comes twice each would be gone into, and each of those below it again."""
    last = b""
    for member in catalog.raw_children_by_name(key):
        if member.name <= last:
            raise IntegrityError(f"Catalog {catalog.name} has a directory with the name {quoted(member.name)} twice.")
        last = member.name
        yield member


def _found(place: _Place | None, row: Row | None) -> Found | None:
    return None if place is None or row is None else Found(place.catalog, row)


def _differing(before: Found, after: Found) -> Iterator[str]:
    one, other = before.entry, after.entry
    if stat.S_IFMT(one.mode) != stat.S_IFMT(other.mode):
        yield "type"
        return
    if not one.is_directory and _content(before) != _content(after):
        yield "content"
    if _metadata(one) != _metadata(other):
        yield "metadata"


def _content(found: Found) -> Any:
    """What a program reads of a file, a link or a device; with digests in place of bytes."""
    entry = found.entry
    chunks = None
    if entry.digest is None and entry.flags & Flag.CHUNKED:
        chunks = [(chunk.size, chunk.digest) for chunk in found.catalog.chunks(found.row)]
    size = 0 if stat.S_ISLNK(entry.mode) else entry.size  # some publishers leave it out
    return size, entry.digest, entry.target, chunks


def _metadata(entry: Entry) -> Any:
    links = 0 if entry.is_directory else entry.links
    owner = entry.uid, entry.gid
    return entry.mode, owner, entry.mtime_s, entry.mtime_ns or 0, entry.xattrs, links, entry.flags & _LOOKS
