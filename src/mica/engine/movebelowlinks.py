"""Members of an unpacked layer below a symbolic link of a lower layer, moved to where the link leads.

`union/belowlinks.py` lays sheets for such members. An engine's layer belongs to one chain, so here they are moved once,
in the layer itself, before it gets its name and others see it. One thread.
"""

import contextlib
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from mica.engine.whiteouts import Whiteouts
from mica.files import owned_fd, remove_tree
from mica.union.belowlinks import STEPS_MAX, plan_sheets
from mica.union.directories import Directory, liken_directories
from mica.union.layerview import File, Steps, TreeLevel, Union


def move_below_links(layer: Path, implied: Collection[bytes], below: Path, whiteouts: Whiteouts) -> frozenset[bytes]:
    """Returns the implied directories after the move. Raises OSError, and UserError for a link that does not lead to a
    directory."""
    steps = Steps(STEPS_MAX)
    root = os.fsencode(layer)
    over, under = plan_sheets(TreeLevel(root, steps), implied, Union([TreeLevel(os.fsencode(below), steps)]), steps)
    links = {path for path, file in over.files.items() if file.is_link and not _is_in(file.like, root)}
    made = frozenset(
        path for path in (*over.implied, *under.implied) if path in implied or not os.path.lexists(root + path)
    )
    with _keeping_times(root, [*over.files, *under.files]):
        for path in over.paths:
            if path not in links:
                _put(root + path, over.files[path], whiteouts)
        for path in under.paths:
            _make_directory(root + path)
            if under.files[path].is_opaque:
                with owned_fd(os.open(root + path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
                    whiteouts.hide_below(fd)
        brought = [path for path, file in over.files.items() if file.is_directory and path not in over.implied]
        liken_directories(layer, [Directory(path, over.files[path].like) for path in brought])
        for path in brought:
            mtime_ns = os.lstat(over.files[path].like).st_mtime_ns
            os.utime(root + path, ns=(mtime_ns, mtime_ns))
        for path in links:
            remove_tree(Path(os.fsdecode(root + path)))
    return frozenset(implied) | made


def _put(place: bytes, file: File, whiteouts: Whiteouts) -> None:
    if file.is_directory:
        if not os.path.lexists(place) or not stat.S_ISDIR(os.lstat(place).st_mode):
            with _parent(place) as (directory, name):
                whiteouts.restore(directory, name)
            os.mkdir(place, 0o755)
        return
    with _parent(place) as (directory, name):
        if file.is_whiteout:
            whiteouts.remove(directory, name)
            return
        removed = whiteouts.removed_name(name, os.lstat(file.like))
        if removed is None:
            whiteouts.restore(directory, name)
            os.rename(file.like, place)
        elif not os.path.lexists(os.path.join(os.path.dirname(place), removed)):
            os.rename(file.like, place)


def _make_directory(place: bytes) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(place, 0o755)


@contextlib.contextmanager
def _parent(place: bytes) -> Iterator[tuple[int, bytes]]:
    directory, name = os.path.split(place)
    with owned_fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
        yield fd, name


@contextlib.contextmanager
def _keeping_times(root: bytes, paths: Collection[bytes]) -> Iterator[None]:
    """Directories that exist before the block keep their times."""
    before = {path: os.lstat(root + path) for path in paths if os.path.lexists(root + path)}
    yield
    for path, status in before.items():
        if stat.S_ISDIR(status.st_mode) and os.path.lexists(root + path):
            os.utime(root + path, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _is_in(place: bytes, root: bytes) -> bool:
    return place.startswith(root + b"/")
