"""The process that serves the object filesystem: it moves requests between the kernel and the service, and no more.

An interpreter that is busy with anything else answers the kernel milliseconds late, so downloading, inflating and
hashing happen in another process (`service.py`). The service may be replaced at any time: questions that it has not
answered are asked again. This process may be replaced too: the kernel keeps the requests, and sends again those that a
predecessor had taken (`FuseSession.resend`; `lostrequests.py` where it does not).
"""

import contextlib
import errno
import functools
import os
import socket
import threading
import time
from pathlib import Path

from mica import linux
from mica.cache.cache import Cache
from mica.cache.shown import ShownFiles, is_removed
from mica.dataplane.counts import SharedCounts
from mica.dataplane.lostrequests import LostRequests, answer_all
from mica.dataplane.messages import MESSAGE_BYTES, Question, format_question, parse_result
from mica.dataplane.nodedirectory import NodeDirectory
from mica.dataplane.objectfs import ObjectFileSystem
from mica.dataplane.sockets import connect
from mica.errors import UserError
from mica.fuse import abi as fuse_abi
from mica.fuse.session import FuseSession, abort_connection, unanswered_requests
from mica.logs import logger
from mica.serverprocess import Parent, leave_open

_log = logger(__name__)
_RECONNECT_S = 0.02
_HANDED_OVER_S = 60.0
_HOUSEKEEPING_S = 1.0
_FOLLOWED_S = 10.0
"""After this time the kernel has followed a hand-over's link, even on the busiest machine."""


class ServiceLine:
    """The connection to the service: questions out, results in. It is made again whenever it breaks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: socket.socket | None = None

    def ask(self, question: Question) -> None:
        connection = self._connection
        if connection is not None:
            # The connection is broken: all waiting questions are asked again over the next one.
            with contextlib.suppress(OSError):
                connection.send(format_question(question))

    def serve(self, filesystem: ObjectFileSystem) -> None:
        """Receive results for ever, in a thread of its own."""
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
    fuse_fd: int,
    journal_fd: int,
    cache: Path,
    node: NodeDirectory,
    repositories: int,
    parent: Parent,
    *,
    shows_all: bool = False,
    resend: bool = False,
    resends: bool = True,
) -> None:
    """Serve an open /dev/fuse until the file system is unmounted or the parent wants the end. With `resend` a
    predecessor served it before; `resends`: whether the kernel sends again the requests that one leaves unanswered.

    `journal_fd` is of the journal of what this mount shows. If the journal is removed, the session ends, and a
    successor gets another. When the parent ends the session, nothing is closed: other threads are still answering, and
    a request that fails now would fail in a program, while one without an answer goes to the successor. The process has
    to end at once.
    """
    line = ServiceLine(node.service)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Cache(cache))
        counts = stack.enter_context(SharedCounts(node.counts))
        shown = stack.enter_context(ShownFiles(journal_fd, node.objects))
        filesystem = ObjectFileSystem(store, repositories, line, counts, shown, shows_all=shows_all)
        session = FuseSession(fuse_fd, filesystem, more_flags=fuse_abi.FUSE_NO_OPEN_SUPPORT)
        filesystem.complete = session.complete
        threading.Thread(target=line.serve, args=(filesystem,), name="service-line", daemon=True).start()
        session.start()
        threading.Thread(target=_sweep_predecessors, args=(cache,), name="sweep", daemon=True).start()
        device = linux.mounted_device(node.objects)
        lost = None
        if resend and not session.resend() and device is not None:
            lost = LostRequests(session, filesystem.waiting, functools.partial(unanswered_requests, device))
        while not session.wait(0):
            is_wanted = parent.wait(timeout_s=_HOUSEKEEPING_S)
            if not is_wanted or is_removed(journal_fd):
                if not resends:
                    _answer_all(session, filesystem, node)
                leave_open(stack)
                if is_wanted:
                    raise UserError(f"The cache {cache} was removed, and its journal begins again from nothing.")
                filesystem.forget_handed_over(_FOLLOWED_S)
                return
            filesystem.forget_handed_over(_HANDED_OVER_S)
            filesystem.settle(session.knows_inode)
            if lost is not None and device is not None and lost.are_there():
                _log.error("requests were lost with the last server, because Linux repeats them only since 6.9:"
                           " programs that use images get errors")  # fmt: skip
                abort_connection(device)
        filesystem.forget_handed_over(0)


def _answer_all(session: FuseSession, filesystem: ObjectFileSystem, node: NodeDirectory) -> None:
    """Before an end, on a kernel that gives a successor no request that this session has taken."""
    session.retire(lambda: os.statvfs(node.objects))
    answer_all(session, filesystem.waiting)


def _sweep_predecessors(cache: Path) -> None:
    for _ in range(2):
        sweep_handover(cache)
        time.sleep(_HANDED_OVER_S + _HOUSEKEEPING_S)


def sweep_handover(cache: Path) -> None:
    """Remove the links that killed sessions left. Young links may belong to another session that lives."""
    limit = time.time() - _HANDED_OVER_S
    for directory, _, names in os.walk(cache / "handover"):
        for name in names:
            path = f"{directory}/{name}"
            with contextlib.suppress(FileNotFoundError):
                # A new link changes the time of the inode.
                if os.lstat(path).st_ctime < limit:
                    os.unlink(path)
