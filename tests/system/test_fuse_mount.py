"""A tree in memory or on disk, served over /dev/fuse to a real kernel.

The server runs in this process, so whatever halts the interpreter until the server answers would wait for itself. That
is so for page faults (mmap), and for starting a program from the mount or with a working directory in it: vfork(2)
halts us until the child has entered it. Such readers are processes of their own, and enter the mount by env(1).
"""

import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest
from tests.support.memorytree import MemoryTree, Node, Spec, directory, symlink
from tests.support.noise import noise
from tests.support.syscalls import open_directory
from tests.support.tools import need, need_fuse
from tests.support.trees import differences, format_acl, make_everything, snapshot
from tests.support.waiting import PATIENCE_S, eventually

from mica import linux
from mica.fuse.session import FuseSession, abort_connection, open_session
from mica.fuse.treefs import TreeFileSystem

pytestmark = pytest.mark.system
READ_BY_MMAP = """
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
    print(hashlib.sha256(content).hexdigest())
"""
READ_DIRECTLY = """
import hashlib, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 1 << 20)
digest = hashlib.sha256()
while size := os.readv(fd, [buffer]):
    digest.update(memoryview(buffer)[:size])
print(digest.hexdigest())
"""


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    need_fuse()
    yield
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("fuse-")])


@contextlib.contextmanager
def mounted(
    tree: MemoryTree,
    target: Path,
    *,
    timeout_s: float = 3600,
    flags: int = linux.MS_RDONLY | linux.MS_NODEV | linux.MS_NOSUID,
) -> Iterator[FuseSession]:
    target.mkdir(exist_ok=True)
    filesystem = TreeFileSystem(
        tree, entry_timeout_s=timeout_s, attr_timeout_s=timeout_s, negative_timeout_s=timeout_s
    )  # fmt: skip
    with (
        contextlib.closing(filesystem),
        open_session(target, filesystem, name="test", flags=flags) as session,
    ):
        yield session
    assert session.wait(0)
    assert all(file.closed for file in tree.opened)


@contextlib.contextmanager
def two_servers(
    tree: MemoryTree, target: Path, *, timeout_s: float = 3600
) -> Iterator[tuple[FuseSession, FuseSession, TreeFileSystem]]:
    """Two sessions for one mount, of which neither is started, and the filesystem of the first one."""
    target.mkdir()
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    linux.mount("test", target, "fuse.mica", flags=linux.MS_RDONLY, data=options)
    first, second = (TreeFileSystem(tree, entry_timeout_s=timeout_s, attr_timeout_s=timeout_s) for _ in range(2))
    session, successor = FuseSession(os.dup(fd), first), FuseSession(fd, second)
    try:
        yield session, successor, first
    finally:
        linux.umount2(target, linux.MNT_DETACH | linux.MNT_FORCE)
        session.stop()
        successor.stop()
        first.close()
        second.close()


def wait_until(is_true: Callable[[], bool]) -> None:
    assert eventually(is_true)


