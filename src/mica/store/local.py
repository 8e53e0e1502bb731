"""A repository in a directory, as any web server can serve it.

    <root>/.cvmfspublished …          pointers, replaced by rename
    <root>/data/00 … data/ff/         objects
    <root>/data/txn/                  unfinished objects where the file system has no O_TMPFILE

An object is written to a nameless file and linked to its name, so a killed publisher leaves nothing behind; where that
is not possible it is written below `txn/` and renamed, and `clear_unfinished` removes what was left.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from mica.errors import NotFoundError
from mica.files import explained_os_error, mapped_os_errors, owned_fd, replace_file, sync_directory, write_all
from mica.linux import syncfs
from mica.store.base import Readable

_OBJECT_MODE = 0o644
_DIRECTORY_MODE = 0o755


class LocalStore:
    """The object store in one directory. Create it with `create` or open an existing one."""

    def __init__(self, root: Path) -> None:
        self.root = root
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

    @contextlib.contextmanager
    def open(self, path: str, *, fresh: bool = False) -> Iterator[Readable]:  # noqa: ARG002 - nothing caches here
        try:
            file = open(f"{self._text}/{path}", "rb", buffering=0)  # noqa: SIM115 - closed below
        except FileNotFoundError as error:
            raise NotFoundError(f"{path} is not in {self._text}.") from error
        except OSError as error:
            raise explained_os_error(error, f"read {path} in {self._text}") from error
        with file:
            yield file

    def put(self, path: str, data: bytes) -> bool:
        try:
            return self._put(path, data)
        except OSError as error:
            raise explained_os_error(error, f"store object {path} in {self._text}") from error

    def has(self, path: str) -> bool:
        return os.path.exists(f"{self._text}/{path}")

    def replace(self, path: str, data: bytes) -> None:
        with mapped_os_errors(f"write {path} in {self._text}"):
            replace_file(self.root / path, data, mode=_OBJECT_MODE)

    def delete(self, path: str) -> None:
        with mapped_os_errors(f"delete {path} in {self._text}"):
            (self.root / path).unlink(missing_ok=True)

    def paths(self, prefix: str) -> Iterator[str]:
        for directory, _, names in os.walk(f"{self._text}/{prefix}"):
            relative = os.path.relpath(directory, self._text)
            if relative != "data/txn":
                yield from (f"{relative}/{name}" for name in names)

    def sync(self) -> None:
        with mapped_os_errors(f"flush {self._text}"), owned_fd(os.open(self._text, os.O_RDONLY | os.O_CLOEXEC)) as fd:
            syncfs(fd)
        sync_directory(self.root)

    def clear_unfinished(self) -> None:
        """Remove what a killed publisher left. Only for the one who holds the repository's lock."""
        with mapped_os_errors(f"clean up {self._text}"):
            for directory in (self.root / "data" / "txn", self.root):
                for entry in os.scandir(directory):
                    unfinished = directory != self.root or (entry.name.startswith(".") and entry.name.endswith(".tmp"))
                    if unfinished and entry.is_file(follow_symlinks=False):
                        os.unlink(entry.path)

    def _put(self, path: str, data: bytes) -> bool:
        target = f"{self._text}/{path}"
        if self._has_tmpfile:
            try:
                return self._put_nameless(target, data)
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
                    raise
                self._has_tmpfile = False
        return self._put_renamed(target, data)

    def _put_nameless(self, target: str, data: bytes) -> bool:
        fd = os.open(f"{self._text}/data/txn", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, _OBJECT_MODE)
        try:
            os.fchmod(fd, _OBJECT_MODE)  # whatever the umask: a web server has to read it
            if os.write(fd, data) != len(data):
                write_all(fd, data[os.lseek(fd, 0, os.SEEK_CUR) :])
            os.link(f"/proc/self/fd/{fd}", target, src_dir_fd=self._anywhere, follow_symlinks=True)
        except FileExistsError:
            return False
        finally:
            os.close(fd)
        return True

    def _put_renamed(self, target: str, data: bytes) -> bool:
        while not os.path.exists(target):
            # Whoever takes the repository's lock clears up after the dead, and takes the file of the living with it.
            with contextlib.suppress(FileNotFoundError):
                self._rename_into(target, data)
                return True
        return False

    def _rename_into(self, target: str, data: bytes) -> None:
        temporary = f"{self._text}/data/txn/{os.getpid()}-{os.urandom(8).hex()}"
        fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _OBJECT_MODE)
        try:
            with owned_fd(fd):
                write_all(fd, data)
            os.rename(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


def _make_directory(path: Path) -> None:
    """Make a directory that a web server can read whatever the umask; an existing one is left as it is."""
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    path.chmod(_DIRECTORY_MODE)
