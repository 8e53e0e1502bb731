"""Requests as bytes through the dispatcher and the tree adapter, without a kernel."""

import errno
import itertools
import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.memorytree import MemoryTree, Node, Spec, directory, symlink
from tests.support.noise import noise

from mica.fuse import abi
from mica.fuse.abi import Opcode
from mica.fuse.callers import is_ending, wants_to_end
from mica.fuse.dispatch import Answer, Dispatcher, plan_session
from mica.fuse.handles import Listings
from mica.fuse.treefs import TreeFileSystem

HOUR = abi.Validity(3600, 0)
MINUTE = abi.Validity(60, 0)
shared = Node(content=b"shared")


class Kernel:
    """Sends requests and takes answers apart."""

    def __init__(self, filesystem: TreeFileSystem, *, wants_to_end: Callable[[int], bool] = lambda _: True) -> None:
        self.filesystem = filesystem
        self.deferred = threading.Event()
        self.dispatcher = Dispatcher(filesystem, wants_to_end=wants_to_end, deferred=self.deferred.set)
        self._uniques = itertools.count(2, 2)
        self._scratch = memoryview(bytearray(1 << 20))

    def send(self, opcode: int, nodeid: int = 1, body: bytes = b"", *, unique: int = 0) -> Answer | None:
        unique = unique or next(self._uniques)
        message = abi.format_request(abi.InHeader(0, opcode, unique, nodeid, 0, 0, 77), body)
        answer = self.dispatcher.answer(memoryview(message), self._scratch)
        if answer is not None:
            header = abi.parse_out_header(answer.header)
            assert header.length == len(answer.header) + len(answer.payload)
        return answer

    def ask(self, opcode: int, nodeid: int = 1, body: bytes = b"") -> bytes:
        answer = self.send(opcode, nodeid, body)
        assert answer is not None
        error = abi.parse_out_header(answer.header).error
        if error:
            raise OSError(-error, os.strerror(-error))
        return bytes(answer.payload)

    def lookup(self, parent: int, name: bytes) -> abi.Entry:
        return abi.parse_entry_out(self.ask(Opcode.LOOKUP, parent, abi.format_name(name)))

    def open(self, nodeid: int, flags: int = os.O_RDONLY) -> abi.OpenOut:
        return abi.parse_open_out(self.ask(Opcode.OPEN, nodeid, abi.format_open_flags(flags)))

    def read(self, nodeid: int, fh: int, offset: int, size: int) -> bytes:
        return self.ask(Opcode.READ, nodeid, abi.format_read_in(abi.ReadIn(fh, offset, size)))

    def release(self, nodeid: int, fh: int) -> None:
        self.ask(Opcode.RELEASE, nodeid, abi.format_release_in(abi.ReleaseIn(fh)))

    def page(self, nodeid: int, offset: int, size: int = 4096) -> list[abi.Dirent]:
        return abi.parse_dirents(self.ask(Opcode.READDIR, nodeid, abi.format_read_in(abi.ReadIn(0, offset, size))))

    def page_plus(self, nodeid: int, offset: int, size: int = 4096) -> list[tuple[abi.Dirent, abi.Entry]]:
        body = abi.format_read_in(abi.ReadIn(0, offset, size))
        return abi.parse_direntpluses(self.ask(Opcode.READDIRPLUS, nodeid, body))

    def list(self, nodeid: int, size: int = 4096) -> list[abi.Dirent]:
        result: list[abi.Dirent] = []
        while page := self.page(nodeid, result[-1].offset if result else 0, size):
            result += page
        return result


@pytest.fixture
def tree() -> MemoryTree:
    root: dict[bytes, Spec] = {
        b"file": Node(
            content=b"0123456789", mode=stat.S_IFREG | 0o4755, mtime_s=-5, xattrs={b"user.a": b"1", b"trusted.b": b""}
        ),
        b"one": shared,
        b"two": shared,
        b"link": symlink(b"file"),
        b"dir": {b"inner": {}, b"x" * 255: b"long"},
        b"null": Node(mode=stat.S_IFCHR | 0o666, rdev=os.makedev(0x123, 0xABCDE)),
        b"big": directory({b"%05d" % number: b"" for number in range(1000)}),
    }
    return MemoryTree(root)


