"""Local files: owned descriptors, atomic writes, locks, removal of any tree. No formats, no network. Any thread."""

import contextlib
import errno
import fcntl
import itertools
import os
import resource
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mica.errors import TemporaryError, UserError

_LOCK_POLL_S = 0.05
_LOCKS = Path("/proc/locks")
_FIRST_FD = 3
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def owned_fd(fd: int) -> Iterator[int]:
    """Close a descriptor at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def close_inherited(kept: int) -> None:
    """In a child process: close all descriptors that it has from its parent, except one and the three standard ones.
    The objects that own them must not be used any more."""
    os.closerange(_FIRST_FD, kept)
    os.closerange(max(kept + 1, _FIRST_FD), resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace_file(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Put data under a name so that a reader sees the old content or the new one, also after a crash if durable."""
    with replacing_file(path, mode=mode, durable=durable) as file:
        write_all(file.fileno(), data)


@contextlib.contextmanager
def replacing_file(path: Path, *, mode: int = 0o644, durable: bool = True) -> Iterator[BinaryIO]:
    """The same for content that is written little by little, and may be read meanwhile. The file gets its name when the
    block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        fd = os.open(temporary, os.O_CREAT | os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "w+b") as file:
            os.fchmod(fd, mode)
            yield file
            file.flush()
            if durable:
                os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


@contextlib.contextmanager
def removed_after_failure(*directories: Path) -> Iterator[None]:
    """If the block raises, remove everything that it put into these directories, and the directories that were not
    there before. The caller keeps other writers out."""
    before = {directory: _names_in(directory) for directory in directories}
    missing = {directory: _missing_parents(directory) for directory in directories}
    try:
        yield
    except BaseException:
        for directory, names in before.items():
            for name in _names_in(directory) - names:
                _remove(directory / name)
            for parent in missing[directory]:
                with contextlib.suppress(OSError):  # it was never made, or holds files that are not ours
                    parent.rmdir()
        raise


def _names_in(directory: Path) -> set[str]:
    try:
        return set(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _missing_parents(directory: Path) -> list[Path]:
    """The directory and those above it that do not exist, the innermost first."""
    return [path for path in (directory, *directory.parents) if not path.exists()]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def allocated_bytes(status: os.stat_result) -> int:
    """The bytes that a file takes on disk: `st_blocks` counts 512 bytes on every file system (stat(2))."""
    return status.st_blocks * 512


def give_space(fd: int, size: int) -> None:
    """Give a file that will be mapped this size, and its space on disk. Without the space, a write to the mapping would
    end the process by SIGBUS on a full file system; here a full file system is an OSError."""
    if os.fstat(fd).st_size > size:
        os.ftruncate(fd, size)
    if size:
        os.posix_fallocate(fd, 0, size)


def remove_unfinished(directory: Path) -> None:
    """Remove the files that a killed `replace_file` left in a directory; the caller keeps other writers out."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    with owned_fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        os.fsync(fd)


@contextlib.contextmanager
def locked(path: Path, *, what: str, wait_s: float = 0.0, transient: bool = False) -> Iterator[None]:
    """Hold an exclusive lock for the block. It keeps out other threads of this process too.

    Raises TemporaryError if another holder keeps it for longer than `wait_s`, UserError if the file cannot be made,
    locked or removed. A `transient` file is removed at the end of the block.
    """
    with mapped_os_errors(f"lock {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = _lock(path, what=what, deadline_s=time.monotonic() + wait_s)
    with owned_fd(fd):
        try:
            yield
        finally:
            if transient:
                with mapped_os_errors(f"remove {path}"):
                    path.unlink(missing_ok=True)


def is_locked(path: Path) -> bool:
    """Whether `locked(path)` is held now. This check holds the lock for a moment, so callers of `locked` should give a
    small `wait_s`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    with owned_fd(fd):
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def lock_holder(path: Path) -> int | None:
    """The process that holds `locked(path)`. None if it is free, and where the kernel does not tell: in a pid namespace
    without that process, and on a file system that gives its files two numbers, such as overlayfs."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return find_flock(_LOCKS.read_text(encoding="ascii"), status)


def find_flock(table: str, status: os.stat_result) -> int | None:
    """The process that has an flock(2) on a file, from the table of proc_locks(5). Pure."""
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in table.splitlines():
        match line.split():
            case [_, "FLOCK", _, "WRITE", pid, place, *_] if place == file and pid.isdecimal() and int(pid):
                return int(pid)
    return None


def _lock(path: Path, *, what: str, deadline_s: float) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(fd, path):
                return fd
        except BlockingIOError as error:
            if time.monotonic() >= deadline_s:
                os.close(fd)
                holder = lock_holder(path)
                who = "another process" if holder is None else f"process {holder}"
                raise TemporaryError(f"{what} is in use by {who}.", hint="Try again when it is done.") from error
            time.sleep(_LOCK_POLL_S)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _is_still(fd: int, path: Path) -> bool:
    """Whether the locked file still has its name: an earlier holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked_in_turn(directory: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on a directory for the block. With `wait` earlier holders come first; without it the lock
    is taken only if it is free. The value says whether it is held. Raises OSError."""
    with owned_fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


@contextlib.contextmanager
def mapped_os_errors(doing: str, *, when_full: str = "") -> Iterator[None]:
    """The border between the operating system's errors and ours: an error becomes a sentence that says what failed.

    `when_full` is for the hint: what a full disk means to the caller.
    """
    try:
        yield
    except OSError as error:
        raise explained_os_error(error, doing, when_full=when_full) from error


def explained_os_error(error: OSError, doing: str, *, when_full: str = "") -> UserError:
    # If the call was given a descriptor, its number is there instead of a name.
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
    where = f" ({name})" if name and name not in doing else ""
    hint = ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        hint = f"Free some space or choose another directory{when_full and '; '}{when_full}."
    elif error.errno in {errno.EACCES, errno.EPERM}:
        hint = "Run as a user who may do this, usually root."
    return UserError(f"Cannot {doing}: {error.strerror or error}{where}.", hint=hint)


def remove_tree(path: Path) -> None:
    """Remove a directory that a hostile program filled: any depth, any names, two descriptors, no recursion.

    `shutil.rmtree` recurses once per level. Here the inner directories are moved up until nothing is deep any more. In
    the top directory this function chooses their names, so that none is one that the program chose.
    """
    with owned_fd(os.open(path, _DIRECTORY)) as top:
        names = (f".up-{secrets.token_hex(8)}-{number}" for number in itertools.count())
        while directories := _remove_files(top):
            for directory in directories:
                _empty_into(top, directory, names)
                os.rmdir(directory, dir_fd=top)
    path.rmdir()


def _remove_files(fd: int) -> list[str]:
    """Unlink everything except directories, and return the directories."""
    directories = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=fd)
    return directories


def _empty_into(top: int, directory: str, names: Iterator[str]) -> None:
    with owned_fd(os.open(directory, _DIRECTORY, dir_fd=top)) as fd:
        for inner in _remove_files(fd):
            try:
                os.rmdir(inner, dir_fd=fd)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                os.rename(inner, next(names), src_dir_fd=fd, dst_dir_fd=top)
