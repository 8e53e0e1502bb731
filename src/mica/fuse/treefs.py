"""A `Tree` as a FUSE file system: the adapter between the protocol's requests and the tree's methods, and no more.

Read-only. Keeps no table of files: the node number is the tree's inode number, so memory is flat, and a successor of a
killed server understands every number that the kernel still knows. Called by `dispatch.py` from any number of threads.
"""

import errno
import os
from collections.abc import Callable, Mapping
from typing import Final

from mica.fuse import abi as fuse_abi
from mica.fuse.abi import ATTR_OUT, DIRENTPLUS, ENTRY_OUT, Buffer, Dirent, Entry, Opcode, OpenOut, Statfs
from mica.fuse.dispatch import Handler, Request
from mica.fuse.handles import Listings, OpenFiles
from mica.fuse.passthrough import BackingFiles
from mica.fuse.preload import Preloads
from mica.fuse.tree import ROOT_INODE, Attributes, Tree

# Operations without a handler are answered ENOSYS; then the kernel does the right thing by itself and asks no more:
# OPENDIR and RELEASEDIR (FUSE_NO_OPENDIR_SUPPORT; listings are cached then), FLUSH, FSYNC, FSYNCDIR, LSEEK, STATX,
# POLL, BMAP.
_WRITING: Final = (
    Opcode.SETATTR, Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME,
    Opcode.LINK, Opcode.WRITE, Opcode.SETXATTR, Opcode.REMOVEXATTR, Opcode.CREATE, Opcode.FALLOCATE, Opcode.RENAME2,
    Opcode.COPY_FILE_RANGE, Opcode.TMPFILE,
)  # fmt: skip
# The content of an inode never changes, and nothing is to be flushed: close(2) costs no round trip.
_OPEN_FLAGS = fuse_abi.FOPEN_KEEP_CACHE | fuse_abi.FOPEN_NOFLUSH
_PASSTHROUGH_FLAGS = fuse_abi.FOPEN_PASSTHROUGH | fuse_abi.FOPEN_NOFLUSH
_STATFS_BLOCK_BYTES = 4096


Magic = Callable[[int, bytes], bytes | None]
"""Value of a magic attribute of an inode, None if there is none of that name."""
ListedMagic = Callable[[int], list[bytes]]
"""Names of magic attributes that a listing of an inode's attributes shows."""


