"""The object filesystem: a FUSE file system in which every object of a repository can be opened by its local name.

    /<number>/ab/…     the trigger directory of one repository
    /any/ab/…          the same, for whichever repository has it
    /ready             an empty file (`prime`)
    /e/…               answers EIO to everything: the last of a union's data layers, so that content that could not be
                       fetched gives an I/O error and not a missing file

A *trigger directory* shows hardly anything: a lookup of a name has its content fetched into the cache and linked into
the hand-over directory, and then answers that the name does not exist. So overlayfs opens the plain file in the next
layer. Only large files that are not whole are shown, and read here chunk by chunk. With `shows_all` it is an ordinary
file system that shows every object, for kernels without data-only layers.

A directory's node number is made of the number of its repository and the two digits. A file's comes from a journal
(`cache/shown.py`), which outlives the server and never gives a number to other content. What every number and name
means, and for how long: docs/design/identities.md. Called by `fuse/dispatch.py` from any number of threads; never
waits for the network.
"""

import contextlib
import errno
import os
import re
import stat
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from mica.cache.cache import Cache, link_into_fan
from mica.cache.partfiles import PartFile, open_part
from mica.cache.shown import ANY_DIRECTORY, Shown, ShownFiles
from mica.dataplane.counts import SharedCounts
from mica.dataplane.messages import ANY_REPOSITORY, Kind, Question, Result
from mica.dataplane.nodedirectory import ERROR_DIRECTORY
from mica.errors import MicaError, in_one_line
from mica.files import owned_fd
from mica.fuse import abi as fuse_abi
from mica.fuse.abi import ATTR_OUT, ENTRY_OUT, Buffer, Opcode, Statfs
from mica.fuse.dispatch import PENDING, Handler, Pending, Request
from mica.fuse.tree import ROOT_INODE, Attributes
from mica.logs import logger
from mica.repo.localname import LocalName

_log = logger(__name__)
_READY_FILE: Final = "ready"
_ERROR_NODE: Final = 2
_READY_NODE: Final = 3
# The kind of file or directory that a node number is of. The numbers of the journal are below 2**60.
_DIRECTORY_BIT: Final = 1 << 60
_FILE_BIT: Final = 1 << 61
_REPOSITORY_SHIFT: Final = 16
_FAN_BIT: Final = 1 << 8
_FAN_NAME = re.compile(rb"[0-9a-f]{2}")
_NUMBER = re.compile(r"[0-9]{1,4}")
_OPEN_PARTS: Final = 128
_AGAIN_MAX: Final = 5
"""How often content is asked for again that was supplied and left the cache at once."""
_STATFS_BLOCK_BYTES: Final = 4096
_FOR_EVER_S: Final = 1 << 31
_FOR_EVER: Final = (_FOR_EVER_S, _FOR_EVER_S, 0, 0)
# After this many seconds the kernel drops the name of a file as soon as no program has it open (fuse_dentry_delete()).
_FILE_VALID: Final = (60, _FOR_EVER_S, 0, 0)


class _LeftError(OSError):
    """The content was supplied, and left the cache before it was used."""

    def __init__(self, name: LocalName) -> None:
        super().__init__(errno.EIO, f"{name} left the cache")


class Supplier(Protocol):
    """Asks the service to bring content into the cache; the file system's `supplied` gets the result."""

    def ask(self, question: Question) -> None:
        """Returns at once, whatever happens."""
        ...


