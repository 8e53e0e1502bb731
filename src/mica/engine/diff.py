"""The difference that an upper directory makes, as a layer archive, as a list of changes, as a size. One thread.

The archive is like those of engines: members by path, times in whole seconds, without the root directory and sockets.
"""

import contextlib
import enum
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mica.engine.tarwriter import END, format_member, padding
from mica.engine.uppertree import Difference, UpperTree, open_in, without_changed
from mica.files import owned_fd
from mica.tarstream import Kind, TarEntry
from mica.unionsigns import OPAQUE_MARKER, WHITEOUT_PREFIX

_PIECE_BYTES = 1 << 20
_KINDS = {
    stat.S_IFREG: Kind.REGULAR,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}


class ChangeKind(enum.IntEnum):
    """Numbers of Docker's pkg/archive."""

    MODIFIED = 0
    ADDED = 1
    DELETED = 2


class Change(NamedTuple):
    path: bytes
    kind: ChangeKind


def write_diff(tree: UpperTree) -> Iterator[bytes]:
    """The archive, in pieces of at most about a megabyte. Raises UserError for a path that no archive can hold."""
    links: dict[tuple[int, int], bytes] = {}
    if tree.hides_all:
        yield format_member(TarEntry(OPAQUE_MARKER, mode=0o600))
    for difference in tree.differences():
        with without_changed():
            yield from _members(tree, difference, links)
    yield END


def _members(tree: UpperTree, difference: Difference, links: dict[tuple[int, int], bytes]) -> Iterator[bytes]:
    path, status = difference.path, difference.status
    if status is None:
        directory, slash, name = path.rpartition(b"/")
        yield format_member(TarEntry(directory + slash + WHITEOUT_PREFIX + name, mode=0o600))
        return
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return
    entry = TarEntry(
        path, kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, mtime_s=status.st_mtime_ns // 10**9
    )
    if kind is not Kind.DIRECTORY and status.st_nlink > 1:
        first = links.setdefault((status.st_dev, status.st_ino), path)
        if first != path:
            entry.kind, entry.link = Kind.HARDLINK, first
            yield format_member(entry)
            return
    entry.xattrs = tree.xattrs(path)
    if kind is Kind.REGULAR:
        yield from _file(tree, entry)
        return
    if kind is Kind.SYMLINK:
        entry.link = tree.link(path)
    elif kind in {Kind.CHARACTER, Kind.BLOCK}:
        entry.device_major, entry.device_minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    yield format_member(entry)
    if difference.hides_below:
        yield format_member(TarEntry(path + b"/" + OPAQUE_MARKER, mode=0o600))


def _file(tree: UpperTree, entry: TarEntry) -> Iterator[bytes]:
    """A file that grows is cut, one that shrinks gets zeros: the header is out already."""
    with owned_fd(tree.open(entry.name)) as fd:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return
        left = entry.size = status.st_size
        header = format_member(entry)
        # One piece for a small file: it costs a call to send each.
        while left:
            piece = os.read(fd, min(left, _PIECE_BYTES)) or bytes(min(left, _PIECE_BYTES))
            left -= len(piece)
            yield header + piece
            header = b""
        yield header + padding(entry.size)


def list_changes(tree: UpperTree, below: Path | None) -> list[Change]:
    """As `docker diff` shows them; `below` is the parent's view, None if there is none.

    A directory counts as modified if it differs from the parent's or something in it was changed.
    """
    if below is None:
        return _list_changes(tree, _Parent(None))
    with owned_fd(os.open(below, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        return _list_changes(tree, _Parent(root))


def _list_changes(tree: UpperTree, parent: "_Parent") -> list[Change]:
    changes: dict[bytes, ChangeKind] = {}
    hidden: set[bytes] = set()
    if tree.hides_all:
        hidden.add(b"")
        for name in parent.names(b".") - tree.names(b"."):
            _note(changes, name, ChangeKind.DELETED)
    for difference in tree.differences():
        path = difference.path
        kind = _kind_of(difference, parent)
        if kind is not None:
            _note(changes, path, kind)
        if difference.hides_below or (path.rpartition(b"/")[0] in hidden and difference.is_directory):
            hidden.add(path)
            with without_changed():
                for name in parent.names(path) - tree.names(path):
                    _note(changes, path + b"/" + name, ChangeKind.DELETED)
    return [Change(path, changes[path]) for path in sorted(changes)]


def _note(changes: dict[bytes, ChangeKind], path: bytes, kind: ChangeKind) -> None:
    changes[path] = kind
    if kind is not ChangeKind.MODIFIED:
        for parent in _parents(path):
            changes.setdefault(parent, ChangeKind.MODIFIED)


class _Parent:
    """The parent's view, by a descriptor; without one it is empty. No link is followed: those of an image lead to this
    machine's own files here."""

    def __init__(self, root: int | None) -> None:
        self._root = root

    def status(self, path: bytes) -> os.stat_result | None:
        """None if there is nothing."""
        with self._open(path, os.O_PATH | os.O_NOFOLLOW) as fd:
            return None if fd is None else os.fstat(fd)

    def names(self, directory: bytes) -> set[bytes]:
        with self._open(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
            return set() if fd is None else set(map(os.fsencode, os.listdir(fd)))

    @contextlib.contextmanager
    def _open(self, path: bytes, flags: int) -> Iterator[int | None]:
        fd = None
        if self._root is not None:
            with without_changed():
                fd = open_in(self._root, path, flags)
        try:
            yield fd
        finally:
            if fd is not None:
                os.close(fd)


def _kind_of(difference: Difference, parent: _Parent) -> ChangeKind | None:
    if difference.status is None:
        return ChangeKind.DELETED
    before = parent.status(difference.path)
    if before is None:
        return ChangeKind.ADDED
    now = difference.status
    if stat.S_ISDIR(before.st_mode) and stat.S_ISDIR(now.st_mode) and not difference.hides_below:
        attributes = ("st_mode", "st_uid", "st_gid", "st_mtime_ns")
        if all(getattr(before, name) == getattr(now, name) for name in attributes):
            return None
    return ChangeKind.MODIFIED


def _parents(path: bytes) -> Iterator[bytes]:
    while b"/" in path:
        path = path[: path.rindex(b"/")]
        yield path


def measure(differences: Iterable[Difference]) -> int:
    """Bytes of content; a file of several names counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for difference in differences:
        status = difference.status
        if status is None or not stat.S_ISREG(status.st_mode):
            continue
        if status.st_nlink > 1:
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
        total += status.st_size
    return total
