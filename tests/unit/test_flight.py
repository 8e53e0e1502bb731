"""One call at a time for each key: who waits gets its result, who comes later starts again."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support.waiting import PATIENCE_S

from mica.flight import Flight


def test_waiters_share_one_call() -> None:
    flight: Flight[int] = Flight()
    calls: list[int] = []
    inside, go_on = threading.Event(), threading.Event()

    def call() -> int:
        calls.append(1)
        inside.set()
        assert go_on.wait(PATIENCE_S)
        return 42

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(flight.do, "key", call)
        assert inside.wait(PATIENCE_S)
        others = [pool.submit(flight.do, "key", call) for _ in range(3)]
        assert flight.do("another key", lambda: 1) == 1
        go_on.set()
        assert [future.result(PATIENCE_S) for future in (first, *others)] == [42] * 4
    # A waiter that came after the end would have called again; all were submitted before it, but may have run after.
    assert 1 <= len(calls) <= 4


def test_an_error_reaches_everyone_and_is_forgotten() -> None:
    flight: Flight[int] = Flight()
    inside, go_on = threading.Event(), threading.Event()

    def fail() -> int:
        inside.set()
        assert go_on.wait(PATIENCE_S)
        raise ValueError("once")

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(flight.do, "key", fail)
        assert inside.wait(PATIENCE_S)
        go_on.set()
        with pytest.raises(ValueError, match="once"):
            future.result(PATIENCE_S)
    assert flight.do("key", lambda: 7) == 7


def test_later_calls_are_new() -> None:
    flight: Flight[int] = Flight()
    numbers = iter(range(10))
    assert [flight.do("key", lambda: next(numbers)) for _ in range(3)] == [0, 1, 2]
