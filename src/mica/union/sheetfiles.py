"""A sheet as a directory of files, for unions over mounted layer trees.

A regular file of it has a size and no data; a redirect says where its content is, in the tree below the sheet
(overlayfs.rst, "Metadata only copy up"). So nothing is copied, and a union with such a sheet has to follow redirects.
Any thread.
"""

import os
import stat
from pathlib import Path

from mica.union.belowlinks import Sheet
from mica.union.directories import give_attributes, read_attributes
from mica.union.layerview import File
from mica.unionsigns import METACOPY, OPAQUE, ORIGIN, REDIRECT


def make_sheet(target: Path, sheet: Sheet, tree: Path) -> None:
    """Put a sheet into an empty directory, to be laid on that tree. Raises OSError."""
    root, below = os.fsencode(target), os.fsencode(tree)
    names: dict[tuple[int, int], bytes] = {}
    for path in sheet.paths:
        _make(root + path, sheet.files[path], below, names)
    for path in reversed(sheet.paths):
        file = sheet.files[path]
        if not file.is_whiteout:
            mtime_ns = os.lstat(file.like).st_mtime_ns
            os.utime(root + path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


def _make(place: bytes, file: File, tree: bytes, names: dict[tuple[int, int], bytes]) -> None:
    if file.is_whiteout:
        os.mknod(place, stat.S_IFCHR, os.makedev(0, 0))
        os.setxattr(os.path.dirname(place), ORIGIN, b"")
        return
    status = os.lstat(file.like)
    if not file.is_directory and status.st_nlink > 1:
        first = names.setdefault((status.st_dev, status.st_ino), place)
        if first != place:
            os.link(first, place, follow_symlinks=False)
            return
    if file.is_directory:
        if not place.endswith(b"/"):
            os.mkdir(place, 0o700)
    elif file.is_link:
        os.symlink(os.readlink(file.like), place)
    else:
        os.mknod(place, status.st_mode, status.st_rdev)
    give_attributes(place, read_attributes(file.like))
    if stat.S_ISREG(status.st_mode) and status.st_size:
        os.truncate(place, status.st_size)
        os.setxattr(place, METACOPY, b"")
        os.setxattr(place, REDIRECT, file.like.removeprefix(tree))
    if file.is_opaque:
        os.setxattr(place, OPAQUE, b"y")
