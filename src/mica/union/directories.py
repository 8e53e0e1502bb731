"""The attributes of implied directories in a union, and which layers of a union show at all.

A layer that brings `/tmp/x` and no entry for `/tmp` has an implied directory `/tmp`, mode 0755 and root's. overlayfs
shows the attributes of the topmost directory, so programs that write to `/tmp` would fail. So a union gets a layer on
top with such directories alone, each like the topmost one that an archive brought. Also, overlayfs does not see that
the root of a layer is opaque: layers below such a root are left out here.

Reads layers that are mounted already, never following a link. Any thread.
"""

import errno
import os
import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mica.union.layerview import NO_ATTRIBUTE, is_opaque, parents
from mica.unionsigns import OVERLAY_PREFIX

_USER_PREFIX: Final = "user."
_LOOKS_MAX: Final = 100_000
"""The most looks into layers for one image: a hostile one could need five hundred times half a million."""


class Tree(NamedTuple):
    """A layer as it is mounted, and its implied directories."""

    path: Path
    implied: Collection[bytes] = ()


class Directory(NamedTuple):
    """`path` begins with a slash; `like` is the directory whose attributes it gets."""

    path: bytes
    like: bytes

    def attributes(self) -> "Attributes":
        return read_attributes(self.like)


class Attributes(NamedTuple):
    """`mode` includes the type."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Mapping[str, bytes]


def visible_trees(trees: Sequence[Tree]) -> Sequence[Tree]:
    """Layers, top first, down to the first whose root hides all that is below it. Raises OSError."""
    for number, tree in enumerate(trees):
        if is_opaque(os.fsencode(tree.path)):
            return trees[: number + 1]
    return trees


def plan_directories(trees: Sequence[Tree]) -> list[Directory]:
    """The directories for a layer on top of these, which are top first. Parents first; none if all is right already.

    Raises OSError.
    """
    found: dict[bytes, bytes] = {}
    looks = _Looks([(os.fsencode(tree.path), frozenset(tree.implied)) for tree in trees])
    for path in dict.fromkeys(path for tree in trees for path in tree.implied):
        shown, right = looks.find(path)
        if right is not None and shown is not None and _differ(shown, right):
            found[path] = right
    for path in list(found):
        for parent in parents(path):
            if parent not in found:
                _, right = looks.find(parent)
                assert right is not None, "a directory that shows is in one that shows"
                found[parent] = right
    return [Directory(path, found[path]) for path in sorted(found, key=lambda path: path.split(b"/"))]


def make_directories(target: Path, directories: Sequence[Directory]) -> None:
    """Make them below an empty directory, which becomes like the root. Raises OSError."""
    root = os.fsencode(target)
    for directory in directories:
        if directory.path != b"/":
            os.mkdir(root + directory.path, 0o700)
    liken_directories(target, directories)
    for directory in reversed(directories):
        mtime_ns = directory.attributes().mtime_ns
        os.utime(root + directory.path, ns=(mtime_ns, mtime_ns))


def liken_directories(target: Path, directories: Sequence[Directory]) -> None:
    """Give existing directories their planned attributes, except times. Raises OSError."""
    for directory in directories:
        place = os.fsencode(target) + directory.path
        if directory.like != place:
            give_attributes(place, directory.attributes())


def give_attributes(place: bytes, attributes: Attributes) -> None:
    """All but the time, to a file or link that is there. Raises OSError."""
    os.chown(place, attributes.uid, attributes.gid, follow_symlinks=False)
    if not stat.S_ISLNK(attributes.mode):
        os.chmod(place, stat.S_IMODE(attributes.mode))
    for name, value in attributes.xattrs.items():
        _set_attribute(place, name, value)


def _set_attribute(place: bytes, name: str, value: bytes) -> None:
    """Raises OSError."""
    try:
        os.setxattr(place, name, value, follow_symlinks=False)
    except OSError as error:
        # tmpfs has user attributes since Linux 6.6; the kernel acts on none of them.
        if error.errno != errno.EOPNOTSUPP or not name.startswith(_USER_PREFIX):
            raise


class _Looks:
    """Looks into layers, each given by its path and what it implies, as long as there are not too many."""

    def __init__(self, trees: Sequence[tuple[bytes, Collection[bytes]]]) -> None:
        self._trees = trees
        self._left = _LOOKS_MAX

    def find(self, path: bytes) -> tuple[bytes | None, bytes | None]:
        """The directory whose attributes overlayfs shows, and the one whose attributes it should; None if it shows
        none."""
        shown = None
        for tree, implied in self._trees:
            self._left -= 1
            if self._left < 0 and path != b"/":
                break
            place, is_end = _look(tree, path)
            if place is not None:
                shown = shown or place
                if path not in implied:
                    return shown, place
            if is_end:
                break
        return shown, shown


def _look(tree: bytes, path: bytes) -> tuple[bytes | None, bool]:
    """The directory of a layer, if it has one there, and whether it hides the directory that lower layers have there.
    An opaque directory hides the members of the lower one, not its attributes: unpacking the layer would empty it."""
    place, is_end = tree, False
    for name in path.split(b"/")[1:] if path != b"/" else ():
        is_end = is_end or (place != tree and is_opaque(place))
        place += b"/" + name
        try:
            mode = os.lstat(place).st_mode
        except FileNotFoundError:
            return None, is_end
        if not stat.S_ISDIR(mode):
            return None, True
    return place, is_end


def _differ(shown: bytes, right: bytes) -> bool:
    """Whether they differ in more than their times: the times of an implied directory do not matter."""
    if shown == right:
        return False
    first, second = read_attributes(shown), read_attributes(right)
    return first._replace(mtime_ns=0) != second._replace(mtime_ns=0)


def read_attributes(place: bytes) -> Attributes:
    """The attributes of a file (of a link itself, too), without those that steer overlayfs. Raises OSError."""
    status = os.lstat(place)
    names = [name for name in _names(place) if not os.fsencode(name).startswith(OVERLAY_PREFIX)]
    xattrs = {name: os.getxattr(place, name, follow_symlinks=False) for name in sorted(names)}
    return Attributes(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, xattrs)


def _names(place: bytes) -> list[str]:
    try:
        return os.listxattr(place, follow_symlinks=False)
    except OSError as error:
        if error.errno in NO_ATTRIBUTE:
            return []
        raise
