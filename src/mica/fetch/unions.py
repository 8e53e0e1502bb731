"""Unions over a cache, wherever they are mounted: so that they let go of files that nobody has open.

overlayfs remembers files that were once opened, each with the inode of its content in the cache; removing such a file
frees nothing until it forgets. It forgets what is not open when it is configured anew, even with nothing changed
(`shrink_dcache_sb` in reconfigure_super(), fs/super.c).

Reads the mount tables of all mount namespaces. In those of others, which may be containers, no path is followed: only a
union that is a process's root is reached, and whether it is the one in the table is known by the number of the mount.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mica import linux
from mica.files import owned_fd

_ESCAPE = re.compile(r"\\([0-7]{3})")
_O_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# What looking at the processes of others can end in: they end, or we may not.
_PASSING = (FileNotFoundError, ProcessLookupError, PermissionError, NotADirectoryError)


class _Union(NamedTuple):
    """A mounted overlayfs: a path that leads to it, and the number of its mount."""

    path: str
    mount_id: str
    is_read_only: bool


def let_go(root: Path) -> int:
    """Have the unions over this cache forget what is not in use; returns how many there are. What cannot be done is
    left undone: then removed files stay held, and are known to be."""
    data = {f"{place}/objects" for place in (os.path.abspath(root), os.path.realpath(root))}
    number = 0
    for union in _unions(data):
        number += 1
        with contextlib.suppress(OSError):
            _forget_unused(union)
    return number


def _unions(data: set[str]) -> Iterator[_Union]:
    """Each overlayfs with one of these directories among its layers, once."""
    seen: set[str] = set()
    own = _namespace("self")
    namespaces = {own: "self"}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            namespaces.setdefault(_namespace(entry), entry)
    for namespace, process in namespaces.items():
        for line in _mount_table(process) if namespace else ():
            before, _, after = line.partition(" - overlay ")
            if not after or not _has_layer(after, data):
                continue
            mount_id, _, device, _, target, *_ = before.split(" ")
            target = _unescaped(target)
            if device not in seen and (namespace == own or target == "/"):
                seen.add(device)
                path = target if namespace == own else f"/proc/{process}/root"
                yield _Union(path, mount_id, after.rpartition(" ")[2].startswith("ro"))


def _has_layer(options: str, data: set[str]) -> bool:
    text = _unescaped(options)
    return any(re.search(rf"[:=]{re.escape(place)}(?:[:,]|$)", text) for place in data)


def _forget_unused(union: _Union) -> None:
    flags = _O_PATH if not union.path.startswith("/proc/") else _O_PATH & ~os.O_NOFOLLOW
    with owned_fd(os.open(union.path, flags)) as fd:
        if _mount_id(fd) != union.mount_id:
            return
        with owned_fd(linux.fspick(fd)) as context:
            if union.is_read_only:
                linux.fsconfig_flag(context, "ro")
            linux.fsconfig_reconfigure(context)


def _mount_id(fd: int) -> str:
    text = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
    return next(line.split()[1] for line in text.splitlines() if line.startswith("mnt_id:"))


def _namespace(process: str) -> str:
    """Empty for a process that has ended, or that we may not look at."""
    try:
        return os.readlink(f"/proc/{process}/ns/mnt")
    except _PASSING:
        return ""


def _mount_table(process: str) -> list[str]:
    try:
        return Path(f"/proc/{process}/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except _PASSING:
        return []
    except OSError as error:
        if error.errno == errno.EINVAL:  # a process that is ending has no mounts
            return []
        raise


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
