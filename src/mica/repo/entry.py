"""Catalog entries: one row of a catalog as a value, its flags, and the blob of extended attributes.

Byte tables in docs/format/catalog.md. Pure values; any thread.
"""

import enum
import stat
from typing import NamedTuple

from mica.digest import Algorithm, Digest
from mica.repo.objects import Compression

MARKER = b".cvmfscatalog"
"""Name of the regular file that makes its directory a nested catalog."""


class Flag(enum.IntFlag):
    DIRECTORY = 1
    MOUNTPOINT = 2
    FILE = 4
    LINK = 8
    SPECIAL = 16
    NESTED_ROOT = 32
    CHUNKED = 64
    EXTERNAL = 128
    BIND_MOUNTPOINT = 0x4000
    HIDDEN = 0x8000
    DIRECT_IO = 0x10000


_ALGORITHM_SHIFT = 8
_COMPRESSION_SHIFT = 11
_THREE_BITS = 7


class Entry(NamedTuple):
    """One catalog row without its keys. Names and link targets are bytes as they were archived.

    `size`: bytes of a file, length of a raw link target, device number (`os.makedev`) of a device, 0 for fifo and
    socket, 4096 for directories. `mtime_s` may be negative; `mtime_ns` is None where it is not known. `digest` is None
    for everything without an object of its own: directories, links, special files, files that exist only in chunks.
    """

    name: bytes
    mode: int
    size: int
    mtime_s: int
    mtime_ns: int | None
    uid: int
    gid: int
    flags: int
    digest: Digest | None = None
    links: int = 1
    group: int = 0
    target: bytes = b""
    xattrs: bytes | None = None

    @property
    def is_directory(self) -> bool:
        return bool(self.flags & Flag.DIRECTORY)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def algorithm(self) -> Algorithm:
        """Algorithm of the bulk object and of all chunks. Raises ValueError for numbers no version defines."""
        return Algorithm((self.flags >> _ALGORITHM_SHIFT & _THREE_BITS) + 1)

    @property
    def compression(self) -> Compression:
        """Compression of the bulk object and of all chunks. Raises ValueError for numbers no version defines."""
        return Compression(self.flags >> _COMPRESSION_SHIFT & _THREE_BITS)


class Chunk(NamedTuple):
    """A piece of a large file: plain offset and size in bytes, digest of its object."""

    offset: int
    size: int
    digest: Digest


def flags_for(mode: int) -> int:
    """The kind bits of an entry with this st_mode."""
    if stat.S_ISDIR(mode):
        return Flag.DIRECTORY
    if stat.S_ISREG(mode):
        return Flag.FILE
    if stat.S_ISLNK(mode):
        return Flag.FILE | Flag.LINK
    return Flag.FILE | Flag.SPECIAL


def content_flags(algorithm: Algorithm, compression: Compression, *, chunked: bool = False) -> int:
    """The bits that say how a file's objects are hashed and compressed."""
    kind = Flag.CHUNKED if chunked else 0
    return kind | (algorithm - 1) << _ALGORITHM_SHIFT | compression << _COMPRESSION_SHIFT


XATTR_VERSION = 1
XATTR_LIMIT = 255
"""Longest key, longest value (bytes), and most attributes an entry can have: each is counted in one byte."""


def format_xattrs(xattrs: dict[bytes, bytes]) -> bytes | None:
    """The blob of an entry, None for no attributes. Raises ValueError for what the format cannot hold."""
    if not xattrs:
        return None
    if len(xattrs) > XATTR_LIMIT:
        raise ValueError(f"{len(xattrs)} extended attributes, the format holds {XATTR_LIMIT}")
    blob = bytearray((XATTR_VERSION, len(xattrs)))
    for key in sorted(xattrs):
        value = xattrs[key]
        if not 0 < len(key) <= XATTR_LIMIT or len(value) > XATTR_LIMIT or b"\0" in key:
            raise ValueError(f"extended attribute {key!r} with {len(value)} bytes does not fit the format")
        blob += bytes((len(key), len(value))) + key + value
    return bytes(blob)


def parse_xattrs(blob: bytes | None) -> dict[bytes, bytes]:
    """Attributes of an entry. A blob that does not parse means none, as the reference client has it."""
    if not blob or len(blob) < 2 or blob[0] != XATTR_VERSION:
        return {}
    xattrs: dict[bytes, bytes] = {}
    position = 2
    for _ in range(blob[1]):
        if position + 2 > len(blob):
            return {}
        key_end = position + 2 + blob[position]
        value_end = key_end + blob[position + 1]
        key = blob[position + 2 : key_end]
        if value_end > len(blob) or not key or b"\0" in key:
            return {}
        xattrs[key] = blob[key_end:value_end]
        position = value_end
    return xattrs
