"""The mount of a node's object filesystem: taken over from a predecessor or newly made, and repaired while it lasts.

The holder (`holder.py`) or the service manager's store (`systemd.py`) keeps the descriptor by which it is served for a
successor. If the holder, the mount or the connection behind it ends, this module repairs it and says so in the log. A
descriptor whose connection has ended is useless and is never taken over.

For the supervisor, a process without threads.
"""

import contextlib
import errno
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from mica import linux
from mica.cache.cache import Cache
from mica.cache.shown import begin_journal, is_removed, keep_journal, renew_journal
from mica.daemon.nodeservers import FILESYSTEM_NAME, NodeSettings
from mica.daemon.systemd import ServiceManager
from mica.dataplane.nodedirectory import NodeDirectory, read_facts
from mica.dataplane.sockets import connect, listening
from mica.errors import TemporaryError, UserError
from mica.files import mapped_os_errors
from mica.fuse.session import mount_fuse
from mica.logs import logger
from mica.serverprocess import Waitable

_log = logger(__name__)
_HOLDER: Final = Path(__file__).with_name("holder.py")
_ANSWER_S: Final = 5.0
"""How long a holder may take to hand over: it does nothing else."""
_HOLDERS_MAX: Final = 5
_WHAT_IS_LOST: Final = "its containers can read what is in the cache and get errors for the rest"


class ObjectMount:
    """A block. `fd` is the descriptor that the session serves, `journal_fd` that of its journal, whose id is `journal`.
    `is_taken_over`: a predecessor's session served it before."""

    def __init__(self, settings: NodeSettings, manager: ServiceManager) -> None:
        self._node = settings.directory
        self._cache = settings.cache
        self._deadline_s = settings.deadline_s
        self._manager = manager
        self._holder: socket.socket | None = None
        self._tree = -1
        self.fd = -1
        self.journal_fd = -1
        self.journal = ""
        self.is_taken_over = False

    def __enter__(self) -> Self:
        try:
            if self._take_over():
                self._keep_journal()
            else:
                self._mount()
            self._keep_mount()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def sources(self) -> tuple[Waitable, ...]:
        """Waitables that become readable when the holder has ended."""
        return () if self._holder is None else (self._holder,)

    @property
    def path(self) -> Path:
        return self._node.objects

    def renew_journal(self) -> None:
        """Put back a journal that was removed with the cache. Only while no session runs."""
        if not is_removed(self.journal_fd):
            return
        with _opened_cache(self._cache):
            renew_journal(self._cache, self.journal, self.journal_fd)
        # The holder or the service manager still has the former descriptor: have it keep the new one.
        self._manager.forget_descriptors()
        if self._holder is None:
            self._manager.keep_descriptors(self.fd, self.journal_fd)
        else:
            with contextlib.suppress(OSError):
                self._holder.send(b"quit")
            self._holder.close()
            self._holder = self._start_holder()

    def tend(self) -> None:
        """Repair a holder or mount that has ended. Raises TemporaryError if the file system itself has ended: the next
        start mounts again."""
        if not is_connected(self.fd):
            self._forget()
            raise TemporaryError(
                f"The object filesystem on {self.path} was unmounted or aborted; {_WHAT_IS_LOST}.",
                hint="Start the node again: it mounts a new one.",
            )
        if linux.mounted_device(self.path) is None:
            with mapped_os_errors(f"mount the object filesystem on {self.path}"):
                linux.move_mount(self._tree, self.path)
            self._keep_mount()
            _log.error("the object filesystem was unmounted while it was in use and is put back")
        if self._holder is not None and _has_hung_up(self._holder):
            _log.error("the holder of the object filesystem died and is started again")
            self._holder.close()
            self._holder = self._start_holder()

    def _take_over(self) -> bool:
        """True if there was a file system that a predecessor served; it is ours then."""
        kept = self._manager.kept_descriptor()
        if kept is not None:
            self.fd = kept
        else:
            found = _connect_to_holder(self._node)
            if found is not None:
                self._holder, self.fd = found
        if self.fd < 0:
            if linux.mounted_device(self.path) is not None:
                _log.error("no process kept the object filesystem of the last node: %s", _WHAT_IS_LOST)
            return False
        if not is_connected(self.fd) or linux.mounted_device(self.path) is None:
            _log.error("the object filesystem of the last node was unmounted or aborted: %s", _WHAT_IS_LOST)
            self._forget()
            return False
        self.is_taken_over = True
        return True

    def _mount(self) -> None:
        """Mount, and have the service manager or a holder keep the descriptor for a successor."""
        self.fd = _mount(self._node)
        self._begin_journal()
        if not self._manager.keep_descriptors(self.fd, self.journal_fd):
            self._holder = self._start_holder()

    def _keep_journal(self) -> None:
        """Keep the predecessor's journal."""
        journal = str(read_facts(self._node).get("journal", ""))
        with _opened_cache(self._cache):
            journal_fd = keep_journal(self._cache, journal) if journal else None
        if journal_fd is None:
            _log.warning("the journal of open files is missing: programs that read files that are not whole get errors")
            self._begin_journal()
        else:
            self.journal, self.journal_fd = journal, journal_fd

    def _begin_journal(self) -> None:
        with _opened_cache(self._cache):
            self.journal, self.journal_fd = begin_journal(self._cache)

    def _keep_mount(self) -> None:
        """Keep a copy of the mount that is attached nowhere: if the mount is unmounted, the copy takes its place."""
        if self._tree >= 0:
            os.close(self._tree)
            self._tree = -1
        with mapped_os_errors(f"look at the mount {self.path}"):
            self._tree = linux.open_tree(self.path)

    def _start_holder(self) -> socket.socket:
        """Start a holder; the connection tells it that we live. Whatever killed one may kill the next at its start."""
        for _ in range(_HOLDERS_MAX):
            with listening(self._node.holder, is_kept=True) as listener:
                _run_holder(listener, self.fd, self.journal_fd, self._deadline_s)
            found = _connect_to_holder(self._node)
            if found is not None:
                connection, copy = found
                os.close(copy)
                return connection
        raise UserError("The holder of the object filesystem could not be started.")

    def _forget(self) -> None:
        """Let go of a file system that has ended, and make the holder and the service manager let go of it."""
        self._manager.forget_descriptors()
        if self._holder is not None:
            with contextlib.suppress(OSError):
                self._holder.send(b"quit")
        self._close()

    def _close(self) -> None:
        if self._holder is not None:
            self._holder.close()
            self._holder = None
        for fd in (self._tree, self.fd, self.journal_fd):
            if fd >= 0:
                os.close(fd)
        self._tree = self.fd = self.journal_fd = -1


