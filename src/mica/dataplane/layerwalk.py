"""A layer tree as catalogs have it, walked for its metadata image: what a container shall see, in tree order.

The stock tools publish layers as they were in their archives, so the signs of AUFS are understood here: `.wh.NAME`
removes a name of lower layers, `.wh..wh..opq` makes its directory opaque, all else that begins with `.wh..wh.` is
AUFS's own and left out. Markers are left out too, except in layers that mica converted: there a file of that name
belongs to the image. Memory: some rows of each directory on the way down. One thread.
"""

import heapq
import stat
from collections.abc import Iterator
from functools import cached_property
from itertools import count
from typing import NamedTuple

from mica.dataplane.catalogpath import Located, open_catalog
from mica.digest import path_hash
from mica.errors import IntegrityError, NotFoundError, UserError
from mica.fetch.client import RepositoryClient
from mica.metaimage.fromcatalog import InodeMaker
from mica.metaimage.inode import PATH_MAX, Inode
from mica.repo.catalog import Catalog, NestedCatalog, Row, is_transition
from mica.repo.entry import MARKER, Entry, Flag
from mica.texts import quoted
from mica.thin.layout import metadata_images_of_tree
from mica.unionsigns import AUFS_PREFIX, OPAQUE, OPAQUE_MARKER, ORIGIN, WHITEOUT_PREFIX

_WHITEOUT = Inode(stat.S_IFCHR)


def walk_layer(client: RepositoryClient, top: Located, path: bytes, maker: InodeMaker) -> Iterator[tuple[bytes, Inode]]:
    """The tree at a row, which has that path; `maker` collects the chunk lists.

    Raises NotFoundError if it is no directory, IntegrityError for rows that cannot be files, and what fetching nested
    catalogs raises.
    """
    if not stat.S_ISDIR(top.row.entry.mode):
        raise NotFoundError(f"{quoted(path)} in {client.fqrn} is not a directory.")
    walk = _Walk(client, maker, keeps_markers=_is_converted(top, path))
    inode, directory = walk.enter(_Branch(top.catalog), path, top.row.entry, is_opaque=False)
    yield b"", inode
    pending = [directory]
    while pending:
        directory = pending[-1]
        for name, row in directory.children:
            below = directory.path + b"/" + name
            shown = below[len(path) :]
            if len(shown) > PATH_MAX:
                raise IntegrityError(f"{quoted(below)} in {client.fqrn} is too deep.")
            if row is None:
                yield shown, _WHITEOUT
            elif stat.S_ISDIR(row.entry.mode):
                inode, deeper = walk.enter(directory.branch, below, row.entry, is_opaque=name in directory.hidden)
                yield shown, inode
                pending.append(deeper)
                break
            else:
                yield shown, walk.file(directory, below, row)
        else:
            pending.pop()


def _is_converted(top: Located, path: bytes) -> bool:
    """Whether mica made the layer: its catalog begins above the tree. With other tools it begins at the tree."""
    above = path.rpartition(b"/")[0]
    return bool(metadata_images_of_tree(path)) and top.catalog.root_prefix == above


