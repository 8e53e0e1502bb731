"""The object filesystem: a FUSE file system in which every object of a repository can be opened by its local name.

    /<number>/ab/…     the trigger directory of one repository
    /any/ab/…          the same, for whichever repository has it
    /ready             an empty file (`prime`)
    /e/…               answers EIO to everything: the last of a union's data layers, so that what could not be fetched
                       is an I/O error and not a missing file

As a *trigger* it hardly shows anything: a name that is looked up is fetched into the cache, linked into the hand-over
directory, and then said not to exist, whereupon overlayfs opens the plain file in the next layer. Only large files are
shown, and read here chunk by chunk, until they are whole. With `shows_all` it is an ordinary file system that shows
every object, for kernels without data-only layers.

Node numbers carry all that the kernel may ask about later, so a successor of a killed server knows them: directories
by position, large files by their inode number in the cache. Only with `shows_all` is there a table. Called by
`mount/fuse_dispatch.py` from any number of threads; never waits for the network.
"""

import contextlib
import errno
import itertools
import os
import re
import stat
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from mica.errors import MicaError
from mica.fetch.cache import Cache, link_into_fan
from mica.fetch.parts import PartFile, find_part, open_part
from mica.files import owned_fd
from mica.logs import logger
from mica.mount import fuse_abi
from mica.mount.fuse_abi import ATTR_OUT, ENTRY_OUT, Buffer, Opcode, Statfs
from mica.mount.fuse_dispatch import PENDING, Handler, Pending, Request
from mica.mount.tree import ROOT_INODE, Attributes
from mica.node.counts import SharedCounts
from mica.node.directory import ANY_DIRECTORY, ERROR_DIRECTORY
from mica.node.messages import ANY_REPOSITORY, Kind, Question, Result
from mica.repo.localname import LocalName

_log = logger(__name__)
_READY_FILE: Final = "ready"
_ERROR_NODE: Final = 2
_READY_NODE: Final = 3
# Which kind of node a number is of. An inode number of the cache's file system is below 2**56.
_DIRECTORY_BIT: Final = 1 << 60
_PART_BIT: Final = 1 << 61
_OBJECT_BIT: Final = 1 << 62
_REPOSITORY_SHIFT: Final = 16
_FAN_BIT: Final = 1 << 8
_FAN_NAME = re.compile(rb"[0-9a-f]{2}")
_NUMBER = re.compile(r"[0-9]{1,4}")
_OPEN_PARTS: Final = 128
_STATFS_BLOCK_BYTES: Final = 4096
_FOR_EVER_S: Final = 1 << 31
_FOR_EVER: Final = (_FOR_EVER_S, _FOR_EVER_S, 0, 0)
# A large file that has become whole is found in the cache; one that left the cache may get another number.
_PART_VALID: Final = (60, _FOR_EVER_S, 0, 0)


class Supplier(Protocol):
    """Has content brought into the cache; the file system's `supplied` is told the end of it."""

    def ask(self, question: Question) -> None:
        """Returns at once, whatever happens."""
        ...


class _Held(NamedTuple):
    """A file shown: what it is and where it comes from."""

    name: LocalName
    repository: int


