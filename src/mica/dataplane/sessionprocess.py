"""The process that serves the object filesystem: it moves requests between the kernel and the service, and no more.

An interpreter that is busy with anything else answers the kernel milliseconds late, so downloading, inflating and
hashing happen in another process (`service.py`). That one may be replaced at any time: what it was asked for and has
not answered is asked again. So may this one: the kernel keeps the requests, and hands out again what it had given to a
predecessor (`FuseSession.resend`).
"""

import contextlib
import errno
import os
import socket
import threading
import time
from pathlib import Path

from mica.fetch.cache import Cache
from mica.logs import logger
from mica.mount import fuse_abi
from mica.mount.fuse_session import FuseSession
from mica.node.counts import SharedCounts
from mica.node.directory import NodeDirectory
from mica.node.messages import MESSAGE_BYTES, Question, format_question, parse_result
from mica.node.objectfs import ObjectFileSystem, prime
from mica.node.sockets import connect

_log = logger(__name__)
_RECONNECT_S = 0.02
_HANDED_OVER_S = 60.0
_HOUSEKEEPING_S = 1.0


class ServiceLine:
    """The connection to the service: questions out, results in. It is made again whenever it breaks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: socket.socket | None = None

    def ask(self, question: Question) -> None:
        connection = self._connection
        if connection is not None:
            # A broken line: all that waits is asked again over the next one.
            with contextlib.suppress(OSError):
                connection.send(format_question(question))

    def serve(self, filesystem: ObjectFileSystem) -> None:
        """Hear results for ever; for a thread of its own."""
        while True:
            with _connected(self._path) as connection:
                self._connection = connection
                for question in filesystem.waiting():
                    self.ask(question)
                with contextlib.suppress(ConnectionError):
                    while message := connection.recv(MESSAGE_BYTES):
                        filesystem.supplied(parse_result(message))
                self._connection = None


def _connected(path: Path) -> socket.socket:
    while True:
        try:
            return connect(path)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN}:
                raise
            time.sleep(_RECONNECT_S)


def serve_session(
    fuse_fd: int, cache: Path, node: NodeDirectory, repositories: int, *, shows_all: bool = False, resend: bool = False
) -> None:
    """Serve an open /dev/fuse until the file system is unmounted. With `resend` a predecessor served it before."""
    line = ServiceLine(node.service)
    with Cache(cache) as store, SharedCounts(node.counts) as counts:
        filesystem = ObjectFileSystem(store, repositories, line, counts, shows_all=shows_all)
        session = FuseSession(fuse_fd, filesystem, more_flags=fuse_abi.FUSE_NO_OPEN_SUPPORT)
        filesystem.complete = session.complete
        threading.Thread(target=line.serve, args=(filesystem,), name="service-line", daemon=True).start()
        session.start()
        threading.Thread(target=prime, args=(node.objects,), name="prime", daemon=True).start()
        threading.Thread(target=sweep_handover, args=(cache,), name="sweep", daemon=True).start()
        if resend and not session.resend():
            _log.warning("this kernel cannot send again what a predecessor left unanswered")
        try:
            while not session.wait(_HOUSEKEEPING_S):
                filesystem.forget_handed_over(_HANDED_OVER_S)
        finally:
            filesystem.forget_handed_over(_HOUSEKEEPING_S)


def sweep_handover(cache: Path) -> None:
    """Remove what killed sessions left. Young links may be those of another session that lives."""
    limit = time.time() - _HANDED_OVER_S
    for directory, _, names in os.walk(cache / "handover"):
        for name in names:
            path = f"{directory}/{name}"
            with contextlib.suppress(FileNotFoundError):
                # A new link changes the time of the inode.
                if os.lstat(path).st_ctime < limit:
                    os.unlink(path)
