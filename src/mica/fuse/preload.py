"""Small files given to the kernel when they are opened, before it asks for their content (FUSE_NOTIFY_STORE).

A program that opens a file mostly reads it. Without this the first reading of a small file takes three requests: to
open, to read, to release; each is a switch to the server and back. The kernel keeps what it got, so an inode is given
only once; if the kernel dropped its pages, it asks. Content of an inode never changes. Any thread.
"""

import os
import threading
from collections.abc import Callable
from typing import Final

from mica.logs import logger

_log = logger(__name__)
MOST_BYTES: Final = 32 << 10
_REMEMBERED: Final = 1 << 16

Store = Callable[[int, bytes], bool]
"""`FuseSession.store`."""


class Preloads:
    """Does nothing before it is connected, which is after the handshake."""

    def __init__(self) -> None:
        self._store: Store | None = None
        # The kernel may make a thread that gives content wait for a page that a request asks for already, and another
        # thread must answer that request. So one thread gives at a time; a second one gives nothing.
        self._giving = threading.Lock()
        # Recent inodes, and older ones; the older ones are forgotten when there are many recent ones.
        self._given: set[int] = set()
        self._given_before: set[int] = set()

    def connect(self, store: Store) -> None:
        self._store = store

    def offer(self, inode: int, descriptor: int) -> None:
        """Before the answer to its first OPEN: the file's whole content, if it is small."""
        if self._store is None or inode in self._given or inode in self._given_before:
            return
        if not self._giving.acquire(blocking=False):
            return
        try:
            self._give(self._store, inode, descriptor)
        finally:
            self._giving.release()

    def _give(self, store: Store, inode: int, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        if not 0 < size <= MOST_BYTES:
            return
        content = os.pread(descriptor, size, 0)
        if len(content) != size:
            return
        self._given.add(inode)
        if len(self._given) >= _REMEMBERED:
            self._given, self._given_before = set(), self._given
        try:
            store(inode, content)
        except OSError as error:
            _log.info("Files are read only when the kernel asks for them: %s", error)
            self._store = None
