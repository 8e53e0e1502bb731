"""What a mount promises of every other way to use files: running them, mapping, locking, watching, copying, listing."""

import contextlib
import errno
import fcntl
import mmap
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support import syscalls
from tests.support.mountpaths import MountPath
from tests.support.publishedimages import PublishedImage
from tests.support.suiteimage import LARGE, LISTED, SPARSE, Supplies
from tests.support.syscalls import IN_ATTRIB, IN_CREATE, IN_DELETE, IN_MODIFY, IN_MOVED_FROM, IN_MOVED_TO, open_watch

from mica import linux
from mica.files import owned_fd

USER = 1000
CAP_NET_RAW = 1 << 13
NOT_SUPPORTED = (errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS)
READERS, READS = 8, 40


def output_of(program: str, *arguments: str, directory: Path, user: int | None = None) -> str:
    """What a program in a directory says; started from inside, for not everybody may enter the directories above."""
    done = subprocess.run(
        [f"./{program}", *arguments], cwd=directory, user=user, group=user, extra_groups=None if user is None else [],
        capture_output=True, text=True, check=True, env={},
    )  # fmt: skip
    return done.stdout


def effective_capabilities(program: str, directory: Path) -> int:
    lines = output_of(program, "/proc/self/status", directory=directory, user=USER).splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))


@contextlib.contextmanager
def allowing(*numbers: int) -> Iterator[None]:
    """Go on behind the block when one of these errors ends it."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def in_child(is_true: Callable[[], bool]) -> bool:
    """The answer of another process."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(not is_true())
        finally:
            os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in {0, 1}
    return code == 0


def segments(fd: int) -> Iterator[tuple[int, int]]:
    """Where a file says that it has data: pairs of start and end."""
    size, end = os.fstat(fd).st_size, 0
    while end < size:
        start = size
        with allowing(errno.ENXIO):
            start = os.lseek(fd, end, os.SEEK_DATA)
        if start == size:
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        assert start < end <= size
        yield start, end


