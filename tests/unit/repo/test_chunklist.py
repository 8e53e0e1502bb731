"""A chunk list is a sequence like any other, only smaller."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mica.digest import Algorithm, Digest
from mica.repo.chunklist import ChunkList, format_chunk_list, parse_chunk_list
from mica.repo.entry import Chunk

SHA1 = Digest(bytes(range(20)), Algorithm.SHA1)
parts = st.lists(st.tuples(st.integers(1, 1 << 40), st.binary(min_size=20, max_size=20)), max_size=9)


def both(parts: list[tuple[int, bytes]]) -> tuple[ChunkList, list[Chunk]]:
    """The same chunks in both forms."""
    packed, plain, offset = ChunkList(Algorithm.SHAKE128), [], 0
    for size, raw in parts:
        packed.append(size, raw)
        plain.append(Chunk(offset, size, Digest(raw, Algorithm.SHAKE128)))
        offset += size
    return packed, plain


@given(parts, st.integers(-10, 10), st.slices(9))
def test_it_holds_what_was_put_in(parts: list[tuple[int, bytes]], number: int, part: slice) -> None:
    packed, plain = both(parts)
    assert packed == plain
    assert list(packed) == plain
    assert packed[part] == plain[part]
    assert packed.size == sum(size for size, _ in parts)
    assert bool(packed) == bool(plain)
    if -len(plain) <= number < len(plain):
        assert packed[number] == plain[number]
    else:
        with pytest.raises(IndexError):
            _ = packed[number]


def test_other_chunks_are_unequal() -> None:
    packed, plain = both([(5, bytes(20)), (6, bytes(20))])
    assert packed != plain[:1]
    assert packed != [plain[0], plain[1]._replace(size=7)]
    assert packed != 5
    assert str(packed) == "<2 chunks of 11 bytes>"


@pytest.mark.parametrize(("size", "raw"), [(0, bytes(20)), (-1, bytes(20)), (1 << 63, bytes(20)), (1, bytes(19))])
def test_what_no_file_has_is_refused(size: int, raw: bytes) -> None:
    with pytest.raises(ValueError, match="a chunk of"):
        ChunkList(Algorithm.SHA1).append(size, raw)


def test_a_hundred_thousand_chunks_take_a_few_megabytes() -> None:
    tracemalloc.start()
    try:
        both([])
        packed = ChunkList(Algorithm.SHA1)
        for number in range(100_000):
            packed.append(1, number.to_bytes(20, "big"))
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 4 << 20


@pytest.mark.parametrize("chunks", [[Chunk(1, 5, SHA1)], [Chunk(0, 0, SHA1)], [Chunk(0, 1 << 32, SHA1)]])
def test_chunks_with_gaps_or_of_impossible_sizes_have_no_list(chunks: list[Chunk]) -> None:
    with pytest.raises(ValueError, match="a chunk of"):
        format_chunk_list(chunks)


def test_a_list_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mica.repo.chunklist.CHUNKS_MAX", 2)
    with pytest.raises(ValueError, match="more than 2 chunks"):
        parse_chunk_list((b"\1\0\0\0" + bytes(20)) * 3, Algorithm.SHA1)


@pytest.mark.parametrize("data", [b"", b"x" * 23, bytes(24), b"\1\0\0\0" + bytes(20) + b"\0"])
def test_a_list_that_is_not_whole_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="a chunk list"):
        parse_chunk_list(data, Algorithm.SHA1)
