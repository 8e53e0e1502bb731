"""Which opens pass through, and that every backing file is given back; the kernel is a table here."""

import errno
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.memorytree import MemoryTree
from tests.support.noise import noise

from mica.fuse import abi
from mica.fuse.abi import Opcode
from mica.fuse.dispatch import Dispatcher
from mica.fuse.passthrough import NOT_CONNECTED, NOT_OFFERED, BackingFiles
from mica.fuse.treefs import TreeFileSystem

LEAST = 1000


class Device:
    """The kernel's table of backing files. `error` is the errno of the next registrations."""

    def __init__(self) -> None:
        self.error = 0
        self.held: set[int] = set()
        self.registered = 0
        self._numbers = itertools.count(1)

    def __call__(self, request: int, argument: bytearray) -> int:
        if request == abi.FUSE_DEV_IOC_BACKING_CLOSE:
            self.held.remove(abi.BACKING_ID.unpack(argument)[0])
            return 0
        assert request == abi.FUSE_DEV_IOC_BACKING_OPEN
        descriptor, flags, padding = abi.BACKING_MAP.unpack(argument)
        os.fstat(descriptor)
        assert (flags, padding) == (0, 0)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self.registered += 1
        number = next(self._numbers)
        self.held.add(number)
        return number


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def backing(device: Device) -> BackingFiles:
    backing = BackingFiles(least_bytes=LEAST)
    backing.connect(device)
    return backing


@pytest.fixture
def tree(tmp_path: Path) -> MemoryTree:
    for name, size in (("large", LEAST), ("larger", LEAST * 3), ("small", LEAST - 1)):
        (tmp_path / name).write_bytes(noise(size))
    return MemoryTree.of_directory(tmp_path)


class Opener:
    """Opens and releases as the kernel does."""

    def __init__(self, tree: MemoryTree, backing: BackingFiles) -> None:
        self.filesystem = TreeFileSystem(tree, entry_timeout_s=1, attr_timeout_s=1, backing=backing)
        self._tree = tree
        self._dispatcher = Dispatcher(self.filesystem)

    def ask(self, opcode: Opcode, path: bytes, body: bytes) -> bytes:
        message = abi.format_request(abi.InHeader(0, opcode, 2, self._tree.inode(path), 0, 0, 0), body)
        answer = self._dispatcher.answer(memoryview(message), memoryview(bytearray(1 << 16)))
        assert answer is not None
        error = abi.parse_out_header(answer.header).error
        if error:
            raise OSError(-error, os.strerror(-error))
        return bytes(answer.payload)

    def open(self, path: bytes) -> abi.OpenOut:
        return abi.parse_open_out(self.ask(Opcode.OPEN, path, abi.format_open_flags(os.O_RDONLY)))

    def release(self, path: bytes, opened: abi.OpenOut) -> None:
        self.ask(Opcode.RELEASE, path, abi.format_release_in(abi.ReleaseIn(opened.fh)))


@pytest.fixture
def opener(tree: MemoryTree, backing: BackingFiles) -> Opener:
    return Opener(tree, backing)


def passes(opened: abi.OpenOut) -> bool:
    """Flags that the kernel accepts together: not FOPEN_KEEP_CACHE with a backing id."""
    assert opened.open_flags in {
        abi.FOPEN_PASSTHROUGH | abi.FOPEN_NOFLUSH,
        abi.FOPEN_KEEP_CACHE | abi.FOPEN_NOFLUSH,
    }
    assert bool(opened.open_flags & abi.FOPEN_PASSTHROUGH) == bool(opened.backing_id)
    return opened.backing_id > 0


def test_the_size_decides(opener: Opener) -> None:
    assert passes(opener.open(b"large"))
    assert passes(opener.open(b"larger"))
    assert not passes(opener.open(b"small"))


def test_all_opens_of_a_file_share_one_id_until_the_last_is_released(opener: Opener, device: Device) -> None:
    first, second = opener.open(b"large"), opener.open(b"large")
    assert first.backing_id == second.backing_id
    assert device.held == {first.backing_id}
    opener.release(b"large", first)
    assert device.held == {first.backing_id}
    assert opener.open(b"large").backing_id == first.backing_id
    opener.release(b"large", second)
    assert device.held == {first.backing_id}
    opener.filesystem.close()
    assert device.held == set()
    assert device.registered == 1


def test_different_files_have_different_ids(opener: Opener, device: Device, backing: BackingFiles) -> None:
    opened = {path: opener.open(path) for path in (b"large", b"larger", b"small")}
    assert len(device.held) == len(backing) == 2
    for path, each in opened.items():
        opener.release(path, each)
    assert len(device.held) == len(backing) == 0


def test_a_file_that_passes_through_costs_no_descriptor(opener: Opener, tree: MemoryTree) -> None:
    opener.open(b"large")
    opener.open(b"small")
    assert [file.closed for file in tree.opened] == [True, False]


def test_what_the_kernel_should_not_ask_of_a_passed_file_is_an_error(opener: Opener) -> None:
    opened = opener.open(b"large")
    with pytest.raises(OSError) as caught:
        opener.ask(Opcode.READ, b"large", abi.format_read_in(abi.ReadIn(opened.fh, 0, 10)))
    assert caught.value.errno == errno.EBADF


