"""The shared record of a quota: never less than what is there, whoever is killed in the middle."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.noise import noise

from mica.cache.ledger import Account, Ledger, Limits

LIFE = "01234567-89ab-cdef-0123-456789abcdef"
OTHER_LIFE = "ffffffff-ffff-ffff-ffff-ffffffffffff"
PLENTY = 1 << 50


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path, LIFE) as ledger:
        ledger.set_limits(Limits(1000))
        ledger.end_count(0, ledger.begin_count())
        yield ledger


KILLED = """
import os, signal, sys
from pathlib import Path
from mica.cache.ledger import _PROMISED, Ledger
book = Ledger(Path(sys.argv[1]), sys.argv[2])
exec(sys.argv[3])
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path: Path, code: str) -> None:
    """Run a line with a ledger in a process that is killed after it."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), LIFE, code], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_promises_end_at_the_limit(ledger: Ledger) -> None:
    assert ledger.promise(600, PLENTY)
    assert not ledger.promise(401, PLENTY)
    assert ledger.promise(400, PLENTY)
    ledger.give_back(400)
    ledger.take(500, 600)
    assert ledger.account() == Account(500, 0, is_counted=True)
    assert ledger.promise(500, PLENTY)
    assert not ledger.promise(1, PLENTY)
    ledger.remove(200)
    assert ledger.promise(200, PLENTY)


def test_without_limits_everything_fits(path: Path) -> None:
    with Ledger(path, LIFE) as ledger:
        assert not ledger.has_limits
        assert ledger.promise(1 << 60, 0)


def test_a_limit_is_of_no_use_before_all_is_counted(path: Path) -> None:
    with Ledger(path, LIFE) as ledger:
        ledger.set_limits(Limits(1000))
        assert not ledger.promise(1, PLENTY)
        ledger.end_count(999, ledger.begin_count())
        assert ledger.promise(1, PLENTY)
        ledger.set_limits(Limits())
        ledger.set_limits(Limits(2000))
        assert not ledger.promise(1, PLENTY), "what came meanwhile was not accounted for"


def test_some_space_stays_free(ledger: Ledger) -> None:
    ledger.set_limits(Limits(0, keep_free=100))
    assert ledger.promise(50, 150)
    assert not ledger.promise(1, 150), "what is promised will not be free"
    assert ledger.promise(1, 151)


def test_processes_share_one_record(ledger: Ledger, path: Path) -> None:
    with Ledger(path, LIFE) as other:
        assert other.limits == Limits(1000)
        assert ledger.promise(500, PLENTY)
        assert other.promise(400, PLENTY)
        assert not other.promise(101, PLENTY)
        other.take(400, 400)
        assert ledger.account() == Account(400, 500, is_counted=True)


def test_what_a_killed_process_was_promised_counts_until_the_next_count(ledger: Ledger, path: Path) -> None:
    killed(path, "assert book.promise(700, 1 << 50)")
    assert ledger.account() == Account(0, 700, is_counted=True)
    assert not ledger.promise(301, PLENTY)
    ledger.end_count(120, ledger.begin_count())
    assert ledger.account() == Account(120, 0, is_counted=True)


def test_who_takes_the_place_of_a_killed_one_does_not_inherit(ledger: Ledger, path: Path) -> None:
    killed(path, "assert book.promise(700, 1 << 50)")
    with Ledger(path, LIFE) as other:
        assert other.promise(100, PLENTY)
        assert ledger.account() == Account(700, 100, is_counted=True)


def test_a_live_process_keeps_its_promise_over_a_count(ledger: Ledger, path: Path) -> None:
    with Ledger(path, LIFE) as other:
        assert other.promise(700, PLENTY)
        ledger.end_count(0, ledger.begin_count())
        assert ledger.account() == Account(0, 700, is_counted=True)


def test_what_arrives_during_a_count_is_counted(ledger: Ledger) -> None:
    begun = ledger.begin_count()
    assert ledger.promise(300, PLENTY)
    ledger.take(300, 300)
    ledger.end_count(200, begun)
    assert ledger.account().taken == 500


def test_a_record_left_half_changed_is_counted_again(ledger: Ledger, path: Path) -> None:
    killed(path, "book._changing.__enter__()[_PROMISED] += 300")
    assert not ledger.promise(1, PLENTY)
    assert not ledger.account().is_counted
    ledger.end_count(0, ledger.begin_count())
    assert ledger.account() == Account(0, 0, is_counted=True)
    assert ledger.promise(1000, PLENTY)


def test_another_life_of_the_machine_knows_the_limits_only(ledger: Ledger, path: Path) -> None:
    assert ledger.promise(10, PLENTY)
    ledger.close()
    with Ledger(path, OTHER_LIFE) as later:
        assert later.limits == Limits(1000)
        assert later.account() == Account(0, 0, is_counted=False)
    ledger.__init__(path, OTHER_LIFE)  # type: ignore[misc]  # the fixture closes it


def test_a_damaged_record_is_begun_again(path: Path) -> None:
    path.write_bytes(noise(5000))
    with Ledger(path, LIFE) as ledger:
        assert ledger.limits == Limits()
        assert not ledger.account().is_counted


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 700), st.booleans()), max_size=40))
def test_taken_and_promised_never_pass_the_limit(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, bool]]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "usage"
    with Ledger(path, LIFE) as one, Ledger(path, LIFE) as two:
        one.set_limits(Limits(1000))
        one.end_count(0, one.begin_count())
        on_disk = promised = 0
        mine = [0, 0]
        for who, size, finishes in steps:
            book = (one, two)[who]
            if book.promise(size, PLENTY):
                promised += size
                mine[who] += size
            assert on_disk + promised <= 1000
            if finishes:
                book.take(mine[who] // 2, mine[who])
                on_disk += mine[who] // 2
                promised -= mine[who]
                mine[who] = 0
            assert one.account() == Account(on_disk, promised, is_counted=True)
