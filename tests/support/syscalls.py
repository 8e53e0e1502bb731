"""System calls and libc functions that tests need and Python lacks; each is what its manual page says.

Failures are OSErrors. Constants: include/uapi/linux/{fs,falloc,inotify,stat,fcntl}.h.
"""

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

AnyPath = str | bytes | Path

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EACCESS: Final = 0x200
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4
FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
FALLOC_FL_ZERO_RANGE: Final = 16
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
IN_MODIFY: Final = 0x2
IN_ATTRIB: Final = 0x4
IN_MOVED_FROM: Final = 0x40
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
F_OFD_SETLK: Final = 37

_INOTIFY_EVENT = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class _DirEntry(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("reclen", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.POINTER(_DirEntry)
_libc.telldir.restype = ctypes.c_long


def renameat2(old: AnyPath, new: AnyPath, flags: int) -> None:
    _checked(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)))


def fallocate(fd: int, mode: int, offset: int, size: int) -> None:
    _checked(_libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(size)))


def utimensat(path: AnyPath, accessed: tuple[int, int], modified: tuple[int, int], *, follow: bool = True) -> None:
    """Times as seconds and nanoseconds, where the latter may be UTIME_NOW or UTIME_OMIT."""
    times = struct.pack("4q", *accessed, *modified)
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0 if follow else AT_SYMLINK_NOFOLLOW))


def faccessat(path: AnyPath, mode: int, *, effective: bool = False) -> None:
    _checked(_libc.faccessat(AT_FDCWD, os.fsencode(path), mode, AT_EACCESS if effective else 0))


def ofd_lock(kind: int, start: int, size: int) -> bytes:
    """The argument of fcntl(2) for F_OFD_SETLK; `kind` is F_RDLCK, F_WRLCK or F_UNLCK."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, size, 0)


class DirectoryStream:
    """What opendir(3) gives."""

    def __init__(self, stream: int) -> None:
        self._stream = ctypes.c_void_p(stream)

    def read(self) -> bytes | None:
        entry = _libc.readdir(self._stream)
        return bytes(entry.contents.name) if entry else None

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, place: int) -> None:
        _libc.seekdir(self._stream, ctypes.c_long(place))

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)


@contextlib.contextmanager
def open_directory(path: AnyPath) -> Iterator[DirectoryStream]:
    stream = _libc.opendir(os.fsencode(path))
    if not stream:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    try:
        yield DirectoryStream(stream)
    finally:
        _libc.closedir(ctypes.c_void_p(stream))


class Watch:
    """An inotify watch of one file or directory."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def events(self) -> list[tuple[int, bytes]]:
        """What has happened since the last call: mask and name."""
        found = []
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._fd, 65536)
        while data:
            _, mask, _, length = _INOTIFY_EVENT.unpack_from(data)
            name = data[_INOTIFY_EVENT.size : _INOTIFY_EVENT.size + length]
            found.append((mask, name.rstrip(b"\0")))
            data = data[_INOTIFY_EVENT.size + length :]
        return found


@contextlib.contextmanager
def open_watch(path: AnyPath, mask: int) -> Iterator[Watch]:
    fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    try:
        _checked(_libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint(mask)))
        yield Watch(fd)
    finally:
        os.close(fd)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