@pytest.fixture
def kernel(tree: MemoryTree) -> Kernel:
    return Kernel(TreeFileSystem(tree, entry_timeout_s=3600, attr_timeout_s=60, negative_timeout_s=0))


def test_lookup_gives_attributes_and_their_validity(tree: MemoryTree, kernel: Kernel) -> None:
    attributes = tree.attributes(tree.inode(b"file"))
    assert attributes.mtime_s == -5
    assert kernel.lookup(1, b"file") == abi.Entry(attributes, HOUR, MINUTE)


def test_hard_links_are_one_node(kernel: Kernel) -> None:
    first, second = kernel.lookup(1, b"one").attributes, kernel.lookup(1, b"two").attributes
    assert first == second
    assert first is not None
    assert first.links == 2


def test_an_absent_name_is_an_error_or_a_believed_absence(tree: MemoryTree, kernel: Kernel) -> None:
    with pytest.raises(FileNotFoundError):
        kernel.lookup(1, b"absent")
    believing = Kernel(TreeFileSystem(tree, entry_timeout_s=1, attr_timeout_s=1, negative_timeout_s=3600))
    assert believing.lookup(1, b"absent") == abi.Entry(None, HOUR, HOUR)


def test_lookup_errors(kernel: Kernel, tree: MemoryTree) -> None:
    with pytest.raises(NotADirectoryError):
        kernel.lookup(tree.inode(b"file"), b"x")
    with pytest.raises(OSError, match="too long"):
        kernel.lookup(1, b"n" * 256)
    with pytest.raises(OSError, match="Invalid argument"):
        kernel.ask(Opcode.LOOKUP, 1, b"no final nul")


def test_lookup_of_dots_serves_file_handles(kernel: Kernel, tree: MemoryTree) -> None:
    inner = tree.inode(b"dir/inner")
    assert kernel.lookup(inner, b".").attributes == tree.attributes(inner)
    assert kernel.lookup(inner, b"..").attributes == tree.attributes(tree.inode(b"dir"))


def test_getattr_and_device_numbers(kernel: Kernel, tree: MemoryTree) -> None:
    inode = tree.inode(b"null")
    attributes, valid = abi.parse_attr_out(kernel.ask(Opcode.GETATTR, inode, bytes(16)))
    assert attributes == tree.attributes(inode)
    assert valid == MINUTE
    # new_encode_dev() of include/linux/kdev_t.h
    assert attributes.rdev == 0xDE | 0x123 << 8 | (0xABCDE & ~0xFF) << 12


def test_readlink(kernel: Kernel, tree: MemoryTree) -> None:
    assert kernel.ask(Opcode.READLINK, tree.inode(b"link")) == b"file"
    with pytest.raises(OSError, match="Invalid argument"):
        kernel.ask(Opcode.READLINK, tree.inode(b"file"))


def test_reading_a_file(kernel: Kernel, tree: MemoryTree) -> None:
    inode = tree.inode(b"file")
    opened = kernel.open(inode)
    assert opened.open_flags == abi.FOPEN_KEEP_CACHE | abi.FOPEN_NOFLUSH
    assert kernel.read(inode, opened.fh, 0, 4096) == b"0123456789"
    assert kernel.read(inode, opened.fh, 3, 4) == b"3456"
    assert kernel.read(inode, opened.fh, 10, 4096) == b""
    kernel.release(inode, opened.fh)
    assert [file.closed for file in tree.opened] == [True]


