"""A FUSE mount and the threads that serve it: reads requests from /dev/fuse, writes what a `Dispatcher` answers.

Knows no operation of a file system (`treefs.py` does) and no layout beyond sizes (`abi.py`). Threads come and go with
the load, as in libfuse's fuse_loop_mt.c: while one waits for the next request, requests that wait for downloads delay
no others. Any thread may call the session's methods, but a handler must not call the two `invalidate_*`: the kernel
takes the directory's lock, which a lookup under way may hold (fs/fuse/dir.c).
"""

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from mica import linux
from mica.fuse import abi as fuse_abi
from mica.fuse.abi import Buffer, InitOut
from mica.fuse.dispatch import MAX_READ_BYTES, Answer, Dispatcher, FileSystem
from mica.fuse.identity import FUSE_TYPE
from mica.fuse.passthrough import BackingFiles

logger = logging.getLogger(__name__)

# At least FUSE_MIN_READ_BUFFER and max_write with its headers; more lets a BATCH_FORGET carry more.
_MESSAGE_BYTES = 64 << 10
_GONE: Final = {errno.ENODEV, errno.ECONNABORTED}
# Errors of read(2) after which it is called again: the request was withdrawn while we took it; a signal; spurious.
_TRY_AGAIN: Final = {errno.ENOENT, errno.EINTR, errno.EAGAIN}
_LOOK_AGAIN_S = 0.05
_STOP_S = 2.0
_WAKE_PAUSE_S = 0.01


@contextlib.contextmanager
def open_session(
    target: Path,
    filesystem: FileSystem,
    *,
    name: str,
    flags: int = linux.MS_RDONLY | linux.MS_NODEV | linux.MS_NOSUID,
    max_threads: int = 256,
    max_idle_threads: int = 8,
    readdirplus_auto: bool = False,
    backing: BackingFiles | None = None,
) -> Iterator["FuseSession"]:
    """Mount a file system on a directory and serve it for the block; then it is unmounted, if need be by force.

    The kernel checks permissions by mode and owner, and every user may look. `name` is the source shown in mount
    tables. With `backing`, which the file system must have too, files may pass through. Raises OSError if it cannot be
    mounted.
    """
    target = Path(os.path.realpath(target))
    fd = mount_fuse(target, name=name, flags=flags)
    session = FuseSession(
        fd,
        filesystem,
        max_threads=max_threads,
        max_idle_threads=max_idle_threads,
        readdirplus_auto=readdirplus_auto,
        backing=backing,
    )
    device = linux.mounted_device(target)
    try:
        session.start()
        session.wait_for_handshake()
        yield session
    finally:
        _unmount(target, device, session)
        session.stop(device)


