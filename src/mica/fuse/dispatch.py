"""From a request of the kernel to its answer, in bytes, without a kernel.

`Dispatcher` knows what holds for every file system: the handshake, forgets, interrupts, malformed and unknown
requests, errors. Each file system brings a table of handlers (`FileSystem`), for example `treefs.py`. Does no I/O:
`session.py` reads requests and writes answers. Any number of threads at once. Rules without a source are those of
Documentation/filesystems/fuse/fuse.rst and fs/fuse/dev.c.
"""

import enum
import errno
import logging
import os
import struct
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

from mica.fuse import abi as fuse_abi
from mica.fuse.abi import IN_HEADER, OUT_HEADER, Buffer, InitIn, InitOut, MalformedMessageError, Opcode
from mica.fuse.callers import wants_to_end

logger = logging.getLogger(__name__)

MAX_READ_BYTES: Final = 1 << 20
READAHEAD_BYTES: Final = 32 << 10
"""How much the kernel reads around a page that a program touches in a mapped file, which makes most of its requests
while a program starts. With the kernel's own 128 KiB, starting R moves 14.4 MB of file data, with this value 12.8 MB.
This value takes a third more requests, and reading a mapped file as a whole 1 ms more for each MB; read(2) of 128 KiB
and more is not affected."""
# We take no data, but the kernel's least is 4096 (process_init_reply in fs/fuse/inode.c).
_MAX_WRITE_BYTES = 4096
# Not FUSE_ASYNC_DIO: a program that reads with O_DIRECT would wait for the answer even when killed (fuse_direct_IO).
# With FUSE_ASYNC_READ buffered readers and page faults wait for the page, can be killed, and need no interrupt.
_WANTED_FLAGS = (
    fuse_abi.FUSE_ASYNC_READ
    | fuse_abi.FUSE_EXPORT_SUPPORT
    | fuse_abi.FUSE_DO_READDIRPLUS
    | fuse_abi.FUSE_PARALLEL_DIROPS
    | fuse_abi.FUSE_POSIX_ACL  # without it access lists are shown and not obeyed, in unions on top as well
    | fuse_abi.FUSE_ABORT_ERROR
    | fuse_abi.FUSE_MAX_PAGES
    | fuse_abi.FUSE_CACHE_SYMLINKS
    | fuse_abi.FUSE_NO_OPENDIR_SUPPORT
    | fuse_abi.FUSE_INIT_EXT
    | fuse_abi.FUSE_HAS_EXPIRE_ONLY
    | fuse_abi.FUSE_HAS_RESEND
)
_FORGETS = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET})
# Background requests are read-ahead and asynchronous direct reads; the kernel's default of 12 is for one slow disk.
_MAX_BACKGROUND = 64
_NOT_YET_S = 0.001


class Request(NamedTuple):
    """What a handler needs. It may use `body` and `scratch` until it returns."""

    unique: int
    nodeid: int
    body: memoryview
    scratch: memoryview
    pid: int
    uid: int
    gid: int


class Pending(enum.Enum):
    """A handler returns this when its answer comes later, from another thread, through `complete`."""

    PENDING = 0


PENDING: Final = Pending.PENDING
Handler = Callable[[Request], Buffer | Pending]


class FileSystem(Protocol):
    """Handlers by opcode. They return the payload of the answer (which may lie in the request's `scratch`), PENDING, or
    raise OSError with the errno to be answered; anything else they raise is a bug, logged and answered with EIO."""

    @property
    def handlers(self) -> Mapping[int, Handler]: ...

    def undelivered(self, opcode: int, payload: Buffer) -> None:
        """The caller ended before it got this answer: release what the answer would have given it."""
        ...

    def forgotten(self, nodeid: int, lookups: int) -> None:
        """The kernel gives back this many of its lookups of a node number. With the last one it forgets the number."""
        ...


class Answer(NamedTuple):
    header: bytes
    payload: Buffer


