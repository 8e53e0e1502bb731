"""Files of a mount that the kernel reads from the host's files by itself: what is asked of us, and what is given back.

Readers that fault pages in are processes of their own: see test_fuse_mount.py.
"""

import contextlib
import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.support.memorytree import MemoryTree
from tests.support.noise import noise
from tests.support.tools import missing, need, need_fuse
from tests.support.waiting import PATIENCE_S
from tests.system.test_fuse_mount import READ_BY_MMAP, READ_DIRECTLY, Gate, output_of, started, wait_until

from mica import linux
from mica.fuse import abi
from mica.fuse.dispatch import Handler, Request
from mica.fuse.passthrough import NOT_OFFERED, BackingFiles
from mica.fuse.session import open_session
from mica.fuse.treefs import TreeFileSystem
from mica.union.overlay import open_overlay, plan_overlay

pytestmark = pytest.mark.system
LEAST = 64 << 10
LARGE = (5 << 20) + 123


class Counting(TreeFileSystem):
    """Counts requests by their opcode."""

    asked: dict[int, int]

    @property
    def handlers(self) -> Mapping[int, Handler]:
        self.asked = {}
        return {opcode: self._counted(opcode, call) for opcode, call in super().handlers.items()}

    def _counted(self, opcode: int, call: Handler) -> Handler:
        def count(request: Request) -> Any:
            self.asked[opcode] = self.asked.get(opcode, 0) + 1
            return call(request)

        return count


