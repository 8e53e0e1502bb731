"""Figures that another process reads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mica.dataplane.counts import Counts, SharedCounts, read_counts


def test_what_is_counted_is_read_at_once_and_a_successor_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "counts"
    assert read_counts(path) == Counts()
    with SharedCounts(path) as counts:
        counts.add(lookups=1)
        counts.add(reads=2, questions=3)
        assert read_counts(path) == Counts(1, 2, 3)
    with SharedCounts(path) as successor:
        successor.add(lookups=1)
    assert read_counts(path) == Counts(2, 2, 3)


def test_no_count_is_lost_among_threads(tmp_path: Path) -> None:
    with SharedCounts(tmp_path / "counts") as counts, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: counts.add(lookups=1), range(4000)))
    assert read_counts(tmp_path / "counts").lookups == 4000
