"""How much of a cache is taken and how much is promised, in a file that all processes using the cache share.

    word   0  magic and version                   4  bytes promised to downloads under way
           1  limit in bytes, 0 for none          5  bytes that became part of the cache since this file was begun
           2  bytes to leave free, 0 for none     6  1 while somebody changes the record
           3  bytes taken                         7  1 if the bytes taken were counted
           8, 9  the machine's life (boot id)     10 … 255  bytes promised to each user of the record

All words are native 64-bit numbers. A `flock` guards changes, and a killed process loses it: word 6 shows that it left
a change half done, and the bytes are counted again. A user of the record holds an OFD lock on the byte of its word,
which shows whether it was killed. The bytes promised to a killed user count as taken until the next count. So the
record may say too much, never too little. Any thread, any number of processes; not to be used on both sides of a fork.
"""

import fcntl
import mmap
import os
import threading
from pathlib import Path
from typing import Final, NamedTuple, Self

from mica import linux
from mica.errors import TemporaryError
from mica.files import give_space, mapped_os_errors

_MAGIC: Final = 0x6D6963610001
_LIMIT, _KEEP_FREE, _TAKEN, _PROMISED, _ARRIVED, _CHANGING, _COUNTED, _LIFE = 1, 2, 3, 4, 5, 6, 7, 8
_FIRST_USER: Final = 10
_WORDS: Final = 256
_BYTES: Final = 8 * _WORDS


class Limits(NamedTuple):
    """Bytes: the most that the cache may take, and what it leaves free on its file system; 0 for no limit."""

    most: int = 0
    keep_free: int = 0


class Account(NamedTuple):
    """Bytes. `is_counted`: they were counted, not only estimated."""

    taken: int
    promised: int
    is_counted: bool


class Ledger:
    def __init__(self, path: Path, boot_id: str) -> None:
        self._user = 0
        self._path = path
        life = int(boot_id.replace("-", ""), 16)
        with mapped_os_errors(f"use {path}"):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            give_space(self._fd, max(_BYTES, os.fstat(self._fd).st_size))
            self._map = mmap.mmap(self._fd, _BYTES)
        self._words = memoryview(self._map).cast("Q")
        self._changing = _Changing(self._fd, self._words)
        self._begin((life >> 64, life & 0xFFFFFFFFFFFFFFFF))
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Bytes that are still promised to us count as taken from now on."""
        self._words.release()
        self._map.close()
        os.close(self._fd)

    @property
    def is_current(self) -> bool:
        """False once the record was removed or replaced."""
        try:
            found, ours = os.stat(self._path), os.fstat(self._fd)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

    @property
    def limits(self) -> Limits:
        return Limits(self._words[_LIMIT], self._words[_KEEP_FREE])

    @property
    def has_limits(self) -> bool:
        return bool(self._words[_LIMIT] or self._words[_KEEP_FREE])

    @property
    def keeps_free(self) -> bool:
        return bool(self._words[_KEEP_FREE])

    def set_limits(self, limits: Limits) -> None:
        """Set the limits for all users of the cache. While there are no limits, nothing is accounted for."""
        with self._changing as words:
            if not words[_LIMIT] and not words[_KEEP_FREE]:
                words[_COUNTED] = 0
            words[_LIMIT], words[_KEEP_FREE] = limits.most, limits.keep_free

    def account(self) -> Account:
        with self._changing as words:
            return Account(words[_TAKEN], words[_PROMISED], bool(words[_COUNTED]))

    def promise(self, size: int, available: int) -> bool:
        """Whether there is room for this many bytes; if so, they are ours until `take` or `give_back`. False before the
        bytes were counted. `available` are the free bytes of the file system, if some of them have to stay free."""
        with self._changing as words:
            limit = words[_LIMIT]
            if limit and (not words[_COUNTED] or words[_TAKEN] + words[_PROMISED] + size > limit):
                return False
            if words[_KEEP_FREE] and available - words[_PROMISED] - size < words[_KEEP_FREE]:
                return False
            user = self._user or self._become_user()
            words[_PROMISED] += size
            words[user] += size
            return True

    def give_back(self, size: int) -> None:
        with self._changing:
            self._release(size)

    def take(self, size: int, promised: int) -> None:
        """Bytes became part of the cache; `promised` of them had been promised to us."""
        with self._changing as words:
            words[_TAKEN] += size
            words[_ARRIVED] += size
            if promised:
                self._release(promised)

    def remove(self, size: int) -> None:
        """Bytes have left the cache."""
        with self._changing as words:
            words[_TAKEN] -= min(size, words[_TAKEN])

    def begin_count(self) -> int:
        """Returns a value for `end_count`. Forgets killed users. One count at a time."""
        with self._changing as words:
            for user in range(_FIRST_USER, _WORDS):
                if words[user] and user != self._user and self._try_lock(user):
                    self._bury(user)
                    self._unlock(user)
            words[_PROMISED] = sum(words[_FIRST_USER:])
            return words[_ARRIVED]

    def end_count(self, found: int, begun: int) -> None:
        """Take the bytes that were found on the disk since `begin_count`. Content that arrived meanwhile may have been
        found or not, so it is added."""
        with self._changing as words:
            words[_TAKEN] = found + words[_ARRIVED] - begun
            words[_COUNTED] = 1

    def _begin(self, life: tuple[int, int]) -> None:
        words = self._words
        if words[0] == _MAGIC and (words[_LIFE], words[_LIFE + 1]) == life:
            return
        limits = (words[_LIMIT], words[_KEEP_FREE]) if words[0] == _MAGIC else (0, 0)
        self._map[:] = bytes(_BYTES)
        words[_LIMIT], words[_KEEP_FREE] = limits
        words[_LIFE], words[_LIFE + 1] = life
        words[0] = _MAGIC

    def _become_user(self) -> int:
        for user in range(_FIRST_USER, _WORDS):
            if self._try_lock(user):
                self._bury(user)
                self._user = user
                return user
        raise TemporaryError("Too many processes use one cache.", hint="Give some of them a cache of their own.")

    def _release(self, size: int) -> None:
        words = self._words
        # A process that was killed while changing the record may have left a sum below what all are promised.
        words[_PROMISED] -= min(size, words[_PROMISED])
        words[self._user] -= size

    def _bury(self, user: int) -> None:
        words = self._words
        words[_TAKEN] += words[user]
        words[_PROMISED] -= min(words[user], words[_PROMISED])
        words[user] = 0

    def _try_lock(self, user: int) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, linux.FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, user, 1, 0))
        except BlockingIOError:
            return False
        return True

    def _unlock(self, user: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, linux.FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, user, 1, 0))


class _Changing:
    """Exclusive use of the record, for a few instructions. A generator would double the cost of a download."""

    __slots__ = ("_fd", "_lock", "_words")

    def __init__(self, fd: int, words: "memoryview[int]") -> None:
        self._lock = threading.Lock()
        self._fd = fd
        self._words = words

    def __enter__(self) -> "memoryview[int]":
        self._lock.acquire()
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        words = self._words
        if words[_CHANGING]:
            words[_COUNTED] = 0
        words[_CHANGING] = 1
        return words

    def __exit__(self, *_: object) -> None:
        self._words[_CHANGING] = 0
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._lock.release()
