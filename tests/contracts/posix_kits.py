"""The files that rows of the POSIX table work on, and the places in a union where such files can be.

A *kit* is one row's directory: it holds the targets that the row names and nothing else. The same kit is made in six
places (`Place`), which differ in the layers that its files come from; half of it is planted in layer directories before
the image is published, the rest is made through the mount. All times are `PAST_NS`, so that what a row changed shows.
"""

import enum
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.publishedimages import OPAQUE
from tests.support.trees import format_acl

PAST_NS: Final = 1_600_000_000_123_456_789
USER, GROUPS = 1000, (1000, 3000)
ABSENT: Final = frozenset({"none", "new", "new2"})
BIG: Final = random.Random(20).randbytes(100_000)
_HIDDEN_TEXT = "This is hidden by a layer above.\n"


class Place(enum.Enum):
    """Where the files of a kit come from."""

    UPPER = "upper"
    LOWER = "lower"
    MERGED = "merged"
    """Directories are in two layers, other files hide older ones, and what is absent is hidden by a whiteout."""
    OPAQUE = "opaque"
    """The directory is opaque; everything in it hides something, and so does what is absent."""
    COPIED = "copied"
    """From a lower layer, and each file's mode was set to what it is: copied up, or its attributes are."""
    REPLACED = "replaced"
    """From a lower layer, removed and made again: whiteouts and opaque directories of the upper."""