class Ledger(BackingFiles):
    """Remembers every id the kernel gave, and the device to ask about them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(least_bytes=LEAST, **options)
        self.given: list[int] = []
        self.device: Any = None

    def connect(self, ioctl: Any) -> None:
        self.device = ioctl

        def keep(request: int, argument: bytearray) -> int:
            result: int = ioctl(request, argument)
            if request == abi.FUSE_DEV_IOC_BACKING_OPEN:
                self.given.append(result)
            return result

        super().connect(None if ioctl is None else keep)

    def held_by_kernel(self) -> list[int]:
        """Of all ids given, those the kernel still knows; they are closed by that."""
        held = []
        for number in self.given:
            try:
                self.device(abi.FUSE_DEV_IOC_BACKING_CLOSE, abi.format_backing_id(number))
                held.append(number)
            except FileNotFoundError:
                pass
        return held


class Mounted:
    def __init__(self, source: Path, target: Path, backing: Ledger | None) -> None:
        self.source, self.target, self.backing = source, target, backing
        self.tree = MemoryTree.of_directory(source)
        self.filesystem = Counting(self.tree, entry_timeout_s=3600, attr_timeout_s=3600, backing=backing)

    @property
    def passing(self) -> Ledger:
        assert self.backing is not None
        return self.backing

    @property
    def reads(self) -> int:
        return self.filesystem.asked.get(abi.Opcode.READ, 0)

    def give_back(self) -> None:
        """The kernel tells of the last close of a file some time after it."""
        wait_until(lambda: len(self.passing) == 0)


@contextlib.contextmanager
def mounted(source: Path, target: Path, backing: Ledger | None) -> Iterator[Mounted]:
    target.mkdir(exist_ok=True)
    result = Mounted(source, target, backing)
    with (
        contextlib.closing(result.filesystem),
        open_session(target, result.filesystem, name="test", backing=backing),
    ):
        if backing is not None and backing.refusal == NOT_OFFERED:
            missing(NOT_OFFERED)
        yield result
    assert all(file.closed for file in result.tree.opened)
    assert backing is None or len(backing) == 0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    need_fuse()
    (tmp_path / "source").mkdir()
    (tmp_path / "source/large").write_bytes(noise(LARGE))
    (tmp_path / "source/other").write_bytes(noise(LEAST))
    (tmp_path / "source/small").write_bytes(noise(LEAST - 1))
    (tmp_path / "source/tool").write_bytes(Path("/bin/true").read_bytes().ljust(LEAST, b"\0"))
    (tmp_path / "source/tool").chmod(0o755)
    return tmp_path / "source"


@pytest.fixture
def passing(source: Path, tmp_path: Path) -> Iterator[Mounted]:
    with mounted(source, tmp_path / "mnt", Ledger()) as result:
        with open(source / "large", "rb") as file:
            result.passing.check(file.fileno())
        if result.passing.refusal:
            missing(f"files cannot pass through here: {result.passing.refusal}")
        result.passing.given.clear()
        yield result
        assert result.passing.refusal == ""
        assert result.passing.given
        result.give_back()
        assert result.passing.held_by_kernel() == []


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_large_file_is_read_without_us(passing: Mounted) -> None:
    assert sha256(passing.target / "large") == sha256(passing.source / "large")
    assert sha256(passing.target / "other") == sha256(passing.source / "other")
    assert passing.reads == 0
    assert sha256(passing.target / "small") == sha256(passing.source / "small")
    assert passing.reads > 0


@pytest.mark.parametrize("program", [READ_BY_MMAP, READ_DIRECTLY], ids=["mmap", "O_DIRECT"])
def test_other_ways_to_read(passing: Mounted, program: str) -> None:
    digest = output_of(sys.executable, "-c", program, passing.target / "large")
    assert digest == sha256(passing.source / "large") + "\n"
    assert passing.reads == 0


def test_sendfile_seeking_and_the_end(passing: Mounted, tmp_path: Path) -> None:
    content = (passing.source / "large").read_bytes()
    with open(passing.target / "large", "rb", buffering=0) as file, open(tmp_path / "copy", "wb") as copy:
        for offset in (0, 1, 4095, 5 << 20, LARGE - 1, LARGE, LARGE + 5):
            assert os.pread(file.fileno(), 5000, offset) == content[offset : offset + 5000]
        assert file.seek(0, os.SEEK_END) == LARGE
        file.seek(0)
        while os.sendfile(copy.fileno(), file.fileno(), None, 1 << 20):
            pass
    assert (tmp_path / "copy").read_bytes() == content
    assert passing.reads == 0


def test_a_program_runs_and_a_mapping_has_the_name_that_was_opened(passing: Mounted) -> None:
    output_of("env", passing.target / "tool")
    program = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'rb') as file:\n"
        "    content = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "print(content[0] == content[0] and open('/proc/self/maps').read())\n"
    )
    maps = output_of(sys.executable, "-c", program, passing.target / "large")
    assert str(passing.target / "large") in maps
    assert str(passing.source) not in maps
    assert passing.reads == 0


def test_a_mapping_outlives_its_file_and_what_the_kernel_held(passing: Mounted) -> None:
    program = (
        "import ctypes, hashlib, os, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.mmap.restype = ctypes.c_void_p\n"  # Python's own mmap keeps a descriptor
        "size = os.path.getsize(sys.argv[1])\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "address = libc.mmap(None, ctypes.c_size_t(size), 1, 2, fd, ctypes.c_long(0))\n"
        "os.close(fd)\n"
        "print('closed', flush=True)\n"
        "sys.stdin.read()\n"
        "print(hashlib.sha256(ctypes.string_at(address, size)).hexdigest())\n"
    )
    command = [sys.executable, "-c", program, str(passing.target / "large")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "closed\n"
        passing.give_back()
        process.stdin.close()
        assert process.stdout.read() == sha256(passing.source / "large") + "\n"


def test_a_file_that_was_removed_from_below_reads_on(passing: Mounted) -> None:
    expected = sha256(passing.source / "large")
    with open(passing.target / "large", "rb") as file:
        (passing.source / "large").unlink()
        assert hashlib.sha256(file.read()).hexdigest() == expected


def test_opens_that_overlap_share_what_the_kernel_holds(passing: Mounted) -> None:
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(passing.target / "large", "rb")) for _ in range(20)]
        assert [file.read(1) for file in files] == [(passing.source / "large").read_bytes()[:1]] * 20
        assert len(passing.passing.given) == 1
        assert len(passing.passing) == 1


def test_many_opens_at_once(passing: Mounted) -> None:
    program = (
        "import hashlib, sys\n"
        "for _ in range(200):\n"
        "    content = open(sys.argv[1], 'rb').read()\n"
        "print(hashlib.sha256(content).hexdigest())\n"
    )
    command = [sys.executable, "-c", program, str(passing.target / "other")]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) for _ in range(4)
        ]
        results = {process.communicate()[0] for process in processes}
    assert results == {sha256(passing.source / "other") + "\n"}
    assert passing.reads == 0


def test_what_is_open_through_us_does_not_fail_a_later_open(passing: Mounted) -> None:
    """The kernel answers EIO to an open that passes through while one that does not is open, and the other way."""
    content = (passing.source / "large").read_bytes()
    passing.passing.refusal = "for this test"
    with open(passing.target / "large", "rb") as first:
        passing.passing.refusal = ""
        assert (passing.target / "large").read_bytes() == content
        assert first.read() == content
    assert passing.reads > 0
    assert not passing.passing.given
    wait_until(lambda: not passing.filesystem._files)
    reads = passing.reads
    with open(passing.target / "large", "rb") as first:
        assert first.read() == content
        passing.passing.refusal = "for this test"
        assert (passing.target / "large").read_bytes() == content
        passing.passing.refusal = ""
    assert passing.reads == reads


def test_a_reader_killed_while_it_opens_leaves_nothing(passing: Mounted) -> None:
    """Its answer comes too late to be taken, after the file was registered."""
    with Gate(passing.tree, "open", [b"large"]) as gate, started("cat", passing.target / "large") as process:
        gate.wait_for(1)
        process.send_signal(signal.SIGKILL)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
        assert len(passing.passing) == 0
        gate.open()
        wait_until(lambda: len(passing.passing.given) == 1)
    passing.give_back()
    assert not passing.filesystem._files


def test_readers_killed_while_they_read_leave_nothing(passing: Mounted) -> None:
    program = "import sys\nwith open(sys.argv[1], 'rb') as file:\n    print(1, flush=True)\n    sys.stdin.read()\n"
    for _ in range(5):
        command = [sys.executable, "-c", program, str(passing.target / "large")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"1\n"
            assert len(passing.passing) == 1
            process.kill()
    passing.give_back()


def test_the_end_of_the_mount_closes_what_is_open(source: Path, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with mounted(source, tmp_path / "mnt", Ledger()) as result:
            file = stack.enter_context(open(result.target / "large", "rb", buffering=0))
            assert len(result.passing) == 1
        # The file is the kernel's own: it reads on, though its server has gone.
        assert file.read() == (source / "large").read_bytes()


def test_without_passthrough_everything_goes_through_us(source: Path, tmp_path: Path) -> None:
    with mounted(source, tmp_path / "mnt", None) as result:
        assert sha256(result.target / "large") == sha256(source / "large")
        assert result.reads > 0


def overlay_of(lower: Path, place: Path) -> contextlib.AbstractContextManager[Path]:
    for name in ("upper", "work", "union"):
        (place / name).mkdir(parents=True)
    return open_overlay(plan_overlay([lower], place / "upper", place / "work", place / "union"))


def test_one_union_on_top(passing: Mounted, tmp_path: Path) -> None:
    """What `mica run` makes: files of the mount are read and copied up through overlayfs."""
    content = (passing.source / "large").read_bytes()
    with overlay_of(passing.target, tmp_path / "o") as union:
        assert (union / "large").read_bytes() == content
        digest = output_of(sys.executable, "-c", READ_BY_MMAP, union / "large")
        assert digest == sha256(passing.source / "large") + "\n"
        output_of("env", union / "tool")
        with open(union / "large", "ab") as file:
            file.write(b"more")
        assert (union / "large").read_bytes() == content + b"more"
        assert (passing.target / "large").read_bytes() == content
        assert passing.reads == 0


@pytest.mark.parametrize(("is_passing", "unions"), [(True, 1), (False, 2)])
def test_how_many_unions_can_be_on_top(source: Path, tmp_path: Path, is_passing: bool, unions: int) -> None:
    """The limit is 2 stacked file systems, and one that passes through counts: hence not below containers."""
    with (
        mounted(source, tmp_path / "mnt", Ledger() if is_passing else None) as result,
        contextlib.ExitStack() as stack,
    ):
        top = result.target
        for number in range(unions):
            plan = plan_overlay([top], None, None, tmp_path / f"union{number}")
            plan.target.mkdir()
            top = stack.enter_context(open_overlay(plan))
        assert (top / "large").read_bytes() == (source / "large").read_bytes()
        (tmp_path / "last").mkdir()
        with pytest.raises(OSError) as caught:
            linux.mount("overlay", tmp_path / "last", "overlay", data=f"lowerdir={top}:{tmp_path / 'last'}")
        assert caught.value.errno == errno.EINVAL


def test_a_cache_on_overlayfs_is_read_through_us(source: Path, tmp_path: Path) -> None:
    ledger = Ledger()
    with overlay_of(source, tmp_path / "o") as union, mounted(union, tmp_path / "mnt", ledger) as result:
        assert sha256(result.target / "large") == sha256(source / "large")
        assert "stacked" in ledger.refusal
        assert result.reads > 0
        assert not ledger.given


SERVE = """
import sys
from pathlib import Path
from mica.fuse.session import FuseSession
from mica.fuse.passthrough import BackingFiles
from mica.fuse.treefs import TreeFileSystem
from tests.support.memorytree import MemoryTree

