"""The user that a container's program runs as, looked up in the container's own /etc/passwd and /etc/group.

Both files come from a hostile image: any link in them stays inside the root, only regular files of bounded size are
read, and nothing is opened before it is known to be one (opening a fifo blocks, opening a device acts).
Rules and their order are those of Docker (moby/sys user.GetExecUser). Called by `mica.run.container` before the
program exists, so the tree does not change meanwhile. Any thread.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mica.errors import UserError
from mica.files import owned_fd

FILE_MAX_BYTES: Final = 4 << 20
LINKS_MAX: Final = 40  # as the kernel's MAXSYMLINKS
ID_MAX: Final = (1 << 31) - 1  # Docker's limit; 2^32-1 means "no change" to the kernel
GROUPS_MAX: Final = 65536  # NGROUPS_MAX


@dataclass(frozen=True, slots=True)
class User:
    """Numbers for the kernel; `groups` holds the supplementary ones, the primary one first."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class PasswdEntry:
    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class GroupEntry:
    name: str
    gid: int
    members: tuple[str, ...]


def resolve_user(root: Path, text: str) -> User:
    """Resolve `name`, `uid`, `name:group`, `uid:gid` or "" (root) inside a root file system.

    Raises UserError for a name that is not there and for files that cannot be trusted.
    """
    return find_user(
        text,
        parse_passwd(read_inside(root, "etc/passwd")),
        parse_group(read_inside(root, "etc/group")),
    )


def find_user(text: str, passwd: tuple[PasswdEntry, ...], groups: tuple[GroupEntry, ...]) -> User:
    """Apply the rules to parsed files. A number is always an id, even if a name has the same digits."""
    name, _, group = text.partition(":")
    entry = _find_entry(name or "0", passwd)
    uid = entry.uid if entry else _parse_id(name or "0", f"user {name}", "/etc/passwd")
    home = entry.home if entry and entry.home.startswith("/") else "/"
    if group:
        gid = _find_gid(group, groups)
        # The primary group is among them: otherwise a file whose group bits deny access to that group would open
        # (CVE-2022-36109).
        return User(uid, gid, (gid,), home)
    gid = entry.gid if entry else 0
    others = (item.gid for item in groups if entry and entry.name in item.members)
    return User(uid, gid, tuple(dict.fromkeys((gid, *others)))[:GROUPS_MAX], home)


def _find_entry(name: str, passwd: tuple[PasswdEntry, ...]) -> PasswdEntry | None:
    if name.isascii() and name.isdigit():
        return next((entry for entry in passwd if entry.uid == int(name[:20])), None)
    return next((entry for entry in passwd if entry.name == name), None)


def _find_gid(name: str, groups: tuple[GroupEntry, ...]) -> int:
    found = None if name.isascii() and name.isdigit() else next((g.gid for g in groups if g.name == name), None)
    return found if found is not None else _parse_id(name, f"group {name}", "/etc/group")


def _parse_id(text: str, what: str, file: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"There is no {what!r} in the container's {file}.", hint="A number works without an entry.")
    if len(text) > 10 or int(text) > ID_MAX:
        raise UserError(f"The {what!r} is out of range: the largest id is {ID_MAX}.")
    return int(text)


def parse_passwd(data: bytes) -> tuple[PasswdEntry, ...]:
    """Malformed lines are left out, as the C library does."""
    return tuple(
        PasswdEntry(fields[0], int(fields[2]), int(fields[3]), fields[5])
        for fields in _entries(data, 7)
        if _is_id(fields[2]) and _is_id(fields[3])
    )


def parse_group(data: bytes) -> tuple[GroupEntry, ...]:
    return tuple(
        GroupEntry(fields[0], int(fields[2]), tuple(filter(None, fields[3].split(","))))
        for fields in _entries(data, 4)
        if _is_id(fields[2])
    )


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= ID_MAX


def _entries(data: bytes, count: int) -> Iterator[list[str]]:
    for line in data.split(b"\n"):
        fields = line.decode(errors="surrogateescape").strip().split(":")
        if len(fields) == count and fields[0]:
            yield fields


def read_inside(root: Path, path: str) -> bytes:
    """Read a regular file of an untrusted tree; empty if there is none. Raises UserError for other kinds of files."""
    try:
        with open_inside(root, path) as fd:
            return _read_regular(fd, path)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise UserError(f"Cannot read the container's /{path}: {error.strerror}.") from error


def _read_regular(fd: int, path: str) -> bytes:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"The container's /{path} is not a regular file.")
    if status.st_size > FILE_MAX_BYTES:
        raise UserError(f"The container's /{path} has {status.st_size} bytes; at most {FILE_MAX_BYTES} are read.")
    with owned_fd(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)) as readable:
        return _read_at_most(readable, FILE_MAX_BYTES)


def _read_at_most(fd: int, limit: int) -> bytes:
    data = bytearray()
    while len(data) < limit and (block := os.read(fd, min(1 << 20, limit - len(data)))):
        data += block
    return bytes(data)


@contextlib.contextmanager
def open_inside(root: Path, path: str) -> Iterator[int]:
    """An O_PATH descriptor of what a path means to a process whose root this is; every link is followed inside it.

    Done step by step with O_NOFOLLOW. openat2(RESOLVE_IN_ROOT) does the same, but Python has no function for it.
    """
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.ExitStack() as stack:

        def opened(name: str, parent: int | None) -> int:
            fd = os.open(name, flags, dir_fd=parent)
            stack.callback(os.close, fd)
            return fd

        walk = [opened(os.fspath(root), None)]
        parts = path.split("/")[::-1]
        links = 0
        while parts:
            part = parts.pop()
            if part in {"", "."}:
                continue
            if part == "..":
                walk = walk[:-1] or walk
                continue
            fd = opened(part, walk[-1])
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                walk.append(fd)
                continue
            links += 1
            if links > LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink("", dir_fd=fd)
            if target.startswith("/"):
                walk = walk[:1]
            parts += target.split("/")[::-1]
        yield walk[-1]
