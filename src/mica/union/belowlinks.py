"""Members of a layer below a symbolic link of a lower layer, shown where the link leads.

A layer that brings `lib/new` and no entry for `lib` has an implied directory `lib`. In a union it would replace the
link `lib -> usr/lib` of a lower layer, and all that is behind the link. The tree of a layer is the same in every image,
so only the program that mounts an image can see this. It lays a sheet on top of such a tree:

    sheet       lib -> usr/lib   usr/lib/new       the link again, and what the tree has below it
    tree 2      lib/new
    tree 1      lib -> usr/lib   usr/lib/old

and another sheet below the tree. That one hides lower layers where the link leads, so that the tree's own files there
still show.

A member that the layer brings under the target's own name replaces one that it brings through a link, since it is not
known which came last in the archive. An entry for the directory replaces the link, as when engines unpack the layer. An
image without such members costs a look at each implied directory in the layers below, and no sheet. Any thread.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mica.errors import UserError
from mica.metaimage.inode import PATH_MAX
from mica.texts import quoted
from mica.union.directories import Tree
from mica.union.layerview import WHITEOUT, File, Level, SheetLevel, Steps, TreeLevel, Union, parents, resolve, topmost

_LOOKS_MAX: Final = 200_000
"""The most looks for implied directories on links, about a second. Shallow ones come first: honest images have their
links there."""
_STEP_BYTES: Final = 16
"""How many bytes of a path are stored in the time of one step."""
STEPS_MAX: Final = 2_000_000
"""The most steps for the sheets of one image, about ten seconds."""


class Sheet(NamedTuple):
    """`files` by their paths, in any order, with all directories above them. `implied` are the directories that no
    archive brought, or that are there only for the files in them."""

    files: Mapping[bytes, File]
    implied: Collection[bytes]

    @property
    def paths(self) -> list[bytes]:
        """Of all files, each directory before what is in it."""
        return sorted(self.files, key=lambda path: path.split(b"/"))


def lay_sheets(trees: Sequence[Tree], make: Callable[[Sheet, Tree], Path]) -> list[Tree]:
    """The layers, top first, with the sheets that they need between them; `make` makes each for its tree.

    Raises OSError, what `make` raises, and UserError for a link that does not lead to a directory.
    """
    steps = Steps(STEPS_MAX)
    bare = [TreeLevel(os.fsencode(tree.path), steps) for tree in trees]
    if not _have_members_below_links(trees, bare):
        return list(trees)
    levels: list[Level] = []
    layers: list[Tree] = []
    for tree, level in zip(reversed(trees), reversed(bare), strict=True):
        over, under = plan_sheets(level, frozenset(tree.implied), Union(levels), steps)
        if not over.files:
            layers.insert(0, tree)
            levels.insert(0, level)
            continue
        below = [Tree(make(under, tree), under.implied)] if under.files else []
        layers = [Tree(make(over, tree), over.implied), tree, *below, *layers]
        levels = [SheetLevel(over.files, steps), level, SheetLevel(under.files, steps), *levels]
    return layers


def has_members_below_links(trees: Sequence[Tree]) -> bool:
    """Whether layers, top first, need sheets. Raises OSError and UserError."""
    steps = Steps(STEPS_MAX)
    return _have_members_below_links(trees, [TreeLevel(os.fsencode(tree.path), steps) for tree in trees])


def plan_sheets(tree: TreeLevel, implied: Collection[bytes], below: Level, steps: Steps) -> tuple[Sheet, Sheet]:
    """The sheets on top of a tree and below it; one that is not needed has no files. Raises OSError and UserError."""
    mover = _Mover(tree, implied, below, steps)
    mover.move()
    return Sheet(mover.over, mover.implied), Sheet(mover.under, frozenset(mover.under))


def _have_members_below_links(trees: Sequence[Tree], levels: Sequence[TreeLevel]) -> bool:
    """Whether an implied directory of a layer lies on a link of a layer below."""
    implied = [frozenset(tree.implied) for tree in trees]
    lowest = {path: number for number, tree in enumerate(trees) for path in tree.implied}
    left = _LOOKS_MAX
    alone: set[bytes] = set()
    """Directories that at most one layer has, and so also everything in them."""
    for path in sorted(lowest, key=lambda path: path.count(b"/")):
        if path.rpartition(b"/")[0] in alone:
            alone.add(path)
            continue
        is_waiting, directories = False, 0
        for number, level in enumerate(levels):
            left -= 1
            if (number > lowest[path] and not is_waiting) or left < 0:
                break
            file, is_cut = level.look(path)
            is_directory = file is not None and file.is_directory
            directories += is_directory
            if is_directory and path in implied[number]:
                is_waiting = not is_cut
            elif file is not None and file.is_link and is_waiting:
                return True
            elif file is not None or is_cut:
                is_waiting = False
        else:
            if directories <= 1:
                alone.add(path)
    return False


class _Mover:
    """Plans the sheets of one tree: the files `over` it and those `under` it."""

    def __init__(self, tree: TreeLevel, implied: Collection[bytes], below: Level, steps: Steps) -> None:
        self.over: dict[bytes, File] = {}
        self.under: dict[bytes, File] = {}
        self.implied: set[bytes] = set()
        self._tree = tree
        self._tree_implied = implied
        self._steps = steps
        self._below = below
        self._hidden: Sequence[Level] = (SheetLevel(self.under, steps), below)
        self._own: Sequence[Level] = (SheetLevel(self.over, steps), tree)
        self._all: Sequence[Level] = (*self._own, *self._hidden)
        self._pending: list[tuple[File, bytes]] = []
        self._plain: File | None = None

    def move(self) -> None:
        """Raises OSError and UserError."""
        links = self._links()
        for path, link in links.items():
            self._add(path, link)
        for path in links:
            directory = self._plain = self._tree.look(path).file
            assert directory is not None
            self._merge(directory, path)
            while self._pending:
                self._put(*self._pending.pop())

    def _links(self) -> dict[bytes, File]:
        """Links of lower layers at the paths of implied directories, by path; of nested ones only the outermost."""
        found: dict[bytes, File] = {}
        for path in sorted(self._tree_implied, key=lambda path: path.split(b"/")):
            file, is_cut = self._tree.look(path)
            if is_cut or file is None or not file.is_directory or any(parent in found for parent in parents(path)):
                continue
            link = self._below.look(path).file
            if link is not None and link.is_link:
                found[path] = link
        return found

    def _shown(self, path: bytes) -> File | None:
        file = topmost(self._all, path)
        return None if file is None or file.is_whiteout else file

    def _merge(self, directory: File, path: bytes) -> None:
        """Move the members of a directory of the tree to where a path leads."""
        shown = self._shown(path)
        target = path if shown is not None and shown.is_directory else resolve(self._all, path)
        if self._shown(target) is None:
            self._add(target, directory, implied=True)
        if directory.is_opaque:
            self._hide(target)
        with os.scandir(directory.like) as entries:
            names = sorted((entry.name for entry in entries), reverse=True)
        for name in names:
            file = self._tree.file(directory.like + b"/" + name)
            if file is None:
                raise _too_long(target)
            self._pending.append((file, target.rstrip(b"/") + b"/" + name))

    def _put(self, file: File, path: bytes) -> None:
        """Put a file of the tree at this path."""
        own = topmost(self._own, path)
        if file.is_whiteout:
            if own is None and self._shown(path) is not None:
                self._add(path, WHITEOUT)
            elif own is not None and own.is_directory:
                self._hide(path)
        elif file.is_directory:
            self._put_directory(file, path, own)
        elif own is None or own.is_whiteout:
            self._add(path, file)

    def _put_directory(self, file: File, path: bytes, own: File | None) -> None:
        is_implied = file.like[len(self._tree.root) :] in self._tree_implied
        is_taken = own is not None and not own.is_whiteout and not own.is_directory
        if is_taken and not (own is not None and own.is_link and is_implied):
            return
        shown = self._shown(path)
        is_brought = own is not None and path not in self._tree_implied and path not in self.implied
        if shown is None or not (shown.is_directory or (shown.is_link and is_implied)):
            self._add(path, file, implied=is_implied)
        elif not is_implied and not is_brought:
            self._add(path, file)
        self._merge(file, path)

    def _add(self, path: bytes, file: File, *, implied: bool = False) -> None:
        self._steps.take(1 + len(path) // _STEP_BYTES)
        if len(path) > PATH_MAX:
            raise _too_long(path)
        for parent in reversed([*parents(path)]):
            if parent not in self.over:
                shown = self._shown(parent) or self._plain
                assert shown is not None
                self.over[parent] = shown._replace(is_opaque=False)
                self.implied.add(parent)
        self.over[path] = file._replace(is_opaque=False)
        (self.implied.add if implied else self.implied.discard)(path)

    def _hide(self, path: bytes) -> None:
        """Hide all that lower layers have in a directory."""
        found = {}
        for place in (*reversed([*parents(path)]), path):
            hidden = topmost(self._hidden, place)
            if hidden is None or not hidden.is_directory:
                return
            found[place] = self.under.get(place, hidden._replace(is_opaque=False))
        self.under |= {**found, path: found[path]._replace(is_opaque=True)}


def _too_long(path: bytes) -> UserError:
    return UserError(
        f"Through a link, a layer of this image has files in {quoted(path[:100])}… whose paths are too long."
    )
