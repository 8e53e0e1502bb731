"""A repository as one tree of files: catalogs joined at their mountpoints, content through the client.

Inode numbers carry all state: catalog number << 40 | row, so nothing is remembered for a file however many there are.
Number 1 is the root. A hard link group has the inode of its first row. Old revisions below `/.cvmfs/snapshots` are
root catalogs with other paths inside; every path here is one *inside its catalog*, so they need no translation.
Implements `fuse/tree.py`; any thread.
"""

import errno
import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, ParamSpec, TypeVar

from mica.cache.partfiles import PartFile
from mica.digest import Digest, path_hash
from mica.errors import MicaError, in_one_line
from mica.fetch.client import RepositoryClient
from mica.fuse.tree import ROOT_INODE, Attributes, Child, OpenFile
from mica.logs import logger
from mica.metaimage.xattrs import is_directory_sign
from mica.repo.catalog import Catalog, NestedCatalog, Row, is_transition
from mica.repo.entry import Entry, Flag, parse_xattrs
from mica.repo.objectname import ObjectName, chunk_object, file_object
from mica.unionsigns import OVERLAY_PREFIX

_log = logger(__name__)
P = ParamSpec("P")
Result = TypeVar("Result")
_ROW_BITS = 40
_ROW_MASK = (1 << _ROW_BITS) - 1
_KNOWN_PATHS = 16384
_KNOWN_ROWS = 4096
"""Up to twice as many rows are kept, about 700 bytes each."""
_HIDDEN = int(Flag.HIDDEN)
_VARIABLE = re.compile(rb"\$\(([^():]*)(?::-([^()]*))?\)")


class _Mounted(NamedTuple):
    """A catalog in the tree: its number, its object, the inode it is mounted on."""

    number: int
    reference: NestedCatalog
    mountpoint: int


class _Found(NamedTuple):
    mounted: _Mounted
    catalog: Catalog
    row: Row


