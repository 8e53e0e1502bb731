"""Removing items of a cache, one at a time; and the rehearsal of that."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from mica import linux
from mica.fetch.eviction import Taken, Use
from mica.fetch.held import HeldFiles
from mica.fetch.inventory import Item, Kind
from mica.files import locked_in_turn, owned_fd

_NO_LEASES = {errno.EINVAL, errno.EACCES, errno.EPERM}


class Rehearsal:
    """Says what would be done."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._text = os.fspath(root)

    def look(self, item: Item) -> Use:
        with _opened(self._text, item) as fd:
            if fd is None:
                return Use.COLD
            if _is_in_use(fd, item):
                return Use.IN_USE
            return Use.WARM if not item.is_stray and _is_in_memory(fd) else Use.COLD

    def spare(self, item: Item, *, is_open: bool) -> None:
        pass

    def take(self, item: Item) -> Taken:
        with _opened(self._text, item) as fd:
            if fd is None:
                return Taken.GONE
            return Taken.IN_USE if _is_in_use(fd, item) else Taken.FREED


class Remover(Rehearsal):
    """Does it. Only one at a time for a cache (`Sweeper.alone`)."""

    def __init__(self, root: Path, held: HeldFiles) -> None:
        super().__init__(root)
        self._held = held

    def spare(self, item: Item, *, is_open: bool) -> None:
        with _opened(self._text, item) as fd:
            if fd is not None:
                os.utime(fd)
                if not is_open:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def take(self, item: Item) -> Taken:
        """A file that is opened between the look and the removal stays readable where it is open, and is held."""
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
                if not also_in_use and _is_in_use(fd, item):
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
    """None for a file that is gone, or that another one has replaced."""
    try:
        fd = os.open(f"{root}/{item.name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    with owned_fd(fd):
        yield fd if os.fstat(fd).st_ino == item.inode else None


def _is_in_use(fd: int, item: Item) -> bool:
    """Open, or asked for since the inventory: handed over, opened by a client, named once more."""
    if os.fstat(fd).st_ctime_ns != item.changed:
        return True
    try:
        return linux.is_open_elsewhere(fd)
    except OSError as error:
        if error.errno not in _NO_LEASES:
            raise
    # Nobody knows. A whole file may go at any time, but who fills a part or mounts an image relies on its name.
    return item.kind is Kind.IMAGE or _is_part(item)


def _is_part(item: Item) -> bool:
    return any(name.startswith(f"{Kind.PART}/") for name in item.names)


def _is_in_memory(fd: int) -> bool:
    try:
        return linux.resident_pages(fd) > 0
    except OSError:
        return False
