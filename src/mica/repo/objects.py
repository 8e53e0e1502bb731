"""Objects: content between its plain form and the bytes that are stored and hashed.

The digest of an object is that of its *stored* bytes (docs/format/objects.md). Deflate: files by libdeflate level 6
(measured on 71 MB of Debian files: 114 MB/s and 35.3 %, stock zlib 40 MB/s and 35.6 %; any zlib stream is legal);
certificate and meta-info by stock zlib level 6, because replicas compress these two again and store the result under
our digest (docs/format/objects.md, "stock zlib"). Inflate: isal, bounded. Pure functions; any thread; the compressors
release the interpreter lock.
"""

import enum
import zlib
from typing import NamedTuple

import deflate
from isal import isal_zlib
from isal.igzip_lib import IsalError

from mica.digest import Algorithm, Digest, digest_of
from mica.errors import IntegrityError

LEVEL = 6
_EMPTY = zlib.compress(b"", LEVEL)
"""What every repository has as its empty file; libdeflate would make two bytes more of it and another digest."""


class Compression(enum.IntEnum):
    """Compression of file data, numbered as in catalog flags bits 11-13."""

    ZLIB = 0
    NONE = 1

    @property
    def config_name(self) -> str:
        return "none" if self is Compression.NONE else "zlib"


class PackedObject(NamedTuple):
    """An object ready to be stored: `stored` is what `digest` was computed over."""

    digest: Digest
    stored: bytes


def pack(plain: bytes | bytearray | memoryview, algorithm: Algorithm, compression: Compression) -> PackedObject:
    if compression is Compression.NONE:
        stored = bytes(plain)
    else:
        stored = bytes(deflate.zlib_compress(plain, LEVEL)) if plain else _EMPTY
    return PackedObject(digest_of(stored, algorithm), stored)


def pack_stock(plain: bytes, algorithm: Algorithm) -> PackedObject:
    """Pack with the stock zlib at its default level: for certificates and meta-info."""
    stored = zlib.compress(plain, LEVEL)
    return PackedObject(digest_of(stored, algorithm), stored)


def unpack(stored: bytes, digest: Digest, *, limit: int, compression: Compression = Compression.ZLIB) -> bytes:
    """Check stored bytes against their digest and return the plain content, at most `limit` bytes of it.

    Raises IntegrityError if the digest differs, the stream is broken or cut, or the content is larger than `limit`.
    """
    found = digest_of(stored, digest.algorithm)
    if found != digest:
        raise IntegrityError(f"Object {digest} has other content: its bytes hash to {found}.")
    return inflate(stored, limit=limit, compression=compression, name=str(digest))


def inflate(stored: bytes, *, limit: int, compression: Compression, name: str) -> bytes:
    """Decompress bytes whose digest was checked. Raises IntegrityError as `unpack` does."""
    if compression is Compression.NONE:
        if len(stored) > limit:
            raise IntegrityError(f"Object {name} is larger than the {limit} bytes it is said to have.")
        return stored
    inflater = isal_zlib.decompressobj()
    try:
        plain = inflater.decompress(stored, limit + 1)
    except IsalError as error:  # type: ignore[misc]  # the stub lacks its base
        raise IntegrityError(f"Object {name} is not a zlib stream ({error}).") from error
    if len(plain) > limit:
        raise IntegrityError(f"Object {name} unpacks to more than the {limit} bytes it is said to have.")
    if not inflater.eof or inflater.unused_data:
        raise IntegrityError(f"Object {name} is a zlib stream that does not end where it should.")
    return bytes(plain)
