"""Local files: owned descriptors, atomic writes, locks. No formats, no network. Any thread."""

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mica.errors import TemporaryError, UserError

_LOCK_POLL_S = 0.05


@contextlib.contextmanager
def owned_fd(fd: int) -> Iterator[int]:
    """Close a descriptor at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace_file(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Put data under a name so that a reader sees the old content or the new one, also after a crash if durable."""
    with replacing_file(path, mode=mode, durable=durable) as file:
        file.write(data)


@contextlib.contextmanager
def replacing_file(path: Path, *, mode: int = 0o644, durable: bool = True) -> Iterator[BinaryIO]:
    """The same for what is written little by little, and may be read meanwhile: it gets its name when the block ends
    without an error."""
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


def allocated_bytes(status: os.stat_result) -> int:
    """What a file takes on disk: `st_blocks` counts 512 bytes on every file system (stat(2))."""
    return status.st_blocks * 512


def remove_unfinished(directory: Path) -> None:
    """Remove what a `replace_file` that was killed left in a directory; the caller keeps other writers out."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    with owned_fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        os.fsync(fd)


@contextlib.contextmanager
def locked(path: Path, *, what: str, wait_s: float = 0.0, transient: bool = False) -> Iterator[None]:
    """Hold an exclusive lock for the block; of threads of one process, too, only one does.

    Raises TemporaryError if somebody else holds it for longer than `wait_s`. A `transient` file goes with the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with owned_fd(_lock(path, what=what, deadline_s=time.monotonic() + wait_s)):
        try:
            yield
        finally:
            if transient:
                path.unlink(missing_ok=True)


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
                raise TemporaryError(
                    f"{what} is in use by another process.", hint="Try again when it is done."
                ) from error
            time.sleep(_LOCK_POLL_S)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _is_still(fd: int, path: Path) -> bool:
    """Whether the locked file has its name: one who held it before may have removed it."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked_in_turn(directory: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on a directory for the block, after all who came before; without `wait` only if nobody has
    it, which the value says. Raises OSError."""
    with owned_fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


@contextlib.contextmanager
def mapped_os_errors(doing: str) -> Iterator[None]:
    """The border between the operating system's errors and ours: a sentence with what was being done."""
    try:
        yield
    except OSError as error:
        raise explained_os_error(error, doing) from error


def explained_os_error(error: OSError, doing: str) -> UserError:
    name = os.fsdecode(error.filename) if error.filename is not None else ""
    where = f" ({name})" if name and name not in doing else ""
    hint = ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        hint = "Free some space or choose another directory; nothing was published."
    elif error.errno in {errno.EACCES, errno.EPERM}:
        hint = "Run as a user who may do this, usually root."
    return UserError(f"Cannot {doing}: {error.strerror or error}{where}.", hint=hint)
