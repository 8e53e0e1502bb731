"""What a union of layers will show at a path, by the rules of overlayfs. For code that plans a union.

A level of the union is a layer as it is mounted, or a sheet that is only planned. Only `resolve` follows links, with
the union as root. One thread.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from mica.errors import UserError
from mica.metaimage.erofs_abi import NAME_MAX
from mica.metaimage.inode import PATH_MAX
from mica.texts import quoted
from mica.unionsigns import OPAQUE, is_whiteout_device

NO_ATTRIBUTE: Final = {errno.ENODATA, errno.EOPNOTSUPP}
_NOTHING_THERE: Final = {errno.ENOENT, errno.ENAMETOOLONG}
_STEP_NAMES: Final = 4
"""How many names of a path are handled in the time of one step."""
_LINKS_MAX: Final = 40  # as the kernel on one path (MAXSYMLINKS)


class File(NamedTuple):
    """`like` is the file of a layer whose attributes and content it has, by its path on this host; a whiteout has
    none. `mode` includes the type. `is_opaque`: a directory that hides the members that lower levels have there."""

    like: bytes
    mode: int
    is_opaque: bool = False

    @property
    def is_whiteout(self) -> bool:
        return not self.like

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


WHITEOUT: Final = File(b"", stat.S_IFCHR)


class Look(NamedTuple):
    """The file of a level at a path. `is_cut`: a directory above the path hides what lower levels have there."""

    file: File | None
    is_cut: bool


class Steps:
    """How many more looks are allowed: hostile layers could need any number."""

    def __init__(self, left: int) -> None:
        self._left = left

    def take(self, count: int = 1) -> None:
        self._left -= count
        if self._left < 0:
            raise UserError("It takes too long to join the layers of this image.")


class Level(Protocol):
    """A level of a union. Raises OSError, and UserError for too many steps."""

    def look(self, path: bytes) -> Look: ...


class TreeLevel:
    """A layer at the path at which it is mounted."""

    def __init__(self, root: bytes, steps: Steps) -> None:
        self.root = root
        self._steps = steps
        self._known: dict[bytes, Look] = {}

    def look(self, path: bytes) -> Look:
        for one in _unknown(path, self._known):
            self._known[one] = self._look(one)
        return self._known[path]

    def _look(self, path: bytes) -> Look:
        if path == b"/":
            return Look(self.file(self.root), is_cut=False)
        parent, _, name = path.rpartition(b"/")
        directory, is_cut = self._known[parent or b"/"]
        if directory is None:
            return Look(None, is_cut)
        if not directory.is_directory:
            return Look(None, is_cut=True)
        return Look(self.file(directory.like + b"/" + name), is_cut or directory.is_opaque)

    def file(self, place: bytes) -> File | None:
        """A file of the layer by its path on this host."""
        self._steps.take()
        try:
            status = os.lstat(place)
        except OSError as error:
            if error.errno in _NOTHING_THERE:
                return None
            raise
        if is_whiteout_device(status):
            return WHITEOUT
        return File(place, status.st_mode, stat.S_ISDIR(status.st_mode) and is_opaque(place))


class SheetLevel:
    """A sheet by its files, directories above them included; it may still grow."""

    def __init__(self, files: Mapping[bytes, File], steps: Steps) -> None:
        self._files = files
        self._steps = steps

    def look(self, path: bytes) -> Look:
        self._steps.take(1 + path.count(b"/") // _STEP_NAMES)
        is_cut = False
        for parent in reversed([*parents(path)]):
            file = self._files.get(parent)
            if file is None or not file.is_directory:
                return Look(None, is_cut or file is not None)
            is_cut = is_cut or file.is_opaque
        return Look(self._files.get(path), is_cut)


def topmost(levels: Iterable[Level], path: bytes) -> File | None:
    """The first file at this path, top first; it may be a whiteout."""
    for level in levels:
        file, is_cut = level.look(path)
        if file is not None or is_cut:
            return file
    return None


class Union:
    """Levels, top first, that do not change any more. It can be a level itself."""

    def __init__(self, levels: Sequence[Level]) -> None:
        self._levels = levels
        self._known: dict[bytes, Look] = {}

    def look(self, path: bytes) -> Look:
        for one in _unknown(path, self._known):
            parent = one.rpartition(b"/")[0] or b"/"
            is_inside = one == b"/" or _is_directory(self._known[parent].file)
            file = topmost(self._levels, one) if is_inside else None
            self._known[one] = Look(None if file is None or file.is_whiteout else file, is_cut=False)
        return self._known[path]


def resolve(levels: Sequence[Level], path: bytes) -> bytes:
    """The directory to which a path leads inside the root, following links also at its last name; it need not exist.

    Raises UserError if the path leads to another kind of file or through too many links.
    """
    way: list[bytes] = []
    pending = path.split(b"/")[::-1]
    links = 0
    while pending:
        name = pending.pop()
        if name in {b"", b"."}:
            continue
        if name == b"..":
            del way[-1:]
            continue
        way.append(name)
        here = b"/" + b"/".join(way)
        if len(name) > NAME_MAX or len(here) > PATH_MAX:
            raise _leads_to(path, "a name that is too long")
        file = topmost(levels, here)
        if file is not None and file.is_link:
            links += 1
            if links > _LINKS_MAX:
                raise _leads_to(path, "no end of other links")
            target = os.readlink(file.like)
            way = [] if target.startswith(b"/") else way[:-1]
            pending += target.split(b"/")[::-1]
        elif file is not None and not file.is_directory and not file.is_whiteout:
            raise _leads_to(path, f"{quoted(here)}, which is no directory")
    return b"/" + b"/".join(way)


def _leads_to(path: bytes, what: str) -> UserError:
    return UserError(
        f"A layer of this image has files below {quoted(path)}, a symbolic link that leads to {what}.",
        hint="Engines that follow such a link cannot unpack the image either.",
    )


def is_opaque(place: bytes) -> bool:
    """Whether a directory hides what lower layers have there. Raises OSError."""
    try:
        return os.getxattr(place, OPAQUE, follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno in NO_ATTRIBUTE:
            return False
        raise


def _is_directory(file: File | None) -> bool:
    return file is not None and file.is_directory


def _unknown(path: bytes, known: Mapping[bytes, Look]) -> list[bytes]:
    """The path and the directories above it that are not known yet, outermost first."""
    if path in known:
        return []
    found = [path]
    for parent in parents(path):
        if parent in known:
            break
        found.append(parent)
    return found[::-1]


def parents(path: bytes) -> Iterator[bytes]:
    """The directories above a path that begins with a slash, the nearest first."""
    while path != b"/":
        path = path.rpartition(b"/")[0] or b"/"
        yield path
