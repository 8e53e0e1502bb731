"""Checks that objects exist and have the content that catalogs name. A few threads look at each object once, while the
caller walks on.

A table on disk has the objects that were asked for, so memory does not grow with the repository. Called by `check.py`;
the caller's side is one thread.
"""

import sqlite3
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Self

from mica.errors import IntegrityError, NotFoundError
from mica.fetch.download import Fetcher
from mica.fetch.verify import copy_verified
from mica.repo.objectname import ObjectName
from mica.streams import Readable

_BATCH = 64
_PEEK_BYTES = 64 << 10
"""Bytes to read of an object that only has to exist: most are read whole, which keeps the HTTP connection."""


class Finding(NamedTuple):
    """One fault. `where` is the path in the repository or the file that has it."""

    severity: Literal["error", "warning"]
    where: str
    sentence: str


class Wanted(NamedTuple):
    """An object that has to exist; `missing` is the severity if it does not."""

    where: str
    name: ObjectName
    missing: Literal["error", "warning"] = "error"


class Nowhere:
    """A sink for content that is only verified."""

    def write(self, data: bytes, /) -> None:
        pass


class ObjectCheck:
    """Asks for objects, each once; findings come in any later call. Use as a context manager."""

    def __init__(self, fetcher: Fetcher, table: Path, threads: int, *, in_full: bool) -> None:
        self._fetcher = fetcher
        self._in_full = in_full
        self._most_running = 4 * threads
        self._batch: list[Wanted] = []
        self._running: deque[tuple[int, Future[list[Finding]]]] = deque()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="check")
        self._seen = sqlite3.connect(table, isolation_level=None)
        self._seen.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -16384;"
            "CREATE TABLE seen (object BLOB PRIMARY KEY) WITHOUT ROWID; BEGIN"
        )
        self.looked_at = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After Ctrl-C the check does not wait for a server that does not answer.
        is_interrupted = kind is not None and not issubclass(kind, Exception)
        self._pool.shutdown(wait=not is_interrupted, cancel_futures=True)
        self._seen.close()

    def ask(self, wanted: Wanted) -> Iterator[Finding]:
        name = wanted.name
        key = b"%b/%d/%s/%d/%d" % (
            name.digest.raw, name.digest.algorithm, name.suffix.encode(), name.compression, name.most,
        )  # fmt: skip
        if not self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount:
            return
        self._batch.append(wanted)
        if len(self._batch) < _BATCH:
            return
        self._submit()
        while self._running and (len(self._running) > self._most_running or self._running[0][1].done()):
            yield from self._collect()

    def finish(self) -> Iterator[Finding]:
        self._submit()
        while self._running:
            yield from self._collect()

    def _submit(self) -> None:
        if self._batch:
            self._running.append((len(self._batch), self._pool.submit(self._look_at, self._batch)))
            self._batch = []

    def _collect(self) -> list[Finding]:
        batch, future = self._running.popleft()
        findings = future.result()
        self.looked_at += batch
        return findings

    def _look_at(self, batch: list[Wanted]) -> list[Finding]:
        return [finding for wanted in batch if (finding := self._look_at_one(wanted)) is not None]

    def _look_at_one(self, wanted: Wanted) -> Finding | None:
        name = wanted.name
        consume = partial(copy_verified, sink=Nowhere(), name=name) if self._in_full else _peek
        try:
            self._fetcher.fetch(name.path, consume)
        except NotFoundError as error:
            return Finding(wanted.missing, wanted.where, str(error))
        except IntegrityError as error:
            return Finding("error", wanted.where, str(error))
        return None


def _peek(stream: Readable) -> None:
    left = _PEEK_BYTES
    while left and (block := stream.read(left)):
        left -= len(block)