class TreeFileSystem:
    """The kernel believes names, attributes and absences for the given times; with 0 it asks every time. `backing` is
    the session's, if files are to pass through; `preloads` are connected with the session, if small files are to be
    given to the kernel as soon as they are opened."""

    def __init__(
        self,
        tree: Tree,
        *,
        entry_timeout_s: float,
        attr_timeout_s: float,
        negative_timeout_s: float = 0.0,
        backing: BackingFiles | None = None,
        preloads: Preloads | None = None,
        magic: Magic = lambda _inode, _name: None,
        listed_magic: ListedMagic = lambda _inode: [],
    ) -> None:
        self._tree = tree
        entry, attr = fuse_abi.validity(entry_timeout_s), fuse_abi.validity(attr_timeout_s)
        self._attr_valid = (attr.seconds, attr.nanoseconds)
        self._entry_valid = (entry.seconds, attr.seconds, entry.nanoseconds, attr.nanoseconds)
        negative = fuse_abi.validity(negative_timeout_s)
        self._absent = fuse_abi.format_entry_out(Entry(None, negative, negative)) if any(negative) else None
        self._magic = magic
        self._listed_magic = listed_magic
        self._files = OpenFiles(tree, backing, preloads)
        self._listings = Listings(tree)

    @property
    def handlers(self) -> Mapping[int, Handler]:
        return {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.READLINK: self._readlink,
            Opcode.OPEN: self._open,
            Opcode.READ: self._read,
            Opcode.RELEASE: self._release,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.STATFS: self._statfs,
            Opcode.IOCTL: _refuse_ioctl,
            **dict.fromkeys(_WRITING, _refuse_write),
        }

    def undelivered(self, opcode: int, payload: Buffer) -> None:
        if opcode == Opcode.OPEN and payload:
            self._files.release(fuse_abi.parse_open_out(payload).fh)

    def forgotten(self, nodeid: int, lookups: int) -> None:
        """Nothing to do: a number means the same for as long as the mount lives, whether the kernel knows it or not."""

    def forget_listings(self) -> None:
        """The tree has changed: directories that are being read are listed again."""
        self._listings.clear()

    def close(self) -> None:
        """Close the files that are still open. Call it after the session."""
        self._files.release_all()
        self._listings.clear()

    def _lookup(self, request: Request) -> Buffer:
        try:
            attributes = self._find(request.nodeid, fuse_abi.parse_name(request.body))
        except OSError as error:
            if error.errno == errno.ENOENT and self._absent is not None:
                return self._absent
            raise
        return ENTRY_OUT.pack(attributes.inode, 0, *self._entry_valid, *fuse_abi.attr_fields(attributes))

    def _find(self, directory: int, name: bytes) -> Attributes:
        if name == b".":  # these two only for file handles (fs/fuse/inode.c, fuse_get_dentry and fuse_get_parent)
            return self._tree.attributes(directory)
        if name == b"..":
            return self._tree.attributes(self._tree.parent(directory))
        if len(name) > fuse_abi.NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return self._tree.lookup(directory, name)

    def _getattr(self, request: Request) -> Buffer:
        return ATTR_OUT.pack(*self._attr_valid, 0, *fuse_abi.attr_fields(self._tree.attributes(request.nodeid)))

    def _readlink(self, request: Request) -> Buffer:
        return self._tree.readlink(request.nodeid)

    def _open(self, request: Request) -> Buffer:
        flags = fuse_abi.parse_open_flags(request.body)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            return _refuse_write(request)
        number, backing_id = self._files.open(request.nodeid)
        open_flags = _PASSTHROUGH_FLAGS if backing_id else _OPEN_FLAGS
        return fuse_abi.format_open_out(OpenOut(number, open_flags, backing_id))

    def _read(self, request: Request) -> Buffer:
        read = fuse_abi.parse_read_in(request.body)
        return self._files.read(read.fh, request.nodeid, read.offset, request.scratch[: read.size])

    def _release(self, request: Request) -> Buffer:
        self._files.release(fuse_abi.parse_release_in(request.body).fh)
        return b""

    def _readdir(self, request: Request) -> Buffer:
        read = fuse_abi.parse_read_in(request.body)
        entries = self._listings.entries(request.nodeid, read.offset)
        records = []
        room = read.size
        for index in range(read.offset, len(entries)):
            name, attributes = entries[index]
            room -= fuse_abi.dirent_size(name)
            if room < 0:
                break
            kind = fuse_abi.dirent_kind(attributes.mode)
            records.append(fuse_abi.format_dirent(Dirent(attributes.inode, index + 1, kind, name)))
        return _page(records, truncated=room < 0)

    def _readdirplus(self, request: Request) -> Buffer:
        """The costly steps are written out here: listing a tree with attributes spends nearly all its time here."""
        read = fuse_abi.parse_read_in(request.body)
        entries = self._listings.entries(request.nodeid, read.offset)
        valid = self._entry_valid
        records = []
        room = read.size
        for index in range(read.offset, len(entries)):
            name, attributes = entries[index]
            length = len(name)
            room -= (DIRENTPLUS.size + length + 7) & ~7
            if room < 0:
                break
            inode, mode, links, uid, gid, rdev, size, mtime_s, mtime_ns = attributes
            # Node number 0: the kernel takes nothing but the name of `.` and `..` (fuse_direntplus_link).
            node = 0 if index < 2 else inode
            records.append(
                DIRENTPLUS.pack(
                    node, 0, *valid,
                    inode, size, (size + 511) >> 9, mtime_s, mtime_s, mtime_s, mtime_ns, mtime_ns, mtime_ns,
                    mode, links, uid, gid, rdev, 4096, 0,
                    inode, index + 1, length, mode >> 12 & 15,
                )
            )  # fmt: skip
            records.append(name)
            records.append(fuse_abi.PADDING[length & 7])
        return _page(records, truncated=room < 0)

    def _getxattr(self, request: Request) -> Buffer:
        asked = fuse_abi.parse_getxattr_in(request.body)
        value = self._xattr(request.nodeid, asked.name)
        if value is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return _sized(value, asked.size)

    def _xattr(self, inode: int, name: bytes) -> bytes | None:
        """A file's own attribute comes before a magic one, so that copies are right. At the root the magic attribute
        comes first: the mount describes itself there, not the repository."""
        own = self._tree.xattrs(inode).get(name)
        if own is not None and inode != ROOT_INODE:
            return own
        magic = self._magic(inode, name)
        return own if magic is None else magic

    def _listxattr(self, request: Request) -> Buffer:
        size = fuse_abi.parse_listxattr_in(request.body)
        own = self._tree.xattrs(request.nodeid)
        names = [*own, *(name for name in self._listed_magic(request.nodeid) if name not in own)]
        return _sized(fuse_abi.format_xattr_names(names), size)

    def _statfs(self, request: Request) -> Buffer:  # noqa: ARG002 - all nodes are on one file system
        entries, size = self._tree.statistics()
        blocks = -(-size // _STATFS_BLOCK_BYTES)
        return fuse_abi.format_statfs_out(Statfs(blocks=blocks, bfree=0, bavail=0, files=entries, ffree=0))


def _page(records: list[bytes], *, truncated: bool) -> bytes:
    if truncated and not records:  # an empty answer would mean the end
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return b"".join(records)


def _sized(value: bytes, size: int) -> bytes:
    """The answer to GETXATTR and LISTXATTR, in two steps: its length for size 0, else its bytes."""
    if size == 0:
        return fuse_abi.format_getxattr_out(len(value))
    if len(value) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def _refuse_write(_: Request) -> Buffer:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def _refuse_ioctl(_: Request) -> Buffer:
    raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