def test_a_local_file_is_read_by_its_descriptor(tmp_path: Path) -> None:
    content = noise(300_000)
    (tmp_path / "file").write_bytes(content)
    tree = MemoryTree.of_directory(tmp_path)
    kernel = Kernel(TreeFileSystem(tree, entry_timeout_s=1, attr_timeout_s=1))
    inode = tree.inode(b"file")
    opened = kernel.open(inode)
    assert kernel.read(inode, opened.fh, 1000, 131072) == content[1000:132072]
    assert kernel.read(inode, opened.fh, 299_999, 4096) == content[-1:]
    kernel.filesystem.close()
    assert tree.opened[0].closed


def test_a_handle_of_a_predecessor_still_reads(kernel: Kernel, tree: MemoryTree) -> None:
    assert kernel.read(tree.inode(b"file"), 12345, 8, 100) == b"89"
    kernel.release(tree.inode(b"file"), 12345)
    assert [file.closed for file in tree.opened] == [True]


def test_a_file_released_while_it_is_read_is_closed_afterwards(
    kernel: Kernel, tree: MemoryTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = tree.inode(b"file")
    fh = kernel.open(inode).fh
    reading, go_on = threading.Event(), threading.Event()
    file = tree.opened[0]
    original = file.read

    def slow(offset: int, size: int) -> bytes:
        reading.set()
        go_on.wait()
        return original(offset, size)

    monkeypatch.setattr(file, "read", slow)
    results: list[bytes] = []
    reader = threading.Thread(target=lambda: results.append(kernel.read(inode, fh, 0, 4)))
    reader.start()
    reading.wait()
    kernel.release(inode, fh)
    assert not file.closed
    go_on.set()
    reader.join()
    assert results == [b"0123"]
    assert file.closed


def test_an_open_that_nobody_waited_for_is_released(kernel: Kernel, tree: MemoryTree) -> None:
    message = abi.format_request(
        abi.InHeader(0, Opcode.OPEN, 2, tree.inode(b"file"), 0, 0, 0), abi.format_open_flags(0)
    )
    answer = kernel.dispatcher.answer(memoryview(message), memoryview(b""))
    assert answer is not None
    kernel.dispatcher.undelivered(memoryview(message), answer)
    assert tree.opened[0].closed


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC])
def test_opening_for_writing_is_refused(kernel: Kernel, tree: MemoryTree, flags: int) -> None:
    with pytest.raises(OSError, match="Read-only") as caught:
        kernel.open(tree.inode(b"file"), flags)
    assert caught.value.errno == errno.EROFS


@pytest.mark.parametrize(
    "opcode",
    [
        Opcode.SETATTR,
        Opcode.MKDIR,
        Opcode.MKNOD,
        Opcode.UNLINK,
        Opcode.RENAME2,
        Opcode.WRITE,
        Opcode.CREATE,
        Opcode.SETXATTR,
        Opcode.LINK,
    ],
)
def test_writes_are_refused(kernel: Kernel, opcode: Opcode) -> None:
    with pytest.raises(OSError, match="Read-only"):
        kernel.ask(opcode, 1, bytes(64))


@pytest.mark.parametrize("opcode", [Opcode.OPENDIR, Opcode.FLUSH, Opcode.LSEEK, Opcode.STATX, 53, 4096, 0xFFFFFFFF])
def test_what_is_left_to_the_kernel_is_not_implemented(kernel: Kernel, opcode: int) -> None:
    with pytest.raises(OSError, match="not implemented"):
        kernel.ask(opcode, 1, bytes(64))


def test_a_listing_has_dots_types_and_parents(kernel: Kernel, tree: MemoryTree) -> None:
    inner, outer = tree.inode(b"dir/inner"), tree.inode(b"dir")
    assert kernel.list(inner) == [abi.Dirent(inner, 1, stat.S_IFDIR >> 12, b"."), abi.Dirent(outer, 2, 4, b"..")]
    kinds = {dirent.name: dirent.kind for dirent in kernel.list(1)}
    assert kinds == {b".": 4, b"..": 4, b"file": 8, b"one": 8, b"two": 8, b"link": 10, b"dir": 4, b"null": 2, b"big": 4}


