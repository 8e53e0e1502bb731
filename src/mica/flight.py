"""One call for each key at a time, shared by all who ask for it meanwhile. Any thread.

Races: who comes while the call runs waits and gets its result or its exception; who comes after it has ended starts a
new call. Nothing is remembered.
"""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Flight(Generic[Result]):
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Hashable, Future[Result]] = {}

    def do(self, key: Hashable, call: Callable[[], Result]) -> Result:
        with self._lock:
            future = self._running.get(key)
            leads = future is None
            if future is None:
                future = self._running[key] = Future()
        if not leads:
            return future.result()
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        finally:
            with self._lock:
                del self._running[key]
        return future.result()
