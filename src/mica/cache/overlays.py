"""Finds the unions over a cache, wherever they are mounted, and makes them let go of files that no program has open.

overlayfs remembers files that were once opened, each with the inode of its content in the cache; removing such a file
frees nothing until overlayfs forgets it. To reconfigure a union makes it forget files that are not open, even if
nothing changes (`shrink_dcache_sb` in reconfigure_super(), fs/super.c).

Reads the mount tables of all mount namespaces. In other namespaces, which may be containers', no path is followed: only
a union that is a process's root is reached, and the number of the mount shows whether it is the one in the table.
"""

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from mica import linux
from mica.cache.shown import ANY_DIRECTORY
from mica.files import owned_fd
from mica.mountinfo import Mount, mount_namespaces, mount_number, read_mounts_of, unescaped

_O_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class _Union(NamedTuple):
    """A mounted overlayfs: a path that leads to it, and its mount."""

    path: bytes
    mount: Mount

    @property
    def is_read_only(self) -> bool:
        return self.mount.super_options.split(b",")[0] == b"ro"


def let_go(root: Path, objects: Collection[bytes] = ()) -> int:
    """Make the unions over this cache forget files that are not in use; returns how many unions there are. Errors are
    ignored: then removed files stay held, and the cache still counts them.

    objects: where object filesystems over the cache are mounted. A union without data-only layers has a directory of
    one as its lowest layer, and keeps what it remembers of it known to the kernel.
    """
    data = {os.fsencode(place) + b"/objects" for place in (os.path.abspath(root), os.path.realpath(root))}
    data |= {place + b"/" + ANY_DIRECTORY.encode("ascii") for place in objects}
    number = 0
    for union in _unions(data):
        number += 1
        with contextlib.suppress(OSError):
            _forget_unused(union)
    return number


def _unions(data: set[bytes]) -> Iterator[_Union]:
    """Each overlayfs with one of these directories among its layers, once."""
    seen: set[tuple[int, int]] = set()
    for process in mount_namespaces().values():
        is_own = process == "self"
        for mount in read_mounts_of(process):
            if mount.fstype != b"overlay" or mount.device in seen or not _has_layer(mount.super_options, data):
                continue
            if is_own or mount.target == b"/":
                seen.add(mount.device)
                yield _Union(mount.target if is_own else b"/proc/%s/root" % process.encode(), mount)


def _has_layer(options: bytes, data: set[bytes]) -> bool:
    text = unescaped(options)
    return any(re.search(rb"[:=]%s(?:[:,]|$)" % re.escape(place), text) for place in data)


def _forget_unused(union: _Union) -> None:
    flags = _O_PATH if not union.path.startswith(b"/proc/") else _O_PATH & ~os.O_NOFOLLOW
    with owned_fd(os.open(union.path, flags)) as fd:
        if mount_number(fd) != union.mount.number:
            return
        with owned_fd(linux.fspick(fd)) as context:
            if union.is_read_only:
                linux.fsconfig_flag(context, "ro")
            linux.fsconfig_reconfigure(context)
