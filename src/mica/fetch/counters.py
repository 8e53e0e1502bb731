"""What a client has done so far, for tables and tests. Any thread; reading gives a consistent copy."""

import threading
from typing import NamedTuple


class Traffic(NamedTuple):
    """`transferred_bytes` are bodies of answers as received, without headers; `requests` all that were sent;
    `io_errors` the requests of programs to a mount that failed."""

    requests: int = 0
    transferred_bytes: int = 0
    objects_fetched: int = 0
    cache_hits: int = 0
    files_opened: int = 0
    io_errors: int = 0


class TrafficCounter:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(Traffic._fields, 0)

    def add(self, **more: int) -> None:
        with self._lock:
            for name, count in more.items():
                self._counts[name] += count

    def read(self) -> Traffic:
        with self._lock:
            return Traffic(**self._counts)
