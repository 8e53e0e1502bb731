"""System calls of our own that need no privilege."""

import errno
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.disks import disk_path, memory_path

from mica import linux
from mica.files import owned_fd

__all__ = ["disk_path", "memory_path"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10_000)
    return path


def is_open_elsewhere(path: Path) -> bool:
    with owned_fd(os.open(path, os.O_RDONLY)) as fd:
        return linux.is_open_elsewhere(fd)


def test_nobody_has_it_open(path: Path) -> None:
    assert not is_open_elsewhere(path)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_APPEND])
def test_another_descriptor_has_it_open(path: Path, flags: int) -> None:
    with owned_fd(os.open(path, flags)):
        assert is_open_elsewhere(path)
    assert not is_open_elsewhere(path)


def test_a_mapping_has_it_open(path: Path) -> None:
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert is_open_elsewhere(path)
    mapping.close()
    assert not is_open_elsewhere(path)


def test_another_name_is_the_same_file(path: Path) -> None:
    os.link(path, path.with_name("other"))
    with path.with_name("other").open("rb"):
        assert is_open_elsewhere(path)


def test_the_lease_is_given_back_and_nobody_dies_of_it(path: Path) -> None:
    """Two processes open the file all the time while we ask; the default action of a lease's signal is death."""
    code = f"import os\nfor _ in range(3000): os.close(os.open({str(path)!r}, os.O_RDONLY))"
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    asked = 0
    while any(child.poll() is None for child in children):
        is_open_elsewhere(path)
        asked += 1
    assert [child.returncode for child in children] == [0, 0]
    assert asked
    assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL
    assert not is_open_elsewhere(path)


def test_what_cannot_be_leased(path: Path) -> None:
    with owned_fd(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)) as fd, pytest.raises(OSError) as error:
        linux.is_open_elsewhere(fd)
    assert error.value.errno in {errno.EINVAL, errno.EAGAIN, errno.EACCES}


@pytest.mark.parametrize("ask", [linux.resident_pages, linux._mincore])
def test_pages_in_memory(disk_path: Path, ask: object) -> None:
    assert callable(ask)
    path = disk_path / "file"
    path.write_bytes(b"x" * 10_000)
    with owned_fd(os.open(path, os.O_RDONLY)) as fd:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert ask(fd) == 0
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(fd, 1, 5000)
        assert ask(fd) == 1
        os.pread(fd, 10_000, 0)
        assert ask(fd) == 3


def test_where_a_file_lies(disk_path: Path, memory_path: Path) -> None:
    assert linux.filesystem_type(disk_path) != linux.TMPFS_MAGIC == linux.filesystem_type(memory_path)
    for path in (disk_path, memory_path):
        with owned_fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY)) as fd:
            assert linux.filesystem_type(fd) == linux.filesystem_type(path)


def test_an_empty_file_has_no_pages(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with owned_fd(os.open(tmp_path / "empty", os.O_RDONLY)) as fd:
        assert linux.resident_pages(fd) == linux._mincore(fd) == 0


def test_an_older_kernel_is_asked_otherwise(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_fd: int) -> int:
        raise OSError(errno.ENOSYS, "cachestat: Function not implemented")

    monkeypatch.setattr(linux, "_cachestat", unknown)
    with owned_fd(os.open(path, os.O_RDONLY)) as fd:
        os.pread(fd, 10_000, 0)
        assert linux.resident_pages(fd) == 3