class Gate:
    """Holds up one method of a tree for the inodes chosen, until it is opened."""

    def __init__(self, tree: MemoryTree, method: str, paths: list[bytes]) -> None:
        self._method = method
        self._inodes = {tree.inode(path) for path in paths}
        self._opened = threading.Event()
        self._lock = threading.Lock()
        self.waiting = 0
        tree.before = self._pass

    def _pass(self, method: str, inode: int, *_: object) -> None:
        if method == self._method and inode in self._inodes:
            with self._lock:
                self.waiting += 1
            self._opened.wait(PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

    def open(self) -> None:
        self._opened.set()

    def wait_for(self, callers: int) -> None:
        wait_until(lambda: self.waiting == callers)


def inside(directory: Path, *command: str | Path) -> list[str | Path]:
    """The command in a directory of a mount; env(1) enters it and becomes the command."""
    return ["env", "-C", directory, *command]


@contextlib.contextmanager
def started(*command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout


def test_every_kind_of_file_is_shown_as_it_is(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "mnt"
    make_everything(source)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "special/socket"))
    os.mknod(source / "special/whiteout-char", stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(source / "special/whiteout-block", stat.S_IFBLK, os.makedev(0, 0))
    os.setxattr(source / "special/fifo", "trusted.fifo", b"yes", follow_symlinks=False)
    os.setxattr(source / "links/odd", "trusted.link", b"yes", follow_symlinks=False)
    expected = snapshot(os.fsencode(source))
    with mounted(MemoryTree.of_directory(source), target):
        assert differences(expected, snapshot(os.fsencode(target))) == []
        assert differences(expected, snapshot(os.fsencode(target))) == []  # from the kernel's caches
        links = os.stat(target / "links/a"), os.stat(target / "links/b")
        assert links[0].st_nlink == links[1].st_nlink == 3
        assert links[0].st_ino == links[1].st_ino


def test_stat_of_every_name_without_listing(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "mnt"
    make_everything(source)
    expected = snapshot(os.fsencode(source))
    with mounted(MemoryTree.of_directory(source), target, timeout_s=0):
        for path, seen in expected.items():
            status = os.lstat(os.fsencode(target) + path)
            assert (status.st_mode, status.st_uid, status.st_gid) == (seen.mode, seen.uid, seen.gid), path


def test_a_directory_of_100_000_entries(tmp_path: Path) -> None:
    names = [b"%06d-%s" % (number, b"n" * (number % 240)) for number in range(100_000)]
    tree = MemoryTree({b"big": directory(dict.fromkeys(names, b""))})
    with mounted(tree, tmp_path / "mnt"):
        big = os.fsencode(tmp_path / "mnt/big")
        assert os.listdir(big) == names
        assert os.listdir(big) == names
        listed = output_of("find", tmp_path / "mnt/big", "-mindepth", "1", "-printf", "%s\\n")
        assert listed == "0\n" * 100_000
        assert tree.calls.get("lookup", 0) <= 1


def test_a_listing_gives_attributes_so_that_no_lookup_is_needed(tmp_path: Path) -> None:
    tree = MemoryTree({b"d%02d" % d: {b"f%02d" % f: b"x" for f in range(50)} for d in range(50)})
    with mounted(tree, tmp_path / "mnt"):
        assert len(output_of("find", tmp_path / "mnt", "-ls").splitlines()) == 1 + 50 + 2500
        assert "lookup" not in tree.calls
        assert tree.calls["children"] == 51


def test_directory_positions_hold(tmp_path: Path) -> None:
    """telldir, seekdir, rewinddir through libc: what NFS servers and rm rely on."""
    names = [b".", b"..", *(b"%05d" % number for number in range(3000))]
    tree = MemoryTree({b"d": directory(dict.fromkeys(names[2:], b""))})
    with mounted(tree, tmp_path / "mnt"), open_directory(tmp_path / "mnt/d") as stream:
        for _ in range(2):  # the second time from the kernel's cache
            places = []
            for name in names:
                places.append(stream.tell())
                assert stream.read() == name
            assert stream.read() is None
            for index in (0, 1, 2, 1500, 2999, 23, 3001):
                stream.seek(places[index])
                assert stream.read() == names[index]
            stream.rewind()


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    """A file of 5 MiB and a bit, by descriptor, and one from memory, mounted."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(noise((5 << 20) + 123))
    with mounted(MemoryTree.of_directory(source), tmp_path / "mnt"):
        yield tmp_path


@pytest.mark.parametrize("program", [READ_BY_MMAP, READ_DIRECTLY], ids=["mmap", "O_DIRECT"])
def test_other_ways_to_read(large: Path, program: str) -> None:
    digest = output_of(sys.executable, "-c", program, large / "mnt/large")
    assert digest == output_of("sha256sum", large / "source/large").split()[0] + "\n"


def test_sendfile(large: Path) -> None:
    content = (large / "source/large").read_bytes()
    with open(large / "mnt/large", "rb") as source, open(large / "copy", "wb") as copy:
        while os.sendfile(copy.fileno(), source.fileno(), None, 1 << 20):
            pass
    assert (large / "copy").read_bytes() == content


def test_concurrent_readers(tmp_path: Path) -> None:
    contents = {b"f%02d" % number: noise(700_000 + number) for number in range(8)}
    tree = MemoryTree(contents)

    def read(number: int) -> bool:
        name = b"f%02d" % (number % 8)
        return (tmp_path / "mnt" / os.fsdecode(name)).read_bytes() == contents[name]

    with mounted(tree, tmp_path / "mnt"), ThreadPoolExecutor(16) as pool:
        assert all(pool.map(read, range(64)))


def test_seeking_and_partial_reads(large: Path) -> None:
    content = (large / "source/large").read_bytes()
    with open(large / "mnt/large", "rb", buffering=0) as file:
        for offset in (0, 1, 4095, 4096, 131072 - 1, 5 << 20, len(content) - 1, len(content), len(content) + 5):
            assert os.pread(file.fileno(), 5000, offset) == content[offset : offset + 5000]
        assert file.seek(0, os.SEEK_END) == len(content)


def test_names_and_absences_are_cached(tmp_path: Path) -> None:
    tree = MemoryTree({b"file": b"content"})
    with mounted(tree, tmp_path / "mnt"):
        for _ in range(5):
            assert os.path.getsize(tmp_path / "mnt/file") == 7
            assert not os.path.exists(tmp_path / "mnt/absent")
        assert tree.calls["lookup"] == 2
    tree.calls.clear()
    with mounted(tree, tmp_path / "mnt", timeout_s=0):
        for _ in range(5):
            assert not os.path.exists(tmp_path / "mnt/absent")
        assert tree.calls["lookup"] == 5


def test_content_is_cached_over_opens(tmp_path: Path) -> None:
    tree = MemoryTree({b"file": b"content" * 1000})
    reads: list[object] = []
    with mounted(tree, tmp_path / "mnt"):
        assert (tmp_path / "mnt/file").read_bytes() == b"content" * 1000
        tree.before = lambda method, *_: reads.append(method)
        assert (tmp_path / "mnt/file").read_bytes() == b"content" * 1000
    assert "read" not in reads


def test_invalidation_shows_a_change_at_once(tmp_path: Path) -> None:
    tree = MemoryTree({b"dir": {b"file": b"old", b"a": b""}})
    file = tmp_path / "mnt/dir/file"
    with mounted(tree, tmp_path / "mnt") as session:
        assert file.read_bytes() == b"old"
        assert not (tmp_path / "mnt/dir/b").exists()
        assert os.listdir(tmp_path / "mnt/dir") == ["file", "a"]
        tree.change(b"dir/file", b"newer")
        tree.rename(b"dir", b"a", b"b")
        assert file.read_bytes() == b"old"
        directory_inode = tree.inode(b"dir")
        assert session.invalidate_inode(tree.inode(b"dir/file"))
        assert session.invalidate_entry(directory_inode, b"a")
        assert session.invalidate_entry(directory_inode, b"b")
        assert session.invalidate_inode(directory_inode)
        assert file.read_bytes() == b"newer"
        assert os.listdir(tmp_path / "mnt/dir") == ["file", "b"]
        assert (tmp_path / "mnt/dir/b").exists()
        assert not (tmp_path / "mnt/dir/a").exists()
        assert not session.invalidate_inode(987654321)
        assert not session.invalidate_entry(1, b"never asked for")
    assert not session.invalidate_inode(1)


def test_writing_is_refused(tmp_path: Path) -> None:
    tree = MemoryTree({b"file": Node(content=b"x", mode=stat.S_IFREG | 0o666), b"dir": {}})
    file, new = tmp_path / "mnt/file", tmp_path / "mnt/new"
    attempts: list[Callable[[], object]] = [
        lambda: os.open(file, os.O_WRONLY),
        lambda: os.open(file, os.O_RDWR),
        lambda: os.open(new, os.O_CREAT | os.O_WRONLY),
        lambda: os.truncate(file, 0),
        lambda: os.unlink(file),
        lambda: os.rmdir(tmp_path / "mnt/dir"),
        lambda: os.mkdir(new),
        lambda: os.symlink("x", new),
        lambda: os.link(file, new),
        lambda: os.rename(file, new),
        lambda: os.chmod(file, 0o600),
        lambda: os.chown(file, 1, 1),
        lambda: os.utime(file, (1, 1)),
        lambda: os.setxattr(file, "user.a", b"1"),
        lambda: os.removexattr(file, "user.a"),
        lambda: os.mkfifo(new),
    ]
    # Once refused by the mount's own flag, once by the server.
    for flags in (linux.MS_RDONLY, 0):
        with mounted(tree, tmp_path / "mnt", flags=flags):
            for number, attempt in enumerate(attempts):
                with pytest.raises(OSError) as caught:
                    attempt()
                assert caught.value.errno == errno.EROFS, number


def test_permissions_are_checked_by_the_kernel(tmp_path: Path) -> None:
    """By mode, owner and access list, for whoever comes."""
    nobody = [need("setpriv", "util-linux"), "--reuid=65534", "--regid=65534", "--clear-groups"]
    lists = {b"system.posix_acl_access": format_acl(0o640, 65534)}
    tree = MemoryTree(
        {
            b"public": b"y",
            b"secret": Node(content=b"x", mode=stat.S_IFREG | 0o640),
            b"granted": Node(content=b"z", mode=stat.S_IFREG | 0o670, xattrs=lists),
        }
    )
    with mounted(tree, tmp_path / "mnt"):
        seen = {
            name: subprocess.run(inside(tmp_path / "mnt", *nobody, "cat", name), capture_output=True)
            for name in ("public", "secret", "granted")
        }
        assert (seen["public"].stdout, seen["granted"].stdout) == (b"y", b"z")
        assert b"Permission denied" in seen["secret"].stderr


def test_the_trees_errors_reach_the_caller(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = MemoryTree({b"file": b"x", b"other": b"y"})

    def fail(method: str, inode: int, *_: object) -> None:
        if method == "open":
            raise OSError(errno.ETIMEDOUT, "") if inode == tree.inode(b"file") else ZeroDivisionError

    tree.before = fail
    with mounted(tree, tmp_path / "mnt"):
        with pytest.raises(TimeoutError):
            (tmp_path / "mnt/file").read_bytes()
        with pytest.raises(OSError) as caught:
            (tmp_path / "mnt/other").read_bytes()
        assert caught.value.errno == errno.EIO
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "command"),
    [
        ("lookup", b"dir", ["cat", "dir/file"]),
        ("children", b"dir", ["ls", "dir"]),
        ("readlink", b"dir/link", ["readlink", "dir/link"]),
        ("xattrs", b"dir/file", ["getfattr", "-n", "user.a", "dir/file"]),
        ("open", b"dir/file", ["cat", "dir/file"]),
        ("read", b"dir/file", ["cat", "dir/file"]),
        ("read", b"dir/file", ["dd", "if=dir/file", "bs=4096", "iflag=direct"]),
        ("read", b"dir/file", [sys.executable, "-c", READ_BY_MMAP, "dir/file"]),
    ],
)
def test_a_blocked_caller_dies_at_once(tmp_path: Path, method: str, path: bytes, command: list[str]) -> None:
    tree = MemoryTree({b"dir": {b"file": b"x" * 10_000, b"link": symlink(b"file")}})
    if command[0] == "getfattr":
        need("getfattr", "attr")
    with mounted(tree, tmp_path / "mnt") as session, Gate(tree, method, [path]) as gate:
        with started(*inside(tmp_path / "mnt", *command)) as process:
            gate.wait_for(1)
            process.send_signal(signal.SIGKILL)
            assert process.wait(PATIENCE_S / 2) == -signal.SIGKILL  # the gate is still closed
        assert not session.wait(0)


def test_no_program_is_started_in_what_this_process_serves(tmp_path: Path) -> None:
    with mounted(MemoryTree({b"dir": {}}), tmp_path / "mnt"):
        for program, cwd in (("true", tmp_path / "mnt/dir"), (tmp_path / "mnt/tool", None)):
            with pytest.raises(AssertionError, match="is served by this process"):
                sys.audit("subprocess.Popen", program, [program], cwd, None)  # as it does before it would wait for ever
        subprocess.run(inside(tmp_path / "mnt/dir", "true"), check=True)


def test_a_signal_that_is_handled_does_not_fail_the_call(tmp_path: Path) -> None:
    """open(2) of a file does not give EINTR; SIGTERM afterwards still ends it at once."""
    tree = MemoryTree({b"file": b"content"})
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "signal.siginterrupt(signal.SIGUSR1, True)\n"
        "print('ready', flush=True)\n"
        "libc = __import__('ctypes').CDLL(None, use_errno=True)\n"
        "sys.exit(libc.open(sys.argv[1].encode(), 0) < 0)\n"
    )
    for last, expected in ((signal.SIGUSR1, 0), (signal.SIGTERM, -signal.SIGTERM)):
        with mounted(tree, tmp_path / "mnt"), Gate(tree, "open", [b"file"]) as gate:
            command = [sys.executable, "-c", program, str(tmp_path / "mnt/file")]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                gate.wait_for(1)
                process.send_signal(signal.SIGUSR1)
                time.sleep(0.2)
                assert process.poll() is None
                process.send_signal(last)
                if last == signal.SIGTERM:
                    assert process.wait(PATIENCE_S / 2) == expected
                gate.open()
                assert process.wait(PATIENCE_S) == expected


def test_blocked_opens_delay_nobody_else(tmp_path: Path) -> None:
    slow = [b"slow%03d" % number for number in range(100)]
    tree = MemoryTree({**dict.fromkeys(slow, b"slow"), b"quick": b"quick"} | {b"d": {b"inner": b"x"}})
    with mounted(tree, tmp_path / "mnt"), ThreadPoolExecutor(100) as pool, Gate(tree, "open", slow) as gate:
        reads = [pool.submit((tmp_path / "mnt" / name.decode()).read_bytes) for name in slow]
        gate.wait_for(100)
        assert (tmp_path / "mnt/quick").read_bytes() == b"quick"
        assert (tmp_path / "mnt/d/inner").stat().st_size == 1
        assert not any(read.done() for read in reads)
        gate.open()
        assert {read.result(PATIENCE_S) for read in reads} == {b"slow"}


def test_threads_go_when_the_load_is_gone(tmp_path: Path) -> None:
    slow = [b"slow%03d" % number for number in range(40)]
    tree = MemoryTree(dict.fromkeys(slow, b"slow"))
    with mounted(tree, tmp_path / "mnt"), ThreadPoolExecutor(40) as pool, Gate(tree, "open", slow) as gate:
        for name in slow:
            pool.submit((tmp_path / "mnt" / name.decode()).read_bytes)
        gate.wait_for(40)
        gate.open()
        wait_until(lambda: sum(thread.name.startswith("fuse-") for thread in threading.enumerate()) <= 12)


def test_the_number_of_threads_is_limited(tmp_path: Path) -> None:
    slow = [b"slow%03d" % number for number in range(20)]
    tree = MemoryTree(dict.fromkeys(slow, b"slow"))
    filesystem = TreeFileSystem(tree, entry_timeout_s=1, attr_timeout_s=1)
    (tmp_path / "mnt").mkdir()
    with (
        contextlib.closing(filesystem),
        open_session(tmp_path / "mnt", filesystem, name="test", max_threads=4) as session,
        ThreadPoolExecutor(20) as pool,
        Gate(tree, "open", slow) as gate,
    ):
        reads = [pool.submit((tmp_path / "mnt" / name.decode()).read_bytes) for name in slow]
        gate.wait_for(4)
        assert "threads=4 idle=0" in repr(session)
        gate.open()
        assert {read.result(PATIENCE_S) for read in reads} == {b"slow"}


def test_overlayfs_on_top(tmp_path: Path) -> None:
    root: dict[bytes, Spec] = {
        b"upper": {
            b"gone": Node(mode=stat.S_IFCHR, rdev=0),
            b"opaque": directory({b"new": b"new"}, xattrs={b"trusted.overlay.opaque": b"y"}),
            b"merged": {b"two": b"2"},
            b"tool": Node(content=b"#!/bin/sh\necho ran\n", mode=stat.S_IFREG | 0o755),
        },
        b"lower": {
            b"gone": b"hidden",
            b"opaque": {b"old": b"hidden"},
            b"merged": {b"one": b"1"},
            b"kept": b"kept",
        },
    }
    for name in ("top", "work", "union"):
        (tmp_path / name).mkdir()
    union, mount_point = tmp_path / "union", tmp_path / "mnt"
    with mounted(MemoryTree(root), mount_point):
        layers = f"lowerdir={mount_point}/upper:{mount_point}/lower"
        linux.mount(
            "union", union, "overlay", data=f"{layers},upperdir={tmp_path}/top,workdir={tmp_path}/work"
        )  # fmt: skip
        try:
            assert sorted(os.listdir(union)) == ["kept", "merged", "opaque", "tool"]
            assert not (union / "gone").exists()
            assert os.listdir(union / "opaque") == ["new"]
            assert sorted(os.listdir(union / "merged")) == ["one", "two"]
            assert output_of("env", union / "tool") == "ran\n"
            (union / "kept").write_bytes(b"changed")
            (union / "merged/one").unlink()
            (union / "merged/two").rename(union / "moved")
            assert (union / "kept").read_bytes() == b"changed"
            assert os.listdir(union / "merged") == []
            assert (union / "moved").read_bytes() == b"2"
        finally:
            linux.umount2(union)


def test_an_unmount_by_somebody_else_ends_the_session(tmp_path: Path) -> None:
    with mounted(MemoryTree({b"file": b"x"}), tmp_path / "mnt") as session:
        assert (tmp_path / "mnt/file").exists()
        linux.umount2(tmp_path / "mnt")
        assert session.wait(PATIENCE_S)
        # Not ours any more: the end of the block leaves it alone.
        linux.mount("other", tmp_path / "mnt", "tmpfs")
    assert linux.filesystem_type(tmp_path / "mnt") == linux.TMPFS_MAGIC
    linux.umount2(tmp_path / "mnt")


def test_the_end_does_not_wait_for_those_who_still_use_it(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with mounted(MemoryTree({b"file": b"x"}), tmp_path / "mnt"):
            stack.enter_context(open(tmp_path / "mnt/file", "rb"))
            held = os.open(tmp_path / "mnt", os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, held)
        with pytest.raises(OSError) as caught:
            os.open("file", os.O_RDONLY, dir_fd=held)
        assert caught.value.errno == errno.ENOTCONN


def test_the_end_does_not_wait_for_other_mounts_of_it(tmp_path: Path) -> None:
    """A copy of the mount, as every container's mount namespace has one, keeps the connection; it is aborted."""
    with mounted(MemoryTree({b"file": b"x"}), tmp_path / "mnt"):
        copy = linux.open_tree(tmp_path / "mnt")
    with pytest.raises(OSError) as caught:
        os.open("file", os.O_RDONLY, dir_fd=copy)
    assert caught.value.errno == errno.ENOTCONN
    os.close(copy)


def test_a_successor_takes_over_the_open_device(tmp_path: Path) -> None:
    """What the first server left in its hands is sent again, and handles it gave out still read."""
    tree = MemoryTree({b"file": b"x" * 5000, b"other": b"y"})
    with two_servers(tree, tmp_path / "mnt") as (session, successor, first):
        session.start()
        with open(tmp_path / "mnt/file", "rb", buffering=0) as file:
            with Gate(tree, "open", [b"other"]) as gate, ThreadPoolExecutor(1) as pool:
                pending = pool.submit((tmp_path / "mnt/other").read_bytes)
                gate.wait_for(1)
                successor.start()
                if successor.resend():
                    gate.wait_for(2)
                gate.open()
                assert pending.result(PATIENCE_S) == b"y"
            first.close()
            assert file.read() == b"x" * 5000


def test_a_session_that_retires_leaves_all_that_comes_to_its_successor(tmp_path: Path) -> None:
    """Also on kernels that send nothing again: after it has retired it takes nothing, and still answers."""
    tree = MemoryTree({b"file": b"x" * 5000, b"other": b"y"})
    with (
        two_servers(tree, tmp_path / "mnt", timeout_s=0) as (session, successor, _),
        Gate(tree, "open", [b"other"]) as gate,
        ThreadPoolExecutor(9) as pool,
    ):
        session.start()
        assert (tmp_path / "mnt/file").read_bytes() == b"x" * 5000
        begun = pool.submit((tmp_path / "mnt/other").read_bytes)
        gate.wait_for(1)
        assert session.retire(lambda: os.statvfs(tmp_path / "mnt"))
        taken, busy = session.taken()
        assert busy == 1
        later = [pool.submit((tmp_path / "mnt/file").read_bytes) for _ in range(8)]
        time.sleep(0.2)
        assert session.taken()[0] == taken
        gate.open()
        assert eventually(lambda: session.taken()[1] == 0)
        successor.start()
        assert begun.result(PATIENCE_S) == b"y"
        assert [future.result(PATIENCE_S) for future in later] == [b"x" * 5000] * 8


def test_a_connection_aborted_by_somebody_else_is_unmounted(tmp_path: Path) -> None:
    with mounted(MemoryTree({b"file": b"x"}), tmp_path / "mnt") as session:
        device = linux.mounted_device(tmp_path / "mnt")
        assert device is not None
        abort_connection(device)
        assert session.wait(PATIENCE_S)
    assert linux.mounted_device(tmp_path / "mnt") is None


def test_a_target_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    filesystem = TreeFileSystem(MemoryTree({}), entry_timeout_s=1, attr_timeout_s=1)
    with pytest.raises(NotADirectoryError), open_session(tmp_path / "file", filesystem, name="test"):
        pytest.fail("mounted")


def test_a_target_with_blanks_in_its_name(tmp_path: Path) -> None:
    with mounted(MemoryTree({b"file": b"x"}), tmp_path / "a b\tc\\d\ne"):
        assert os.listdir(tmp_path / "a b\tc\\d\ne") == ["file"]


def test_statfs(tmp_path: Path) -> None:
    with mounted(MemoryTree({b"file": b"x" * 5000}), tmp_path / "mnt"):
        result = os.statvfs(tmp_path / "mnt")
        assert (result.f_blocks, result.f_files, result.f_bavail, result.f_namemax) == (2, 2, 0, 255)
        assert linux.filesystem_type(tmp_path / "mnt") == linux.FUSE_SUPER_MAGIC
