"""Catalog entries: one row of a catalog as a value, its flags, and the blob of extended attributes.

Byte tables in docs/format/catalog.md. Pure values; any thread.
"""

import enum
import stat
import struct
from typing import NamedTuple

from mica.digest import Algorithm, Digest
from mica.repo.objects import Compression

MARKER = b".cvmfscatalog"
"""Name of the regular file that makes its directory a nested catalog."""

AUTO_MARKER = b".cvmfsautocatalog"
"""Name of a file beside the marker: the publisher made the nested catalog because of its size, and may merge it."""


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
        return algorithm_of(self.flags)

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


def algorithm_of(flags: int) -> Algorithm:
    """Raises ValueError for numbers no version defines."""
    return Algorithm((flags >> _ALGORITHM_SHIFT & _THREE_BITS) + 1)


def content_flags(algorithm: Algorithm, compression: Compression, *, chunked: bool = False) -> int:
    """The bits that say how a file's objects are hashed and compressed."""
    kind = Flag.CHUNKED if chunked else 0
    return kind | (algorithm - 1) << _ALGORITHM_SHIFT | compression << _COMPRESSION_SHIFT


XATTR_VERSIONS = (1, 2)
"""Versions of the blob of attributes. Version 2 has two bytes for the length of a value. It is written only where it is
needed, because stock clients before 2.14 show such a file without attributes."""
XATTR_LIMIT = 255
"""Longest key in bytes, and most attributes of an entry: one byte counts each."""
XATTR_VALUE_LIMIT = 65535
"""Longest value; 255 in version 1."""
_SHORT_VALUE = 255
_LENGTHS = {1: struct.Struct("<BB"), 2: struct.Struct("<BH")}


def format_xattrs(xattrs: dict[bytes, bytes]) -> bytes | None:
    """The blob of an entry, None for no attributes. Raises ValueError for attributes that the format cannot hold."""
    if not xattrs:
        return None
    if len(xattrs) > XATTR_LIMIT:
        raise ValueError(f"{len(xattrs)} extended attributes, the format holds {XATTR_LIMIT}")
    version = 1 if all(len(value) <= _SHORT_VALUE for value in xattrs.values()) else 2
    blob = bytearray((version, len(xattrs)))
    for key in sorted(xattrs):
        value = xattrs[key]
        if not 0 < len(key) <= XATTR_LIMIT or len(value) > XATTR_VALUE_LIMIT or b"\0" in key:
            raise ValueError(f"extended attribute {key!r} with {len(value)} bytes does not fit the format")
        blob += _LENGTHS[version].pack(len(key), len(value)) + key + value
    return bytes(blob)


def parse_xattrs(blob: bytes | None) -> dict[bytes, bytes]:
    """Attributes of an entry. A blob that does not parse means none, as in the reference client."""
    lengths = _LENGTHS.get(blob[0]) if blob else None
    if blob is None or lengths is None or len(blob) < 2:
        return {}
    xattrs: dict[bytes, bytes] = {}
    position = 2
    for _ in range(blob[1]):
        start = position + lengths.size
        if start > len(blob):
            return {}
        key_bytes, value_bytes = lengths.unpack_from(blob, position)
        position = start + key_bytes + value_bytes
        key = blob[start : start + key_bytes]
        if position > len(blob) or not key or b"\0" in key:
            return {}
        xattrs[key] = blob[start + key_bytes : position]
    return xattrs