class _Branch:
    """A catalog on the way, and which kinds of rows it does not have, so that its directories need not be asked."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.has_groups = catalog.has_groups()
        self.has_whiteouts = catalog.has_prefix(WHITEOUT_PREFIX)

    @cached_property
    def nested(self) -> dict[bytes, NestedCatalog]:
        return {reference.path: reference for reference in self.catalog.nested()}


class _Group(NamedTuple):
    """A hard link group: its number in the image, its names in this directory, and what all of them must be."""

    number: int
    links: int
    entry: Entry


class _Directory:
    """A directory that the walk is in. `hidden` are the names that its whiteouts take away."""

    def __init__(self, branch: _Branch, path: bytes, *, keeps_markers: bool) -> None:
        self.branch = branch
        self._keeps_markers = keeps_markers
        self.path = path
        key = path_hash(path)
        markers = branch.catalog.names_with_prefix(key, WHITEOUT_PREFIX) if branch.has_whiteouts else []
        self.is_opaque = OPAQUE_MARKER in markers
        self.hidden = {name[len(WHITEOUT_PREFIX) :] for name in markers if not name.startswith(AUFS_PREFIX)}
        self.hidden -= {b"", b".", b".."}
        self.group_sizes = branch.catalog.group_sizes(key) if branch.has_groups else {}
        self.groups: dict[int, _Group] = {}
        self.children = self._children()

    def _children(self) -> Iterator[tuple[bytes, Row | None]]:
        """Sorted by name. A whiteout has no row; an entry of its name replaces it."""
        rows = ((row.entry.name, row) for row in self.branch.catalog.children_by_name(path_hash(self.path)))
        whiteouts = ((name, None) for name in sorted(self.hidden))
        last = None
        for name, row in heapq.merge(rows, whiteouts, key=_name_of):
            if (row is None and name != last) or (row is not None and self._is_shown(row.entry)):
                yield name, row
            last = name

    def _is_shown(self, entry: Entry) -> bool:
        if entry.name == MARKER and self.branch.catalog.root_prefix == self.path and not self._keeps_markers:
            return False
        return not entry.flags & Flag.HIDDEN and not entry.name.startswith(WHITEOUT_PREFIX)


def _name_of(child: tuple[bytes, Row | None]) -> bytes:
    return child[0]


class _Walk:
    """State that all directories of a walk share."""

    def __init__(self, client: RepositoryClient, maker: InodeMaker, *, keeps_markers: bool) -> None:
        self._client = client
        self._keeps_markers = keeps_markers
        self._maker = maker
        self._group_numbers = count(1)

    def enter(self, branch: _Branch, path: bytes, entry: Entry, *, is_opaque: bool) -> tuple[Inode, _Directory]:
        """A directory, from the catalog that is mounted there if one is."""
        if is_transition(entry):
            branch = _Branch(self._mounted(branch, path))
        directory = _Directory(branch, path, keeps_markers=self._keeps_markers)
        inode = self._maker.make(entry, (), group=0, links=1)
        if is_opaque or directory.is_opaque:
            inode = inode._replace(xattrs={**inode.xattrs, OPAQUE: b"y"})
        if directory.hidden:
            inode = inode._replace(xattrs={**inode.xattrs, ORIGIN: b""})
        return inode, directory

    def file(self, directory: _Directory, path: bytes, row: Row) -> Inode:
        entry = row.entry
        if entry.is_regular and entry.flags & Flag.EXTERNAL:
            raise UserError(
                f"{quoted(path)} in {self._client.fqrn} is an external file, which a layer's image cannot refer to.",
                hint="Mount the layers with --method repository.",
            )
        group, links = self._group_of(directory, path, entry) if entry.group else (0, 1)
        try:
            chunks = directory.branch.catalog.chunks(row) if entry.is_regular and entry.flags & Flag.CHUNKED else []
            return self._maker.make(entry, chunks, group=group, links=links)
        except ValueError as error:
            raise IntegrityError(f"{quoted(path)} in {self._client.fqrn} {error}.") from error

    def _group_of(self, directory: _Directory, path: bytes, entry: Entry) -> tuple[int, int]:
        known = directory.groups.get(entry.group)
        if known is None:
            links = directory.group_sizes.get(entry.group, 1)
            known = _Group(next(self._group_numbers) if links > 1 else 0, links, entry._replace(name=b""))
            directory.groups[entry.group] = known
        if entry._replace(name=b"") != known.entry:
            raise IntegrityError(f"{quoted(path)} in {self._client.fqrn} differs from the file that it is a link to.")
        return known.number, known.links

    def _mounted(self, branch: _Branch, path: bytes) -> Catalog:
        reference = branch.nested.get(path)
        if reference is None:
            raise IntegrityError(f"Catalog {branch.catalog.name} does not list the catalog of {quoted(path)}.")
        return open_catalog(self._client, reference)
