"""A repository in a directory, as any web server can serve it.

    <root>/.cvmfspublished …          pointers, replaced by rename
    <root>/data/00 … data/ff/         objects
    <root>/data/txn/                  unfinished objects where the file system has no O_TMPFILE
    <root>/data/txn/pointers.lock     held while a pointer is replaced
    <root>/data/txn/removed-<xx>-…    an object that is being removed

An object is written to a nameless file and linked to its name, so a killed publisher leaves nothing behind. Where that
is not possible, it is written below `txn/` and linked from there, and `clear_unfinished` removes files left behind.

An object that may be needed again meanwhile (`delete_many` with a time) is moved aside, looked at, and moved back if a
publisher has refreshed it in the last moment: a refresh comes either before the move, and is seen, or after it, and
then the publisher finds no object and puts its own. What a kill leaves aside, `clear_unfinished` moves back.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Self

from mica.errors import NotFoundError, UserError
from mica.files import explained_os_error, mapped_os_errors, owned_fd, replace_file, sync_directory, write_all
from mica.linux import syncfs
from mica.store.base import ANYTHING, REFRESH_AFTER_S, Anything, CountNew, StoredFile, lost_race
from mica.streams import Readable

_OBJECT_MODE = 0o644
_DIRECTORY_MODE = 0o755
_WHEN_FULL = "nothing was published"
_BLOCK_BYTES: Final = 1 << 20
_LOCK: Final = "pointers.lock"
_ASIDE: Final = "removed-"


class LocalStore:
    """The object store in one directory. Create it with `create` or open an existing one."""

    def __init__(self, root: Path, *, refresh_after_s: float = REFRESH_AFTER_S) -> None:
        self.root = root
        self._refresh_after_s = refresh_after_s
        self._text = os.fspath(root)
        self._has_tmpfile = True
        # link(2) follows /proc/self/fd links only through linkat(2), which Python calls when a descriptor is given;
        # for absolute paths its value does not matter.
        self._anywhere = os.open("/", os.O_PATH | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._anywhere)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def where(self) -> str:
        return self._text

    def create(self) -> None:
        """Make the directories."""
        with mapped_os_errors(f"create the storage directory {self._text}"):
            self.root.parent.mkdir(parents=True, exist_ok=True)
            data = self.root / "data"
            for directory in (self.root, data, *(data / f"{number:02x}" for number in range(256)), data / "txn"):
                _make_directory(directory)

    def check_there(self) -> None:
        """Raises UserError if the directory itself is missing: a path that is missing in it is another error."""
        if not self.root.is_dir():
            raise UserError(f"The storage directory {self._text} is not there.", hint="Is its file system mounted?")

    @contextlib.contextmanager
    def open(self, path: str, *, fresh: bool = False) -> Iterator[Readable]:  # noqa: ARG002 - nothing caches here
        try:
            file = open(f"{self._text}/{path}", "rb", buffering=0)  # noqa: SIM115 - closed below
        except FileNotFoundError as error:
            self.check_there()
            raise NotFoundError(f"{path} is not in {self._text}.") from error
        except OSError as error:
            raise explained_os_error(error, f"read {path} in {self._text}") from error
        with file:
            yield file

    def put(self, path: str, data: bytes, *, count_new: CountNew | None = None) -> None:
        with self._storing(path):
            is_new = self._put(path, data)
        if is_new and count_new is not None:
            count_new(len(data))

    def put_file(self, path: str, file: Path, *, count_new: CountNew | None = None) -> None:
        with mapped_os_errors(f"read {file}"):
            source = open(file, "rb", buffering=0)  # noqa: SIM115 - closed below
        with source:
            with self._storing(path):
                is_new = self._put(path, source)
            if is_new and count_new is not None:
                count_new(os.fstat(source.fileno()).st_size)

    @contextlib.contextmanager
    def _storing(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                self.check_there()
            raise explained_os_error(error, f"store object {path} in {self._text}", when_full=_WHEN_FULL) from error

    def has(self, path: str) -> bool:
        with mapped_os_errors(f"look for {path} in {self._text}"):
            try:
                os.stat(f"{self._text}/{path}")
            except FileNotFoundError:
                self.check_there()
                return False
        return True

    def refresh(self, path: str) -> bool:
        with mapped_os_errors(f"refresh {path} in {self._text}"):
            try:
                os.utime(f"{self._text}/{path}")
            except FileNotFoundError:
                self.check_there()
                return False
        return True

    def replace(self, path: str, data: bytes, *, expected: bytes | Anything | None = ANYTHING) -> None:
        with mapped_os_errors(f"write {path} in {self._text}", when_full=_WHEN_FULL), self._pointers_locked():
            if expected is not ANYTHING and self._content(path) != expected:
                raise lost_race(path, self._text)
            replace_file(self.root / path, data, mode=_OBJECT_MODE)

    @contextlib.contextmanager
    def _pointers_locked(self) -> Iterator[None]:
        """A file that can be written, because NFS locks no others for one alone."""
        try:
            fd = os.open(f"{self._text}/data/txn/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _OBJECT_MODE)
        except FileNotFoundError:
            self.check_there()
            raise
        with owned_fd(fd):
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield

    def _content(self, path: str) -> bytes | None:
        try:
            return (self.root / path).read_bytes()
        except FileNotFoundError:
            return None

    def delete(self, path: str) -> None:
        with mapped_os_errors(f"delete {path} in {self._text}"):
            try:
                os.unlink(f"{self._text}/{path}")
            except FileNotFoundError:
                self.check_there()

    def delete_many(self, paths: Iterable[str], *, unless_changed_since: float | None = None) -> int:
        return sum(self._delete_one(path, unless_changed_since) for path in paths)

    def _delete_one(self, path: str, since: float | None) -> bool:
        name = f"{self._text}/{path}"
        aside = f"{self._text}/data/txn/{_ASIDE}{path.removeprefix('data/').replace('/', '-', 1)}"
        with mapped_os_errors(f"delete {path} in {self._text}"):
            try:
                if since is None:
                    os.unlink(name)
                    return True
                if os.stat(name).st_mtime >= since:
                    return False
                os.rename(name, aside)
                if is_needed := os.stat(aside).st_mtime >= since:
                    _link_new(aside, name)
                os.unlink(aside)
            except FileNotFoundError:  # removed by another, or moved back by `clear_unfinished`
                self.check_there()
                return False
        return not is_needed

    def entries(self, prefix: str) -> Iterator[StoredFile]:
        yield from self._entries_in(prefix.rstrip("/"))

    def _entries_in(self, directory: str) -> Iterator[StoredFile]:
        relative = f"{directory}/" if directory else ""
        try:
            listed = os.scandir(f"{self._text}/{directory}")
        except FileNotFoundError:
            self.check_there()
            return
        except OSError as error:
            raise explained_os_error(error, f"list {self._text}") from error
        with listed:
            for entry in listed:
                if entry.is_dir(follow_symlinks=False):
                    if relative + entry.name != "data/txn":
                        yield from self._entries_in(relative + entry.name)
                elif not (directory == "" and _is_temporary(entry.name)):
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        status = entry.stat(follow_symlinks=False)
                        yield StoredFile(relative + entry.name, status.st_size, status.st_mtime)

    def clock(self) -> float:
        """That of the file server, where the directory is on one."""
        with mapped_os_errors(f"touch a file in {self._text}"), self._pointers_locked():
            lock = f"{self._text}/data/txn/{_LOCK}"
            os.utime(lock)
            return os.stat(lock).st_mtime

    def sync(self) -> None:
        with mapped_os_errors(f"flush {self._text}", when_full=_WHEN_FULL):
            with owned_fd(os.open(self._text, os.O_RDONLY | os.O_CLOEXEC)) as fd:
                syncfs(fd)
            sync_directory(self.root)

    def clear_unfinished(self) -> None:
        self.check_there()
        with mapped_os_errors(f"clean up {self._text}"):
            for entry in os.scandir(self.root / "data" / "txn"):
                if entry.name == _LOCK or not entry.is_file(follow_symlinks=False):
                    continue
                with contextlib.suppress(FileNotFoundError):  # whoever removes it has moved it back, or removed it
                    if entry.name.startswith(_ASIDE):
                        directory, _, name = entry.name.removeprefix(_ASIDE).partition("-")
                        _link_new(entry.path, f"{self._text}/data/{directory}/{name}")
                    os.unlink(entry.path)
            with self._pointers_locked():  # nobody is about to give one of them its name
                for entry in os.scandir(self.root):
                    if _is_temporary(entry.name) and entry.is_file(follow_symlinks=False):
                        os.unlink(entry.path)

    def _put(self, path: str, data: bytes | BinaryIO) -> bool:
        target = f"{self._text}/{path}"
        while not self._put_new(target, data):
            if self._is_fresh(target):
                return False
        return True

    def _is_fresh(self, target: str) -> bool:
        """Refresh an object that was there; False if it has just been removed."""
        try:
            if os.stat(target).st_mtime < time.time() - self._refresh_after_s:
                os.utime(target)
        except FileNotFoundError:
            return False
        return True

    def _put_new(self, target: str, data: bytes | BinaryIO) -> bool:
        if self._has_tmpfile:
            try:
                return self._put_nameless(target, data)
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
                    raise
                self._has_tmpfile = False
        return self._put_named(target, data)

    def _put_nameless(self, target: str, data: bytes | BinaryIO) -> bool:
        fd = os.open(f"{self._text}/data/txn", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, _OBJECT_MODE)
        try:
            os.fchmod(fd, _OBJECT_MODE)  # whatever the umask: a web server has to read it
            _write(fd, data)
            os.link(f"/proc/self/fd/{fd}", target, src_dir_fd=self._anywhere, follow_symlinks=True)
        except FileExistsError:
            return False
        finally:
            os.close(fd)
        return True

    def _put_named(self, target: str, data: bytes | BinaryIO) -> bool:
        while not os.path.exists(target):
            try:
                return self._link_into(target, data)
            except FileNotFoundError:
                # The next holder of the repository's lock clears `txn/`, and may remove the file of a living writer
                # too. Without the directories there is no use in another attempt.
                if not (os.path.isdir(f"{self._text}/data/txn") and os.path.isdir(os.path.dirname(target))):
                    raise
        return False

    def _link_into(self, target: str, data: bytes | BinaryIO) -> bool:
        """Links instead of renaming, because a rename does not tell whether the object was there before."""
        temporary = f"{self._text}/data/txn/{os.getpid()}-{os.urandom(8).hex()}"
        fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _OBJECT_MODE)
        try:
            with owned_fd(fd):
                _write(fd, data)
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        return True


def _write(fd: int, data: bytes | BinaryIO) -> None:
    if not isinstance(data, bytes):
        data.seek(0)
        while block := data.read(_BLOCK_BYTES):
            write_all(fd, block)
    elif os.write(fd, data) != len(data):
        write_all(fd, data[os.lseek(fd, 0, os.SEEK_CUR) :])


def _link_new(source: str, target: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.link(source, target)


def _is_temporary(name: str) -> bool:
    """Whether it is of a `replace_file` that was killed, or goes on."""
    return name.startswith(".") and name.endswith(".tmp")


def _make_directory(path: Path) -> None:
    """Make a directory that a web server can read whatever the umask; an existing one is left as it is."""
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    path.chmod(_DIRECTORY_MODE)
