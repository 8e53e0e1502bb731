"""An object store in memory, whose place and whose writes fail where a test wants it. Any thread."""

import contextlib
import io
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Self, TypeVar

from mica.errors import NotFoundError, UserError
from mica.store.base import ANYTHING, REFRESH_AFTER_S, Anything, CountNew, StoredFile, lost_race
from mica.streams import Readable

_Result = TypeVar("_Result")
_PLACE = re.compile(r"[^/]+|data/[0-9a-f]{2}/[^/]+")
_WRITES = {"put", "replace"}
_CHANGES = {*_WRITES, "delete", "refresh"}
_ALL = {*_CHANGES, "open", "has", "entries", "sync", "clock", "check_there"}


class InjectedError(UserError):
    """The failure that a test asked for."""


class MemoryStore:
    """`writes` lists what changed it, or was to: the method and the path. What was put lasts only after `sync`. `now`
    is its clock, which a test may put on or back."""

    where = "memory"

    def __init__(
        self,
        stored: Mapping[str, bytes] = MappingProxyType({}),
        *,
        refresh_after_s: float = REFRESH_AFTER_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._lock = threading.RLock()
        self.now = now
        self._refresh_after_s = refresh_after_s
        self._changed_at = dict.fromkeys(stored, now())
        self._stored = dict(stored)
        self._lasting = dict(stored)
        self._refused: Collection[str] = ()
        self._refusal = ""
        self._fails_at = 0
        self._fails_late = False
        self.writes: list[tuple[str, str]] = []

    # What a test does

    def fail_at(self, number: int, *, late: bool = False) -> None:
        """The write of this number, from 1, raises InjectedError; `late` once it has taken place, as when an answer is
        lost on its way."""
        self._fails_at, self._fails_late = len(self.writes) + number, late

    def age(self, path: str, by_s: float) -> None:
        with self._lock:
            self._changed_at[path] -= by_s

    def contents(self) -> dict[str, bytes]:
        with self._lock:
            return dict(self._stored)

    def after_power_failure(self, lasts: Callable[[str], bool] = lambda _path: False) -> "MemoryStore":
        """A store with what lasts for certain, and those of the other objects that a test says."""
        with self._lock:
            more = {path: data for path, data in self._stored.items() if path not in self._lasting and lasts(path)}
            return MemoryStore({**self._lasting, **more})

    def gone(self) -> contextlib.AbstractContextManager[None]:
        return self._refusing(_ALL, "The store is not there")

    def full(self) -> contextlib.AbstractContextManager[None]:
        return self._refusing(_WRITES, "No space left")

    def read_only(self) -> contextlib.AbstractContextManager[None]:
        return self._refusing(_CHANGES, "Read-only")

    @contextlib.contextmanager
    def _refusing(self, methods: Collection[str], sentence: str) -> Iterator[None]:
        self._refused, self._refusal = methods, sentence
        try:
            yield
        finally:
            self._refused = ()

    # The store

    @contextlib.contextmanager
    def open(self, path: str, *, fresh: bool = False) -> Iterator[Readable]:
        with self._lock:
            self._check("open", path)
            if path not in self._stored:
                raise NotFoundError(f"{path} is not in memory.")
            stream = io.BytesIO(self._stored[path])
        yield stream

    def create(self) -> None:
        self.check_there()

    def check_there(self) -> None:
        self._check("check_there", "")

    def clear_unfinished(self) -> None:
        self.check_there()

    def put(self, path: str, data: bytes, *, count_new: CountNew | None = None) -> None:
        def store() -> None:
            is_new = path not in self._stored
            self._stored.setdefault(path, data)
            if is_new or self._changed_at[path] < self.now() - self._refresh_after_s:
                self._changed_at[path] = self.now()
            if is_new and count_new is not None:
                count_new(len(data))

        self._write("put", path, store)

    def put_file(self, path: str, file: Path, *, count_new: CountNew | None = None) -> None:
        self.put(path, file.read_bytes(), count_new=count_new)

    def has(self, path: str) -> bool:
        with self._lock:
            self._check("has", path)
            return path in self._stored

    def refresh(self, path: str) -> bool:
        def change() -> bool:
            if path not in self._stored:
                return False
            self._changed_at[path] = self.now()
            return True

        return self._write("refresh", path, change)

    def replace(self, path: str, data: bytes, *, expected: bytes | Anything | None = ANYTHING) -> None:
        def store() -> None:
            if expected is not ANYTHING and self._stored.get(path) != expected:
                raise lost_race(path, self.where)
            self._stored[path] = self._lasting[path] = data
            self._changed_at[path] = self.now()

        self._write("replace", path, store)

    def delete(self, path: str) -> None:
        self._write("delete", path, lambda: self._stored.pop(path, None))

    def delete_many(self, paths: Iterable[str], *, unless_changed_since: float | None = None) -> int:
        def remove(path: str) -> bool:
            if unless_changed_since is not None and self._changed_at.get(path, 0) >= unless_changed_since:
                return False
            return self._stored.pop(path, None) is not None

        return sum(self._write("delete", path, lambda path=path: remove(path)) for path in paths)  # type: ignore[misc]

    def entries(self, prefix: str) -> Iterator[StoredFile]:
        with self._lock:
            self._check("entries", prefix)
            return iter(
                [
                    StoredFile(path, len(data), self._changed_at[path])
                    for path, data in self._stored.items()
                    if path.startswith(prefix)
                ]
            )

    def clock(self) -> float:
        self._check("clock", "")
        return self.now()

    def sync(self) -> None:
        def last() -> None:
            self._lasting = dict(self._stored)

        self._write("sync", "", last)

    def close(self) -> None:
        """There is nothing to close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, method: str, path: str) -> None:
        if method in self._refused:
            raise UserError(f"Cannot {method} {path} in memory: {self._refusal}.", hint="nothing was published")
        if method in _WRITES and not _PLACE.fullmatch(path):
            raise UserError(f"Cannot {method} {path} in memory: {os.path.dirname(path)} is no place of a store.")

    def _write(self, method: str, path: str, change: Callable[[], _Result]) -> _Result:
        with self._lock:
            self._check(method, path)
            self.writes.append((method, path))
            fails = len(self.writes) == self._fails_at
            if fails and not self._fails_late:
                raise InjectedError(f"Cannot {method} {path} in memory: a test wants it.")
            result = change()
            if fails:
                raise InjectedError(f"No answer came after {method} {path} in memory: a test wants it.")
            return result