@pytest.mark.parametrize("size", [280, 4096, 1 << 16])
def test_pages_join_without_gap(kernel: Kernel, tree: MemoryTree, size: int) -> None:
    listed = kernel.list(tree.inode(b"big"), size)
    assert [dirent.name for dirent in listed[2:]] == [b"%05d" % number for number in range(1000)]
    assert [dirent.offset for dirent in listed] == list(range(1, 1003))


def test_a_page_begins_anywhere(kernel: Kernel, tree: MemoryTree) -> None:
    big = tree.inode(b"big")
    assert kernel.page(big, 500)[0].name == b"00498"
    assert kernel.page(big, 2)[0].name == b"00000"
    assert kernel.page(big, 1002) == []
    assert kernel.page(big, (1 << 64) - 1) == []


def test_both_ways_of_listing_share_their_offsets(kernel: Kernel, tree: MemoryTree) -> None:
    big = tree.inode(b"big")
    first = kernel.page_plus(big, 0)
    assert kernel.page(big, first[-1][0].offset)[0].name == b"%05d" % (len(first) - 2)


def test_listing_with_attributes_equals_lookups(kernel: Kernel, tree: MemoryTree) -> None:
    listed = kernel.page_plus(1, 0)
    assert [entry.attributes for _, entry in listed[:2]] == [None, None]
    for dirent, entry in listed[2:]:
        assert entry == kernel.lookup(1, dirent.name)
        assert entry.attributes is not None
        assert dirent.inode == entry.attributes.inode
    assert kernel.page_plus(1, listed[-1][0].offset) == []


def test_a_buffer_too_small_for_one_entry_is_not_the_end(kernel: Kernel, tree: MemoryTree) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        kernel.page(tree.inode(b"dir"), 3, 200)


def test_a_whole_directory_is_asked_of_the_tree_once(kernel: Kernel, tree: MemoryTree) -> None:
    kernel.list(tree.inode(b"big"))
    assert tree.calls["children"] == 1
    kernel.list(tree.inode(b"big"))
    assert tree.calls["children"] == 2


def test_a_directory_abandoned_halfway_can_be_resumed_after_a_change(kernel: Kernel, tree: MemoryTree) -> None:
    big = tree.inode(b"big")
    kernel.page(big, 0)
    kernel.filesystem.forget_listings()
    assert kernel.page(big, 500)[0].name == b"00498"
    assert tree.calls["children"] == 2


def test_listings_kept_are_bounded(monkeypatch: pytest.MonkeyPatch, tree: MemoryTree) -> None:
    monkeypatch.setattr("mica.fuse.handles._MAX_LISTED", 1010)
    listings = Listings(tree)
    listings.entries(tree.inode(b"big"), 0)
    listings.entries(tree.inode(b"dir"), 0)
    assert len(listings) == 2
    listings.entries(1, 0)
    assert len(listings) == 2
    listings.entries(1, 9)
    listings.entries(tree.inode(b"dir"), 4)
    assert len(listings) == 0


def test_xattrs(kernel: Kernel, tree: MemoryTree) -> None:
    inode = tree.inode(b"file")

    def get(name: bytes, size: int) -> bytes:
        return kernel.ask(Opcode.GETXATTR, inode, abi.format_getxattr_in(abi.GetxattrIn(size, name)))

    assert get(b"user.a", 0) == abi.format_getxattr_out(1)
    assert get(b"user.a", 1) == b"1"
    assert get(b"trusted.b", 10) == b""
    with pytest.raises(OSError, match="No data"):
        get(b"user.absent", 10)
    listed = kernel.ask(Opcode.LISTXATTR, inode, abi.format_listxattr_in(100))
    assert abi.parse_xattr_names(listed) == [b"user.a", b"trusted.b"]
    assert abi.parse_getxattr_out(kernel.ask(Opcode.LISTXATTR, inode, abi.format_listxattr_in(0))) == len(listed)
    with pytest.raises(OSError, match="out of range"):
        kernel.ask(Opcode.LISTXATTR, inode, abi.format_listxattr_in(1))


