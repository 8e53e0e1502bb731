"""Trees on disk as layer entries: a whole tree, or what changed from one tree to another (OCI layer rules)."""

import filecmp
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from demo.ocilayout import Entry

WHITEOUT_PREFIX = ".wh."
OPAQUE_NAME = ".wh..wh..opq"

Tree = dict[str, tuple[Entry, tuple[int, int]]]
"""Path below the root -> its entry and what identifies its inode (entries with the same are hard links)."""


def scan(root: Path, *, latest_ns: int, without: Iterable[str] = ()) -> Tree:
    """All entries below root, sorted, without these paths and all below them.

    Times later than `latest_ns` are set to it: what an installation generates gets the same time in every build."""
    tree: Tree = {}
    left_out = frozenset(without)

    def visit(directory: str) -> None:
        with os.scandir(root / directory) as children:
            names = sorted(child.name for child in children)
        for name in names:
            path = f"{directory}/{name}" if directory else name
            if path in left_out:
                continue
            entry, inode = _read_entry(root, path, latest_ns)
            tree[path] = entry, inode
            if stat.S_ISDIR(entry.mode):
                visit(path)

    visit("")
    return tree


def _read_entry(root: Path, path: str, latest_ns: int) -> tuple[Entry, tuple[int, int]]:
    source = root / path
    found = source.lstat()
    regular = stat.S_ISREG(found.st_mode)
    entry = Entry(
        path,
        found.st_mode,
        uid=found.st_uid,
        gid=found.st_gid,
        mtime_ns=min(found.st_mtime_ns, latest_ns),
        rdev=found.st_rdev,
        size=found.st_size if regular else 0,
        target=os.readlink(source) if stat.S_ISLNK(found.st_mode) else "",
        source=source if regular else None,
        xattrs={name: os.getxattr(source, name, follow_symlinks=False) for name in _xattr_names(source)},
    )
    return entry, (found.st_dev, found.st_ino)


def _xattr_names(path: Path) -> list[str]:
    # A security module of the build machine is no part of the image.
    return sorted(name for name in os.listxattr(path, follow_symlinks=False) if name != "security.selinux")


def layer_of(tree: Tree, paths: Iterable[str] | None = None) -> Iterator[Entry]:
    """The entries at these paths (all without), hard links to one inode as a group whose first holds the content."""
    first: dict[tuple[int, int], str] = {}
    for path in sorted(tree if paths is None else paths):
        entry, inode = tree[path]
        if stat.S_ISREG(entry.mode):
            leader = first.setdefault(inode, path)
            if leader != path:
                entry = replace(entry, hardlink=leader)
        yield entry


def difference(lower: Tree, upper: Tree) -> Iterator[Entry]:
    """The layer that turns `lower` into `upper`: changed and new entries with their parents, whiteouts for the rest."""
    changed = {path for path, (entry, _) in upper.items() if path not in lower or not _same(lower[path][0], entry)}
    for path in sorted(changed):
        changed.update(_parents(path))
    entries = {entry.name: entry for entry in layer_of(upper, changed)}
    for entry in _whiteouts(lower, upper):
        entries[entry.name] = entry
        for parent in _parents(entry.name):
            entries.setdefault(parent, upper[parent][0])
    for name in sorted(entries):
        yield entries[name]


def _parents(path: str) -> Iterator[str]:
    while path := os.path.dirname(path):
        yield path


def _same(one: Entry, other: Entry) -> bool:
    if replace(one, source=None) != replace(other, source=None):
        return False
    return one.source is None or other.source is None or filecmp.cmp(one.source, other.source, shallow=False)


def _whiteouts(lower: Tree, upper: Tree) -> Iterator[Entry]:
    """One for each removed entry whose parent is still a directory."""
    for path in sorted(lower.keys() - upper.keys()):
        parent = os.path.dirname(path)
        if not parent or (parent in upper and stat.S_ISDIR(upper[parent][0].mode)):
            yield whiteout(path)


def whiteout(path: str) -> Entry:
    parent, name = os.path.split(path)
    return Entry(os.path.join(parent, WHITEOUT_PREFIX + name), stat.S_IFREG)


def opaque(directory: str) -> Entry:
    return Entry(os.path.join(directory, OPAQUE_NAME), stat.S_IFREG)


def merge(layers: Iterable[Iterable[Entry]]) -> Mapping[str, Entry]:
    """What a container of these layers shows: the rules of the OCI image specification applied in memory."""
    merged: dict[str, Entry] = {}
    for layer in layers:
        entries = list(layer)
        for entry in entries:
            parent, name = os.path.split(entry.name)
            if name == OPAQUE_NAME:
                _remove_below(merged, parent)
            elif name.startswith(WHITEOUT_PREFIX):
                _remove(merged, os.path.join(parent, name.removeprefix(WHITEOUT_PREFIX)))
        for entry in entries:
            if not os.path.basename(entry.name).startswith(WHITEOUT_PREFIX):
                if not stat.S_ISDIR(entry.mode):
                    _remove_below(merged, entry.name)
                merged[entry.name] = entry
    return merged


def _remove(merged: dict[str, Entry], path: str) -> None:
    merged.pop(path, None)
    _remove_below(merged, path)


def _remove_below(merged: dict[str, Entry], path: str) -> None:
    for name in [name for name in merged if name.startswith(f"{path}/")]:
        del merged[name]
