"""Random access to the files of a plain or packed tar that holds an image. The tar is never unpacked to disk.

Made for `docker save` archives and OCI archives: one pass finds every file, later reads go to its place. A packed file
is unpacked again from the start for that (gzip: 855 MB/s, xz: 100), unless a reader stands before the place, as when
layers are read in order. Not for layers, whose tar entries mean much more. Any thread.
"""

import contextlib
import io
import os
import posixpath
import stat
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mica.errors import IntegrityError, NotFoundError, UserError
from mica.files import mapped_os_errors, owned_fd
from mica.oci.packedfiles import HEAD_BYTES, PackedFile, packing_of
from mica.streams import Readable

_MEMBER_LIMIT = 100_000
_LINK_LIMIT = 16
# No header that names a file of an image is longer; without a limit one header could claim the whole memory.
_HEADER_LIMIT_BYTES = 1 << 20
_READ_SIZE = 128 << 10
_HEAD_SIZE = 8
_TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, RecursionError, LookupError)


class Place(NamedTuple):
    """The place of a file's bytes in the uncompressed tar, and the first few of them."""

    offset: int
    size: int
    head: bytes


class _Archive(Protocol):
    """A seekable view of the uncompressed tar."""

    def read(self, size: int, /) -> bytes: ...

    def seek(self, offset: int, /) -> int: ...

    def tell(self) -> int: ...

    def close(self) -> None: ...


class TarIndex:
    """The files of an archive by name. Made by `open_tar`."""

    def __init__(self, fd: int, path: Path, *, packing: str) -> None:
        self._fd = fd
        self._packing = packing
        self._lock = threading.Lock()
        self._idle: list[_Archive] = []
        self.path = path
        self.places: dict[str, Place] = {}
        self._links: dict[str, str] = {}

    def build(self) -> None:
        with self._borrowed(0) as archive:
            try:
                self._scan(archive)
            except _TAR_ERRORS as error:
                raise UserError(f"{self.path} is not a readable tar archive: {error}.") from error

    def _scan(self, archive: _Archive) -> None:
        bounded: Any = _BoundedReads(archive)
        last_offset = -1
        with tarfile.open(fileobj=bounded, mode="r:") as tar:
            for number, member in enumerate(iter(tar.next, None)):
                # A negative size would let the reader go back for ever (CVE-2025-8194).
                if number >= _MEMBER_LIMIT or member.size < 0 or member.offset <= last_offset:
                    raise UserError(f"{self.path} is not an image archive: its list of files has no end.")
                last_offset = member.offset
                self._add(member, archive)

    def _add(self, member: tarfile.TarInfo, archive: _Archive) -> None:
        name = posixpath.normpath(member.name)
        self.places.pop(name, None)
        self._links.pop(name, None)
        if member.issym():
            self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
        elif member.islnk():
            self._links[name] = posixpath.normpath(member.linkname)
        elif member.isfile() and not member.issparse():
            archive.seek(member.offset_data)
            self.places[name] = Place(member.offset_data, member.size, archive.read(min(member.size, _HEAD_SIZE)))

    def find(self, name: str) -> Place | None:
        """A file by its name, through the archive's own links (`docker save` stores equal layers once)."""
        name = posixpath.normpath(name)
        for _ in range(_LINK_LIMIT):
            if name in self.places:
                return self.places[name]
            if name not in self._links:
                return None
            name = self._links[name]
        return None

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """A small file. Raises NotFoundError, and UserError for one over the limit."""
        place = self.place(name)
        if place.size > limit_bytes:
            raise UserError(f"{name} in {self.path} has {place.size} bytes, more than {limit_bytes}.")
        with self.open(name) as stream:
            data = b"".join(iter(lambda: stream.read(_READ_SIZE), b""))
        if len(data) != place.size:
            raise IntegrityError(f"{self.path} ends in the middle of {name}.")
        return data

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Readable]:
        """A file as a stream; several may be open at once."""
        place = self.place(name)
        with self._borrowed(place.offset) as archive:
            yield _Section(archive, place, f"{name} in {self.path}")

    def place(self, name: str) -> Place:
        """Raises NotFoundError."""
        place = self.find(name)
        if place is None:
            raise NotFoundError(f"{self.path} has no file {name[:200]!r}.")
        return place

    @contextlib.contextmanager
    def _borrowed(self, offset: int) -> Iterator[_Archive]:
        with self._lock:
            near = max((one for one in self._idle if one.tell() <= offset), key=lambda one: one.tell(), default=None)
            if near is not None:
                self._idle.remove(near)
        archive = near or self._new_archive()
        try:
            yield archive
        except BaseException:
            archive.close()
            raise
        with self._lock:
            self._idle.append(archive)
            surplus = self._idle.pop(0) if len(self._idle) > 2 else None
        if surplus is not None:
            surplus.close()

    def _new_archive(self) -> _Archive:
        shared = _SharedFile(self._fd)
        return PackedFile(shared, self._packing, str(self.path)) if self._packing else io.BufferedReader(shared)

    def close(self) -> None:
        for archive in self._idle:
            archive.close()
        self._idle.clear()


class _SharedFile(io.RawIOBase):
    """A stream with a position of its own in a shared descriptor."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        size = os.preadv(self._fd, [buffer], self._offset)
        self._offset += size
        return size

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset}.get(whence)
        self._offset = offset + (os.fstat(self._fd).st_size if base is None else base)
        return self._offset

    def tell(self) -> int:
        return self._offset


class _BoundedReads:
    """The stream from which tarfile reads headers."""

    def __init__(self, archive: _Archive) -> None:
        self._archive = archive
        self.seek = archive.seek
        self.tell = archive.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER_LIMIT_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._archive.read(size)


class _Section:
    """One file of the archive."""

    def __init__(self, archive: _Archive, place: Place, name: str) -> None:
        self._archive = archive
        self._place = place
        self._done = -1
        self._name = name

    def read(self, size: int, /) -> bytes:
        with mapped_os_errors(f"read {self._name}"):
            return self._read(size)

    def _read(self, size: int) -> bytes:
        if self._done < 0:
            self._archive.seek(self._place.offset)
            self._done = 0
        data = self._archive.read(min(size, self._place.size - self._done))
        self._done += len(data)
        return data


@contextlib.contextmanager
def open_tar(path: Path) -> Iterator[TarIndex]:
    """Index an archive. Raises NotFoundError, UserError if it is no tar, IntegrityError if its packing is damaged."""
    with owned_fd(open_regular(path)) as fd, indexed_tar(fd, path) as index:
        yield index


@contextlib.contextmanager
def indexed_tar(fd: int, path: Path) -> Iterator[TarIndex]:
    """The same for an open descriptor, which the caller closes; `path` is for messages."""
    with mapped_os_errors(f"read {path}"):
        packing = packing_of(os.pread(fd, HEAD_BYTES, 0))
    with contextlib.closing(TarIndex(fd, path, packing=packing)) as index:
        index.build()
        yield index


def open_regular(path: Path) -> int:
    """A descriptor of a regular file: a fifo in its place would block for ever. Raises NotFoundError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file {path}.") from error
    except OSError as error:
        raise UserError(f"Cannot open {path}: {error.strerror}.") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UserError(f"{path} is not a regular file.")
    return fd
