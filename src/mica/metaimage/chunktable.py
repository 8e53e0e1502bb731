"""The chunk table: chunk lists of a layer's large files, after the EROFS blocks of its metadata image. Pure.

Byte table in docs/format/erofs-image.md. The kernel never reads it: the superblock counts only the blocks before it.
"""

import mmap
import struct
from bisect import bisect_left
from collections.abc import Iterator, Mapping

from mica.digest import DIGEST_SIZE, Algorithm, Digest, digest_of
from mica.errors import IntegrityError, UserError

MAGIC = b"micachnk"
VERSIONS = (1, 2)
"""Versions of images; one of version 2 marks directories with whiteouts."""
HEADER = struct.Struct("<8sIIQQ")
"""Magic, version, number of lists, bytes of the index, bytes of the lists."""
RECORD = struct.Struct(f"<{DIGEST_SIZE}sB3sIQ")
"""Digest, its algorithm, zeros, bytes of the list, its place after the index."""
LISTS_BYTES_MAX = 256 << 20
"""Most bytes of all lists of a layer: eleven million chunks."""

_ALGORITHMS = frozenset(Algorithm)
_ZEROS = bytes(3)


def format_chunk_table(lists: Mapping[Digest, bytes], version: int) -> Iterator[bytes]:
    """The lists by algorithm and digest, so that the same files give the same table.

    Raises UserError if they do not fit into a table.
    """
    ordered = sorted(lists.items(), key=lambda item: (item[0].algorithm, item[0].raw))
    size = sum(len(data) for _, data in ordered)
    if size > LISTS_BYTES_MAX:
        raise UserError(f"The large files of a layer have chunk lists of {size} bytes, more than {LISTS_BYTES_MAX}.")
    yield HEADER.pack(MAGIC, version, len(ordered), RECORD.size * len(ordered), size)
    place = 0
    for digest, data in ordered:
        yield RECORD.pack(digest.raw, digest.algorithm, _ZEROS, len(data), place)
        place += len(data)
    for _, data in ordered:
        yield data


def parse_chunk_table(image: bytes | mmap.mmap, start: int, what: str, *, most: int) -> Iterator[tuple[Digest, bytes]]:
    """The lists, each compared with its digest; the table fills the image from `start` to its end.

    Raises IntegrityError for anything else, and for more than `most` lists.
    """
    size = len(image) - start
    if size < HEADER.size:
        raise IntegrityError(f"{what} is cut short: its chunk table has {size} bytes.")
    magic, version, count, index_bytes, lists_bytes = HEADER.unpack_from(image, start)
    if magic != MAGIC:
        raise IntegrityError(f"{what} has no chunk table where its blocks end.")
    if version not in VERSIONS:
        raise IntegrityError(f"{what} is of version {version}, this program reads {VERSIONS[0]} to {VERSIONS[-1]}.")
    expected = HEADER.size + index_bytes + lists_bytes
    if index_bytes != count * RECORD.size or size != expected:
        raise IntegrityError(f"{what} has a chunk table of {size} bytes that says it has {expected}.")
    if count > most:
        raise IntegrityError(f"{what} has {count} chunk lists for {most} files.")
    if lists_bytes > LISTS_BYTES_MAX:
        raise IntegrityError(f"{what} has chunk lists of {lists_bytes} bytes, more than {LISTS_BYTES_MAX}.")
    return _lists(image, start + HEADER.size, start + HEADER.size + index_bytes, what)


def image_version(image: bytes | mmap.mmap, start: int) -> int:
    """The version of an image whose table was read before."""
    return int(HEADER.unpack_from(image, start)[1])


def has_chunk_list(image: bytes | mmap.mmap, start: int, digest: Digest) -> bool:
    """Whether a table, which was read to its end before, has a list."""

    def key(number: int) -> tuple[int, bytes]:
        raw, algorithm, *_ = RECORD.unpack_from(image, start + HEADER.size + number * RECORD.size)
        return algorithm, raw

    wanted = int(digest.algorithm), digest.raw
    _, _, count, _, _ = HEADER.unpack_from(image, start)
    found = bisect_left(range(count), wanted, key=key)
    return found < count and key(found) == wanted


def _lists(image: bytes | mmap.mmap, index: int, lists: int, what: str) -> Iterator[tuple[Digest, bytes]]:
    end = lists
    last = (0, b"")
    for at in range(index, lists, RECORD.size):
        raw, algorithm, zeros, size, place = RECORD.unpack_from(image, at)
        key = algorithm, raw
        if algorithm not in _ALGORITHMS or zeros != _ZEROS or key <= last or not size or lists + place != end:
            raise IntegrityError(f"{what} has a broken index of chunk lists.")
        digest = Digest(raw, Algorithm(algorithm))
        data = image[end : end + size]
        if digest_of(data, digest.algorithm) != digest:
            raise IntegrityError(f"{what} has another chunk list than the one that {digest} names.")
        yield digest, data
        end += size
        last = key
    if end != len(image):
        raise IntegrityError(f"{what} has {len(image) - end} bytes after its chunk lists.")
