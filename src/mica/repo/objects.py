"""Objects: content between its plain form and the bytes that are stored and hashed.

The digest of an object is that of its *stored* bytes (docs/format/objects.md). Files are compressed by libdeflate
level 6 (measured on 71 MB of Debian files: 114 MB/s and 35.3 %, stock zlib 40 MB/s and 35.6 %; any zlib stream is
legal), large content without repetitions by less (docs/adr/0008-large-data.md). Certificate and meta-info are
compressed by stock zlib level 6, because replicas compress these two again and store the result under the publisher's
digest (docs/format/objects.md, "Stock zlib"). isal decompresses, within bounds. Pure functions; any thread; the
compressors release the interpreter lock.
"""

import enum
import zlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import deflate
from isal import isal_zlib
from isal.igzip_lib import IsalError

from mica.digest import Algorithm, Digest, digest_of, new_hasher
from mica.errors import IntegrityError
from mica.streams import Readable

LEVEL = 6
_STORED_LEVEL: Final = 0
_SAMPLED_FROM_BYTES: Final = 256 << 10
"""Smaller content is compressed without a look at samples."""
_SAMPLES: Final = 8
_SAMPLE_BYTES: Final = 2048
_QUICK_LEVEL: Final = 1
_ORDINARY_SHARE: Final = 0.7
_WORTH_IT: Final = 0.99
_BLOCK_BYTES: Final = 1 << 20
_EMPTY = zlib.compress(b"", LEVEL)
"""The empty file of every repository; libdeflate would give two bytes more and another digest."""


class Compression(enum.IntEnum):
    """Compression of file data, numbered as in catalog flags bits 11-13."""

    ZLIB = 0
    NONE = 1

    @classmethod
    def _missing_(cls, value: object) -> "Compression":
        raise ValueError(f"unknown compression {value}")  # a reason for a sentence, unlike the words of `enum`

    @property
    def config_name(self) -> str:
        return "none" if self is Compression.NONE else "zlib"


class PackedObject(NamedTuple):
    """An object ready to be stored: `stored` is what `digest` was computed over."""

    digest: Digest
    stored: bytes


class _Way(enum.Enum):
    """How content becomes a zlib stream."""

    THOROUGH = enum.auto()
    SHORT_CODES = enum.auto()
    """Frequent bytes get short codes (Huffman), without a search for repetitions."""
    AS_IT_IS = enum.auto()


def pack(plain: bytes | bytearray | memoryview, algorithm: Algorithm, compression: Compression) -> PackedObject:
    """The same content gives the same bytes on every machine."""
    stored = bytes(plain) if compression is Compression.NONE else _compressed(plain, _way_for(plain))
    return PackedObject(digest_of(stored, algorithm), stored)


def pack_stream(plain: Readable, sink: Callable[[bytes], object], algorithm: Algorithm) -> Digest:
    """Compress content of any size, and give it to `sink` piece by piece. The same content gives the same bytes on
    every machine, but not those of `pack`, which needs it whole. So callers decide by size alone which of them to use.
    """
    hasher = new_hasher(algorithm)
    compressor = zlib.compressobj(LEVEL)

    def take(stored: bytes) -> None:
        if stored:
            hasher.update(stored)
            sink(stored)

    while block := plain.read(_BLOCK_BYTES):
        take(compressor.compress(block))
    take(compressor.flush())
    return hasher.finish()


def packings(plain: bytes, algorithm: Algorithm) -> Iterator[PackedObject]:
    """Stored forms of content that is compressed: that of `pack`, and that of its first version."""
    way = _way_for(plain)
    for one in dict.fromkeys((way, _Way.THOROUGH)):
        stored = _compressed(plain, one)
        yield PackedObject(digest_of(stored, algorithm), stored)


def _way_for(plain: bytes | bytearray | memoryview) -> _Way:
    """Samples decide for large content. Weights of models have no repetitions, but some bytes are more frequent than
    others; compressed content has neither. The first sample is enough for most other content."""
    if len(plain) < _SAMPLED_FROM_BYTES:
        return _Way.THOROUGH
    view = memoryview(plain)
    if len(deflate.zlib_compress(view[:_SAMPLE_BYTES], _QUICK_LEVEL)) < _SAMPLE_BYTES * _ORDINARY_SHARE:
        return _Way.THOROUGH
    starts = (number * len(view) // _SAMPLES for number in range(_SAMPLES))
    samples = b"".join(view[start : start + _SAMPLE_BYTES] for start in starts)
    thorough = len(deflate.zlib_compress(samples, LEVEL))
    if thorough >= len(samples):
        return _Way.AS_IT_IS
    short = len(_compressed(samples, _Way.SHORT_CODES))
    return _Way.THOROUGH if thorough < short * _WORTH_IT else _Way.SHORT_CODES


def _compressed(plain: bytes | bytearray | memoryview, way: _Way) -> bytes:
    if not plain:
        return _EMPTY
    if way is _Way.SHORT_CODES:
        from zlib_ng import zlib_ng

        compressor = zlib_ng.compressobj(
            _QUICK_LEVEL, zlib_ng.DEFLATED, zlib_ng.MAX_WBITS, zlib_ng.DEF_MEM_LEVEL + 1, zlib_ng.Z_HUFFMAN_ONLY
        )
        return bytes(compressor.compress(plain) + compressor.flush())
    return bytes(deflate.zlib_compress(plain, LEVEL if way is _Way.THOROUGH else _STORED_LEVEL))


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
