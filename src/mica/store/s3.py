"""A repository in a bucket of S3.

    <prefix>/.cvmfspublished …        pointers
    <prefix>/data/00/… data/ff/…      objects
    <prefix>/.cvmfsclock              put to learn the server's time
    <prefix>/.cvmfslease/…            only on servers without conditional requests (s3lease.py)
    <prefix>/.cvmfsturn/…             while old objects are refreshed or deleted (s3turns.py)

Readers get the files from the bucket itself by plain HTTP. `put` hands an object to one of several threads, `sync`
waits for them; an object that is there already is not sent again unless it has grown old. A pointer is replaced with
the ETag of the content that was compared, so that the server refuses it if another writer was faster (docs/design/s3.md
has the races and what happens at each fault). Any thread.
"""

import contextlib
import itertools
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, Self

from mica.errors import MicaError, NotFoundError, TemporaryError, UserError
from mica.files import mapped_os_errors
from mica.store.base import ANYTHING, REFRESH_AFTER_S, Anything, CountNew, StoredFile, lost_race
from mica.store.s3client import S3Client, S3Head, UnansweredError, UnmetConditionError
from mica.store.s3lease import DIRECTORY as CLAIMS
from mica.store.s3lease import held_lease
from mica.store.s3turns import DIRECTORY as TURNS
from mica.store.s3turns import Turns
from mica.store.uploads import Uploads
from mica.streams import Readable

UPLOADS_AT_ONCE: Final = 32
IN_FLIGHT_BYTES: Final = 48 << 20
_SMALL_FILE_BYTES: Final = 8 << 20
_KNOWN_MAX: Final = 50_000
_POINTER_LIMIT: Final = 512 << 20
_ATTEMPTS: Final = 6
_DELETED_AT_ONCE: Final = 500
_CLOCK: Final = ".cvmfsclock"
_PLACE: Final = re.compile(r"[^/]+|data/[0-9a-f]{2}/[^/]+")
_BLOCK_BYTES: Final = 1 << 20
# docs/design/s3.md
_POINTER_HEADERS: Final = {"Content-Type": "application/x-cvmfs", "Cache-Control": "max-age=61"}
_OBJECT_HEADERS: Final = {"Content-Type": "application/octet-stream", "Cache-Control": "max-age=259200"}


