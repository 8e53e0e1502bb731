"""How many requests the object filesystem got, in a file that another process can read at any time.

    <lookups u64> <reads u64> <questions u64>       little endian; questions are those it passed on to the service

Only requests for content that is not in the cache reach it: these figures show that. They start at 0 with a node's
first session; a successor goes on with its predecessor's.
"""

import mmap
import os
import struct
import threading
from pathlib import Path
from typing import Final, NamedTuple, Self

from mica.files import give_space

_LAYOUT: Final = struct.Struct("<QQQ")


class Counts(NamedTuple):
    lookups: int = 0
    reads: int = 0
    questions: int = 0


class SharedCounts:
    """Any thread, but one writing process at a time."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            give_space(fd, _LAYOUT.size)
            self._map = mmap.mmap(fd, _LAYOUT.size)
        finally:
            os.close(fd)
        self._lock = threading.Lock()
        self._counts = Counts._make(_LAYOUT.unpack(self._map))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()

    def add(self, *, lookups: int = 0, reads: int = 0, questions: int = 0) -> None:
        with self._lock:
            now = self._counts
            self._counts = Counts(now.lookups + lookups, now.reads + reads, now.questions + questions)
            _LAYOUT.pack_into(self._map, 0, *self._counts)


def read_counts(path: Path) -> Counts:
    """All zero while no session has begun."""
    try:
        return Counts._make(_LAYOUT.unpack(path.read_bytes()))
    except (FileNotFoundError, struct.error):
        return Counts()