class RepositoryTree:
    """One revision. `variables` are the values for `$(NAME)` in symbolic links, which the stock client expands in a
    mounted repository; without them links stay as they are, as in an image."""

    def __init__(
        self, client: RepositoryClient, root: NestedCatalog, *, variables: Mapping[str, str] | None = None
    ) -> None:
        self._client = client
        self._variables = (
            None if variables is None else {os.fsencode(name): os.fsencode(value) for name, value in variables.items()}
        )
        self._lock = threading.Lock()
        self._mounted: dict[int, _Mounted] = {}
        self._by_mountpoint: dict[int, _Mounted] = {}
        self._add(root._replace(path=b""), ROOT_INODE)
        self._paths: OrderedDict[int, bytes] = OrderedDict()
        self._rows: dict[int, Row] = {}
        self._former_rows: dict[int, Row] = {}

    def attributes(self, inode: int) -> Attributes:
        found = self._find(inode)
        return self._attributes(inode, found.row.entry)

    def lookup(self, directory: int, name: bytes) -> Attributes:
        mounted, path = self._inside(directory)
        catalog = self._catalog(mounted)
        row = self._of(catalog.find_key(path_hash(path + b"/" + name)))
        if row.entry.name != name:
            raise OSError(errno.ENOENT, "no such name")
        inode = self._inode(mounted, catalog, row, path)
        if inode & _ROW_MASK == row.rowid:
            self._remember_row(inode, row)
        return self._attributes(inode, row.entry)

    def children(self, directory: int) -> Iterator[Child]:
        mounted, path = self._inside(directory)
        catalog = self._catalog(mounted)
        groups: dict[int, int] = {}
        for row in self._guard(catalog.children, path_hash(path)):
            entry = row.entry
            if entry.flags & _HIDDEN or not entry.name:
                continue
            rowid = groups.setdefault(entry.group, row.rowid) if entry.group else row.rowid
            inode = _inode_number(mounted, rowid)
            if rowid == row.rowid:
                self._remember_row(inode, row)
            yield Child(entry.name, self._attributes(inode, entry))

    def parent(self, directory: int) -> int:
        if directory == ROOT_INODE:
            return ROOT_INODE
        found = self._find(directory)
        key = found.catalog.parent_of(found.row.rowid)
        if key is None or key == path_hash(found.catalog.root_prefix):
            return found.mounted.mountpoint
        row = self._of(found.catalog.find_key(key))
        return _inode_number(found.mounted, row.rowid)

    def readlink(self, inode: int) -> bytes:
        return self._expanded(self.raw_target(inode))

    def raw_target(self, inode: int) -> bytes:
        """Target of a symbolic link as it was published, with its `$(NAME)`."""
        entry = self._find(inode).row.entry
        if not stat.S_ISLNK(entry.mode):
            raise OSError(errno.EINVAL, "not a symbolic link")
        return entry.target

    def xattrs(self, inode: int) -> dict[bytes, bytes]:
        """Of the attributes that overlayfs acts upon only the signs of directories show, whatever the catalog says."""
        xattrs = parse_xattrs(self._find(inode).row.entry.xattrs)
        return {
            key: value
            for key, value in xattrs.items()
            if not key.startswith(OVERLAY_PREFIX) or is_directory_sign(key, value)
        }

    def open(self, inode: int) -> OpenFile:
        found = self._find(inode)
        entry = found.row.entry
        if not entry.is_regular:
            raise OSError(errno.EINVAL, "not a regular file")
        external = self._path(inode, found) if entry.flags & Flag.EXTERNAL else None
        self._client.counter.add(files_opened=1)
        name = self._guard(file_object, entry)
        if name is not None:
            return WholeFile(self._guard(self._client.open_object, name, external))
        chunks = self._guard(found.catalog.chunks, found.row)
        part = self._guard(lambda: self._client.open_part(chunks, entry.compression))
        return ChunkedFile(self, part, external)

    def storage(self, inode: int) -> dict[str, object]:
        """How a regular file is stored, for people and JSON; empty for other kinds."""
        found = self._find(inode)
        entry = found.row.entry
        if not entry.is_regular:
            return {}
        facts: dict[str, object] = {"compression": self._guard(lambda: entry.compression).config_name}
        if entry.flags & Flag.EXTERNAL:
            facts["external"] = True
        if entry.digest is not None:
            return facts | {"object": entry.digest.text}
        chunks = self._guard(found.catalog.chunks, found.row)
        return facts | {"chunks": [{"offset": c.offset, "size": c.size, "object": c.digest.text} for c in chunks]}

    def objects(self, inode: int) -> list[ObjectName]:
        """The objects of a regular file's content, in order; none for other kinds."""
        found = self._find(inode)
        entry = found.row.entry
        if not entry.is_regular:
            return []
        name = self._guard(file_object, entry)
        if name is not None:
            return [name]
        chunks = self._guard(found.catalog.chunks, found.row)
        compression = self._guard(lambda: entry.compression)
        return [chunk_object(chunk, compression) for chunk in chunks]

    def row_of(self, inode: int) -> tuple[Catalog, Row]:
        """The published row of a file, and the catalog that has it."""
        found = self._find(inode)
        return found.catalog, found.row

    @property
    def attached_catalogs(self) -> int:
        """How many catalogs were needed so far, those of former revisions included."""
        return len(self._mounted)

    def catalog_of(self, inode: int) -> tuple[Digest, Catalog]:
        """The catalog that lists a directory's members, or, for other files, the one that has its entry."""
        found = self._find(inode)
        mounted = self._inside(inode)[0] if found.row.entry.is_directory else found.mounted
        return mounted.reference.digest, self._catalog(mounted)

    def advance(self, root: NestedCatalog) -> set[bytes]:
        """Show another revision from now on, and return the names in the root that the kernel has to forget.

        Inodes of the former revision stay valid for programs that still use them: its catalogs keep their numbers.
        """
        before = {child.name for child in self.children(ROOT_INODE)}
        with self._lock:
            self._add(root._replace(path=b""), ROOT_INODE)
        return before | {child.name for child in self.children(ROOT_INODE)}

    def statistics(self) -> tuple[int, int]:
        counters = self._catalog(self._by_mountpoint[ROOT_INODE]).counters()
        kinds = ("regular", "symlink", "special", "dir")
        entries = sum(counters.get(f"{scope}_{kind}", 0) for scope in ("self", "subtree") for kind in kinds)
        return entries, counters.get("self_file_size", 0) + counters.get("subtree_file_size", 0)

    def fetch_range(self, part: PartFile, offset: int, size: int, external: bytes | None) -> None:
        self._guard(self._client.fetch_range, part, offset, size, external)

    def external_path(self, inode: int) -> bytes | None:
        """For an external file its path in the repository, by which its servers know it; else None."""
        found = self._find(inode)
        is_external = found.row.entry.is_regular and found.row.entry.flags & Flag.EXTERNAL
        return self._path(inode, found) if is_external else None

    def _attributes(self, inode: int, entry: Entry) -> Attributes:
        mode, size, rdev = entry.mode, entry.size, 0
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            size, rdev = 0, entry.size
        elif stat.S_ISLNK(mode):
            size = len(self._expanded(entry.target))
        return Attributes(
            inode, mode, entry.links, entry.uid, entry.gid, rdev, size, entry.mtime_s, entry.mtime_ns or 0
        )

    def _expanded(self, target: bytes) -> bytes:
        variables = self._variables
        if variables is None or b"$(" not in target:
            return target
        return _VARIABLE.sub(lambda match: variables.get(match[1], match[2] or b""), target)

    def _find(self, inode: int) -> _Found:
        if inode == ROOT_INODE:
            mounted = self._by_mountpoint[ROOT_INODE]
            catalog = self._catalog(mounted)
            return _Found(mounted, catalog, self._of(catalog.find_key(path_hash(b""))))
        known = self._mounted.get(inode >> _ROW_BITS)
        if known is None:
            raise OSError(errno.ESTALE, "unknown inode")
        catalog = self._catalog(known)
        row = self._rows.get(inode) or self._former_rows.get(inode)
        return _Found(known, catalog, row or self._of(self._guard(catalog.find_rowid, inode & _ROW_MASK)))

    def _remember_row(self, inode: int, row: Row) -> None:
        """A program that looks up a name mostly opens it next. Rows never change, and a number stands for one row."""
        rows = self._rows
        rows[inode] = row
        if len(rows) >= _KNOWN_ROWS:
            self._former_rows, self._rows = rows, {}

    def _inside(self, directory: int) -> tuple[_Mounted, bytes]:
        """Where the children of a directory are: their catalog, and the directory's path inside that catalog."""
        mounted = self._by_mountpoint.get(directory)
        if mounted is not None:
            return mounted, self._catalog(mounted).root_prefix
        found = self._find(directory)
        if not found.row.entry.is_directory:
            raise OSError(errno.ENOTDIR, "not a directory")
        path = self._path(directory, found)
        if is_transition(found.row.entry):
            mounted = self._mount(directory, found, path)
            return mounted, self._catalog(mounted).root_prefix
        return found.mounted, path

    def _path(self, directory: int, found: _Found) -> bytes:
        """Path of an entry inside its own catalog, found by climbing to a directory whose path is known."""
        with self._lock:
            known = self._paths.get(directory)
        if known is not None:
            return known
        top = found.catalog.root_prefix
        if found.row.key == path_hash(top):
            return top
        key = found.catalog.parent_of(found.row.rowid)
        if key is None or key == path_hash(top):
            parent = top
        else:
            row = self._of(found.catalog.find_key(key))
            if row.rowid == found.row.rowid:
                raise OSError(errno.EIO, "a directory is its own parent")
            inode = _inode_number(found.mounted, row.rowid)
            parent = self._climb(inode, _Found(found.mounted, found.catalog, row))
        path = parent + b"/" + found.row.entry.name
        self._remember(directory, path)
        return path

    def _climb(self, inode: int, found: _Found) -> bytes:
        try:
            return self._path(inode, found)
        except RecursionError as error:
            raise OSError(errno.EIO, "directories lie deeper than any path can be, or in a circle") from error

    def _remember(self, directory: int, path: bytes) -> None:
        with self._lock:
            self._paths[directory] = path
            if len(self._paths) > _KNOWN_PATHS:
                self._paths.popitem(last=False)

    def _mount(self, directory: int, found: _Found, path: bytes) -> _Mounted:
        references = self._guard(
            found.catalog.bind_mountpoints if found.row.entry.flags & Flag.BIND_MOUNTPOINT else found.catalog.nested
        )
        for reference in references:
            if reference.path == path:
                break
        else:
            _log.warning("catalog %s does not list its mountpoint %r", found.catalog.name, path)
            raise OSError(errno.EIO, "mountpoint without a catalog")
        with self._lock:
            mounted = self._by_mountpoint.get(directory)
            return mounted or self._add(reference, directory)

    def _add(self, reference: NestedCatalog, mountpoint: int) -> _Mounted:
        mounted = _Mounted(len(self._mounted) + 1, reference, mountpoint)
        self._mounted[mounted.number] = mounted
        self._by_mountpoint[mountpoint] = mounted
        return mounted

    def _inode(self, mounted: _Mounted, catalog: Catalog, row: Row, directory: bytes) -> int:
        rowid = row.rowid
        if row.entry.group:
            rowid = self._guard(catalog.group_members, path_hash(directory), row.entry.group)[0]
        return _inode_number(mounted, rowid)

    def _catalog(self, mounted: _Mounted) -> Catalog:
        return self._guard(self._client.catalog, mounted.reference)

    @staticmethod
    def _of(row: Row | None) -> Row:
        if row is None:
            raise OSError(errno.ENOENT, "no such entry")
        return row

    def _guard(self, call: Callable[P, Result], *arguments: P.args, **options: P.kwargs) -> Result:
        """Make errors fit for programs: ours become EIO, are counted, and go to the log once."""
        try:
            return call(*arguments, **options)
        except MicaError as error:
            failure: Exception = error
            _log.error("%s", in_one_line(error))
        except ValueError as error:
            failure = error
            _log.error("a catalog entry is malformed: %s", error)
        self._client.counter.add(io_errors=1)
        raise OSError(errno.EIO, str(failure)) from failure


def _inode_number(mounted: _Mounted, rowid: int) -> int:
    """Raises OSError for a row number so large that it would mean another catalog's row: only hostile ones have it."""
    if not 0 < rowid <= _ROW_MASK:
        _log.error("catalog %s has a row with the impossible number %d", mounted.reference.digest.text, rowid)
        raise OSError(errno.EIO, "a row with an impossible number")
    return mounted.number << _ROW_BITS | rowid


class WholeFile:
    """A file whose content is one file of the cache."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, offset)

    def close(self) -> None:
        os.close(self.descriptor)


class ChunkedFile:
    """A large file: only the chunks that are read are fetched, until it is whole and a plain file of the cache."""

    def __init__(self, tree: RepositoryTree, part: PartFile, external: bytes | None) -> None:
        self._tree = tree
        self._part = part
        self._external = external

    @property
    def descriptor(self) -> int:
        return self._part.fd if self._part.is_whole else -1

    def read(self, offset: int, size: int) -> bytes:
        self._tree.fetch_range(self._part, offset, size, self._external)
        return os.pread(self._part.fd, size, offset)

    def close(self) -> None:
        """Nothing to do: the last reference closes it, since chunks that no read waits for may be on their way."""
        del self._part
