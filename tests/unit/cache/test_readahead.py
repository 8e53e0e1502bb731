"""What is fetched besides: little for who jumps about, more for who reads on, neighbours over long ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mica.cache.readahead import AHEAD_MAX_BYTES, AROUND_MAX_BYTES, ReadAhead, around_bytes
from mica.digest import Algorithm, digest_of
from mica.repo.entry import Chunk

PIECE = 64 << 10


def chunks_of(sizes: list[int]) -> list[Chunk]:
    return [Chunk(sum(sizes[:n]), size, digest_of(b"%d" % n, Algorithm.SHA1)) for n, size in enumerate(sizes)]


EVEN = chunks_of([PIECE] * 200)


def test_who_jumps_about_gets_what_was_asked_for() -> None:
    ahead = ReadAhead()
    for number in (0, 7, 3, 4, 100, 101, 50):
        assert ahead.plan(EVEN, [number]) == []


def test_who_reads_on_gets_as_much_again_as_was_read() -> None:
    ahead = ReadAhead()
    assert ahead.plan(EVEN, [10]) == []
    assert ahead.plan(EVEN, [11]) == []
    assert ahead.plan(EVEN, [12]) == [13, 14, 15]
    assert ahead.plan(EVEN, [16]) == [*range(17, 24)]
    assert ahead.plan(EVEN, [24, 25]) == [*range(26, 42)]
    assert ahead.plan(EVEN, [7]) == []


def test_reading_ahead_ends_with_the_file_and_has_a_limit() -> None:
    ahead = ReadAhead()
    needed, most = 0, 0
    while needed < len(EVEN):
        more = ahead.plan(EVEN, [needed])
        needed = more[-1] + 1 if more else needed + 1
        most = max(most, len(more))
    assert needed == len(EVEN)
    assert most == AHEAD_MAX_BYTES // PIECE


def test_over_a_long_way_neighbours_come_along() -> None:
    ahead = ReadAhead()
    assert ahead.plan(EVEN, [10], around=8 * PIECE) == [11, 12, 13, 14, 15, 9, 8]
    assert ahead.plan(EVEN, [0], around=8 * PIECE) == [1, 2, 3, 4, 5, 6, 7]
    assert ahead.plan(EVEN, [199], around=8 * PIECE) == [198, 197, 196, 195, 194, 193, 192]
    uneven = chunks_of([PIECE // 3] * 5 + [PIECE * 20] + [PIECE] * 5)
    assert ReadAhead().plan(uneven, [6], around=2 * PIECE) == [5]  # window 20 to 22, and chunk 5 reaches into it
    assert ReadAhead().plan(uneven, [5], around=2 * PIECE) == [4, 3, 2, 1, 0]


def test_who_reads_on_over_a_long_way_gets_both() -> None:
    ahead = ReadAhead()
    taken = []
    needed = 0
    for _ in range(4):
        more = [number for number in ahead.plan(EVEN, [needed], around=2 * PIECE) if number > needed]
        needed = more[-1] + 1
        taken.append(len(more))
    assert taken == [1, 1, 5, 11]


@pytest.mark.parametrize(
    ("latency_s", "size"),
    [(0.0, 0), (0.0013, 0), (0.002, 128 << 10), (0.005, 256 << 10), (0.01, 512 << 10), (0.04, 1 << 20), (9.0, 1 << 20)],
)
def test_the_window_is_what_waiting_is_worth(latency_s: float, size: int) -> None:
    assert around_bytes(latency_s) == size
    assert size <= AROUND_MAX_BYTES


@given(
    st.lists(st.integers(1, 300_000), min_size=1, max_size=40),
    st.lists(st.integers(0, 39), min_size=1, max_size=12),
    st.sampled_from([0, 128 << 10, 512 << 10]),
)
def test_a_plan_names_chunks_that_exist_once_and_never_what_is_needed(
    sizes: list[int], reads: list[int], around: int
) -> None:
    chunks, ahead = chunks_of(sizes), ReadAhead()
    for read in reads:
        needed = [read % len(chunks)]
        more = ahead.plan(chunks, needed, around=around)
        assert len(set(more)) == len(more)
        assert set(more) <= set(range(len(chunks))) - set(needed)
