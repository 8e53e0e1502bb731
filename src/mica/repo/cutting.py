"""Cutting large files: by content, as CernVM-FS does, and programs at fixed places (docs/format/objects.md, "Chunks").

Readers accept any pieces that cover a file, so the rule is the publisher's. What is cut by content shares pieces with
its next version even if something grew in it. Programs and libraries (ELF) do not profit: of eleven Debian packages and
their updates, 64 KiB at fixed places left 60.2 MB to store, 1 MiB by content 64.1 MB, whole files 92.8 MB. But they are
mapped into memory and touched here and there, so small pieces save most of their bytes, and fixed places cost nothing.

Cutting by content: a 32-bit register takes x = (x << 1) xor byte for every byte, so after 32 bytes it depends on the
last 32 only: the register at every position of a window is a xor of 32 shifted copies of the data, and copies can be
doubled (1, 2, 4, 8, 16, 32). That is done here on one big integer with a 32-bit lane for every byte, which cuts at some
40 MB/s in the plain interpreter, where a loop over bytes manages 8. Pure; any thread.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

_REGISTER_BYTES = 32
_PAGE_BYTES = 4096
_PROGRAM_MAGIC = b"\x7fELF"
PROGRAM_PIECES_MAX = 4096
_LANES = 1 << 14
"""Positions examined at once: 64 KiB lanes stay in the processor's cache."""

# |int32(x) - 0x7fffffff| < threshold for a threshold below 2**16 means that the upper half of x is 7fff or 8000.
_CANDIDATE = re.compile(rb"\xff\x7f|\x00\x80")


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class ChunkRule:
    """Sizes in bytes. A file of at most `minimum` bytes is never cut; a piece has `minimum` to `maximum` bytes.

    Pieces of programs have `program` bytes, twice and twice again as many in programs that would have more than
    `PROGRAM_PIECES_MAX` of them. With 0 programs are files like all others.
    """

    minimum: int = 4 << 20
    average: int = 8 << 20
    maximum: int = 16 << 20
    program: int = 0

    def __post_init__(self) -> None:
        if not _REGISTER_BYTES <= self.minimum <= self.average <= self.maximum:
            raise ValueError(f"chunk sizes must ascend from 32: {self.minimum}, {self.average}, {self.maximum}")
        if self.program and (self.program < _PAGE_BYTES or self.program & (self.program - 1)):
            raise ValueError(f"pieces of programs must have a power of two of at least {_PAGE_BYTES}: {self.program}")

    @property
    def threshold(self) -> int:
        return 0xFFFFFFFF // self.average

    def program_piece_bytes(self, size: int) -> int:
        """Of a program of `size` bytes; 0 if it is cut as other files are."""
        piece = self.program if size > self.minimum else 0
        while 0 < piece * PROGRAM_PIECES_MAX < size:
            piece *= 2
        return piece


STANDARD_RULE = ChunkRule()
"""What the stock server does: for the same pieces as an existing repository has."""

FINE_RULE = ChunkRule(256 << 10, 512 << 10, 1 << 20, program=64 << 10)
"""What repositories get here, chosen by bytes and requests. MB of file
data and requests that starting R / numpy takes from the demo image, 157.6 MB compressed, at a read-ahead of 32 KiB:

    4, 8, 16 MiB (stock server)              25.0, 114 / 15.4, 178
    256, 512, 1024 KiB                       16.8, 180 / 11.7, 231
    128, 256, 512 KiB                        15.2, 235 / 11.1, 287
    as here, programs in pieces of 128 KiB   13.9, 246 / 10.2, 320
    as here, programs in pieces of 64 KiB    12.8, 342 / 9.5, 436
    as here, programs in pieces of 32 KiB    12.3, 525 / 8.9, 648

Below 64 KiB another request costs a near node more than the bytes that it saves. Beginning pieces at the segments of a
program, or not cutting programs below 512 KiB, moves more."""