def mount_fuse(target: Path, *, name: str, flags: int = linux.MS_RDONLY | linux.MS_NODEV | linux.MS_NOSUID) -> int:
    """Mount a FUSE file system on a directory and return the descriptor by which it is to be served. Raises OSError."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        data = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"
        linux.mount(name, target, FUSE_TYPE, flags=flags, data=data)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _unmount(target: Path, device: tuple[int, int] | None, session: "FuseSession") -> None:
    if device is None or not _is_still_ours(target, device, session):
        return
    try:
        linux.umount2(target, linux.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.EBUSY:
            logger.warning("Cannot unmount %s: %s", target, error)
        # MNT_FORCE aborts the connection: programs with open files get ENOTCONN instead of waiting for ever.
        with contextlib.suppress(OSError):
            linux.umount2(target, linux.MNT_DETACH | linux.MNT_FORCE | linux.UMOUNT_NOFOLLOW)


def _is_still_ours(target: Path, device: tuple[int, int], session: "FuseSession") -> bool:
    """False if it was unmounted and something else was mounted there, which may even have got its device number."""
    if linux.mounted_device(target) != device:
        return False
    if session.is_connected():
        return True
    try:  # the connection has ended: it was aborted, and the mount is ours and refuses this; or it was unmounted
        os.statvfs(target)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def abort_connection(device: tuple[int, int]) -> None:
    """End a FUSE connection that other mount namespaces or file systems on top keep alive.

    Documentation/filesystems/fuse/fuse.rst, "Aborting a filesystem connection", on a private mount of fusectl.
    """
    with _control_file(device, "abort", os.O_WRONLY) as fd:
        os.write(fd, b"1")


def unanswered_requests(device: tuple[int, int]) -> int:
    """How many requests of a connection wait to be taken or to be answered; none if it has ended."""
    try:
        with _control_file(device, "waiting", os.O_RDONLY) as fd:
            return int(os.read(fd, 32))
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def _control_file(device: tuple[int, int], name: str, flags: int) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        context = linux.fsopen("fusectl")
        stack.callback(os.close, context)
        linux.fsconfig_create(context)
        directory = linux.fsmount(context)
        stack.callback(os.close, directory)
        fd = os.open(f"{device[1]}/{name}", flags | os.O_CLOEXEC, dir_fd=directory)
        stack.callback(os.close, fd)
        yield fd


class FuseSession:
    """Serves one open /dev/fuse, which it owns: one just mounted, or one kept open while its server was replaced
    (then `resend` after `start`). Ends by itself when the file system is unmounted."""

    def __init__(
        self,
        fd: int,
        filesystem: FileSystem,
        *,
        max_threads: int = 256,
        max_idle_threads: int = 8,
        readdirplus_auto: bool = False,
        backing: BackingFiles | None = None,
        more_flags: int = 0,
    ) -> None:
        self._fd = fd
        self._max_threads = max_threads
        self._max_idle = max_idle_threads
        self._lock = threading.Lock()
        # Under the lock: all worker threads, those of them waiting for a request, and users of the descriptor.
        self._threads = 0
        self._idle = 0
        self._taken = 0
        self._users = 0
        self._retires = False
        self._numbers = itertools.count(1)
        self._ended = threading.Event()
        self._deferred = threading.Event()
        self._backing = backing
        self._shaken = threading.Event()
        self._dispatcher = Dispatcher(
            filesystem,
            readdirplus_auto=readdirplus_auto,
            max_stack_depth=0 if backing is None else backing.max_stack_depth,
            deferred=self._deferred.set,
            more_flags=more_flags,
        )

    def __repr__(self) -> str:
        return f"<FuseSession fd={self._fd} threads={self._threads} idle={self._idle} ended={self._ended.is_set()}>"

    def start(self) -> None:
        with self._lock:
            self._add_worker()
        threading.Thread(target=self._watch_interrupted, name="fuse-interrupts", daemon=True).start()

    def wait_for_handshake(self) -> bool:
        """Whether the kernel has completed the handshake; waits for it a little."""
        return self._shaken.wait(_STOP_S)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether the session has ended: unmounted, and every request answered."""
        return self._ended.wait(timeout_s)

    def stop(self, device: tuple[int, int] | None = None) -> None:
        """Call it when the file system is unmounted. Waits a little for requests that are still being handled, then
        leaves them to their threads: their answers are not needed any more."""
        if device is not None and self.is_connected():
            try:
                abort_connection(device)
            except OSError as error:
                logger.warning("Cannot abort FUSE connection %d: %s", device[1], error)
        with self._lock:
            if self._retires:
                self._retires = False
                self._leave()
        if not self._ended.wait(_STOP_S):
            logger.warning("FUSE session ends with %d busy threads.", self._threads - self._idle)
        self._deferred.set()

    def retire(self, wake: Callable[[], object]) -> bool:
        """Take no more requests: they wait in the kernel for a successor. Put-off answers can still be given. `wake`
        makes a request to this file system; each one lets a thread go that waits for requests. It is called in threads,
        and the last call may wait until the process ends. False if threads still wait after a while."""
        with self._lock:
            self._retires = True
            self._users += 1  # the descriptor stays open for answers
        until = time.monotonic() + _STOP_S
        while self._idle:
            if time.monotonic() > until:
                return False
            threading.Thread(target=_call_quietly, args=(wake,), name="fuse-wake", daemon=True).start()
            time.sleep(_WAKE_PAUSE_S)
        return True

    def complete(self, unique: int, outcome: Buffer | OSError) -> bool:
        """Answer a request whose handler said PENDING; False if the kernel did not take the answer. Any thread."""
        answer = self._dispatcher.complete(unique, outcome)
        if answer is None:
            return False
        with self._using_fd() as usable:
            return usable and self._write(answer)

    def taken(self) -> tuple[int, int]:
        """How many requests were taken so far, and on how many of them a thread is working."""
        with self._lock:
            return self._taken, self._threads - self._idle

    def is_connected(self) -> bool:
        """False once it is unmounted everywhere, or aborted: fuse_dev_poll() then reports an error."""
        with self._using_fd() as usable:
            if not usable:
                return False
            poll = select.poll()
            poll.register(self._fd, 0)
            return not poll.poll(0)

    def invalidate_entry(self, parent: int, name: bytes) -> bool:
        """Have the kernel forget a name, or its absence; False if it did not know it."""
        return self._notify(fuse_abi.format_inval_entry(parent, name))

    def invalidate_inode(self, inode: int) -> bool:
        """Have the kernel forget attributes, content and directory listing of an inode; False if it did not know it."""
        return self._notify(fuse_abi.format_inval_inode(inode))

    def knows_inode(self, inode: int) -> bool:
        """Whether the kernel has this inode. The question tells it that attributes have changed, so it asks for them
        when it needs them next (offset -1 in fuse_reverse_inval_inode(), fs/fuse/inode.c)."""
        return self._notify(fuse_abi.format_inval_inode(inode, offset=-1))

    def store(self, inode: int, content: bytes) -> bool:
        """Have the kernel keep the whole content of a file, as if it had read it; False if it did not know the inode.

        Waits for pages of the file that other requests are filling.
        """
        return self._notify(fuse_abi.format_store(inode, content))

    def resend(self) -> bool:
        """Have the kernel resend the requests that a predecessor took and did not answer; False before Linux 6.9."""
        try:
            return self._notify(fuse_abi.format_resend())
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise

    def _ioctl(self, request: int, argument: bytearray) -> int:
        with self._using_fd() as usable:
            if not usable:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            result: int = fcntl.ioctl(self._fd, request, argument)
            return result

    def _notify(self, message: bytes) -> bool:
        with self._using_fd() as usable:
            if not usable:
                return False
            try:
                os.write(self._fd, message)
            except OSError as error:
                if error.errno in {errno.ENOENT, errno.ENODEV}:
                    return False
                raise
            return True

    @contextlib.contextmanager
    def _using_fd(self) -> Iterator[bool]:
        """The last user closes the descriptor, so that its number never means another file to a slow thread."""
        with self._lock:
            usable = not self._ended.is_set()
            self._users += usable
        try:
            yield usable
        finally:
            if usable:
                with self._lock:
                    self._leave()

    def _leave(self) -> None:
        self._users -= 1
        if self._users == 0:
            os.close(self._fd)
            self._ended.set()
            self._deferred.set()

    def _add_worker(self) -> None:
        self._threads += 1
        self._idle += 1
        self._users += 1
        try:
            threading.Thread(target=self._work, name=f"fuse-{next(self._numbers)}", daemon=True).start()
        except BaseException:
            self._threads -= 1
            self._idle -= 1
            self._users -= 1
            raise

    def _work(self) -> None:
        idle = True
        try:
            # The scratch area takes no memory until a read needs that much.
            message, scratch = memoryview(bytearray(_MESSAGE_BYTES)), memoryview(bytearray(MAX_READ_BYTES))
            while (request := self._next_request(message)) is not None:
                self._become_busy()
                idle = False
                self._serve(request, scratch)
                if not self._become_idle():
                    return
                idle = True
        except Exception:
            logger.exception("FUSE thread ends.")
        finally:
            with self._lock:
                if idle:
                    self._idle -= 1
                self._threads -= 1
                self._leave()

    def _next_request(self, message: memoryview) -> memoryview | None:
        """None when the file system is gone."""
        while True:
            try:
                return message[: os.readv(self._fd, (message,))]
            except OSError as error:
                if error.errno in _GONE:
                    return None
                if error.errno not in _TRY_AGAIN:
                    raise

    def _become_busy(self) -> None:
        with self._lock:
            self._taken += 1
            self._idle -= 1
            if self._idle or self._retires or self._threads >= self._max_threads:
                return
            try:
                self._add_worker()
            except RuntimeError as error:  # "can't start new thread": serve with those we have
                logger.warning("FUSE session goes on with %d threads: %s", self._threads, error)

    def _become_idle(self) -> bool:
        """False if enough threads wait without this one."""
        with self._lock:
            if self._retires or self._idle >= self._max_idle:
                return False
            self._idle += 1
            return True

    def _serve(self, request: memoryview, scratch: memoryview) -> None:
        answer = self._dispatcher.answer(request, scratch)
        if answer is not None and not self._write(answer):
            self._dispatcher.undelivered(request, answer)
        if not self._shaken.is_set() and self._dispatcher.agreed is not None:
            self._connect(self._dispatcher.agreed)

    def _connect(self, agreed: InitOut) -> None:
        """The kernel has our side of the handshake; other requests may come now."""
        if self._backing is not None:
            self._backing.connect(self._ioctl if agreed.flags & fuse_abi.FUSE_PASSTHROUGH else None)
        self._shaken.set()

    def _write(self, answer: Answer) -> bool:
        """False if the kernel did not take it."""
        try:
            os.writev(self._fd, answer)
        except OSError as error:
            # ENOENT: the caller has its EINTR already.
            if error.errno != errno.ENOENT and error.errno not in _GONE:
                logger.exception("FUSE answer of %d bytes refused.", len(answer.payload))
            return False
        return True

    def _watch_interrupted(self) -> None:
        """Let interrupted callers go that were not about to end at first, and are now."""
        while not self._ended.is_set():
            self._deferred.wait()
            self._deferred.clear()
            while self._dispatcher.has_deferred and not self._ended.wait(_LOOK_AGAIN_S):
                self._answer_deferred()

    def _answer_deferred(self) -> None:
        with self._using_fd() as usable:
            for answer in self._dispatcher.deferred_answers() if usable else ():
                self._write(answer)


def _call_quietly(wake: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):  # the file system has gone meanwhile
        wake()
