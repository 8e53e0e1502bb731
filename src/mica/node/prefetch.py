"""Prefetching: as soon as a traced program starts, what it will ask for comes before it asks, several at a time.

A program starts when the content of its file is asked for, or when whoever mounts says so. Every trace is followed once
in the life of a service. What is here is not fetched again, and the cache's quota holds as it does for completion.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

from mica.fetch.cache import Cache
from mica.fetch.parts import local_name_bytes
from mica.logs import logger
from mica.node.messages import Kind, Question, Result
from mica.repo.localname import LocalName
from mica.thin.trace import Piece, ProgramTrace

_log = logger(__name__)
_AT_ONCE = 8
_PATIENCE_S = 2.0
"""How long downloads under way are waited for at the end."""


class Prefetch:
    """`supply` is what answers the object filesystem. A block, which ends all that it began; the cache is to outlive
    it. Any thread."""

    def __init__(self, cache: Cache, supply: Callable[[Question], Result]) -> None:
        self._cache = cache
        self._supply = supply
        self._lock = threading.Lock()
        self._known: dict[LocalName, tuple[ProgramTrace, int]] = {}
        self._followed: set[ProgramTrace] = set()
        self._threads: list[threading.Thread] = []
        self._is_ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ended = True
        deadline = time.monotonic() + _PATIENCE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def learn(self, traces: Sequence[ProgramTrace], repository: int, program: str | None = None) -> None:
        """Know the traces of an image whose content is in this repository; `program` is about to start."""
        with self._lock:
            self._known.update({trace.trigger: (trace, repository) for trace in traces})
        for trace in traces:
            if trace.program == program:
                self.asked(trace.trigger)

    def asked(self, name: LocalName) -> None:
        """Somebody asks for this content."""
        if name not in self._known:
            return
        with self._lock:
            trace, repository = self._known[name]
            if self._is_ended or trace in self._followed:
                return
            self._followed.add(trace)
            pieces = deque(trace.pieces)
            threads = [
                threading.Thread(target=self._follow, args=(pieces, repository), name="prefetch", daemon=True)
                for _ in range(_AT_ONCE)
            ]
            self._threads = [*filter(threading.Thread.is_alive, self._threads), *threads]
            for thread in threads:
                thread.start()

    def _follow(self, pieces: "deque[Piece]", repository: int) -> None:
        while pieces and not self._is_ended:
            try:
                piece = pieces.popleft()
            except IndexError:
                return
            name = piece.name
            if not name.in_chunks and local_name_bytes(self._cache, name) == name.size:
                continue
            size = piece.size or name.size
            if not self._cache.quota.fits(size):
                _log.info("prefetching ends: the cache is full")
                pieces.clear()
                return
            kind = Kind.RANGE if name.in_chunks else Kind.OBJECT
            # Ticket 0: nobody waits for it. A failure is told in the log, and again to whoever asks.
            if self._supply(Question(kind, 0, repository, name, piece.offset, piece.size)).errno:
                pieces.clear()
