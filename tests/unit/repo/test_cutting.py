"""The cutting rule against a slow reading of its definition, and against what the stock server cut."""

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.fixture import stock_fixture
from tests.support.stockcatalogs import stock_catalogs

from mica.digest import Suffix
from mica.repo.cutting import FINE_RULE, PROGRAM_PIECES_MAX, STANDARD_RULE, ChunkRule, find_cut, read_pieces
from mica.repo.entry import Chunk, Flag
from mica.repo.objects import Compression, unpack
from mica.store.base import read_limited
from mica.store.local import LocalStore

_SMALL_RULE = ChunkRule(32768, 65536, 131072)
"""Two files of the stock repository were published with these sizes."""


def slow_cuts(data: bytes, rule: ChunkRule) -> list[int]:
    """Byte by byte, as docs/format/objects.md says it."""
    cuts: list[int] = []
    last = 0
    while last < len(data):
        x = 0
        for byte in data[last + rule.minimum - 32 : last + rule.minimum]:
            x = ((x << 1) ^ byte) & 0xFFFFFFFF
        i = last + rule.minimum
        while i < min(len(data), last + rule.maximum):
            x = ((x << 1) ^ data[i]) & 0xFFFFFFFF
            signed = x - (1 << 32) if x >> 31 else x
            difference = (signed - 0x7FFFFFFF) & 0xFFFFFFFF
            difference -= (1 << 32) if difference >> 31 else 0
            if abs(difference) < 0xFFFFFFFF // rule.average:
                break
            i += 1
        else:
            if last + rule.maximum >= len(data):
                return cuts
            i = last + rule.maximum
        cuts.append(i)
        last = i
    return cuts


def fast_cuts(data: bytes, rule: ChunkRule) -> list[int]:
    ends: list[int] = []
    for piece in read_pieces(io.BytesIO(data), rule, len(data)):
        ends.append((ends[-1] if ends else 0) + len(piece))
    return ends[:-1]


@settings(deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.integers(0, 60_000),
    st.sampled_from([(64, 128, 512), (1000, 2000, 4000), (32, 32, 32), (4096, 9000, 70_000)]),
)
def test_cuts_are_those_of_the_definition(seed: int, size: int, sizes: tuple[int, int, int]) -> None:
    rule = ChunkRule(*sizes)
    data = random.Random(seed).randbytes(size)
    assert fast_cuts(data, rule) == slow_cuts(data, rule)


@pytest.mark.parametrize("byte", [0, 1, 0x7F, 0xFF])
def test_monotonous_data_is_cut_like_the_definition(byte: int) -> None:
    rule = ChunkRule(1000, 3000, 8000)
    data = bytes([byte]) * 30_000
    assert fast_cuts(data, rule) == slow_cuts(data, rule)


def test_a_threshold_above_sixteen_bits() -> None:
    rule = ChunkRule(32, 64, 100_000)
    assert rule.threshold >= 1 << 16
    data = random.Random(7).randbytes(3000)
    assert fast_cuts(data, rule) == slow_cuts(data, rule) != []


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 1 << 32),
    st.sampled_from([3 << 16, 1 << 18, 512 << 10, 8 << 20, 1 << 27, 1 << 31]),
    st.lists(st.tuples(st.integers(0, 30_000), st.integers(-25_000, 25_000)), min_size=1, max_size=8),
)
def test_rare_cuts_are_found_where_they_are_planted(seed: int, average: int, planted: list[tuple[int, int]]) -> None:
    """Of random data such registers would be one in hundreds of thousands."""
    rule = ChunkRule(1000, average, 1 << 31)
    data = bytearray(random.Random(seed).randbytes(30_032))
    for place, distance in planted:
        register = (0x7FFFFFFF + distance) & 0xFFFFFFFF
        # 32 bytes of 0 and 1 are the register that they make.
        data[place : place + 32] = bytes(register >> bit & 1 for bit in reversed(range(32)))
    assert fast_cuts(bytes(data), rule) == slow_cuts(bytes(data), rule)


def test_a_register_at_each_edge_of_the_threshold() -> None:
    rule = ChunkRule(100, 512 << 10, 1 << 20)
    for distance in (-rule.threshold, 1 - rule.threshold, 0, 1, rule.threshold - 1, rule.threshold):
        register = (0x7FFFFFFF + distance) & 0xFFFFFFFF
        data = bytes(200) + bytes(register >> bit & 1 for bit in reversed(range(32))) + bytes(400)
        assert (231 in fast_cuts(data, rule)) == (abs(distance) < rule.threshold)
        assert fast_cuts(data, rule) == slow_cuts(data, rule)