class Dispatcher:
    """Interrupts: when a waiting caller gets a signal, the kernel asks us once to let it go. EINTR from open(2) breaks
    programs that do not expect it of a file (a shell that gets SIGCHLD, the Go runtime's SIGURG). So only a caller that
    is about to end gets it, at once; `deferred_answers` looks at the other callers again."""

    def __init__(
        self,
        filesystem: FileSystem,
        *,
        readdirplus_auto: bool = False,
        max_stack_depth: int = 0,
        wants_to_end: Callable[[int], bool] = wants_to_end,
        deferred: Callable[[], None] = lambda: None,
        more_flags: int = 0,
    ) -> None:
        self._filesystem = filesystem
        self._max_stack_depth = max_stack_depth
        self._wants_to_end = wants_to_end
        self._notify_deferred = deferred
        self._wanted_flags = _WANTED_FLAGS | more_flags | (fuse_abi.FUSE_READDIRPLUS_AUTO if readdirplus_auto else 0)
        if max_stack_depth:
            self._wanted_flags |= fuse_abi.FUSE_PASSTHROUGH
        self.agreed: InitOut | None = None
        """The handshake's outcome, before the kernel has it."""
        self._handlers: dict[int, Handler] = {int(opcode): call for opcode, call in filesystem.handlers.items()}
        # Caller's thread by unique number, of the requests being handled now. Each access is one atomic operation.
        self._callers: dict[int, int] = {}
        # Those of them that were interrupted and wait on.
        self._deferred: dict[int, int] = {}

    def answer(self, message: memoryview, scratch: memoryview) -> Answer | None:
        """The answer to one request; None for a request that has no answer. Never raises an Exception."""
        try:
            length, opcode, unique, nodeid, uid, gid, pid, _, _ = IN_HEADER.unpack_from(message)
        except struct.error:
            logger.warning("FUSE request of %d bytes ignored.", len(message))
            return None
        if length != len(message):
            return _failure(unique, errno.EIO)
        handler = self._handlers.get(opcode)
        if handler is None:
            return self._answer_common(opcode, unique, nodeid, message[IN_HEADER.size :])
        callers = self._callers
        callers[unique] = pid
        try:
            payload = handler(Request(unique, nodeid, message[IN_HEADER.size :], scratch, pid, uid, gid))
        except OSError as error:
            answer = _failure(unique, _errno_of(error))
        except MalformedMessageError:
            answer = _failure(unique, errno.EINVAL)
        except Exception:
            logger.exception("FUSE request %d for inode %d failed.", opcode, nodeid)
            answer = _failure(unique, errno.EIO)
        else:
            if payload is PENDING:
                return None
            answer = Answer(OUT_HEADER.pack(16 + len(payload), 0, unique), payload)
        callers.pop(unique, None)
        return answer

    def complete(self, unique: int, outcome: Buffer | OSError) -> Answer | None:
        """The answer to a request whose handler said PENDING; None if its caller was let go meanwhile."""
        if self._callers.pop(unique, None) is None:
            return None
        if isinstance(outcome, OSError):
            return _failure(unique, _errno_of(outcome))
        return Answer(OUT_HEADER.pack(16 + len(outcome), 0, unique), outcome)

    def undelivered(self, message: memoryview, answer: Answer) -> None:
        """The kernel did not take this answer."""
        opcode = IN_HEADER.unpack_from(message)[1]
        try:
            self._filesystem.undelivered(opcode, answer.payload)
        except Exception:
            logger.exception("FUSE answer to a request %d could not be taken back.", opcode)

    def deferred_answers(self) -> list[Answer]:
        """EINTR for the interrupted callers that are about to end by now; call it again while `has_deferred`."""
        answers = []
        for unique, pid in list(self._deferred.items()):
            if unique not in self._callers:
                self._deferred.pop(unique, None)
            elif self._wants_to_end(pid):
                self._deferred.pop(unique, None)
                self._callers.pop(unique, None)
                answers.append(_failure(unique, errno.EINTR))
        return answers

    @property
    def has_deferred(self) -> bool:
        return bool(self._deferred)

    def _answer_common(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> Answer | None:
        if opcode in _FORGETS:
            self._take_forgets(opcode, nodeid, body)
            return None
        if opcode == Opcode.NOTIFY_REPLY:
            return None
        if opcode == Opcode.INTERRUPT:
            return self._answer_interrupt(unique, body)
        if opcode == Opcode.INIT:
            return self._answer_init(unique, body)
        if opcode == Opcode.DESTROY:
            return Answer(OUT_HEADER.pack(OUT_HEADER.size, 0, unique), b"")
        return _failure(unique, errno.ENOSYS)

    def _take_forgets(self, opcode: int, nodeid: int, body: memoryview) -> None:
        try:
            if opcode == Opcode.FORGET:
                self._filesystem.forgotten(nodeid, fuse_abi.parse_forget_in(body))
                return
            for forget in fuse_abi.parse_batch_forget_in(body):
                self._filesystem.forgotten(forget.nodeid, forget.lookups)
        except Exception:
            logger.exception("A FORGET could not be counted.")

    def _answer_interrupt(self, unique: int, body: memoryview) -> Answer | None:
        """The answer goes to the interrupted request. The interrupt itself gets none: ENOSYS would switch interrupts
        off."""
        try:
            victim = fuse_abi.parse_interrupt_in(body)
        except MalformedMessageError:
            return None
        pid = self._callers.get(victim)
        if pid is None:
            # Either the request is done, and the kernel ignores this answer; or a thread has read the request and not
            # entered it in the table yet. EAGAIN has the kernel send the interrupt once more. It does so at once:
            # without a pause we would keep that thread from the interpreter.
            time.sleep(_NOT_YET_S)
            return _failure(unique, errno.EAGAIN)
        if self._wants_to_end(pid):
            self._callers.pop(victim, None)
            return _failure(victim, errno.EINTR)
        self._deferred[victim] = pid
        self._notify_deferred()
        return None

    def _answer_init(self, unique: int, body: memoryview) -> Answer:
        try:
            init = fuse_abi.parse_init_in(body)
        except MalformedMessageError:
            return _failure(unique, errno.EPROTO)
        result = plan_session(init, self._wanted_flags, self._max_stack_depth)
        if result is None:
            logger.error("The kernel speaks FUSE %d.%d, older than Linux 5.4.", init.major, init.minor)
            return _failure(unique, errno.EPROTO)
        if init.major == fuse_abi.FUSE_KERNEL_VERSION:
            self.agreed = result
        payload = fuse_abi.format_init_out(result)
        return Answer(OUT_HEADER.pack(OUT_HEADER.size + len(payload), 0, unique), payload)


def plan_session(init: InitIn, wanted_flags: int, max_stack_depth: int = 0) -> InitOut | None:
    """Our side of the handshake; None if the kernel is too old.

    `max_stack_depth` counts only where FUSE_PASSTHROUGH is agreed upon (`passthrough.BackingFiles`).

    A kernel of a greater major version has to ask again in ours ("Version negotiation" in the header file).
    """
    if init.major > fuse_abi.FUSE_KERNEL_VERSION:
        return InitOut()
    if (init.major, init.minor) < (fuse_abi.FUSE_KERNEL_VERSION, fuse_abi.OLDEST_MINOR_VERSION):
        return None
    return InitOut(
        max_readahead=min(init.max_readahead, READAHEAD_BYTES),
        flags=init.flags & wanted_flags,
        max_background=_MAX_BACKGROUND,
        congestion_threshold=_MAX_BACKGROUND * 3 // 4,
        max_write=_MAX_WRITE_BYTES,
        max_pages=MAX_READ_BYTES // os.sysconf("SC_PAGE_SIZE"),
        max_stack_depth=max_stack_depth,
    )


def _failure(unique: int, number: int) -> Answer:
    return Answer(OUT_HEADER.pack(OUT_HEADER.size, -number, unique), b"")


def _errno_of(error: OSError) -> int:
    """1..511, which fuse_dev_do_write() accepts; never ENOSYS, which switches the operation off for good."""
    number = error.errno
    if number is None or not 0 < number < 512 or number == errno.ENOSYS:
        logger.error("FUSE handler raised an OSError that cannot be answered: %r", error)
        return errno.EIO
    return number