class ObjectFileSystem:
    """`repositories`: how many have a trigger directory. `complete` is the session's method that answers a request that
    was put off and says whether the kernel took the answer; it has to be set before the session starts."""

    complete: Callable[[int, Buffer | OSError], bool]

    def __init__(
        self,
        cache: Cache,
        repositories: int,
        supplier: Supplier,
        counts: SharedCounts,
        shown: ShownFiles,
        *,
        shows_all: bool = False,
    ) -> None:
        self._cache = cache
        self._repositories = repositories
        self._supplier = supplier
        self._shows_all = shows_all
        self._lock = threading.Lock()
        self._waiting: dict[int, Question] = {}
        self._asked_again: dict[int, int] = {}
        self._shown = shown
        self._parts: OrderedDict[LocalName, PartFile] = OrderedDict()
        self._handed_over: deque[tuple[float, str]] = deque()
        self._counts = counts

    @property
    def handlers(self) -> Mapping[int, Handler]:
        return {
            # Not OPEN, RELEASE, GETXATTR and the like: answered ENOSYS once, the kernel never sends them again.
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.READ: self._read,
            Opcode.READDIR: _end_of_directory,
            Opcode.READDIRPLUS: _end_of_directory,
            Opcode.STATFS: self._statfs,
        }

    def forgotten(self, nodeid: int, lookups: int) -> None:
        if not nodeid & _FILE_BIT:
            return
        held = self._shown.find(nodeid & ~_FILE_BIT)
        self._shown.forget(nodeid & ~_FILE_BIT, lookups)
        if held is not None and not self._shown.is_known(held):
            # No program reads it any more, and our open descriptor would keep it in the cache.
            with self._lock:
                self._parts.pop(held.name, None)

    def undelivered(self, opcode: int, payload: Buffer) -> None:
        """If the kernel did not take the answer to a lookup, it does not know the file."""
        attributes = fuse_abi.parse_entry_out(payload).attributes if opcode == Opcode.LOOKUP and payload else None
        if attributes is not None:
            self.forgotten(attributes.inode, 1)

    def settle(self, is_known: Callable[[int], bool]) -> None:
        """Correct, by asking the kernel, the counts that killed servers left uncertain. Not from a handler."""
        self._shown.settle(lambda number: is_known(number | _FILE_BIT))

    def waiting(self) -> list[Question]:
        """Questions that the service has not answered: its successor is asked again."""
        return list(self._waiting.values())

    def supplied(self, result: Result) -> None:
        """The service has answered a question, with success or an error. Any thread."""
        question = self._waiting.pop(result.ticket, None)
        if question is None:
            return
        try:
            outcome = self._outcome(question, result)
        except _LeftError as error:
            if self._ask_again(question):
                return
            outcome = error
        except OSError as error:
            outcome = error
        self._asked_again.pop(question.ticket, None)
        if (
            not self.complete(question.ticket, outcome)
            and question.kind is Kind.PART
            and not isinstance(outcome, OSError)
        ):
            self.undelivered(Opcode.LOOKUP, outcome)

    def forget_handed_over(self, older_than_s: float) -> None:
        """Remove the links that the kernel has followed by now."""
        limit = time.monotonic() - older_than_s
        while self._handed_over and self._handed_over[0][0] < limit:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._handed_over.popleft()[1])

    def _ask(self, kind: Kind, request: Request, held: Shown, offset: int = 0, size: int = 0) -> Pending:
        question = Question(kind, request.unique, held.repository, held.name, offset, size)
        self._waiting[request.unique] = question
        self._counts.add(questions=1)
        self._supplier.ask(question)
        return PENDING

    def _ask_again(self, question: Question) -> bool:
        """For content that has left the cache again: it is too small for all programs that read."""
        times = self._asked_again.get(question.ticket, 0)
        if times == _AGAIN_MAX:
            return False
        self._asked_again[question.ticket] = times + 1
        self._waiting[question.ticket] = question
        self._supplier.ask(question)
        return True

    def _outcome(self, question: Question, result: Result) -> Buffer | OSError:
        """The answer to the kernel. Raises _LeftError for content that was supplied and is not there any more."""
        if question.kind is Kind.OBJECT and not self._shows_all:
            return _absent() if result.errno else self._hand_over(question.name)
        if question.kind is Kind.PART:
            if result.errno:
                return _absent()
            if os.path.exists(self._cache.path(question.name)) and not self._shows_all:
                return self._hand_over(question.name)
            return self._show(Shown(question.name, question.repository))
        if result.errno:
            return OSError(result.errno, os.strerror(result.errno))
        return self._content(question.name, question.offset, question.size)

    # Names

    def _lookup(self, request: Request) -> Buffer | Pending:
        name = fuse_abi.parse_name(request.body)
        node = request.nodeid
        self._counts.add(lookups=1)
        if node == ROOT_INODE:
            return self._top(name)
        if not node & _DIRECTORY_BIT:
            raise OSError(errno.EIO, "the directory of errors")
        repository = (node & ~_DIRECTORY_BIT) >> _REPOSITORY_SHIFT
        if not node & _FAN_BIT:
            return _directory_entry(node | _FAN_BIT | _fan_number(name))
        try:
            found = LocalName.parse(f"{node & 0xFF:02x}/{name.decode('ascii')}")
        except ValueError as error:
            raise _absent() from error
        return self._find(request, Shown(found, repository))

    def _find(self, request: Request, held: Shown) -> Buffer | Pending:
        # A union that has found a file here asks again for its name, and loses the file (ESTALE) if there is none.
        if (self._shows_all and not held.name.in_chunks) or self._shown.is_known(held):
            return self._show(held)
        if os.path.exists(self._cache.path(held.name)):
            if self._shows_all:
                return self._show(held)
            raise self._hand_over(held.name)
        return self._ask(Kind.PART if held.name.in_chunks else Kind.OBJECT, request, held)

    def _top(self, name: bytes) -> Buffer:
        text = name.decode("ascii", "replace")
        if text == _READY_FILE:
            return ENTRY_OUT.pack(_READY_NODE, 0, *_FOR_EVER, *fuse_abi.attr_fields(_file(_READY_NODE, 0)))
        if text == ERROR_DIRECTORY:
            return _directory_entry(_ERROR_NODE)
        if text == ANY_DIRECTORY:
            return _directory_entry(_DIRECTORY_BIT | ANY_REPOSITORY << _REPOSITORY_SHIFT)
        if _NUMBER.fullmatch(text) is None or int(text) >= self._repositories:
            raise _absent()
        return _directory_entry(_DIRECTORY_BIT | int(text) << _REPOSITORY_SHIFT)

    def _hand_over(self, name: LocalName) -> OSError:
        """Give the file a name where the kernel looks next. It has looked into the cache already, in vain. The answer
        that sends it there is an error number, and does not mean that anything failed."""
        target = f"{self._cache.root}/handover/{name}"
        try:
            link_into_fan(lambda: os.link(self._cache.path(name), target), target)
        except FileNotFoundError as error:
            raise _LeftError(name) from error
        self._handed_over.append((time.monotonic(), target))
        return _absent()

    def _show(self, held: Shown) -> Buffer:
        node = self._shown.show(held) | _FILE_BIT
        return ENTRY_OUT.pack(node, 0, *_FILE_VALID, *fuse_abi.attr_fields(_file(node, held.name.size)))

    # Attributes and content

    def _getattr(self, request: Request) -> Buffer:
        node = request.nodeid
        if node == _READY_NODE:
            attributes = _file(node, 0)
        elif node & _FILE_BIT:
            attributes = _file(node, self._held(node).name.size)
        else:
            attributes = _directory(node)
        return ATTR_OUT.pack(_FOR_EVER_S, 0, 0, *fuse_abi.attr_fields(attributes))

    def _read(self, request: Request) -> Buffer | Pending:
        read = fuse_abi.parse_read_in(request.body)
        held = self._held(request.nodeid)
        self._counts.add(reads=1)
        if held.name.in_chunks:
            part = self._part(held.name)
            if part.missing(read.offset, read.size):
                return self._ask(Kind.RANGE, request, held, read.offset, read.size)
            return request.scratch[: os.preadv(part.fd, (request.scratch[: read.size],), read.offset)]
        if not os.path.exists(self._cache.path(held.name)):
            return self._ask(Kind.OBJECT, request, held, read.offset, read.size)
        return self._content(held.name, read.offset, read.size)

    def _content(self, name: LocalName, offset: int, size: int) -> bytes:
        if name.in_chunks:
            part = self._part(name)
            if part.missing(offset, size):
                # A hole is no content.
                raise _LeftError(name)
            return os.pread(part.fd, size, offset)
        try:
            fd = os.open(self._cache.path(name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise _LeftError(name) from error
        with owned_fd(fd):
            return os.pread(fd, size, offset)

    def _held(self, node: int) -> Shown:
        held = self._shown.find(node & ~_FILE_BIT) if node & _FILE_BIT else None
        if held is None:
            raise OSError(errno.ESTALE, "the file is not in the journal any more")
        return held

    def _part(self, name: LocalName) -> PartFile:
        """The opened file. Only the most recently read stay open; another one closes when its last reader ends."""
        with self._lock:
            part = self._parts.get(name)
            if part is not None and part.is_current:
                self._parts.move_to_end(name)
                return part
            try:
                part = self._parts[name] = open_part(self._cache, name)
            except MicaError as error:
                _log.error("%s", in_one_line(error))
                raise OSError(errno.EIO, str(error)) from error
            if len(self._parts) > _OPEN_PARTS:
                self._parts.popitem(last=False)
            return part

    def _statfs(self, request: Request) -> Buffer:  # noqa: ARG002 - all nodes are on one file system
        status = os.statvfs(self._cache.root)
        blocks = status.f_blocks * status.f_frsize // _STATFS_BLOCK_BYTES
        return fuse_abi.format_statfs_out(Statfs(blocks=blocks, bfree=0, bavail=0, files=status.f_files, ffree=0))


def prime(mountpoint: Path) -> None:
    """Show the kernel at once which requests it need not send; it would otherwise learn this at the first close(2) of a
    file, which would wait for a successor if the server is away then. To be called in a process that no other waits
    for: killed while the server is away, it ends only when its request is answered. In the server's own process it
    would never end."""
    # The kernel learns from a refusal too; a file system that has ended needs nothing more.
    with contextlib.suppress(OSError), owned_fd(os.open(mountpoint / _READY_FILE, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        os.getxattr(fd, "trusted.mica")


def _absent() -> OSError:
    return OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def _fan_number(name: bytes) -> int:
    if _FAN_NAME.fullmatch(name) is None:
        raise _absent()
    return int(name, 16)


def _directory_entry(node: int) -> Buffer:
    return ENTRY_OUT.pack(node, 0, *_FOR_EVER, *fuse_abi.attr_fields(_directory(node)))


def _directory(node: int) -> Attributes:
    return Attributes(node, stat.S_IFDIR | 0o555, 2, 0, 0, 0, 4096, 0, 0)


def _file(node: int, size: int) -> Attributes:
    return Attributes(node, stat.S_IFREG | 0o444, 1, 0, 0, 0, size, 0, 0)


def _end_of_directory(_: Request) -> Buffer:
    return b""
