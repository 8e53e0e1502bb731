"""The changes in the upper directory of a union: new files, removed files, and content. One thread.

The directory alone is not enough where the union has files without content (`union/overlay.py`): a file whose owner was
changed has no data in it, and a renamed directory is only a name with a redirect. So names come from the upper
directory, and everything else is read through the mounted union. Without such files both are the same directory.

Programs may go on meanwhile: files that vanish or become something else are left out.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mica import linux
from mica.engine.whiteouts import Whiteouts
from mica.errors import UserError
from mica.files import owned_fd
from mica.texts import quoted
from mica.unionsigns import REDIRECT, is_overlay_attribute

_RESOLVE = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_CHANGED = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}
"""What the kernel says of a path that is gone, or that has a file, a link or a socket in it by now."""


@contextlib.contextmanager
def without_changed() -> Iterator[None]:
    """Leave the block at what vanished or became something else since it was listed."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CHANGED:
            raise


def open_in(root: int, path: bytes, flags: int) -> int:
    """Raises UserError for a path that the kernel does not take in one piece: no archive could hold it either."""
    try:
        return linux.openat2(root, path, flags, resolve=_RESOLVE)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise UserError(f"{quoted(path)} has a longer path than an archive can hold.") from error


@dataclass(frozen=True, slots=True)
class Difference:
    """One path, without a slash in front. `status` None: it was removed. `hides_below`: an opaque directory."""

    path: bytes
    status: os.stat_result | None
    hides_below: bool = False

    @property
    def is_directory(self) -> bool:
        return self.status is not None and stat.S_ISDIR(self.status.st_mode)


class UpperTree:
    """An upper directory and the view through which it is read. Use it as a block."""

    def __init__(self, upper: Path, view: Path, whiteouts: Whiteouts) -> None:
        self._whiteouts = whiteouts
        self._is_plain = upper == view
        with contextlib.ExitStack() as stack:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            self._upper = stack.enter_context(owned_fd(os.open(upper, flags)))
            self._view = stack.enter_context(owned_fd(os.open(view, flags)))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def hides_all(self) -> bool:
        """Whether the root hides all lower layers."""
        with owned_fd(open_in(self._upper, b".", _DIRECTORY)) as fd:
            return self._whiteouts.hides_below(fd)

    def differences(self) -> Iterator[Difference]:
        """Directories before their members, siblings sorted by the bytes of their names (a whiteout by the name that it
        removes); without the root itself."""
        pending = [self._list(b"", is_whole=False)]
        while pending:
            for difference, is_whole in pending[-1]:
                yield difference
                if difference.is_directory:
                    pending.append(self._list(difference.path, is_whole=is_whole))
                    break
            else:
                pending.pop()

    def _list(self, directory: bytes, *, is_whole: bool) -> Iterator[tuple[Difference, bool]]:
        """The entries of a directory; `is_whole` if all that the view shows of it belongs to the difference."""
        root = self._view if is_whole else self._upper
        with without_changed(), owned_fd(open_in(root, directory or b".", _DIRECTORY)) as fd:
            order = bytes if is_whole else self._whiteouts.meant_name
            for name in sorted(map(os.fsencode, os.listdir(fd)), key=order):
                path = directory + b"/" + name if directory else name
                with without_changed():
                    found = self._entry(fd, name, path, is_whole=is_whole)
                    if found is not None:
                        yield found

    def _entry(self, fd: int, name: bytes, path: bytes, *, is_whole: bool) -> tuple[Difference, bool] | None:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if is_whole:
            return Difference(path, status), True
        removed = self._whiteouts.removed_name(name, status)
        if removed is not None:
            directory = path[: len(path) - len(name)]
            return Difference(directory + removed, None), False
        if self._whiteouts.is_own(name):
            return None
        hides_below, is_renamed = False, False
        if stat.S_ISDIR(status.st_mode):
            with owned_fd(os.open(name, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)) as inner:
                is_renamed = _has_attribute(inner, REDIRECT)
                hides_below = is_renamed or self._whiteouts.hides_below(inner)
        if not self._is_plain:
            status = self._status(path)
        return Difference(path, status, hides_below), is_renamed

    # Reading through the view

    def names(self, directory: bytes) -> set[bytes]:
        """The names that a directory shows."""
        with owned_fd(open_in(self._view, directory, _DIRECTORY)) as fd:
            found = set(map(os.fsencode, os.listdir(fd)))
            if not self._is_plain:
                return found
            return {name for name in found if not self._whiteouts.is_own(name) and not self._removes(fd, name)}

    def _removes(self, fd: int, name: bytes) -> bool:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        return self._whiteouts.removed_name(name, status) is not None

    def _status(self, path: bytes) -> os.stat_result:
        with owned_fd(open_in(self._view, path, os.O_PATH | os.O_NOFOLLOW)) as fd:
            return os.fstat(fd)

    def open(self, path: bytes) -> int:
        """A regular file for reading; the caller closes the descriptor."""
        return open_in(self._view, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)

    def link(self, path: bytes) -> bytes:
        with owned_fd(open_in(self._view, path, os.O_PATH | os.O_NOFOLLOW)) as fd:
            return os.readlink(b"", dir_fd=fd)

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        """All attributes except those that steer unions, and the security label, which belongs to the machine."""
        found = {}
        with owned_fd(open_in(self._view, path, os.O_PATH | os.O_NOFOLLOW)) as fd:
            # An O_PATH descriptor names the file itself. Attributes are read through its path in /proc, not from it.
            place = f"/proc/self/fd/{fd}"
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                return {}
            for text in os.listxattr(place):
                name = os.fsencode(text)
                if not is_overlay_attribute(name) and name != b"security.selinux":
                    with contextlib.suppress(OSError):
                        found[name] = os.getxattr(place, text)
        return found


def _has_attribute(fd: int, name: bytes) -> bool:
    try:
        os.getxattr(fd, name)
    except OSError:
        return False
    return True
