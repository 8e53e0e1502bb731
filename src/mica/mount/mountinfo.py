"""What is mounted: /proc/self/mountinfo as values (proc_pid_mountinfo(5)), and which of it a path lies in."""

import errno
import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from mica.files import owned_fd

FUSE_TYPE: Final = "fuse.mica"
"""File system type of everything that we mount by FUSE."""

REPOSITORY_PREFIX: Final = "mica#"
"""What comes before the name of a repository in the source of its mount."""

SERVER_GONE: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED})
"""What every call on a FUSE mount says whose server has ended: by itself, or when its connection was aborted."""

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line; `target` is absolute. `options` are those of the mount, `super_options` those of its file system."""

    target: bytes
    fstype: str
    source: bytes
    options: bytes
    number: int = 0
    super_options: bytes = b""


def parse_mountinfo(data: bytes) -> list[Mount]:
    mounts = []
    for line in data.split(b"\n"):  # the kernel escapes that in names, but not the carriage return
        before, _, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if len(fields) >= 6 and len(rest) >= 3:
            target, source = _unescaped(fields[4]), _unescaped(rest[1])
            mounts.append(Mount(target, rest[0].decode(), source, fields[5], int(fields[0]), rest[2]))
    return mounts


def read_mounts() -> list[Mount]:
    """Everything in this mount namespace, in the order of mounting."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def mount_of(path: Path) -> Mount | None:
    """The mount that a path lies in. Asks no server for what it is that it hands on, so one may be gone or hang if the
    path is its root. Raises OSError for a path that cannot be reached."""
    return _located(path)[0]


def find_mount(target: Path) -> Mount | None:
    """The topmost mount exactly on a path."""
    try:
        found, path = _located(target)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found if found is not None and found.target == path else None


def _located(path: Path) -> tuple[Mount | None, bytes]:
    """A mount and where in the file system the path is, with no symbolic links in it."""
    # O_PATH: neither open(2) nor stat(2), both of which wait for the server.
    with owned_fd(os.open(path, os.O_PATH | os.O_CLOEXEC)) as fd:
        number = mount_number(fd)
        place = os.readlink(b"/proc/self/fd/%d" % fd)
    return next((mount for mount in read_mounts() if mount.number == number), None), place


def mount_number(fd: int) -> int:
    """Which mount an open file was reached through; `Mount.number` of one of `read_mounts`."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_bytes().splitlines()
    return next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"mnt_id:"))


def _unescaped(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field)
