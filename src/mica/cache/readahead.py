"""Which chunks of a large file to fetch besides those that a read needs. Pure.

Two things make more chunks worth fetching. A program that goes on reading where the last chunk ended will do so again:
then as much is fetched ahead as was read in order, so at most half of it in vain. And over a long way a round trip
takes longer than the bytes of the neighbours: then as many neighbours are fetched as the connection carries meanwhile.

Tried on the reads of starting R and numpy: reading ahead adds 0.5 % to the bytes; neighbours in 1 MiB, as over 40 ms,
more than halve the round trips and add 40 %, so near nodes fetch none.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final

from mica.repo.entry import Chunk

AHEAD_MAX_BYTES: Final = 4 << 20
AROUND_MAX_BYTES: Final = 1 << 20
_AROUND_LEAST_BYTES: Final = 128 << 10
_WORTH_BYTES_PER_S: Final = 100_000_000
"""As many bytes are worth one second of waiting. For 2 to 40 ms at 100 Mbit/s this gives about the best window; at
10 Mbit/s it gives one that costs no more than it saves."""
_FOLLOWING: Final = 2
"""Programs touch two chunks one after the other by chance, three rarely."""


def around_bytes(latency_s: float) -> int:
    """The size of the window, a power of two; 0 if a round trip is not worth any."""
    size = min(int(latency_s * _WORTH_BYTES_PER_S), AROUND_MAX_BYTES)
    return 1 << size.bit_length() - 1 if size >= _AROUND_LEAST_BYTES else 0


class ReadAhead:
    """The reads of one file, as its missing chunks have shown them so far. Any thread: of two reads at once one may be
    forgotten, which costs some bytes or some time."""

    __slots__ = ("_bytes", "_following", "_next")

    def __init__(self) -> None:
        self._next = -1
        self._following = 0
        self._bytes = 0

    def plan(self, chunks: Sequence[Chunk], needed: Sequence[int], *, around: int = 0) -> list[int]:
        """Numbers of chunks to fetch besides, the likeliest first; some may be here. `needed` are the missing ones of a
        read, ascending; `around`: bytes of the window, aligned, whose chunks come along."""
        first, last = needed[0], needed[-1]
        begin, end = chunks[first].offset, _end(chunks[last])
        is_following = first == self._next
        self._following = self._following + 1 if is_following else 0
        self._bytes = end - begin + (self._bytes if is_following else 0)
        ahead = min(self._bytes, AHEAD_MAX_BYTES) if self._following >= _FOLLOWING else 0
        until = end + ahead
        if around:
            until = max(until, begin - begin % around + around)
            begin -= begin % around
        after = range(last + 1, bisect_left(chunks, until, key=_offset))
        before = range(max(bisect_right(chunks, begin, key=_offset) - 1, 0), first)
        self._next = after.stop if after else last + 1
        self._bytes += sum(chunks[number].size for number in after)
        return [*after, *reversed(before)]


def _offset(chunk: Chunk) -> int:
    return chunk.offset


def _end(chunk: Chunk) -> int:
    return chunk.offset + chunk.size