def test_statfs(kernel: Kernel) -> None:
    statfs = abi.parse_statfs_out(kernel.ask(Opcode.STATFS))
    assert statfs.files == 1009
    assert (statfs.blocks, statfs.bfree, statfs.namelen) == (1, 0, 255)


def test_forgets_get_no_answer(kernel: Kernel) -> None:
    assert kernel.send(Opcode.FORGET, 5, abi.format_forget_in(3)) is None
    assert kernel.send(Opcode.BATCH_FORGET, 0, abi.format_batch_forget_in([abi.Forget(5, 1)])) is None


def test_destroy_is_answered(kernel: Kernel) -> None:
    assert kernel.ask(Opcode.DESTROY) == b""


def test_the_handshake_takes_what_the_kernel_offers(kernel: Kernel) -> None:
    offered = abi.FUSE_INIT_EXT | abi.FUSE_PARALLEL_DIROPS | abi.FUSE_HAS_RESEND | abi.FUSE_ASYNC_DIO
    body = abi.format_init_in(abi.InitIn(7, 45, 131072, offered))
    result = abi.parse_init_out(kernel.ask(Opcode.INIT, 0, body))
    assert result.flags == offered & ~abi.FUSE_ASYNC_DIO
    assert (result.major, result.minor, result.time_gran) == (7, 40, 1)
    assert result.max_pages * os.sysconf("SC_PAGE_SIZE") == 1 << 20


def test_the_handshake_with_other_versions(kernel: Kernel) -> None:
    assert plan_session(abi.InitIn(8, 1, 0, 0), 0) == abi.InitOut()
    with pytest.raises(OSError, match="Protocol error"):
        kernel.ask(Opcode.INIT, 0, abi.format_init_in(abi.InitIn(7, 30, 0, 0)))
    with pytest.raises(OSError, match="Protocol error"):
        kernel.ask(Opcode.INIT, 0, b"short")


def test_malformed_requests_are_answered_or_ignored(kernel: Kernel) -> None:
    message = abi.format_request(abi.InHeader(0, Opcode.GETATTR, 8, 1, 0, 0, 0), bytes(16))
    for length in range(40):
        assert kernel.dispatcher.answer(memoryview(message[:length]), memoryview(b"")) is None
    answer = kernel.dispatcher.answer(memoryview(message[:50]), memoryview(b""))
    assert answer == Answer(abi.format_answer(8, error=errno.EIO), b"")


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EIO, "x"), errno.EIO),
        (TimeoutError(errno.ETIMEDOUT, "x"), errno.ETIMEDOUT),
        (OSError("no number"), errno.EIO),
        (OSError(errno.ENOSYS, "would switch the operation off"), errno.EIO),
        (OSError(-1, "x"), errno.EIO),
        (OSError(5000, "x"), errno.EIO),
    ],
)
def test_errors_of_the_tree_are_answered(tree: MemoryTree, kernel: Kernel, error: OSError, number: int) -> None:
    def fail(*_: object) -> None:
        raise error

    tree.before = fail
    with pytest.raises(OSError) as caught:
        kernel.ask(Opcode.GETATTR, 1, bytes(16))
    assert caught.value.errno == number