def test_an_insertion_moves_few_pieces() -> None:
    before = random.Random(9).randbytes(6 << 20)
    after = before[: 2 << 20] + b"inserted" + before[2 << 20 :]
    pieces = [set(read_pieces(io.BytesIO(data), FINE_RULE, len(data))) for data in (before, after)]
    assert len(pieces[0]) >= 8
    assert len(pieces[0] - pieces[1]) <= 3


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 400, 401])
def test_sizes_at_the_edges(size: int) -> None:
    rule = ChunkRule(100, 200, 400)
    pieces = list(read_pieces(io.BytesIO(bytes(size)), rule, size))
    assert sum(map(len, pieces)) == size
    assert len(pieces) >= 1
    assert all(len(piece) >= rule.minimum for piece in pieces[:-1])
    assert all(len(piece) <= rule.maximum for piece in pieces)
    if size <= rule.minimum:
        assert len(pieces) == 1


@pytest.mark.parametrize("start", [b"", b"\x7fELF"])
def test_streams_that_trickle_give_the_same_pieces(start: bytes) -> None:
    data = start + random.Random(3).randbytes(50_000)
    rule = ChunkRule(1000, 2000, 4000, program=4096)

    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 777))

    assert list(read_pieces(Trickle(data), rule, len(data))) == list(read_pieces(io.BytesIO(data), rule, len(data)))


def test_window_types() -> None:
    data = random.Random(5).randbytes(4000)
    rule = ChunkRule(100, 200, 4000)
    assert find_cut(data, rule) == find_cut(bytearray(data), rule) == find_cut(memoryview(data), rule)


@pytest.mark.parametrize("sizes", [(31, 40, 50), (100, 50, 200), (100, 200, 150), (0, 0, 0)])
def test_senseless_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="ascend from 32"):
        ChunkRule(*sizes)


@pytest.mark.parametrize("program", [1, 2048, 6000, -4096])
def test_senseless_pieces_of_programs_are_refused(program: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        ChunkRule(1000, 2000, 4000, program=program)


@pytest.mark.parametrize("size", [20_000, 20_001, 24_576, 24_577, 100_000])
def test_programs_are_cut_at_fixed_places(size: int) -> None:
    rule = ChunkRule(20_000, 30_000, 40_000, program=4096)
    data = b"\x7fELF" + random.Random(size).randbytes(size - 4)
    sizes = [len(piece) for piece in read_pieces(io.BytesIO(data), rule, size)]
    whole, rest = divmod(size, 4096)
    assert sizes == ([size] if size == 20_000 else [4096] * whole + [rest] * bool(rest))
    # Without a size for programs, and with another beginning, the content decides.
    assert fast_cuts(data, ChunkRule(20_000, 30_000, 40_000)) == slow_cuts(data, rule)
    assert fast_cuts(b"\x7fELG" + data[4:], rule) == slow_cuts(b"\x7fELG" + data[4:], rule)


def test_very_large_programs_have_larger_pieces() -> None:
    largest = FINE_RULE.program * PROGRAM_PIECES_MAX
    assert FINE_RULE.program_piece_bytes(largest) == FINE_RULE.program
    assert FINE_RULE.program_piece_bytes(largest + 1) == 2 * FINE_RULE.program
    assert FINE_RULE.program_piece_bytes(5 * largest) == 8 * FINE_RULE.program
    assert STANDARD_RULE.program_piece_bytes(largest) == 0


def test_the_standard_threshold() -> None:
    assert STANDARD_RULE.threshold == 511


def test_the_stock_server_cut_its_files_at_the_same_places() -> None:
    stock = stock_fixture()
    seen = 0
    for catalog in stock_catalogs(stock.store):
        for row, _ in list(catalog.all_rows()):
            if row.entry.flags & Flag.CHUNKED and not row.entry.flags & Flag.EXTERNAL:
                chunks = catalog.chunks(row)
                content = b"".join(_content(stock.store, chunk, row.entry.compression) for chunk in chunks)
                rule = STANDARD_RULE if row.entry.size > STANDARD_RULE.minimum else _SMALL_RULE
                assert [chunk.offset for chunk in chunks[1:]] == fast_cuts(content, rule) != [], row.entry.name
                seen += len(chunks)
    assert seen > 40


def _content(store: LocalStore, chunk: Chunk, compression: Compression) -> bytes:
    stored = read_limited(store, chunk.digest.object_path(Suffix.CHUNK), 64 << 20)
    return unpack(stored, chunk.digest, limit=chunk.size, compression=compression)