class ObjectFileSystem:
    """`repositories` is how many have a trigger directory. `complete`, which answers a request that was put off, is
    the session's, to be set before it starts."""

    complete: Callable[[int, Buffer | OSError], None]

    def __init__(
        self, cache: Cache, repositories: int, supplier: Supplier, counts: SharedCounts, *, shows_all: bool = False
    ) -> None:
        self._cache = cache
        self._repositories = repositories
        self._supplier = supplier
        self._shows_all = shows_all
        self._lock = threading.Lock()
        self._waiting: dict[int, Question] = {}
        self._shown: dict[int, _Held] = {}
        self._nodes: dict[_Held, int] = {}
        self._numbers = itertools.count(1)
        self._parts: OrderedDict[LocalName, PartFile] = OrderedDict()
        self._handed_over: deque[tuple[float, str]] = deque()
        self._counts = counts

    @property
    def handlers(self) -> Mapping[int, Handler]:
        return {
            # Not OPEN, RELEASE, GETXATTR and their kin: answered ENOSYS once, they are never asked again.
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.READ: self._read,
            Opcode.READDIR: _end_of_directory,
            Opcode.READDIRPLUS: _end_of_directory,
            Opcode.STATFS: self._statfs,
        }

    def undelivered(self, opcode: int, payload: Buffer) -> None:
        """No answer of ours has to be taken back."""

    def waiting(self) -> list[Question]:
        """What the service was asked for and has not answered: to be asked again of its successor."""
        return list(self._waiting.values())

    def supplied(self, result: Result) -> None:
        """The service has done, or could not do, what it was asked for. Any thread."""
        question = self._waiting.pop(result.ticket, None)
        if question is None:
            return
        try:
            outcome: Buffer | OSError = self._outcome(question, result)
        except OSError as error:
            outcome = error
        self.complete(question.ticket, outcome)

    def forget_handed_over(self, older_than_s: float) -> None:
        """Remove the links that the kernel has followed by now."""
        limit = time.monotonic() - older_than_s
        while self._handed_over and self._handed_over[0][0] < limit:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._handed_over.popleft()[1])

    def _ask(self, kind: Kind, request: Request, held: _Held, offset: int = 0, size: int = 0) -> Pending:
        question = Question(kind, request.unique, held.repository, held.name, offset, size)
        self._waiting[request.unique] = question
        self._counts.add(questions=1)
        self._supplier.ask(question)
        return PENDING

    def _outcome(self, question: Question, result: Result) -> Buffer:
        if question.kind is Kind.OBJECT and not self._shows_all:
            if not result.errno:
                self._hand_over(question.name)
            raise _absent()
        if question.kind is Kind.PART:
            if result.errno:
                raise _absent()
            return self._show(result.value | _PART_BIT, _Held(question.name, question.repository))
        if result.errno:
            raise OSError(result.errno, os.strerror(result.errno))
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
        return self._find(request, _Held(found, repository))

    def _find(self, request: Request, held: _Held) -> Buffer | Pending:
        if self._shows_all and not held.name.in_chunks:
            return self._show(self._number(held), held)
        if os.path.exists(self._cache.path(held.name)):
            if self._shows_all:
                return self._show(self._number(held), held)
            self._hand_over(held.name)
            raise _absent()
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

    def _hand_over(self, name: LocalName) -> None:
        """Give the file a name where the kernel looks next. It has looked into the cache already, in vain."""
        target = f"{self._cache.root}/handover/{name}"
        link_into_fan(lambda: os.link(self._cache.path(name), target), target)
        self._handed_over.append((time.monotonic(), target))

    def _show(self, node: int, held: _Held) -> Buffer:
        self._shown[node] = held
        return ENTRY_OUT.pack(node, 0, *_PART_VALID, *fuse_abi.attr_fields(_file(node, held.name.size)))

    def _number(self, held: _Held) -> int:
        with self._lock:
            node = self._nodes.get(held)
            if node is None:
                node = self._nodes[held] = _OBJECT_BIT | next(self._numbers)
        return node

    # Attributes and content

    def _getattr(self, request: Request) -> Buffer:
        node = request.nodeid
        if node == _READY_NODE:
            attributes = _file(node, 0)
        elif node & (_PART_BIT | _OBJECT_BIT):
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
            return os.pread(self._part(name).fd, size, offset)
        with owned_fd(os.open(self._cache.path(name), os.O_RDONLY | os.O_CLOEXEC)) as fd:
            return os.pread(fd, size, offset)

    def _held(self, node: int) -> _Held:
        held = self._shown.get(node)
        if held is None and node & _PART_BIT:
            name = find_part(self._cache, node & ~_PART_BIT)
            if name is not None:
                held = self._shown[node] = _Held(name, ANY_REPOSITORY)
        if held is None:
            raise OSError(errno.ESTALE, "a file that nobody knows any more")
        return held

    def _part(self, name: LocalName) -> PartFile:
        """Opened; of many the least recently read are let go, and closed when nobody reads in them."""
        with self._lock:
            part = self._parts.get(name)
            if part is not None:
                self._parts.move_to_end(name)
                return part
            try:
                part = self._parts[name] = open_part(self._cache, name)
            except MicaError as error:
                _log.error("%s", error)
                raise OSError(errno.EIO, str(error)) from error
            if len(self._parts) > _OPEN_PARTS:
                self._parts.popitem(last=False)
            return part

    def _statfs(self, request: Request) -> Buffer:  # noqa: ARG002 - all nodes are on one file system
        status = os.statvfs(self._cache.root)
        blocks = status.f_blocks * status.f_frsize // _STATFS_BLOCK_BYTES
        return fuse_abi.format_statfs_out(Statfs(blocks=blocks, bfree=0, bavail=0, files=status.f_files, ffree=0))


def prime(mountpoint: Path) -> None:
    """Have the kernel find out at once, and not while the server is away, what it need not ask: the first close(2) of a
    file would otherwise wait for a successor."""
    with owned_fd(os.open(mountpoint / _READY_FILE, os.O_RDONLY | os.O_CLOEXEC)) as fd, contextlib.suppress(OSError):
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
