"""The table of mounts as values (proc_pid_mountinfo(5)), and the mount that a path lies in. Any thread.

This is the only reader of that table. It works on bytes: a user who may mount by FUSE chooses the path, the source and
a part of the type, and the kernel escapes only blank, tab, newline, backslash and in some fields `#` (mangle() in
fs/proc_namespace.c). Text would break at other line ends, and at names that are not UTF-8.
"""

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from mica.files import owned_fd

_ESCAPE: Final = re.compile(rb"\\([0-3][0-7]{2})")
_OWN: Final = Path("/proc/self/mountinfo")
_FIXED_FIELDS: Final = 6
# Errors of looking at another process: it has ended, or we may not look at it.
_PASSING: Final = (FileNotFoundError, ProcessLookupError, PermissionError, NotADirectoryError)


class Mount(NamedTuple):
    """One line; `target` is absolute. `options` are those of the mount, `super_options` those of its file system, whose
    values have escapes of their own; `device` is the file system's, major and minor number."""

    target: bytes
    fstype: bytes
    source: bytes
    options: bytes
    number: int = 0
    super_options: bytes = b""
    device: tuple[int, int] = (0, 0)


def parse_mountinfo(data: bytes) -> list[Mount]:
    """Every mount in order. Lines that are cut short or malformed are left out; the kernel writes none of these."""
    mounts = []
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError):
            mounts.append(_parse_line(line))
    return mounts


def _parse_line(line: bytes) -> Mount:
    """Raises ValueError for anything else."""
    fields = line.split(b" ")
    # Any number of optional fields stands between the fixed ones and the dash.
    end = fields.index(b"-", _FIXED_FIELDS)
    number, _, device, _, target, options = fields[:_FIXED_FIELDS]
    fstype, source, super_options = fields[end + 1 : end + 4]
    major, minor = device.split(b":")
    return Mount(
        target=unescaped(target),
        fstype=unescaped(fstype),
        source=unescaped(source),
        options=options,
        number=int(number),
        super_options=super_options,
        device=(int(major), int(minor)),
    )


def unescaped(field: bytes) -> bytes:
    """A field with the bytes that the kernel wrote as a backslash and three octal digits."""
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field)


def read_mounts() -> list[Mount]:
    """All mounts of this mount namespace, in the order of mounting."""
    return parse_mountinfo(_OWN.read_bytes())


def read_mounts_of(process: str) -> list[Mount]:
    """All mounts of the mount namespace of a process; none if it has ended or we may not look at it."""
    try:
        return parse_mountinfo(Path(f"/proc/{process}/mountinfo").read_bytes())
    except _PASSING:
        return []
    except OSError as error:
        if error.errno == errno.EINVAL:  # a process that is ending has no mounts
            return []
        raise


def mount_namespaces() -> dict[str, str]:
    """One process of each mount namespace that we may look at. Our own namespace comes first, as `self`."""
    found = {_namespace("self"): "self"}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            found.setdefault(_namespace(entry), entry)
    found.pop("", None)
    return found


def _namespace(process: str) -> str:
    try:
        return os.readlink(f"/proc/{process}/ns/mnt")
    except _PASSING:
        return ""


def mount_of(path: Path) -> Mount | None:
    """The mount that a path lies in. If the path is the root of a mount, its server is not asked for anything, so it
    may be gone or hang. Raises OSError for a path that cannot be reached."""
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
    # With O_PATH the server is not asked; an ordinary open(2) and stat(2) would wait for it.
    with owned_fd(os.open(path, os.O_PATH | os.O_CLOEXEC)) as fd:
        number = mount_number(fd)
        place = os.readlink(b"/proc/self/fd/%d" % fd)
    return next((mount for mount in read_mounts() if mount.number == number), None), place


def mount_number(fd: int) -> int:
    """The `Mount.number` of the mount through which a file was opened."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_bytes().split(b"\n")
    return next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"mnt_id:"))