backing = BackingFiles(least_bytes=1)
filesystem = TreeFileSystem(
    MemoryTree.of_directory(Path(sys.argv[2])), entry_timeout_s=1, attr_timeout_s=1, backing=backing
)
session = FuseSession(int(sys.argv[1]), filesystem, backing=backing)
session.start()
assert session.wait_for_handshake()
with open(Path(sys.argv[2], "large"), "rb") as file:
    backing.check(file.fileno())
print(backing.refusal, flush=True)
session.wait()
"""


def test_a_server_without_privilege_reads_for_the_kernel(source: Path, tmp_path: Path) -> None:
    need("setpriv", "util-linux")
    (tmp_path / "mnt").mkdir()
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    linux.mount(
        "test",
        tmp_path / "mnt",
        "fuse.mica",
        flags=linux.MS_RDONLY,
        data=f"fd={fd},rootmode=40000,user_id=0,group_id=0",
    )
    try:
        command = ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", SERVE, str(fd), str(source)]
        with subprocess.Popen(command, pass_fds=(fd,), stdout=subprocess.PIPE, text=True) as server:
            os.close(fd)
            try:
                assert server.stdout is not None
                refusal = server.stdout.readline().strip()
                assert "CAP_SYS_ADMIN" in refusal or refusal == NOT_OFFERED
                assert sha256(tmp_path / "mnt/large") == sha256(source / "large")
            finally:
                linux.umount2(tmp_path / "mnt", linux.MNT_DETACH)
            assert server.wait(PATIENCE_S) == 0
    finally:
        if linux.mounted_device(tmp_path / "mnt"):
            linux.umount2(tmp_path / "mnt", linux.MNT_DETACH)
