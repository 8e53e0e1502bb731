"""The chunks of one large file as a sequence with 28 bytes for each, because a hostile catalog can list very many; and
the list of them that nodes and metadata images keep (docs/format/local-names.md).

A tuple would take ten times as much. A list does not change once it is filled; any thread.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, overload

from mica.digest import DIGEST_SIZE, Algorithm, Digest
from mica.repo.entry import Chunk

CHUNKS_MAX: Final = 1 << 20
"""Most chunks of a file that mica accepts. With the usual chunks of 512 KiB and more that is 512 GiB and more."""
_PART = struct.Struct(f"<I{DIGEST_SIZE}s")


class ChunkList(Sequence[Chunk]):
    """Chunks that follow each other from the beginning of the file; equal to any sequence of the same chunks."""

    __slots__ = ("_algorithm", "_digests", "_ends")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._ends = array("Q")
        self._digests = bytearray()

    def append(self, size: int, raw: bytes) -> None:
        """Raises ValueError for a chunk that is empty, ends beyond 64 bits, or is one too many."""
        end = self.size + size
        if size <= 0 or end >> 63 or len(raw) != DIGEST_SIZE:
            raise ValueError(f"a chunk of {size} bytes at {self.size}")
        if len(self._ends) >= CHUNKS_MAX:
            raise ValueError(f"more than {CHUNKS_MAX} chunks")
        self._ends.append(end)
        self._digests += raw

    @property
    def size(self) -> int:
        """Bytes of all chunks together."""
        return self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> Chunk: ...

    @overload
    def __getitem__(self, number: slice) -> list[Chunk]: ...

    def __getitem__(self, number: int | slice) -> Chunk | list[Chunk]:
        if isinstance(number, slice):
            return [self._chunk(index) for index in range(*number.indices(len(self)))]
        index = number + len(self) if number < 0 else number
        if not 0 <= index < len(self):
            raise IndexError(number)
        return self._chunk(index)

    def __iter__(self) -> Iterator[Chunk]:
        return map(self._chunk, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<{len(self)} chunks of {self.size} bytes>"

    def _chunk(self, index: int) -> Chunk:
        begin = self._ends[index - 1] if index else 0
        raw = bytes(self._digests[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE])
        return Chunk(begin, self._ends[index] - begin, Digest(raw, self._algorithm))


def format_chunk_list(chunks: Sequence[Chunk]) -> bytes:
    """Plain size (32 bits, little-endian) and digest of every chunk, in order of their place in the file.

    Raises ValueError for chunks that do not follow each other, or have 4 GiB and more.
    """
    offset = 0
    data = bytearray()
    for chunk in chunks:
        if chunk.offset != offset or not 0 < chunk.size < 1 << 32:
            raise ValueError(f"a chunk of {chunk.size} bytes at {chunk.offset}, expected one at {offset}")
        data += _PART.pack(chunk.size, chunk.digest.raw)
        offset += chunk.size
    return bytes(data)


def parse_chunk_list(data: bytes, algorithm: Algorithm) -> ChunkList:
    """Raises ValueError for a list that is cut off, has an empty chunk, or more chunks than a file can have."""
    if not data or len(data) % _PART.size:
        raise ValueError(f"a chunk list of {len(data)} bytes")
    chunks = ChunkList(algorithm)
    for size, raw in _PART.iter_unpack(data):
        if not size:
            raise ValueError("a chunk list with an empty chunk")
        chunks.append(size, raw)
    return chunks
