"""Names of one file in an AUFS union. Any thread.

A file of a lower layer that has several names is changed under all of them: AUFS copies it up under the name that was
used, and knows that the others mean the copy (fs/aufs/plink.c). It keeps this knowledge in a directory of the writable
branch, as names <inode number in the union>.<inode number of the copy>, and forgets it with the mount. After the next
mount a name that was not opened would have the old content. So all names are copied up before, as `auplink flush` of
aufs-util does for other engines.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mica import linux
from mica.files import owned_fd

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY
_RESOLVE: Final = (
    linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS | linux.RESOLVE_NO_XDEV
)
_PSEUDO_LINKS: Final = ".wh..wh.plnk"
_NAME: Final = re.compile(r"([0-9]{1,20})\.[0-9]{1,20}")
# Programs may go on meanwhile, and mount something, or make directories that no path can name.
_PASSED_BY: Final = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG}


def bring_up_names(union: Path, branch: Path) -> None:
    """Bring all names of changed files into the writable branch. If there are such files, the whole union is searched.
    Raises OSError."""
    with _opened(branch) as fd:
        numbers = {int(found[1]) for name in _names(fd) if (found := _NAME.fullmatch(name))}
    if not numbers or os.statvfs(union).f_flag & os.ST_RDONLY:
        return
    with owned_fd(os.open(union, _DIRECTORY | os.O_CLOEXEC)) as root:
        pending = [b""]
        while pending:
            path = pending.pop()
            try:
                fd = linux.openat2(root, path or b".", _DIRECTORY, resolve=_RESOLVE)
            except OSError as error:
                if error.errno in _PASSED_BY:
                    continue
                raise
            with owned_fd(fd), os.scandir(fd) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(path + b"/" + os.fsencode(entry.name) if path else os.fsencode(entry.name))
                    else:
                        with contextlib.suppress(FileNotFoundError):
                            _bring_up(fd, entry, numbers)


def forget_pseudo_links(branch: Path) -> None:
    """Call it before a branch is mounted: names left by an earlier mount mean nothing any more. Raises OSError."""
    with _opened(branch) as fd:
        for name in _names(fd):
            if _NAME.fullmatch(name):
                os.unlink(name, dir_fd=fd)


def _bring_up(directory: int, entry: os.DirEntry[str], numbers: set[int]) -> None:
    status = entry.stat(follow_symlinks=False)
    if status.st_ino in numbers:
        # Any change of attributes copies up. Setting the owner, even to the same one, would remove set-user-ID bits.
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(entry.name, ns=times, dir_fd=directory, follow_symlinks=False)


@contextlib.contextmanager
def _opened(branch: Path) -> Iterator[int | None]:
    """AUFS's directory, if there is one. A link is not followed: a program may have made it before AUFS came."""
    try:
        fd = os.open(branch / _PSEUDO_LINKS, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in _PASSED_BY:
            raise
        yield None
        return
    with owned_fd(fd):
        yield fd


def _names(directory: int | None) -> list[str]:
    if directory is None:
        return []
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