def find_cut(window: bytes | bytearray | memoryview, rule: ChunkRule) -> int:
    """Length of the first piece of `window`, which starts at a piece's start and holds up to `rule.maximum` bytes.

    Returns len(window) if no cut falls into it.
    """
    end = min(len(window), rule.maximum)
    position = rule.minimum
    while position < end:
        count = min(_LANES, end - position)
        first = position - (_REGISTER_BYTES - 1)
        found = _first_match(bytes(window[first : position + count]), rule.threshold)
        if found is not None:
            return position + found
        position += count
    return end


def _first_match(data: bytes, threshold: int) -> int | None:
    """Index of the first position, counted after the 31 leading bytes, whose register triggers a cut."""
    registers = _registers(data)
    if threshold >= 1 << 16:
        starts = iter(range(0, len(registers), 4))
    else:
        starts = (match.start() - 2 for match in _CANDIDATE.finditer(registers, 2))
    for start in starts:
        if start % 4 == 0 and _triggers(registers[start : start + 4], threshold):
            return start // 4
    return None


def _triggers(register: bytes, threshold: int) -> bool:
    signed = int.from_bytes(register, "little", signed=True)
    difference = (signed - 0x7FFFFFFF) & 0xFFFFFFFF
    if difference >= 1 << 31:
        difference -= 1 << 32
    return abs(difference) < threshold


def _registers(data: bytes) -> bytes:
    """The register after every byte from the 32nd on, four little-endian bytes each.

    Lane i of the integer is byte i. After the step with shift s, lane i holds the xor of the last 2s bytes before it,
    each shifted by its age: value(i) ^= value(i - s) << s. Bits pushed out of a lane would fall into the next one, so
    they are masked away first.
    """
    lanes = bytearray(4 * len(data))
    lanes[0::4] = data
    value = int.from_bytes(lanes, "little")
    for shift in (1, 2, 4, 8, 16):
        keep = int.from_bytes((0xFFFFFFFF >> shift).to_bytes(4, "little") * len(data), "little")
        value ^= (value & keep) << (33 * shift)
    size = 4 * len(data)
    value &= (1 << 8 * size) - 1
    return value.to_bytes(size, "little")[4 * (_REGISTER_BYTES - 1) :]


def read_pieces(stream: Readable, rule: ChunkRule, size: int) -> Iterator[bytes]:
    """Cut a stream of `size` bytes into pieces; holds at most one and the next block. An empty stream gives one empty
    piece."""
    piece_bytes = rule.program_piece_bytes(size)
    head = read_up_to(stream, max(piece_bytes, len(_PROGRAM_MAGIC)))
    if piece_bytes and head.startswith(_PROGRAM_MAGIC):
        yield from _pieces_at_fixed_places(head, stream, piece_bytes)
    else:
        yield from _pieces_by_content(head, stream, rule)


def _pieces_at_fixed_places(head: bytes, stream: Readable, piece_bytes: int) -> Iterator[bytes]:
    while head:
        yield head
        head = read_up_to(stream, piece_bytes)


def _pieces_by_content(head: bytes, stream: Readable, rule: ChunkRule) -> Iterator[bytes]:
    window = bytearray(head)
    ended = False
    yielded = False
    while True:
        while not ended and len(window) < rule.maximum:
            block = stream.read(min(1 << 20, rule.maximum - len(window)))
            ended = not block
            window += block
        if ended and not window:
            break
        cut = len(window) if ended and len(window) <= rule.minimum else find_cut(window, rule)
        yield bytes(memoryview(window)[:cut])
        yielded = True
        del window[:cut]
    if not yielded:
        yield b""


def read_up_to(stream: Readable, size: int) -> bytes:
    """So many bytes, or all there are: a stream may give fewer at a time."""
    data = stream.read(size)
    parts = [data]
    left = size - len(data)
    while left and (block := stream.read(left)):
        parts.append(block)
        left -= len(block)
    return data if len(parts) == 1 else b"".join(parts)
