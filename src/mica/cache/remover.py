"""Removing items of a cache, one at a time; and the rehearsal of that."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from mica import linux
from mica.cache.eviction import Taken, Use
from mica.cache.inventory import Item, Kind
from mica.cache.removedfiles import RemovedFiles
from mica.cache.shown import ShownNames
from mica.files import locked_in_turn, owned_fd

_MEMORY_ONLY = {linux.TMPFS_MAGIC, linux.RAMFS_MAGIC}
_NO_LEASES = {errno.EINVAL, errno.EACCES, errno.EPERM}


class Rehearsal:
    """Says what would be removed."""

    def __init__(self, root: Path, shown: ShownNames) -> None:
        self._root = root
        self._text = os.fspath(root)
        self._shown = shown

    def look(self, item: Item) -> Use:
        with _opened(self._text, item) as fd:
            if fd is None:
                return Use.COLD
            if self._is_in_use(fd, item):
                return Use.IN_USE
            return Use.WARM if not item.is_stray and _is_in_memory(fd) else Use.COLD

    def spare(self, item: Item, *, is_open: bool) -> None:
        pass

    def take(self, item: Item) -> Taken:
        with _opened(self._text, item) as fd:
            if fd is None:
                return Taken.GONE
            return Taken.IN_USE if self._is_in_use(fd, item) else Taken.FREED

    def _is_in_use(self, fd: int, item: Item) -> bool:
        name = item.local_name
        return (name is not None and self._shown.has(name)) or _is_open(fd, item)


class Remover(Rehearsal):
    """Removes. Only one at a time for a cache (`Sweeper.alone`)."""

    def __init__(self, root: Path, shown: ShownNames, held: RemovedFiles) -> None:
        super().__init__(root, shown)
        self._held = held

    def spare(self, item: Item, *, is_open: bool) -> None:
        with _opened(self._text, item) as fd:
            if fd is not None:
                os.utime(fd)
                if not is_open:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def take(self, item: Item) -> Taken:
        """If a file is opened between the look and the removal, it stays readable there, and counts as held."""
        return self._remove(item, also_in_use=False)

    def discard(self, item: Item) -> Taken:
        """Remove it although it may be in use."""
        return self._remove(item, also_in_use=True)

    def _remove(self, item: Item, *, also_in_use: bool) -> Taken:
        with contextlib.ExitStack() as stack:
            if _is_part(item):
                stack.enter_context(locked_in_turn(self._root / "parts"))
            with _opened(self._text, item) as fd:
                if fd is None:
                    return Taken.GONE
                if not also_in_use and self._is_in_use(fd, item):
                    return Taken.IN_USE
                handle = self._held.handle(fd)
                for name in item.names:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(f"{self._text}/{name}")
        if self._held.is_held(handle):
            self._held.add(handle, item.size)
            return Taken.HELD
        return Taken.FREED


@contextlib.contextmanager
def _opened(root: str, item: Item) -> Iterator[int | None]:
    """A descriptor; None for a file that is gone, or that another one has replaced."""
    try:
        fd = os.open(f"{root}/{item.name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    with owned_fd(fd):
        yield fd if os.fstat(fd).st_ino == item.inode else None


def _is_open(fd: int, item: Item) -> bool:
    """Whether it is open, or was asked for since the inventory: handed over, opened by a client, named again."""
    if os.fstat(fd).st_ctime_ns != item.changed:
        return True
    try:
        return linux.is_open_elsewhere(fd)
    except OSError as error:
        if error.errno not in _NO_LEASES:
            raise
    # It cannot be known. A whole file may go at any time, but filling a part and mounting an image rely on its name.
    return item.kind is Kind.IMAGE or _is_part(item)


def _is_part(item: Item) -> bool:
    return any(name.startswith(f"{Kind.PART}/") for name in item.names)


def _is_in_memory(fd: int) -> bool:
    """Whether pages of it are in memory that could be dropped. On a tmpfs all always are, which says nothing of use."""
    try:
        return linux.filesystem_type(fd) not in _MEMORY_ONLY and linux.resident_pages(fd) > 0
    except OSError:
        return False
