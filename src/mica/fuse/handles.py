"""What `treefs.py` keeps between requests: open files by handle, and directories that are being read.

No answer depends on it: a handle or listing that is not known (the server was replaced, the listing was dropped) is
made again from the inode number and the offset. Any thread.
"""

import errno
import itertools
import os
import secrets
import threading
from collections import OrderedDict
from typing import NamedTuple

from mica.fuse.passthrough import BackingFiles
from mica.fuse.preload import Preloads
from mica.fuse.tree import ROOT_INODE, Attributes, Child, OpenFile, Tree

# Entries kept of listings that are being read, about 400 bytes each; the newest listing is kept whatever its size.
_MAX_LISTED = 1 << 16


class Opened(NamedTuple):
    """A handle, and the id of the backing file through which the kernel reads; 0 if it asks us."""

    number: int
    backing_id: int


class OpenFiles:
    """The first handle is random, so that a handle from a predecessor of this process is not mistaken for ours."""

    def __init__(self, tree: Tree, backing: BackingFiles | None = None, preloads: Preloads | None = None) -> None:
        self._tree = tree
        self._backing = backing
        self._preloads = preloads
        self._numbers = itertools.count(secrets.randbits(62))
        self._handles: dict[int, _Handle] = {}

    def __len__(self) -> int:
        return len(self._handles)

    def open(self, inode: int) -> Opened:
        handle = _Handle(inode, self._tree.open(inode))
        backing_id = 0
        if self._backing is not None:
            backing_id = self._backing.open(inode, handle.file.descriptor)
            if backing_id:
                # The kernel has the file open itself and asks us no more; a descriptor would count against our limit.
                handle.release()
        if self._preloads is not None and not backing_id and handle.file.descriptor >= 0:
            self._preloads.offer(inode, handle.file.descriptor)
        number = next(self._numbers)
        self._handles[number] = handle
        return Opened(number, backing_id)

    def read(self, number: int, inode: int, offset: int, scratch: memoryview) -> bytes | memoryview:
        """Up to the length of scratch, which may hold the result; less only at the end of the file."""
        handle = self._handles.get(number)
        if handle is not None:
            return handle.read(offset, scratch)
        handle = _Handle(inode, self._tree.open(inode))
        try:
            return handle.read(offset, scratch)
        finally:
            handle.release()

    def release(self, number: int) -> None:
        handle = self._handles.pop(number, None)
        if handle is not None:
            handle.release()
            if self._backing is not None:
                self._backing.close(handle.inode)

    def release_all(self) -> None:
        for number in list(self._handles):
            self.release(number)


class _Handle:
    """A file that is closed when it is released and no thread reads it any more.

    A killed reader gets EINTR at once; its file may be released while our thread still fetches for it.
    """

    __slots__ = ("_lock", "_released", "_users", "file", "inode")

    def __init__(self, inode: int, file: OpenFile) -> None:
        self.inode = inode
        self.file = file
        self._lock = threading.Lock()
        self._users = 1
        self._released = False

    def read(self, offset: int, scratch: memoryview) -> bytes | memoryview:
        with self._lock:
            if self._released:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._users += 1
        try:
            descriptor = self.file.descriptor
            if descriptor < 0:
                return self.file.read(offset, len(scratch))
            return scratch[: os.preadv(descriptor, (scratch,), offset)]
        finally:
            self._leave()

    def release(self) -> None:
        """Does nothing the second time."""
        with self._lock:
            if self._released:
                return
            self._released = True
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self.file.close()


class Listings:
    """The entries of a directory with `.` and `..` first; an offset is an index into them.

    The kernel takes a directory in many requests (of one page before Linux 6.15) and asks once more at the end. Reading
    from offset 0 always asks the tree.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._lock = threading.Lock()
        self._listings: OrderedDict[int, list[Child]] = OrderedDict()
        self._listed = 0

    def __len__(self) -> int:
        return len(self._listings)

    def entries(self, directory: int, offset: int) -> list[Child]:
        """All entries; the caller wants those from an offset on. At the end of them the listing is dropped."""
        with self._lock:
            known = self._listings.get(directory)
            if known is not None and offset >= len(known):
                self._drop(directory)
        if known is not None and offset > 0:
            return known
        listing = self._list(directory)
        if offset < len(listing):
            self._keep(directory, listing)
        return listing

    def clear(self) -> None:
        with self._lock:
            self._listings.clear()
            self._listed = 0

    def _list(self, directory: int) -> list[Child]:
        own = self._tree.attributes(directory)
        above = own if directory == ROOT_INODE else _numbered(own, self._tree.parent(directory))
        return [Child(b".", own), Child(b"..", above), *self._tree.children(directory)]

    def _keep(self, directory: int, listing: list[Child]) -> None:
        with self._lock:
            self._drop(directory)
            self._listings[directory] = listing
            self._listed += len(listing)
            while self._listed > _MAX_LISTED and len(self._listings) > 1:
                self._drop(next(iter(self._listings)))

    def _drop(self, directory: int) -> None:
        self._listed -= len(self._listings.pop(directory, ()))


def _numbered(attributes: Attributes, inode: int) -> Attributes:
    """The kernel takes only number and type of `..`."""
    return attributes._replace(inode=inode)
