"""What a file system adapter asks of a tree of files; the only description of it.

Implemented by `mount/repotree.py` over a repository's catalogs and, in tests, by a tree in memory; used by
`fuse/treefs.py` (FUSE) and by other code that walks a tree. Any thread may call every method, and each may block on
the network. An inode number identifies a file for as long as the tree lives; 1 is the root.

Errors: OSError with errno ENOENT (no such name), ENOTDIR, EIO (could not be fetched or verified), EINVAL (not a link).
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

ROOT_INODE = 1


class Attributes(NamedTuple):
    """What stat shows. `mode` includes the type; `mtime_s` may be negative, `mtime_ns` is 0..999999999."""

    inode: int
    mode: int
    links: int
    uid: int
    gid: int
    rdev: int
    size: int
    mtime_s: int
    mtime_ns: int


class Child(NamedTuple):
    """A directory entry: its base name and the attributes it has."""

    name: bytes
    attributes: Attributes


class OpenFile(Protocol):
    """An open regular file. `descriptor` is a plain local file with the whole content, or -1 where there is none yet
    (then `read` fetches what it needs)."""

    @property
    def descriptor(self) -> int: ...

    def read(self, offset: int, size: int) -> bytes: ...

    def close(self) -> None: ...


class Tree(Protocol):
    def attributes(self, inode: int) -> Attributes: ...

    def lookup(self, directory: int, name: bytes) -> Attributes: ...

    def children(self, directory: int) -> Iterator[Child]:
        """Entries of a directory without `.` and `..`, in a stable order."""
        ...

    def parent(self, directory: int) -> int: ...

    def readlink(self, inode: int) -> bytes: ...

    def xattrs(self, inode: int) -> dict[bytes, bytes]:
        """All extended attributes; an empty dictionary where there are none."""
        ...

    def open(self, inode: int) -> OpenFile: ...

    def statistics(self) -> tuple[int, int]:
        """Number of entries and bytes in the whole tree, for statfs."""
        ...