class AccessContract:
    def test_programs_run(self, mounted: Path) -> None:
        assert output_of("id", "-u", directory=mounted / "bin") == "0\n"
        assert output_of("id", "-u", directory=mounted / "bin", user=USER) == f"{USER}\n"
        assert output_of("script", "argument", directory=mounted / "bin", user=USER) == "script argument\n"

    def test_set_user_id_counts(self, mounted: Path) -> None:
        assert output_of("id-setuid", "-u", directory=mounted / "bin", user=USER) == "0\n"
        assert output_of("id-setuid", "-ru", directory=mounted / "bin", user=USER) == f"{USER}\n"

    def test_file_capabilities_count(self, mounted: Path) -> None:
        assert effective_capabilities("cat", mounted / "bin") == 0
        assert effective_capabilities("cat-capable", mounted / "bin") == CAP_NET_RAW
        os.utime(mounted / "bin/cat-capable")
        assert effective_capabilities("cat-capable", mounted / "bin") == CAP_NET_RAW, "also when it was touched"

    def test_libraries_load(self, mounted: Path) -> None:
        call = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).cos; f.restype = ctypes.c_double; print(f(0))"
        done = subprocess.run([sys.executable, "-c", call, mounted / "bin/libm.so"], capture_output=True, check=True)
        assert done.stdout == b"1.0\n"

    @pytest.mark.parametrize("kind", ["small", "chunked"])
    def test_mappings_that_only_read(self, supplies: Supplies, kind: str) -> None:
        path = supplies.chunked() if kind == "chunked" else supplies.file(size=12_345)
        content = supplies.content(path)
        with path.open("rb") as file:
            for flags, protection in (
                (mmap.MAP_SHARED, mmap.PROT_READ),
                (mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC),
                (mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE),
            ):
                with mmap.mmap(file.fileno(), 0, flags=flags, prot=protection) as mapping:
                    assert mapping[-1:] == content[-1:]
                    assert mapping[:] == content
                    if protection & mmap.PROT_WRITE:
                        mapping[:5] = b"other"
                        assert mapping[:10] == b"other" + content[5:10]
        assert path.read_bytes() == content

    @pytest.mark.parametrize("kind", ["small", "chunked"])
    def test_mappings_that_write(self, supplies: Supplies, kind: str) -> None:
        path = supplies.chunked() if kind == "chunked" else supplies.file(size=12_345)
        content = supplies.content(path)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
            mapping[5000:5005] = b"other"
            mapping.flush()
            assert mapping[:] == content[:5000] + b"other" + content[5005:]
        assert path.read_bytes() == content[:5000] + b"other" + content[5005:]

    @pytest.mark.parametrize("writable", [False, True])
    def test_direct_reads_give_right_bytes_or_none(self, supplies: Supplies, writable: bool) -> None:
        path = supplies.chunked()
        content = supplies.content(path)
        with (
            allowing(errno.EINVAL),
            owned_fd(os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_DIRECT)) as fd,
            mmap.mmap(-1, 1 << 20) as buffer,
        ):
            found = b""
            while count := os.preadv(fd, [buffer], len(found)):
                found += buffer[:count]
                if count % 4096:
                    break
            assert found == content
            assert os.preadv(fd, [memoryview(buffer)[:4096]], 8192) == 4096
            assert buffer[:4096] == content[8192 : 8192 + 4096]

    def test_statfs(self, mounted: Path, pristine: Path) -> None:
        for root in (mounted, pristine):
            for place in (root, root / "files/000"):
                assert linux.filesystem_type(place) == linux.OVERLAYFS_SUPER_MAGIC
                facts = os.statvfs(place)
                assert facts.f_namemax == 255
                assert facts.f_bsize > 0
        assert os.statvfs(pristine).f_flag & os.ST_RDONLY
        upper = os.statvfs(mounted)
        assert not upper.f_flag & os.ST_RDONLY
        assert upper.f_bfree > 0

    def test_flock_excludes(self, supplies: Supplies) -> None:
        path = supplies.file()
        with path.open("rb") as one, path.open("rb") as other:
            fcntl.flock(one, fcntl.LOCK_EX)
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
            with path.open("r+b") as writer, pytest.raises(BlockingIOError):  # it is copied up now
                fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(one, fcntl.LOCK_UN)
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_record_locks_exclude(self, supplies: Supplies) -> None:
        path = supplies.file(size=12_345)

        def locks(start: int) -> bool:
            with path.open("r+b") as file, contextlib.suppress(OSError):
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, start)
                return True
            return False

        with path.open("rb") as reader, path.open("r+b") as file:
            fcntl.lockf(reader, fcntl.LOCK_SH, 10, 100)
            fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
            assert not in_child(lambda: locks(5))
            assert not in_child(lambda: locks(105))
            assert in_child(lambda: locks(50))
            fcntl.lockf(file, fcntl.LOCK_UN)
            assert in_child(lambda: locks(5))

    def test_locks_of_open_files_exclude(self, supplies: Supplies) -> None:
        path = supplies.file(size=12_345)
        with path.open("r+b") as one, path.open("r+b") as other:
            fcntl.fcntl(one, syscalls.F_OFD_SETLK, syscalls.ofd_lock(fcntl.F_WRLCK, 0, 10))
            with pytest.raises(BlockingIOError):
                fcntl.fcntl(other, syscalls.F_OFD_SETLK, syscalls.ofd_lock(fcntl.F_RDLCK, 9, 10))
            fcntl.fcntl(other, syscalls.F_OFD_SETLK, syscalls.ofd_lock(fcntl.F_RDLCK, 10, 10))
            fcntl.fcntl(one, syscalls.F_OFD_SETLK, syscalls.ofd_lock(fcntl.F_UNLCK, 0, 10))
            fcntl.fcntl(other, syscalls.F_OFD_SETLK, syscalls.ofd_lock(fcntl.F_WRLCK, 0, 10))

    def test_a_watched_directory_tells(self, supplies: Supplies) -> None:
        directory = supplies.directory()
        wanted = IN_CREATE | IN_DELETE | IN_MODIFY | IN_MOVED_FROM | IN_MOVED_TO
        with open_watch(directory, wanted) as watch:
            (directory / "new").touch()
            assert watch.events() == [(IN_CREATE, b"new")]
            (directory / "new").write_text("x")
            assert (IN_MODIFY, b"new") in watch.events()
            (directory / "a").rename(directory / "b")
            assert watch.events() == [(IN_MOVED_FROM, b"a"), (IN_MOVED_TO, b"b")]
            (directory / "b").unlink()
            assert watch.events() == [(IN_DELETE, b"b")]

    def test_a_watched_file_tells(self, supplies: Supplies) -> None:
        path = supplies.file(size=5000)
        with open_watch(path, IN_MODIFY | IN_ATTRIB) as watch:
            path.chmod(0o600)
            assert (IN_ATTRIB, b"") in watch.events()
            with path.open("ab") as file:
                file.write(b"x")
            assert (IN_MODIFY, b"") in watch.events()

    def test_holes_are_zeros(self, mounted: Path, suite_image: PublishedImage) -> None:
        content = (suite_image.unpacked[0] / SPARSE).read_bytes()
        for _ in range(2):
            with (mounted / SPARSE).open("rb", buffering=0) as file:
                end = 0
                for start, following in segments(file.fileno()):
                    assert not any(content[end:start])
                    end = following
                assert not any(content[end:])
                assert os.pread(file.fileno(), len(content) + 1, 0) == content
                with pytest.raises(OSError) as caught:
                    os.lseek(file.fileno(), len(content), os.SEEK_DATA)
                assert caught.value.errno == errno.ENXIO
            os.utime(mounted / SPARSE)  # and once more when it has been copied up

    def test_new_files_can_have_holes(self, mounted: Path) -> None:
        with (mounted / "sparse").open("w+b") as file:
            os.truncate(file.fileno(), 1 << 20)
            os.pwrite(file.fileno(), b"data", 1 << 19)
            found = list(segments(file.fileno()))
            assert len(found) == 1
            assert found[0][0] <= 1 << 19 < found[0][1] < 1 << 20

    def test_space_is_allocated_and_freed(self, supplies: Supplies) -> None:
        path = supplies.chunked()
        content = supplies.content(path)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, len(content) + 4096)
            assert path.stat().st_size == len(content) + 4096
            punch = syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE
            syscalls.fallocate(file.fileno(), punch, 4096, 8192)
        assert path.read_bytes() == content[:4096] + bytes(8192) + content[12_288:] + bytes(4096)

    def test_copies_that_the_kernel_makes(self, supplies: Supplies, disk_path: Path) -> None:
        path = supplies.chunked()
        content = supplies.content(path)
        with path.open("rb") as source, (disk_path / "copy").open("w+b") as target:
            while os.sendfile(target.fileno(), source.fileno(), None, 1 << 20):
                pass
            target.seek(0)
            assert target.read() == content
            reader, writer = os.pipe()
            with owned_fd(reader), owned_fd(writer):
                count = os.splice(source.fileno(), writer, 10_000, offset_src=5000)
                assert count > 0
                assert os.read(reader, 10_000) == content[5000 : 5000 + count]

    def test_copies_inside_the_mount(self, supplies: Supplies, mounted: Path) -> None:
        path = supplies.chunked()
        content = supplies.content(path)
        with path.open("rb") as source, (mounted / "range").open("w+b") as target:
            count = 0
            with allowing(*NOT_SUPPORTED):
                count = os.copy_file_range(source.fileno(), target.fileno(), len(content), offset_src=0)
            assert (mounted / "range").read_bytes() == content[:count]
        subprocess.run(["cp", path, mounted / "cp"], check=True)
        shutil.copyfile(path, mounted / "shutil")
        assert (mounted / "cp").read_bytes() == (mounted / "shutil").read_bytes() == content

    @pytest.mark.parametrize("name", ["listed", "listed-in-one"])
    def test_positions_in_a_large_directory_hold(self, pristine: Path, name: str) -> None:
        with syscalls.open_directory(pristine / name) as stream:
            for _ in range(2):
                places, found = [stream.tell()], []
                while (entry := stream.read()) is not None:
                    found.append(entry)
                    places.append(stream.tell())
                assert len(found) == len(LISTED) + 2
                assert {os.fsdecode(entry) for entry in found} == LISTED | {".", ".."}
                for index in random.Random(1).sample(range(len(found)), 50):
                    stream.seek(places[index])
                    assert stream.read() == found[index]
                stream.rewind()

    def test_listings_tell_kinds(self, pristine: Path) -> None:
        pending = [pristine]
        seen = 0
        while pending:
            for entry in os.scandir(pending.pop()):
                status = os.lstat(entry.path)
                kinds = (entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False), entry.is_symlink())
                assert kinds == tuple(status.st_mode & 0o170000 == kind for kind in (0o040000, 0o100000, 0o120000)), (
                    entry.path
                )
                seen += 1
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
        assert seen > len(LISTED) * 2

    def test_it_is_one_file_system(self, pristine: Path) -> None:
        """As `find -xdev`, `du -x` and `rm` see it, which compare directories."""
        device = pristine.stat().st_dev
        assert {os.stat(directory).st_dev for directory, _, _ in os.walk(pristine)} == {device}

    def test_many_readers_of_a_large_file(self, path: MountPath, suite_image: PublishedImage, disk_path: Path) -> None:
        """At random offsets, while nothing of it is here yet."""
        content = (suite_image.unpacked[0] / LARGE).read_bytes()

        def read(seed: int) -> None:
            source = random.Random(seed)
            with (root / LARGE).open("rb", buffering=0) as file:
                together.wait()
                for _ in range(READS):
                    offset, size = source.randrange(len(content)), source.choice((1, 100, 4096, 70_000, 300_000))
                    assert os.pread(file.fileno(), size, offset) == content[offset : offset + size]

        together = threading.Barrier(READERS, timeout=60)
        with path.open(suite_image, disk_path / "mount", cache=disk_path / "cache", writable=False) as root:
            with ThreadPoolExecutor(READERS) as pool:
                list(pool.map(read, range(READERS)))
            assert (root / LARGE).read_bytes() == content

    def test_many_readers_of_the_same_new_files(self, supplies: Supplies) -> None:
        files = [supplies.file() for _ in range(10)] + [supplies.chunked() for _ in range(3)]
        contents = [supplies.content(path) for path in files]
        together = threading.Barrier(READERS, timeout=60)

        def read(_: int) -> list[bytes]:
            together.wait()
            return [path.read_bytes() for path in files]

        with ThreadPoolExecutor(READERS) as pool:
            assert list(pool.map(read, range(READERS))) == [contents] * READERS