def test_content_without_a_file_of_its_own_is_read_through_us(backing: BackingFiles) -> None:
    opener = Opener(MemoryTree({b"file": b"x" * LEAST}), backing)
    assert not passes(opener.open(b"file"))


def test_an_open_that_nobody_waited_for_is_given_back(tree: MemoryTree, opener: Opener, device: Device) -> None:
    opened = opener.open(b"large")
    opener.filesystem.undelivered(Opcode.OPEN, abi.format_open_out(opened))
    assert device.held == set()
    opener.release(b"large", opened)  # never comes; must not count twice
    assert passes(opener.open(b"large"))


def test_handles_of_a_predecessor_do_not_count(opener: Opener, device: Device) -> None:
    opened = opener.open(b"large")
    opener.release(b"large", abi.OpenOut(12345, 0))
    assert device.held == {opened.backing_id}


def test_nothing_passes_before_the_kernel_has_agreed(tree: MemoryTree) -> None:
    backing = BackingFiles(least_bytes=LEAST)
    assert backing.refusal == NOT_CONNECTED
    assert not passes(Opener(tree, backing).open(b"large"))
    backing.connect(None)
    assert backing.refusal == NOT_OFFERED
    assert not passes(Opener(tree, backing).open(b"large"))


@pytest.mark.parametrize(("error", "word"), [(errno.EPERM, "CAP_SYS_ADMIN"), (errno.ELOOP, "stacked")])
def test_what_can_never_work_is_not_tried_again(
    opener: Opener, device: Device, backing: BackingFiles, error: int, word: str
) -> None:
    device.error = error
    assert not passes(opener.open(b"large"))
    assert word in backing.refusal
    device.error = 0
    assert not passes(opener.open(b"larger"))


def test_a_passing_failure_is_for_this_open_only(opener: Opener, device: Device, backing: BackingFiles) -> None:
    device.error = errno.ENFILE
    assert not passes(opener.open(b"large"))
    device.error = 0
    assert backing.refusal == ""
    assert passes(opener.open(b"larger"))


def test_what_is_open_through_us_stays_so_while_it_is_open(opener: Opener, device: Device) -> None:
    device.error = errno.ENFILE
    first = opener.open(b"large")
    device.error = 0
    second = opener.open(b"large")
    assert not passes(second)
    opener.release(b"large", first)
    assert not passes(opener.open(b"large"))
    opener.filesystem.close()
    assert passes(opener.open(b"large"))


def test_a_refusal_leaves_what_passes_already(opener: Opener, device: Device) -> None:
    first = opener.open(b"large")
    device.error = errno.EPERM
    assert not passes(opener.open(b"larger"))
    assert opener.open(b"large").backing_id == first.backing_id
    opener.filesystem.close()
    assert device.held == set()


def test_a_check_tells_and_leaves_nothing(device: Device, backing: BackingFiles, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with open(tmp_path / "empty", "rb") as file:
        backing.check(file.fileno())
        assert backing.refusal == ""
        assert (device.registered, device.held) == (1, set())
        device.error = errno.EPERM
        backing.check(file.fileno())
    assert "CAP_SYS_ADMIN" in backing.refusal


def test_many_openers_of_one_file(opener: Opener, device: Device) -> None:
    def use(_: int) -> int:
        opened = opener.open(b"large")
        assert opened.backing_id in device.held
        opener.release(b"large", opened)
        return opened.backing_id

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(use, range(500)))
    assert len(set(ids)) == device.registered
    assert device.held == set()


@pytest.mark.parametrize(
    ("offered", "depth", "agreed"),
    [
        (abi.FUSE_INIT_EXT | abi.FUSE_PASSTHROUGH, 1, True),
        (abi.FUSE_INIT_EXT | abi.FUSE_PASSTHROUGH, 0, False),
        (abi.FUSE_INIT_EXT, 1, False),
        (abi.FUSE_PASSTHROUGH, 1, False),  # the kernel hears the upper half with FUSE_INIT_EXT only
    ],
)
def test_the_handshake(tree: MemoryTree, offered: int, depth: int, agreed: bool) -> None:
    filesystem = TreeFileSystem(tree, entry_timeout_s=1, attr_timeout_s=1)
    dispatcher = Dispatcher(filesystem, max_stack_depth=depth)
    assert dispatcher.agreed is None
    body = abi.format_init_in(abi.InitIn(7, 45, 131072, offered))
    message = abi.format_request(abi.InHeader(0, Opcode.INIT, 2, 0, 0, 0, 0), body)
    answer = dispatcher.answer(memoryview(message), memoryview(b""))
    assert answer is not None
    result = abi.parse_init_out(answer.payload)
    assert result == dispatcher.agreed
    assert bool(result.flags & abi.FUSE_PASSTHROUGH) is agreed
    assert result.max_stack_depth == depth


def test_a_handshake_in_another_version_is_not_the_last(tree: MemoryTree) -> None:
    dispatcher = Dispatcher(TreeFileSystem(tree, entry_timeout_s=1, attr_timeout_s=1))
    body = abi.format_init_in(abi.InitIn(8, 0, 0, 0))
    message = abi.format_request(abi.InHeader(0, Opcode.INIT, 2, 0, 0, 0, 0), body)
    assert dispatcher.answer(memoryview(message), memoryview(b"")) is not None
    assert dispatcher.agreed is None
