"""Where frames of a zstd stream end, seen in passing. Decompresses nothing.

The library's streaming reader reports a stream cut in the middle of a frame as an ordinary end; this walks the block
headers (RFC 8878 section 3.1) beside it, one step per block of up to 128 KiB. Sizes: magic 4; frame header 2-14;
block header 3, its low bit marks the last block; checksum 4. Skippable frames: magic 4, size 4, content.
One thread.
"""

import struct
from collections.abc import Generator

MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_MAGIC = 0x184D2A50
_RLE_BLOCK = 1


class FrameWalker:
    """Follows compressed bytes; `at_boundary` says whether the stream may end here."""

    __slots__ = ("_missing", "_part", "_step", "_steps")

    def __init__(self) -> None:
        self._steps = _walk()
        self._step = next(self._steps)
        self._missing = self._step[1]
        self._part = bytearray()

    @property
    def at_boundary(self) -> bool:
        return self._step[0] == "magic" and not self._part

    def feed(self, data: bytes | memoryview) -> None:
        """Raises ValueError where the bytes are not zstd frames."""
        view = memoryview(data)
        while view:
            piece = view[: self._missing]
            view = view[len(piece) :]
            self._missing -= len(piece)
            if self._step[0] != "skip":
                self._part += piece
            if not self._missing:
                self._advance()

    def _advance(self) -> None:
        self._step = self._steps.send(bytes(self._part))
        self._part.clear()
        while self._step[1] == 0:
            self._step = self._steps.send(b"")
        self._missing = self._step[1]


def _walk() -> Generator[tuple[str, int], bytes, None]:
    """Yields what comes next and its size; is sent the bytes, or nothing for what is skipped."""
    while True:
        magic = yield "magic", 4
        if (struct.unpack("<I", magic)[0] & 0xFFFFFFF0) == _SKIPPABLE_MAGIC:
            yield "skip", struct.unpack("<I", (yield "size", 4))[0]
            continue
        if magic != MAGIC:
            raise ValueError("not a zstd frame")
        flags = (yield "flags", 1)[0]
        yield "skip", _header_size(flags)
        is_last = False
        while not is_last:
            header = int.from_bytes((yield "block", 3), "little")
            is_last = bool(header & 1)
            yield "skip", 1 if (header >> 1) & 3 == _RLE_BLOCK else header >> 3
        yield "skip", 4 if flags & 4 else 0


def _header_size(flags: int) -> int:
    """Bytes of a frame header after its first: window, dictionary id, content size."""
    is_single_segment = bool(flags & 0x20)
    window = 0 if is_single_segment else 1
    dictionary = (0, 1, 2, 4)[flags & 3]
    content = (1 if is_single_segment else 0, 2, 4, 8)[flags >> 6]
    return window + dictionary + content
