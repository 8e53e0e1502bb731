"""Contents of directories in metadata images: sorted names in blocks, each with its table in front. Pure.

A block has its records first, then the names without anything between; names are sorted by bytes over the whole
directory, `.` and `..` among them, because the kernel looks them up by halving (fs/erofs/namei.c).
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, repeat
from typing import NamedTuple

from mica.metaimage.erofs_abi import BLOCK_BYTES, DIRENT, DIRENT_BYTES, NAME_MAX, pad_to


class Dirent(NamedTuple):
    name: bytes
    nid: int
    file_type: int


def format_dirents(names: Sequence[bytes], nids: Sequence[int], types: Sequence[int]) -> tuple[bytearray, list[int]]:
    """All blocks but the last are padded. Also returns the place of each record, for numbers that are known later."""
    data = bytearray()
    places: list[int] = []
    for start, end in _blocks(names):
        data += bytes(pad_to(len(data), BLOCK_BYTES))
        here = names[start:end]
        table = DIRENT_BYTES * len(here)
        places += range(len(data), len(data) + table, DIRENT_BYTES)
        offsets = accumulate(map(len, here), initial=table)
        data += b"".join(map(DIRENT.pack, nids[start:end], offsets, types[start:end], repeat(0)))
        data += b"".join(here)
    return data, places


def _blocks(names: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """The ranges of names that share a block."""
    start = used = 0
    for number, name in enumerate(names):
        used += DIRENT_BYTES + len(name)
        if used > BLOCK_BYTES:
            yield start, number
            start, used = number, DIRENT_BYTES + len(name)
    yield start, len(names)


def parse_dirents(block: bytes) -> list[Dirent]:
    """The records of one block, which may be padded with zeros. Raises ValueError for any other form, and names that
    no file can have; their order is for the caller to check."""
    if len(block) < DIRENT_BYTES:
        raise ValueError(f"has a block of {len(block)} bytes")
    _, table, _, _ = DIRENT.unpack_from(block)
    if not table or table % DIRENT_BYTES or table >= len(block):
        raise ValueError(f"has a table of {table} bytes in a block of {len(block)}")
    records = list(DIRENT.iter_unpack(block[:table]))
    offsets = [offset for _, offset, _, _ in records]
    offsets.append(len(block.rstrip(b"\0")))
    found = []
    for (nid, offset, file_type, _), end in zip(records, offsets[1:], strict=True):
        name = block[offset:end]
        if len(name) != end - offset or not 0 < len(name) <= NAME_MAX or b"/" in name or b"\0" in name:
            raise ValueError("has a name that no file can have")
        found.append(Dirent(name, nid, file_type))
    return found
