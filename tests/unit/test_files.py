"""Atomic replacement, locks, and the sentences made of the system's errors."""

import errno
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mica.errors import TemporaryError, UserError
from mica.files import (
    explained_os_error,
    find_flock,
    lock_holder,
    locked,
    mapped_os_errors,
    owned_fd,
    remove_tree,
    remove_unfinished,
    replace_file,
    replacing_file,
    write_all,
)


def test_replace_file_sets_content_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "pointer"
    previous = os.umask(0o077)
    try:
        replace_file(path, b"one")
        replace_file(path, b"two", mode=0o600, durable=False)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        replace_file(path, b"three")
    finally:
        os.umask(previous)
    assert path.read_bytes() == b"three"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["pointer"]


def test_a_failed_replacement_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pointer"
    replace_file(path, b"old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["pointer"]


def test_what_is_written_little_by_little_can_be_read_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "image"
    replace_file(path, b"old")
    with replacing_file(path, mode=0o600) as file:
        file.write(b"new and ")
        file.write(b"longer")
        file.seek(4)
        assert file.read(3) == b"and"
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new and longer"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(RuntimeError), replacing_file(path) as file:
        raise RuntimeError(file.write(b"half"))
    assert path.read_bytes() == b"new and longer"
    assert os.listdir(tmp_path) == ["image"]


def test_what_a_killed_replacement_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, signal
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from mica.files import replace_file
replace_file(pathlib.Path({str(tmp_path / "pointer")!r}), b"new")
"""
    replace_file(tmp_path / "pointer", b"old")
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(os.listdir(tmp_path)) == 2
    remove_unfinished(tmp_path)
    assert os.listdir(tmp_path) == ["pointer"]
    assert (tmp_path / "pointer").read_bytes() == b"old"


def test_threads_that_replace_one_file_do_not_meet(tmp_path: Path) -> None:
    """They had one temporary file for the process, and who came second found it gone."""
    path = tmp_path / "pointer"
    contents = [b"%d" % number * 1000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            list(pool.map(lambda content: replace_file(path, content, durable=False), contents))
            assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["pointer"]


def test_write_all_goes_on_after_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:3])))
    with owned_fd(os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)) as fd:
        write_all(fd, b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_owned_fd_is_closed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), owned_fd(os.open(tmp_path, os.O_RDONLY)) as fd:
        raise RuntimeError
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_lock_keeps_another_process_out(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    program = (
        "import sys; from pathlib import Path; from mica.files import locked\n"
        "with locked(Path(sys.argv[1]), what='It'): pass"
    )
    with locked(path, what="It"):
        other = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
        assert f"It is in use by process {os.getpid()}." in other.stderr
    with locked(path, what="It"):
        pass


def test_the_holder_of_a_lock_is_known(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert lock_holder(path) is None
    with locked(path, what="It"):
        assert lock_holder(path) == os.getpid()
    assert lock_holder(path) is None


def test_who_is_no_holder_in_the_table_of_locks(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    status = (tmp_path / "lock").stat()
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    others = f"""\
1: POSIX  ADVISORY  WRITE 11 {file} 0 EOF
2: FLOCK  ADVISORY  WRITE 12 {file}0 0 EOF
3: FLOCK  ADVISORY  READ  13 {file} 0 EOF
4: FLOCK  ADVISORY  WRITE 0 {file} 0 EOF
4: -> FLOCK  ADVISORY  WRITE 14 {file} 0 EOF
"""
    assert find_flock(others, status) is None
    assert find_flock(f"{others}5: FLOCK  ADVISORY  WRITE 15 {file} 0 EOF\n", status) == 15


def test_a_lock_is_free_after_its_holder(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock", what="It"),
        pytest.raises(TemporaryError, match="in use"),
        locked(tmp_path / "lock", what="It"),
    ):
        pass
    with locked(tmp_path / "lock", what="It"):
        pass


def test_foreign_errors_become_sentences(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(UserError) as caught, mapped_os_errors("read a thing"):
        missing.read_bytes()
    assert str(caught.value) == f"Cannot read a thing: No such file or directory ({missing})."


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EACCES, "usually root"),
        (errno.EIO, ""),
    ],
)
def test_hints_say_what_to_do(number: int, hint: str) -> None:
    error = explained_os_error(OSError(number, os.strerror(number)), "store an object")
    assert hint in error.hint
    assert str(error).startswith("Cannot store an object: ")
    assert "published" not in error.hint


def test_a_full_disk_says_what_that_means_for_who_asked() -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UserError) as caught, mapped_os_errors("write", when_full="nothing was published"):
        raise error
    assert caught.value.hint == "Free some space or choose another directory; nothing was published."


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held, released = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(path, what="It"):
            held.set()
            released.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    with pytest.raises(TemporaryError, match="It is in use"), locked(path, what="It", wait_s=0.1):
        pass
    released.set()
    with locked(path, what="It", wait_s=20):
        pass
    thread.join()


def test_a_transient_lock_lets_one_in_at_a_time_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(20):
            with locked(path, what="It", wait_s=60, transient=True):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), set(most)) == (80, {1})
    assert not list(tmp_path.iterdir())


def test_what_failed_by_descriptor_is_told_without_its_number(tmp_path: Path) -> None:
    with owned_fd(os.open(tmp_path, os.O_RDONLY)) as fd:
        with pytest.raises(UserError) as caught, mapped_os_errors("mark a thing"):
            os.setxattr(fd, "user.x", bytes(1 << 17))
        assert str(caught.value) == f"Cannot mark a thing: {os.strerror(errno.E2BIG)}."


def test_a_lock_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "file" / "lock", tmp_path / "directory"):
        with pytest.raises(UserError, match=f"Cannot lock {path}: "), locked(path, what="It"):
            pass


def test_an_error_under_a_lock_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), locked(tmp_path / "lock", what="It", transient=True):
        raise ConnectionResetError
    assert not list(tmp_path.iterdir())


def test_removal_is_neither_recursive_nor_misled(tmp_path: Path) -> None:
    top, outside = tmp_path / "top", tmp_path / "outside"
    top.mkdir()
    outside.mkdir()
    (outside / "file").touch()
    home = os.open(top, os.O_RDONLY)
    fd = os.dup(home)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        os.mkdir("e", dir_fd=fd)
        os.symlink(outside, "link", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.mkfifo("fifo", dir_fd=fd)
    os.close(fd)
    os.close(home)
    remove_tree(top)
    assert not top.exists()
    assert os.listdir(outside) == ["file"]