def _file(path: Path, text: str | bytes = "", *, mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> None:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    os.chown(path, *owner)
    path.chmod(mode)


def _directory(path: Path, *, mode: int = 0o755, owner: tuple[int, int] = (0, 0)) -> None:
    path.mkdir()
    os.chown(path, *owner)
    path.chmod(mode)


def _full(path: Path) -> None:
    _directory(path)
    _file(path / "a", "a in full\n")
    _directory(path / "sub")
    _file(path / "sub/b", "b in sub\n")


def _with_xattrs(path: Path) -> None:
    _file(path, "with attributes\n")
    for name, value in (("user.a", b"1"), ("user.empty", b""), ("trusted.a", b"t")):
        os.setxattr(path, name, value)


def _with_acl(path: Path) -> None:
    """The user may read it, who by the mode may not."""
    _file(path, "with an access list\n", mode=0o640, owner=(7, 8))
    os.setxattr(path, "system.posix_acl_access", format_acl(0o640, USER))


def _copy_of_sleep(path: Path) -> None:
    program = shutil.which("sleep")
    assert program is not None
    _file(path, Path(program).read_bytes(), mode=0o755)


def _sticky(path: Path) -> None:
    _directory(path, mode=0o1777)
    for name, owner in (("own", USER), ("theirs", USER + 1)):
        _file(path / name, name, owner=(owner, owner))
        _directory(path / f"{name}d", owner=(owner, owner))


def _closed(mode: int, owner: tuple[int, int] = (0, 0)) -> Callable[[Path], None]:
    """A directory with a file `x` in it."""

    def make(path: Path) -> None:
        _directory(path, mode=mode, owner=owner)
        _file(path / "x", "x\n", owner=owner)

    return make


def _own_directory(path: Path) -> None:
    _closed(0o755, (USER, USER))(path)
    _directory(path / "sub", owner=(USER, USER))


TARGETS: Final[dict[str, Callable[[Path], None]]] = {
    "f": lambda path: _file(path, "text of f\n"),
    "g": lambda path: _file(path, "text of g\n", mode=0o600, owner=(7, 8)),
    "empty": _file,
    "big": lambda path: _file(path, BIG),
    "suid": lambda path: _file(path, "suid\n", mode=0o6744, owner=(1001, 1001)),
    "suidww": lambda path: _file(path, "suid\n", mode=0o6777),
    "ww": lambda path: _file(path, "anybody's\n", mode=0o666),
    "mine": lambda path: _file(path, "mine\n", owner=(USER, USER)),
    "xa": _with_xattrs,
    "acl": _with_acl,
    "exe": _copy_of_sleep,
    "script": lambda path: _file(path, "#!/bin/sh\nexit 7\n", mode=0o755),
    "h1": lambda path: _file(path, "two names\n"),
    "h2": lambda path: path.hardlink_to(path.with_name("h1")),
    "d": _directory,
    "full": _full,
    "sgid": lambda path: _directory(path, mode=0o2775, owner=(0, 5)),
    "open": lambda path: _directory(path, mode=0o777),
    "sticky": _sticky,
    "locked": _closed(0o700),
    "shut": _closed(0o644),
    "readonly": _closed(0o555, (USER, USER)),
    "mined": _own_directory,
    "l": lambda path: path.symlink_to("f"),
    "ld": lambda path: path.symlink_to("d"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to("loop"),
    "far": lambda path: path.symlink_to("t" * 4000),
    "fifo": lambda path: os.mkfifo(path, 0o644),
    "null": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
}
_COMPANIONS: Final = {"l": ["f"], "ld": ["d"], "h1": ["h2"], "h2": ["h1"]}


class Names(NamedTuple):
    """What a row names: files that are to be in its kit, and files that are not."""

    targets: list[str]
    absent: list[str]


def names_in(words: Iterable[str]) -> Names:
    """In the order of `TARGETS`, so that links come after what they lead to."""
    found = {name for word in words for name in word.split("/")}
    wanted = found | {name for target in found for name in _COMPANIONS.get(target, ())}
    return Names([name for name in TARGETS if name in wanted], sorted(found & ABSENT))


def make_kit(kit: Path, names: Sequence[str]) -> None:
    """A kit as a row is to see it."""
    kit.mkdir(parents=True)
    _fill(kit, names)
    _age(kit)


def _fill(kit: Path, names: Sequence[str]) -> None:
    for name in names:
        TARGETS[name](kit / name)


def _age(tree: Path) -> None:
    for directory, names, files in os.walk(tree, topdown=False):
        for path in (*(os.path.join(directory, name) for name in (*names, *files)), directory):
            os.utime(path, ns=(PAST_NS, PAST_NS), follow_symlinks=False)


def plant(layers: Sequence[Path], place: Place, kit: str, names: Names) -> None:
    """Put what a place needs into layer directories, bottom first, at the relative path `kit`."""
    bottom, middle, top = (layer / kit for layer in layers)
    if place in {Place.LOWER, Place.COPIED, Place.REPLACED}:
        make_kit(bottom, names.targets)
    elif place is Place.MERGED:
        _plant_merged(bottom, middle, top, names)
    elif place is Place.OPAQUE:
        make_kit(top, names.targets)
        os.setxattr(top, OPAQUE, b"y")
        bottom.mkdir(parents=True)
        for name in (*names.targets, *names.absent):
            _file(bottom / name, _HIDDEN_TEXT)
        _age(bottom)


def _plant_merged(bottom: Path, middle: Path, top: Path, names: Names) -> None:
    for kit in (bottom, middle, top):
        kit.mkdir(parents=True)
    _fill(top, names.targets)
    for name in names.targets:
        _share(top / name, bottom / name)
    for name in names.absent:
        _directory(bottom / name)
        _file(bottom / name / "hidden", _HIDDEN_TEXT)
        os.mknod(middle / name, stat.S_IFCHR, os.makedev(0, 0))
    for kit in (bottom, middle, top):
        _age(kit)


def _share(above: Path, below: Path) -> None:
    """Spread a directory over two layers, every other file in it to the one below; give others something to hide."""
    status = above.lstat()
    if not stat.S_ISDIR(status.st_mode):
        _file(below, _HIDDEN_TEXT, mode=0o600)
        return
    _directory(below, mode=stat.S_IMODE(status.st_mode), owner=(status.st_uid, status.st_gid))
    for number, child in enumerate(sorted(above.iterdir())):
        if number % 2 and not child.is_dir():
            child.rename(below / child.name)
        else:
            _share(child, below / child.name)


def prepare(kit: Path, place: Place, names: Sequence[str]) -> None:
    """What is left to do through the mount."""
    if place is Place.UPPER:
        make_kit(kit, names)
    elif place is Place.COPIED:
        for directory, inner, files in os.walk(kit):
            for name in (*inner, *files):
                _touch(Path(directory, name))
    elif place is Place.REPLACED:
        for name in names:
            path = kit / name
            if stat.S_ISDIR(path.lstat().st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()
        _fill(kit, names)
        _age(kit)


def _touch(path: Path) -> None:
    """Set what is set already. Not by chown(2), which takes set-user-ID away."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)
    else:
        path.chmod(stat.S_IMODE(status.st_mode))