def test_a_bug_is_logged_and_answered(
    tree: MemoryTree, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    tree.before = fail
    with caplog.at_level(logging.ERROR), pytest.raises(OSError) as caught:
        kernel.ask(Opcode.GETATTR, 1, bytes(16))
    assert caught.value.errno == errno.EIO
    assert "ZeroDivisionError" in caplog.text


class Blocked:
    """A GETATTR that waits inside the tree."""

    def __init__(self, kernel: Kernel, tree: MemoryTree) -> None:
        inside, self._go_on = threading.Event(), threading.Event()

        def wait(*_: object) -> None:
            inside.set()
            self._go_on.wait()

        tree.before = wait
        self._thread = threading.Thread(target=kernel.send, args=(Opcode.GETATTR, 1), kwargs={"unique": 1000})
        self._thread.start()
        inside.wait()

    def end(self) -> None:
        self._go_on.set()
        self._thread.join()


INTERRUPTED = Answer(abi.format_answer(1000, error=errno.EINTR), b"")


def test_an_interrupt_answers_its_victim_at_once(kernel: Kernel, tree: MemoryTree) -> None:
    blocked = Blocked(kernel, tree)
    assert kernel.send(Opcode.INTERRUPT, 0, abi.format_interrupt_in(1000), unique=1001) == INTERRUPTED
    blocked.end()


def test_an_interrupt_of_a_request_not_yet_known_is_to_come_again(kernel: Kernel) -> None:
    """Its caller may be one that goes on, such as a Go program that got SIGURG."""
    again = Answer(abi.format_answer(1001, error=errno.EAGAIN), b"")
    assert kernel.send(Opcode.INTERRUPT, 0, abi.format_interrupt_in(1000), unique=1001) == again
    assert kernel.send(Opcode.INTERRUPT, 0, b"", unique=1001) is None


def test_a_caller_that_goes_on_is_interrupted_when_it_is_to_end(tree: MemoryTree) -> None:
    asked: list[int] = []
    ending: list[int] = []

    def wants(pid: int) -> bool:
        asked.append(pid)
        return bool(ending)

    kernel = Kernel(TreeFileSystem(tree, entry_timeout_s=1, attr_timeout_s=1), wants_to_end=wants)
    blocked = Blocked(kernel, tree)
    assert kernel.send(Opcode.INTERRUPT, 0, abi.format_interrupt_in(1000), unique=1001) is None
    assert kernel.deferred.is_set()
    assert kernel.dispatcher.deferred_answers() == []
    ending.append(1)
    assert kernel.dispatcher.deferred_answers() == [INTERRUPTED]
    assert not kernel.dispatcher.has_deferred
    assert set(asked) == {77}
    blocked.end()


def test_an_interrupted_caller_that_got_its_answer_is_forgotten(tree: MemoryTree) -> None:
    kernel = Kernel(TreeFileSystem(tree, entry_timeout_s=1, attr_timeout_s=1), wants_to_end=lambda _: False)
    blocked = Blocked(kernel, tree)
    kernel.send(Opcode.INTERRUPT, 0, abi.format_interrupt_in(1000), unique=1001)
    blocked.end()
    assert kernel.dispatcher.deferred_answers() == []
    assert not kernel.dispatcher.has_deferred


@pytest.mark.parametrize(
    ("pending", "shared_pending", "blocked", "ending"),
    [
        (0, 0, 0, False),
        (1 << 8, 0, 0, True),  # SIGKILL
        (0, 1 << 1, 0, True),  # SIGINT, caught
        (0, 1 << 1, 1 << 1, False),
        (0, 1 << 16, 0, False),  # SIGCHLD
        (1 << 22, 0, 0, False),  # SIGURG: the Go runtime
    ],
)
def test_who_is_to_end(pending: int, shared_pending: int, blocked: int, ending: bool) -> None:
    status = f"Name:\tx: y\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared_pending:016x}\nSigBlk:\t{blocked:016x}\n"
    assert is_ending(status.encode()) is ending


def test_the_name_of_a_caller_tells_nothing_else() -> None:
    """The kernel escapes newlines in it, and no other line ends."""
    assert not is_ending(b"Name:\tx\rShdPnd:\t100\nSigPnd:\t0\n")


def test_who_cannot_be_seen_is_let_go() -> None:
    assert not wants_to_end(0), "a caller in another pid namespace"
    assert wants_to_end(1 << 30)
    assert not wants_to_end(os.getpid())
