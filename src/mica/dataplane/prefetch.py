"""Prefetching: when a traced program starts, the content that it will ask for is fetched before, several at a time.

A program starts when the content of its file is asked for, or when the caller that mounts says so. Every trace is
followed once in the life of a service. Content that is in the cache is not fetched again, and the cache's quota limits
prefetching as it limits completion.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

from mica.cache.cache import Cache
from mica.cache.partfiles import local_name_bytes
from mica.dataplane.messages import Kind, Question, Result
from mica.logs import logger
from mica.repo.localname import LocalName
from mica.thin.trace import Piece, ProgramTrace

_log = logger(__name__)
_LEAST_AT_ONCE, _MOST_AT_ONCE = 4, 32
_EACH_S = 0.002
"""For each such step of latency one more download at once keeps the network busy. With too many at once, the content
that is needed first comes late."""
_PATIENCE_S = 2.0
"""How long downloads under way are waited for at the end."""


class _Known(NamedTuple):
    trace: ProgramTrace
    repository: int
    listed: threading.Event


class Prefetch:
    """`supply` brings content into the cache, `latency_s` returns the latency of the repository with a number; the
    event is set while there is something to fetch. A block, which ends all that it began; the cache has to outlive it.
    Any thread."""

    def __init__(
        self,
        cache: Cache,
        supply: Callable[[Question], Result],
        is_running: threading.Event,
        latency_s: Callable[[int], float] = lambda _number: 0.0,
    ) -> None:
        self._cache = cache
        self._supply = supply
        self._is_running = is_running
        self._latency_s = latency_s
        self._lock = threading.Lock()
        self._known: dict[LocalName, _Known] = {}
        self._followed: set[ProgramTrace] = set()
        self._threads: list[threading.Thread] = []
        self._running = 0
        self._is_ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ended = True
        deadline = time.monotonic() + _PATIENCE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def learn(
        self, traces: Sequence[ProgramTrace], repository: int, listed: threading.Event, program: str | None = None
    ) -> None:
        """Learn the traces of an image whose content is in this repository; `program` is about to start.

        Set the event when the chunk lists of the image are in the cache: files in chunks come no earlier.
        """
        with self._lock:
            self._known.update({trace.trigger: _Known(trace, repository, listed) for trace in traces})
        for trace in traces:
            if trace.program == program:
                self.asked(trace.trigger)

    def asked(self, name: LocalName) -> None:
        """A program asks for this content."""
        if name not in self._known:
            return
        with self._lock:
            known = self._known[name]
            if self._is_ended or known.trace in self._followed:
                return
            self._followed.add(known.trace)
            waiting = deque(known.trace.pieces)
            at_once = min(_LEAST_AT_ONCE + int(self._latency_s(known.repository) / _EACH_S), _MOST_AT_ONCE)
            threads = [
                threading.Thread(target=self._follow, args=(waiting, known), name="prefetch", daemon=True)
                for _ in range(at_once)
            ]
            self._threads = [*filter(threading.Thread.is_alive, self._threads), *threads]
            self._running += at_once
            self._is_running.set()
            for thread in threads:
                thread.start()

    def _follow(self, pieces: "deque[Piece]", known: _Known) -> None:
        try:
            self._fetch(pieces, known)
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._is_running.clear()

    def _fetch(self, pieces: "deque[Piece]", known: _Known) -> None:
        while pieces and not self._is_ended:
            try:
                piece = pieces.popleft()
            except IndexError:
                return
            name = piece.name
            if not name.in_chunks and local_name_bytes(self._cache, name) == name.size:
                continue
            if name.in_chunks:
                known.listed.wait()
            size = piece.size or name.size
            if not self._cache.quota.fits(size):
                _log.info("prefetching ends: the cache is full")
                pieces.clear()
                return
            kind = Kind.RANGE if name.in_chunks else Kind.OBJECT
            # Ticket 0: no request waits for it. A failure goes to the log; a program that asks later gets it again.
            if self._supply(Question(kind, 0, known.repository, name, piece.offset, piece.size)).errno:
                pieces.clear()
