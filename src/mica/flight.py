"""At most one call for each key at a time; all callers that come meanwhile share it. Any thread.

Races: a caller that comes while the call runs waits, and gets its result or its exception. A caller that comes after
its end starts a new call. Nothing is remembered.
"""

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar, cast

Result = TypeVar("Result")


class _Call(Generic[Result]):
    """The first caller that waits makes `ended`, because mostly none waits."""

    __slots__ = ("ended", "error", "result")

    def __init__(self) -> None:
        self.ended: threading.Event | None = None
        self.error: BaseException | None = None
        self.result: Result | None = None


class Flight(Generic[Result]):
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Hashable, _Call[Result]] = {}

    def do(self, key: Hashable, call: Callable[[], Result]) -> Result:
        with self._lock:
            running = self._running.get(key)
            if running is None:
                mine = self._running[key] = _Call()
            else:
                running.ended = running.ended or threading.Event()
        if running is not None:
            return self._wait(running)
        try:
            mine.result = result = call()
            return result
        except BaseException as error:
            mine.error = error
            raise
        finally:
            with self._lock:
                del self._running[key]
                ended = mine.ended
            if ended is not None:
                ended.set()

    @staticmethod
    def _wait(running: _Call[Result]) -> Result:
        assert running.ended is not None
        running.ended.wait()
        if running.error is not None:
            raise running.error
        return cast("Result", running.result)
