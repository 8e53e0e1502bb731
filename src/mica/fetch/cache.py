"""The node's cache: verified, decompressed objects in a directory (docs/format/cache-dir.md).

    <root>/00 … ff/<38 hex><text id>        content of an object that is stored compressed
    <root>/00 … ff/<38 hex><text id>.raw    content of an object that is stored as it is
    <root>/txn/                             where files are made, nameless until they are whole (O_TMPFILE)
    <root>/repositories/<fqrn>              the newest verified manifest and what verified it

Content with the same digest differs by how it was stored, and whoever publishes chooses that: the two must never answer
for each other, or one repository could put wrong bytes into another's files. A file appears under its name only when it
is whole and checked. Any thread, any number of processes.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from mica.digest import Digest
from mica.files import explained_os_error, mapped_os_errors, write_all
from mica.repo.objects import Compression


class Cache:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._text = os.fspath(root)
        with mapped_os_errors(f"use the cache directory {self._text}"):
            for name in [*(f"{number:02x}" for number in range(256)), "txn", "repositories"]:
                (root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.anywhere = os.open("/", os.O_PATH | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.anywhere)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def path(self, digest: Digest, compression: Compression) -> str:
        text = digest.text
        return f"{self._text}/{text[:2]}/{text[2:]}{'.raw' if compression is Compression.NONE else ''}"

    def has(self, digest: Digest, compression: Compression, size: int | None) -> bool:
        """Whether `open` would find the content; changes nothing."""
        try:
            found = os.stat(self.path(digest, compression)).st_size
        except FileNotFoundError:
            return False
        return size is None or found == size

    def open(self, digest: Digest, compression: Compression, size: int | None) -> int | None:
        """A descriptor of the content, or None if it is not here. A file of another size, as a crash of the machine may
        leave it, is removed."""
        path = self.path(digest, compression)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if size is not None and os.fstat(fd).st_size != size:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return None
        return fd

    @contextlib.contextmanager
    def adding(self, digest: Digest, compression: Compression) -> Iterator["NewFile"]:
        """Write content to `fd`, check it, then `commit`; what is not committed vanishes."""
        with mapped_os_errors(f"write to the cache {self._text}"):
            new = NewFile(self, self.path(digest, compression))
        try:
            yield new
        finally:
            new.close()


class NewFile:
    """A nameless file that may become one of the cache's."""

    def __init__(self, cache: Cache, target: str) -> None:
        self._cache = cache
        self._target = target
        self.fd = os.open(f"{cache.root}/txn", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        try:
            write_all(self.fd, data)
        except OSError as error:
            raise explained_os_error(error, f"write to the cache {self._cache.root}") from error

    def commit(self) -> int:
        """Give the file its name and return a descriptor that the caller owns."""
        with mapped_os_errors(f"write to the cache {self._cache.root}"), contextlib.suppress(FileExistsError):
            os.link(
                f"/proc/self/fd/{self.fd}",
                self._target,
                src_dir_fd=self._cache.anywhere,
                follow_symlinks=True,
            )
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.fd)
