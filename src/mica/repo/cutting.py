"""Cutting large files: by content, as CernVM-FS does, and programs at fixed places (docs/format/objects.md, "Chunks").

Readers accept any pieces that cover a file, so the publisher chooses the rule. A file that is cut by content shares
pieces with its next version even if something grew in it. Programs and libraries (ELF) do not profit: of eleven Debian
packages and their updates, 64 KiB at fixed places left 60.2 MB to store, 1 MiB by content 64.1 MB, whole files 92.8 MB.
But programs are mapped into memory and touched here and there, so small pieces save most of their bytes, and fixed
places cost nothing.

Cutting by content looks at every byte. It works on big integers with one lane of 8 bits for each byte, and takes the
same time for all bytes (docs/adr/0008-large-data.md). Pure; any thread.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mica.streams import Readable

_REGISTER_BYTES: Final = 32
_REGISTER_MASK: Final = 0xFFFFFFFF
_TARGET: Final = 0x7FFFFFFF
_PAGE_BYTES = 4096
_PROGRAM_MAGIC = b"\x7fELF"
PROGRAM_PIECES_MAX = 4096
_LANES: Final = 1 << 15
"""Positions examined at once: larger integers leave the processor's cache, smaller ones cost more calls."""
_BLOCK_BYTES: Final = _LANES + _REGISTER_BYTES - 1
_LOWEST_BITS: Final = int.from_bytes(b"\1" * _BLOCK_BYTES, "little")


@dataclass(frozen=True, slots=True)
class ChunkRule:
    """Sizes in bytes. A file of at most `minimum` bytes is never cut; a piece has `minimum` to `maximum` bytes.

    Pieces of programs have `program` bytes. The size is doubled as long as a program would have more than
    `PROGRAM_PIECES_MAX` pieces. With 0 programs are cut as all other files.
    """

    minimum: int = 4 << 20
    average: int = 8 << 20
    maximum: int = 16 << 20
    program: int = 0

    def __post_init__(self) -> None:
        if not _REGISTER_BYTES <= self.minimum <= self.average <= self.maximum:
            raise ValueError(f"chunk sizes must ascend from 32: {self.minimum}, {self.average}, {self.maximum}")
        if self.program and (self.program < _PAGE_BYTES or self.program & (self.program - 1)):
            raise ValueError(f"chunks of programs must be a power of two of at least {_PAGE_BYTES}: {self.program}")

    @property
    def threshold(self) -> int:
        return _REGISTER_MASK // self.average

    @property
    def equal_bits(self) -> int:
        """How many bits below the highest one are equal in every register that is nearer to the target than
        `threshold`. The target has a highest bit of 0 and ones below, the number after it the opposite."""
        return min(31 - (self.threshold - 1).bit_length(), 24)

    def program_piece_bytes(self, size: int) -> int:
        """Size of the pieces of a program of `size` bytes; 0 if it is cut as other files are."""
        piece = self.program if size > self.minimum else 0
        while 0 < piece * PROGRAM_PIECES_MAX < size:
            piece *= 2
        return piece


STANDARD_RULE = ChunkRule()
"""The stock server's rule, which gives the pieces that an existing repository has."""

FINE_RULE = ChunkRule(256 << 10, 512 << 10, 1 << 20, program=64 << 10)
"""The rule of new repositories, chosen by bytes and requests. MB of file
data and requests that starting R / numpy takes from the demo image, 157.6 MB compressed, at a read-ahead of 32 KiB:

    4, 8, 16 MiB (stock server)              25.0, 114 / 15.4, 178
    256, 512, 1024 KiB                       16.8, 180 / 11.7, 231
    128, 256, 512 KiB                        15.2, 235 / 11.1, 287
    as here, programs in pieces of 128 KiB   13.9, 246 / 10.2, 320
    as here, programs in pieces of 64 KiB    12.8, 342 / 9.5, 436
    as here, programs in pieces of 32 KiB    12.3, 525 / 8.9, 648

Below 64 KiB the additional requests cost a near node more than the saved bytes. Pieces that begin at a program's
segments, and whole programs below 512 KiB, both move more bytes."""


def find_cut(window: bytes | bytearray | memoryview, rule: ChunkRule) -> int:
    """Length of the first piece of `window`, which starts at a piece's start and holds up to `rule.maximum` bytes.

    Returns len(window) if no cut falls into it.
    """
    view = memoryview(window)
    end = min(len(view), rule.maximum)
    position = rule.minimum
    while position < end:
        count = min(_LANES, end - position)
        first = position - (_REGISTER_BYTES - 1)
        found = _first_match(bytes(view[first : position + count]), rule)
        if found is not None:
            return position + found
        position += count
    return end


def _first_match(data: bytes, rule: ChunkRule) -> int | None:
    """Index of the first position, counted after the 31 leading bytes, whose register triggers a cut."""
    candidates = _candidates(data, rule.equal_bits)
    while candidates:
        lowest = candidates & -candidates
        index = lowest.bit_length() // 8
        if _triggers(data[index : index + _REGISTER_BYTES], rule.threshold):
            return index
        candidates ^= lowest
    return None


def _candidates(data: bytes, equal_bits: int) -> int:
    """An integer whose bit 8i is set if the register after `data[i : i + 32]` has a highest bit that differs from the
    `equal_bits` bits below it, which are equal to each other.

    Bit b >= 7 of the register after byte i is D(i - b), where D(m) is the xor of bit j of byte m + j for j = 0 to 7:
    registers one position apart are the same bits, one place apart. So D is computed once for each byte, in the lowest
    bit of its lane; the other bits of a lane, which shifts change, are never read.
    """
    bits = int.from_bytes(data, "little")
    bits ^= bits >> 9
    bits ^= bits >> 18
    bits ^= bits >> 36
    changes = bits ^ (bits >> 8)
    # Whether any of the following `width` neighbours differ; `width` doubles until it is the wanted one.
    wanted, width = equal_bits - 1, 1
    differs = changes >> 8
    while width < wanted:
        step = min(width, wanted - width)
        differs |= differs >> (8 * step)
        width += step
    positions = len(data) - (_REGISTER_BYTES - 1)
    return changes & ~differs & (_LOWEST_BITS >> (8 * (_BLOCK_BYTES - positions)))


def _triggers(data: bytes, threshold: int) -> bool:
    register = 0
    for byte in data:
        register = (register << 1) ^ byte
    difference = ((register & _REGISTER_MASK) - _TARGET) & _REGISTER_MASK
    return min(difference, _REGISTER_MASK + 1 - difference) < threshold


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
    """Reads `size` bytes, or all that are left: a stream may give fewer at a time."""
    data = stream.read(size)
    parts = [data]
    left = size - len(data)
    while left and (block := stream.read(left)):
        parts.append(block)
        left -= len(block)
    return data if len(parts) == 1 else b"".join(parts)
