"""Copies objects from a source into a store: several at a time, each verified while it passes, what is there left out.

    with ObjectCopier(fetcher, store, work, threads=8) as copier:
        copier.ask(needed)          # from one thread
        copier.drain()              # all that was asked for is in the store, or the first failure is raised

Memory is bounded: what may be large passes through a file in `work`, all other content within a budget. The caller's
side is one thread.
"""

import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Self

from mica.digest import Digest, Suffix, new_hasher
from mica.errors import IntegrityError, NotFoundError
from mica.fetch.download import Fetcher
from mica.files import mapped_os_errors
from mica.store.base import ObjectStore
from mica.streams import Readable

_BATCH: Final = 16
_BLOCK_BYTES: Final = 1 << 20
_IN_MEMORY_BYTES: Final = 24 << 20
"""Larger content passes through a file. Chunks have at most 16 MiB (docs/format/objects.md)."""
_BUDGET_BYTES: Final = 48 << 20
_SLACK_BYTES: Final = 256 << 10


class NeededObject(NamedTuple):
    """`size` is that of its content in bytes. `owner` names for messages what refers to it."""

    digest: Digest
    suffix: Suffix
    size: int
    owner: str

    @property
    def path(self) -> str:
        return self.digest.object_path(self.suffix)

    @property
    def most_stored_bytes(self) -> int:
        """Zlib makes nothing so much larger."""
        return self.size + self.size // 100 + _SLACK_BYTES


class Copied(NamedTuple):
    """`present` are objects that were in the store before."""

    objects: int = 0
    stored_bytes: int = 0
    present: int = 0


class ObjectCopier:
    """`progress` is called from any thread with the bytes that were copied since."""

    def __init__(
        self,
        fetcher: Fetcher,
        store: ObjectStore,
        work: Path,
        *,
        threads: int,
        progress: Callable[[int], None] = lambda _bytes: None,
    ) -> None:
        self._fetcher = fetcher
        self._store = store
        self._work = work
        self._progress = progress
        self._most_running = 4 * threads
        self._batch: list[NeededObject] = []
        self._running: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="copy")
        self._budget = _Budget(_BUDGET_BYTES)
        self._lock = threading.Lock()
        self._counts = Copied()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After Ctrl-C nothing waits for a server that does not answer.
        is_interrupted = kind is not None and not issubclass(kind, Exception)
        self._pool.shutdown(wait=not is_interrupted, cancel_futures=True)

    @property
    def counts(self) -> Copied:
        with self._lock:
            return self._counts

    def ask(self, needed: NeededObject) -> None:
        """Copy an object some time. Raises the failure of an earlier one."""
        self._batch.append(needed)
        if len(self._batch) >= _BATCH:
            self._submit()
            while self._running and (len(self._running) > self._most_running or self._running[0].done()):
                self._running.popleft().result()

    def drain(self) -> None:
        """Raises the first failure since the last call; nothing is on its way afterwards."""
        if self._batch:
            self._submit()
        failure: Exception | None = None
        while self._running:
            try:
                self._running.popleft().result()
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def forget(self) -> None:
        """Wait for what is on its way, and do not tell how it ended."""
        self._batch = []
        for future in self._running:
            future.cancel()
            if not future.cancelled():
                future.exception()
        self._running.clear()

    def copy(self, needed: NeededObject) -> None:
        """Copy one object in this thread, unless it is in the store."""
        if self._store.has(needed.path):
            self._count(Copied(present=1))
            return
        try:
            self._fetcher.fetch(needed.path, partial(self._take, needed))
        except NotFoundError as error:
            raise NotFoundError(f"{error} {needed.owner} needs it.", hint=error.hint) from error

    def _submit(self) -> None:
        self._running.append(self._pool.submit(self._copy_all, self._batch))
        self._batch = []

    def _copy_all(self, batch: list[NeededObject]) -> None:
        for needed in batch:
            self.copy(needed)

    def _take(self, needed: NeededObject, stream: Readable) -> None:
        if needed.size > _IN_MEMORY_BYTES:
            with tempfile.TemporaryDirectory(dir=self._work) as place:
                file = Path(place) / "object"
                with mapped_os_errors(f"write {file}"), open(file, "wb", buffering=0) as target:
                    target.writelines(verified_blocks(stream, needed))
                self._store.put_file(needed.path, file, count_new=self._count_new)
            return
        with self._budget.taken(needed.size):
            data = b"".join(verified_blocks(stream, needed))
            self._store.put(needed.path, data, count_new=self._count_new)

    def _count_new(self, stored_bytes: int) -> None:
        self._count(Copied(1, stored_bytes))
        self._progress(stored_bytes)

    def _count(self, more: Copied) -> None:
        with self._lock:
            self._counts = Copied(*(one + other for one, other in zip(self._counts, more, strict=True)))


def verified_blocks(stream: Readable, needed: NeededObject) -> Iterator[bytes]:
    """The stored bytes. Raises IntegrityError after the last one if they are not those of the object."""
    hasher = new_hasher(needed.digest.algorithm)
    left = needed.most_stored_bytes
    while block := stream.read(_BLOCK_BYTES):
        left -= len(block)
        if left < 0:
            raise IntegrityError(f"Object {needed.digest} has more stored bytes than {needed.size} bytes can need.")
        hasher.update(block)
        yield block
    found = hasher.finish()
    if found != needed.digest:
        raise IntegrityError(f"Object {needed.digest} has other content: its bytes hash to {found}.")


class _Budget:
    """Bytes that may be in memory at a time; one that is alone gets all it needs."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._taken_bytes = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken_bytes or self._taken_bytes + size <= self._most_bytes)
            self._taken_bytes += size
        try:
            yield
        finally:
            with self._changed:
                self._taken_bytes -= size
                self._changed.notify_all()