def is_connected(fd: int) -> bool:
    """Whether there is a mounted file system behind a descriptor of /dev/fuse (fuse_dev_poll() reports an error)."""
    poll = select.poll()
    poll.register(fd, 0)
    return not poll.poll(0)


def quit_holder(node: NodeDirectory) -> None:
    """Make the holder end, if there is one."""
    with contextlib.suppress(OSError), connect(node.holder) as holder:
        holder.send(b"quit")


def _mount(node: NodeDirectory) -> int:
    """Mount a new file system. One left by a node that died together with its holder answers no request."""
    with mapped_os_errors(f"mount the object filesystem on {node.objects}"):
        linux.unmount_all(node.objects)
        return mount_fuse(node.objects, name=FILESYSTEM_NAME)


def _connect_to_holder(node: NodeDirectory) -> tuple[socket.socket, int] | None:
    try:
        connection = connect(node.holder)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ECONNREFUSED}:
            return None
        raise
    with contextlib.ExitStack() as stack:
        stack.enter_context(connection)
        connection.settimeout(_ANSWER_S)
        try:
            _, descriptors, _, _ = socket.recv_fds(connection, 16, 1)
        except TimeoutError as error:
            raise TemporaryError("The holder of the object filesystem does not answer.") from error
        except ConnectionError:
            return None
        if not descriptors:
            return None
        connection.settimeout(None)
        stack.pop_all()
        return connection, descriptors[0]


def _has_hung_up(connection: socket.socket) -> bool:
    try:
        return not connection.recv(16, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def _run_holder(listener: socket.socket, fuse_fd: int, journal_fd: int, deadline_s: float) -> None:
    """Runs it in a session of its own. It gets the journal's descriptor only for the lock on it."""
    given = [str(listener.fileno()), str(fuse_fd), str(deadline_s)]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", os.fspath(_HOLDER), *given], pass_fds=(listener.fileno(), fuse_fd, journal_fd),
        start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
    )  # fmt: skip
    # It outlives us on purpose.
    process.returncode = 0


@contextlib.contextmanager
def _opened_cache(cache: Path) -> Iterator[None]:
    with Cache(cache), mapped_os_errors(f"write to the cache {cache}"):
        yield