class S3Store:
    """`has_conditions` as in S3Options."""

    def __init__(
        self,
        client: S3Client,
        *,
        has_conditions: bool = True,
        refresh_after_s: float = REFRESH_AFTER_S,
        in_flight_bytes: int = IN_FLIGHT_BYTES,
    ) -> None:
        self._client = client
        self._has_conditions = has_conditions
        self._refresh_after_s = refresh_after_s
        self._uploads = Uploads(threads=UPLOADS_AT_ONCE, in_flight_bytes=in_flight_bytes)
        self._known: set[str] = set()
        self._lock = threading.Lock()
        self._clock_ahead_s: float | None = None
        self._turns = Turns(client)

    def close(self) -> None:
        self._uploads.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def where(self) -> str:
        return self._client.where

    def create(self) -> None:
        """The bucket has to be there; nothing in it has to be made."""
        self.check_there()

    def check_there(self) -> None:
        self._client.look(doing="look for the bucket")

    def clear_unfinished(self) -> None:
        """Nothing becomes visible before it is whole, so there is nothing to remove."""
        self.check_there()

    @contextlib.contextmanager
    def open(self, path: str, *, fresh: bool = False) -> Iterator[Readable]:  # noqa: ARG002 - nothing caches here
        self._uploads.wait(path)
        with self._client.get(path, doing=f"read {path}") as (body, _):
            yield body

    def put(self, path: str, data: bytes, *, count_new: CountNew | None = None) -> None:
        self._check_place(path)
        with self._lock:
            if path in self._known:
                return
        send = partial(self._client.put, path, data, _headers(path), doing=f"store object {path}")
        self._uploads.add(path, len(data), partial(self._store, path, len(data), send, count_new))

    def put_file(self, path: str, file: Path, *, count_new: CountNew | None = None) -> None:
        """A large file is sent in parts before this returns."""
        with mapped_os_errors(f"read {file}"):
            size = file.stat().st_size
            data = file.read_bytes() if size <= _SMALL_FILE_BYTES else None
        if data is not None:
            self.put(path, data, count_new=count_new)
            return
        self._check_place(path)
        self._uploads.wait(path)
        send = partial(self._client.put_file, path, file, _headers(path), doing=f"store object {path}")
        self._store(path, size, send, count_new)

    def _check_place(self, path: str) -> None:
        """A bucket takes any key, but what is not in the layout of a repository nobody would find again."""
        if not _PLACE.fullmatch(path):
            raise UserError(f"Cannot store {path} in {self.where}: it is no place of a repository.")

    def _store(self, path: str, size: int, send: Callable[[], None], count_new: CountNew | None) -> None:
        head = self._client.head(path, doing=f"look for {path}")
        if head is None:
            send()
        elif self._is_old(head):
            with self._turns.refreshing():
                send()
        if head is None and count_new is not None:
            count_new(size)
        with self._lock:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known.add(path)

    def _is_old(self, head: S3Head) -> bool:
        if self._clock_ahead_s is None:
            self._clock_ahead_s = self.clock() - time.time()
        return head.changed_at < time.time() + self._clock_ahead_s - self._refresh_after_s

    def has(self, path: str) -> bool:
        self._uploads.wait(path)
        return self._head(path) is not None

    def _head(self, path: str) -> S3Head | None:
        """Raises UserError if the bucket is missing."""
        head = self._client.head(path, doing=f"look for {path}")
        if head is None:
            self.check_there()
        return head

    def refresh(self, path: str) -> bool:
        """By reading and putting it: no request of all servers gives an object another time without its bytes."""
        self._uploads.wait(path)
        with self._turns.refreshing():
            return self._refresh(path)

    def _refresh(self, path: str) -> bool:
        doing = f"refresh {path}"
        try:
            with self._client.get(path, doing=doing) as (body, head), tempfile.TemporaryFile() as file:
                with mapped_os_errors("write a temporary file", when_full="nothing was published"):
                    if head.size_bytes <= _SMALL_FILE_BYTES:
                        self._client.put(path, body.read(_SMALL_FILE_BYTES), _headers(path), doing=doing)
                        return True
                    while block := body.read(_BLOCK_BYTES):
                        file.write(block)
                    file.flush()
                self._client.put_file(path, Path(f"/proc/self/fd/{file.fileno()}"), _headers(path), doing=doing)
        except NotFoundError:
            return False
        return True

    # Pointers

    def replace(self, path: str, data: bytes, *, expected: bytes | Anything | None = ANYTHING) -> None:
        self._check_place(path)
        if expected is ANYTHING:
            self._client.put(path, data, _headers(path), doing=f"write {path}")
            return
        error: MicaError | None = None
        for pause in _pauses():
            found = self._client.read(path, limit=_POINTER_LIMIT, doing=f"read {path}")
            content = None if found is None else found[0]
            if error is not None and content == data:
                return  # an attempt has arrived, and only its answer was lost
            if content != expected:
                raise lost_race(path, self.where)
            try:
                self._replace_once(path, data, None if found is None else found[1].etag, expected)
            except UnmetConditionError:
                error = TemporaryError(f"Cannot write {path} in {self.where}: others write it all the time.")
            except UnansweredError as unanswered:
                error = unanswered.error
            else:
                return
            time.sleep(pause)
        assert error is not None
        raise error

    def _replace_once(self, path: str, data: bytes, etag: str | None, expected: bytes | None) -> None:
        doing = f"write {path}"
        if self._has_conditions:
            self._client.put_if(path, data, _headers(path), etag=etag, doing=doing)
            return
        with held_lease(self._client) as lease:
            found = self._client.read(path, limit=_POINTER_LIMIT, doing=f"read {path}")
            if (None if found is None else found[0]) != expected:
                raise UnmetConditionError
            lease.check()
            self._client.put_once(path, data, _headers(path), doing=doing)

    # Deleting and listing

    def delete(self, path: str) -> None:
        self._uploads.wait(path)
        self._forget([path])
        self._client.delete([path], doing=f"delete {path}")

    def delete_many(self, paths: Iterable[str], *, unless_changed_since: float | None = None) -> int:
        rest = iter(paths)
        with ThreadPoolExecutor(UPLOADS_AT_ONCE, thread_name_prefix="s3-delete") as pool:
            deleted = 0
            while some := list(itertools.islice(rest, _DELETED_AT_ONCE)):
                deleted += self._delete_old(some, unless_changed_since, pool)
        return deleted

    def _delete_old(self, paths: Sequence[str], since: float | None, pool: ThreadPoolExecutor) -> int:
        with contextlib.nullcontext(_no_check) if since is None else self._turns.deleting() as check:
            heads = list(pool.map(partial(self._client.head, doing="look for objects"), paths))
            chosen = [
                path
                for path, head in zip(paths, heads, strict=True)
                if head and (since is None or head.changed_at < int(since))
            ]
            check()
            if chosen:
                self._forget(chosen)
                self._client.delete(chosen, doing=f"delete {chosen[0]} and others")
        if not any(heads):
            self.check_there()
        return len(chosen)

    def _forget(self, paths: Iterable[str]) -> None:
        with self._lock:
            self._known.difference_update(paths)

    def entries(self, prefix: str) -> Iterator[StoredFile]:
        for entry in self._client.list(prefix, doing=f"list {prefix}".rstrip()):
            if prefix or not (entry.path == _CLOCK or entry.path.startswith((f"{CLAIMS}/", f"{TURNS}/"))):
                yield entry

    def clock(self) -> float:
        """In whole seconds."""
        doing = "ask for the time"
        self._client.put(_CLOCK, b"", {**_POINTER_HEADERS, "Cache-Control": "no-store"}, doing=doing)
        head = self._head(_CLOCK)
        assert head is not None
        return head.changed_at

    def sync(self) -> None:
        self._uploads.flush()
        self.check_there()
        with self._lock:
            self._known.clear()


def _no_check() -> None:
    """Nobody refreshes what is deleted whatever its age."""


def _headers(path: str) -> dict[str, str]:
    return _OBJECT_HEADERS if path.startswith("data/") else _POINTER_HEADERS


def _pauses() -> Iterator[float]:
    for attempt in range(_ATTEMPTS):
        yield random.uniform(0.5, 1.0) * 0.1 * 2**attempt  # noqa: S311 - no secret
