"""Layer trees with the signs of another kind of union, made readable by sheets: small layers laid between them.

Trees of a repository are as their publisher made them: mica's have the signs of overlayfs, those of the stock tools the
signs of AUFS, as archives have. A sheet on top of a tree repeats the tree's whiteouts with this union's signs and hides
the signs themselves. An opaque directory is repeated in the sheet below the tree, so that the tree's own entries still
show.

    sheet 0     d/.wh.x              x was removed by tree 0 with a device, which goes too
    tree 0      d/x  o/new           o is opaque by an attribute
    sheet 1     o/.wh..wh..opq
    tree 1      d/x  o/old

A directory of a sheet has the attributes of the one that it lies on, which it would otherwise hide (`write_sheet`).

<place>/<key>/plan.json    the plan: finding it takes a walk through all trees without layer facts
<place>/<key>/<number>/    a sheet, by the number of the tree that it lies on

Trees are named by the digests of their layers and do not change. Any thread; two must not be at one place.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mica.engine.whiteouts import AufsWhiteouts, OverlayWhiteouts, Whiteouts
from mica.errors import UserError
from mica.files import mapped_os_errors, owned_fd, remove_tree, replace_file
from mica.layers.trees import read_implied
from mica.thin.layout import TREE
from mica.union.belowlinks import has_members_below_links
from mica.union.directories import Tree
from mica.unionsigns import AUFS_PREFIX, OPAQUE_MARKER, WHITEOUT_PREFIX, is_overlay_attribute

_PLAN = "plan.json"
_FACTS_MAX_BYTES = 8 << 20
# A tree with more is refused. An ordinary image has some hundred signs and some ten thousand directories.
_SIGNS_MAX = 1 << 17
_SIGN_BYTES_MAX = 16 << 20
_DIRECTORIES_MAX = 1 << 20
_PATH_MAX_BYTES = 4096


class TreeSigns(NamedTuple):
    """Paths, without a slash in front, that a tree takes away by signs of the other kind, and directories that hide
    what is below; the root is empty."""

    removed: frozenset[bytes] = frozenset()
    opaque: frozenset[bytes] = frozenset()


class Sheet(NamedTuple):
    """The paths that a sheet takes away, and the directories that it makes opaque."""

    removed: frozenset[bytes]
    opaque: frozenset[bytes]

    def __bool__(self) -> bool:
        return bool(self.removed or self.opaque)


def plan_sheets(signs: Sequence[TreeSigns]) -> list[Sheet]:
    """The sheet on top of each tree, top first, down to the first tree whose root hides the others. Pure."""
    sheets = []
    opaque: frozenset[bytes] = frozenset()
    for found in signs:
        removed = frozenset(path for path in found.removed if not _is_hidden(path, opaque))
        # A directory that is removed, and is needed for a path below it, stays and is opaque.
        above = removed & {parent for path in opaque for parent in _parents(path)}
        sheets.append(Sheet(removed - above, opaque | above))
        if b"" in found.opaque:
            break
        opaque = found.opaque
    return sheets


def _is_hidden(path: bytes, opaque: frozenset[bytes]) -> bool:
    return path in opaque or any(parent in opaque for parent in _parents(path))


def _parents(path: bytes) -> Iterator[bytes]:
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        yield path


def readable_layers(trees: Sequence[Path], whiteouts: Whiteouts, place: Path) -> tuple[Path, ...]:
    """The trees, top first, with the sheets that this union needs between them, made at `place` if they are missing. Of
    a tree that is there twice only the topmost counts: the other would change nothing.

    Raises UserError for trees that no sheet can make readable, and if a layer has members below a link of a lower one:
    sheets for those have redirects instead of content, which unions of ordinary layers do not follow.
    """
    trees = tuple(dict.fromkeys(trees))
    text = json.dumps([type(whiteouts).__name__, *map(str, trees)])
    directory = place / hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
    with mapped_os_errors(f"make layers readable in {directory}"):
        numbers, count = _known(directory) or _make(directory, trees, whiteouts)
    layers = []
    for number, tree in enumerate(trees[:count]):
        layers += [directory / str(number)] if number in numbers else []
        layers.append(tree)
    return tuple(layers)


def _known(directory: Path) -> tuple[frozenset[int], int] | None:
    try:
        values = json.loads((directory / _PLAN).read_bytes())
    except FileNotFoundError:
        return None
    return frozenset(map(int, values["sheets"])), int(values["trees"])


def _make(directory: Path, trees: Sequence[Path], whiteouts: Whiteouts) -> tuple[frozenset[int], int]:
    if has_members_below_links([Tree(tree, read_implied(tree)) for tree in trees]):
        raise UserError(
            "A layer of this image has files below a symbolic link of a lower layer, and trees of another client show"
            " a directory in place of the link.",
            hint="Use layers of the node: mica.method=internal.",
        )
    sheets = plan_sheets([find_signs(tree, whiteouts) for tree in trees])
    if directory.exists():
        # A directory without a plan was left by a crash.
        remove_tree(directory)
    directory.mkdir(mode=0o700, parents=True)
    numbers = [number for number, sheet in enumerate(sheets) if sheet]
    for number in numbers:
        write_sheet(directory / str(number), sheets[number], trees[number], whiteouts)
    document = json.dumps({"sheets": numbers, "trees": len(sheets)})
    replace_file(directory / _PLAN, document.encode("ascii"), mode=0o600, durable=False)
    return frozenset(numbers), len(sheets)


# Signs of a tree


def find_signs(tree: Path, whiteouts: Whiteouts) -> TreeSigns:
    """The signs of a tree that the union of these whiteouts does not read; for its root, signs of both kinds.

    Raises UserError for signs that the union's own kind cannot express, and for too many.
    """
    with owned_fd(os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        hides_all = any(kind.hides_below(fd) for kind in (OverlayWhiteouts(), AufsWhiteouts()))
    root = frozenset({b""} if hides_all else ())
    facts = _facts(tree)
    reads_devices = whiteouts.signs_are_devices
    if facts is not None and (reads_devices or _totals(facts) == (0, 0)):
        return TreeSigns(opaque=root)
    removed: set[bytes] = set()
    opaque: set[bytes] = set(root)
    size = 0
    for path, names in _walk(os.fsencode(tree), tree):
        found = _marked(path, names, tree) if reads_devices else _devices(os.fsencode(tree), path, names, tree)
        size += sum(map(len, (*found.removed, *found.opaque)))
        removed |= found.removed
        opaque |= found.opaque
        if len(removed) + len(opaque) > _SIGNS_MAX or size > _SIGN_BYTES_MAX:
            raise UserError(f"Layer {tree} removes more than {_SIGNS_MAX} names of lower layers.")
    return TreeSigns(frozenset(removed), frozenset(opaque))


_Names = dict[bytes, "os.DirEntry[bytes]"]


def _walk(root: bytes, tree: Path) -> Iterator[tuple[bytes, _Names]]:
    """Every directory with its entries; links are not followed."""
    pending = [b""]
    seen = 0
    while pending:
        path = pending.pop()
        seen += 1
        if seen > _DIRECTORIES_MAX or len(path) > _PATH_MAX_BYTES:
            raise UserError(f"Layer {tree} has more or deeper directories than a layer can have.")
        with os.scandir(_below(root, path)) as entries:
            names = {entry.name: entry for entry in entries}
        yield path, names
        pending += [_below(path, name) for name, entry in names.items() if entry.is_dir(follow_symlinks=False)]


def _devices(root: bytes, path: bytes, names: _Names, tree: Path) -> TreeSigns:
    """Overlayfs's signs in a directory, for AUFS."""
    signs, removed = OverlayWhiteouts(), set()
    for name, entry in names.items():
        if name.startswith(WHITEOUT_PREFIX) and name[len(WHITEOUT_PREFIX) :] in names:
            raise UserError(
                f"AUFS cannot use layer {tree}: it has both {_text(path, name)} and the file that it removes.",
                hint="Use overlayfs.",
            )
        is_plain = entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False) or entry.is_symlink()
        if not is_plain and signs.removed_name(name, entry.stat(follow_symlinks=False)) is not None:
            removed.add(_below(path, name))
    with owned_fd(os.open(_below(root, path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
        opaque = frozenset({path} if path and signs.hides_below(fd) else ())
    return TreeSigns(frozenset(removed), opaque)


def _marked(path: bytes, names: _Names, tree: Path) -> TreeSigns:
    """AUFS's signs in a directory, for overlayfs. An entry beats the whiteout of its name, as in archives."""
    removed, opaque = set(), set()
    for marker in (name for name in names if name.startswith(WHITEOUT_PREFIX)):
        if names[marker].is_dir(follow_symlinks=False) and not marker.startswith(AUFS_PREFIX):
            raise UserError(f"Layer {tree} has a directory {_text(path, marker)}, which is the name of a whiteout.")
        removed.add(_below(path, marker))
        name = marker[len(WHITEOUT_PREFIX) :]
        if marker == OPAQUE_MARKER:
            opaque |= {path} if path else set()
        elif not marker.startswith(AUFS_PREFIX) and name not in {b"", b".", b".."}:
            entry = names.get(name)
            if entry is None:
                removed.add(_below(path, name))
            elif entry.is_dir(follow_symlinks=False):
                opaque.add(_below(path, name))
    return TreeSigns(frozenset(removed), frozenset(opaque))


def _below(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path and name else path or name


def _text(path: bytes, name: bytes) -> str:
    return repr(os.fsdecode(_below(path, name)))


def _facts(tree: Path) -> dict[str, Any] | None:
    """The layer facts of a tree that mica made, which stand beside it; None for others."""
    if tree.name != os.fsdecode(TREE):
        return None
    path = tree.parent.with_name(f"{tree.parent.name}.json")
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            values = json.loads(file.read(_FACTS_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        # Without readable facts the tree is walked.
        return None
    return values if isinstance(values, dict) and "format_version" in values else None


def _totals(facts: dict[str, Any]) -> tuple[Any, Any] | None:
    with contextlib.suppress(KeyError, TypeError):
        return facts["whiteouts"]["total"], facts["opaque"]["total"]
    return None


# Making


def write_sheet(target: Path, sheet: Sheet, tree: Path, whiteouts: Whiteouts) -> None:
    """Write a sheet to lay on a tree. Its directories get the attributes of the tree's, so none change."""
    target.mkdir()
    root, below = os.fsencode(target), os.fsencode(tree)
    made: set[bytes] = set()
    for path in sorted(sheet.removed):
        directory, _, name = path.rpartition(b"/")
        _make_directories(root, directory, made)
        with _opened(_below(root, directory)) as fd:
            whiteouts.remove(fd, name)
    for path in sorted(sheet.opaque):
        _make_directories(root, path, made)
        with _opened(_below(root, path)) as fd:
            whiteouts.hide_below(fd)
    # Inner ones first: to make an entry in a directory changes its times.
    for path in (*sorted(made, reverse=True), b""):
        _copy_attributes(_below(below, path), _below(root, path))


def _make_directories(root: bytes, path: bytes, made: set[bytes]) -> None:
    depth = 0
    for part in path.split(b"/") if path else ():
        depth += len(part) + (1 if depth else 0)
        directory = path[:depth]
        if directory not in made:
            os.mkdir(_below(root, directory), 0o755)
            made.add(directory)


@contextlib.contextmanager
def _opened(path: bytes) -> Iterator[int]:
    with owned_fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
        yield fd


def _copy_attributes(source: bytes, target: bytes) -> None:
    """Copies nothing where the tree has no directory: the tree above the sheet has one, which counts."""
    try:
        status = os.lstat(source)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(status.st_mode):
        return
    for name in os.listxattr(source, follow_symlinks=False):
        if not is_overlay_attribute(os.fsencode(name)):
            with contextlib.suppress(OSError):
                os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
