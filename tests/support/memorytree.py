"""A `Tree` in memory, from a nested dictionary or from a directory of this machine."""

import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from mica.fuse.tree import ROOT_INODE, Attributes, Child, OpenFile


@dataclass(frozen=True, slots=True)
class Node:
    """What a dictionary may hold besides bytes (a file) and dictionaries (a directory)."""

    mode: int = stat.S_IFREG | 0o644
    content: bytes = b""
    target: bytes = b""
    rdev: int = 0
    uid: int = 0
    gid: int = 0
    mtime_s: int = 1_500_000_000
    mtime_ns: int = 123_456_789
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    children: Mapping[bytes, "Spec"] = field(default_factory=dict)


Spec = bytes | Mapping[bytes, "Spec"] | Node


def directory(children: Mapping[bytes, Spec], **more: Any) -> Node:
    return replace(Node(mode=stat.S_IFDIR | 0o755, children=children), **more)


def symlink(target: bytes) -> Node:
    return Node(mode=stat.S_IFLNK | 0o777, target=target)


@dataclass(slots=True)
class _Inode:
    attributes: Attributes
    content: bytes = b""
    target: bytes = b""
    path: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    parent: int = ROOT_INODE
    names: dict[bytes, int] = field(default_factory=dict)


class MemoryFile:
    """`descriptor` is that of a file of this machine, or -1 with the content in memory."""

    def __init__(self, content: bytes, descriptor: int = -1, before: Callable[[], None] = lambda: None) -> None:
        self._content = content
        self._before = before
        self.descriptor = descriptor
        self.closed = False

    def read(self, offset: int, size: int) -> bytes:
        self._before()
        assert not self.closed
        return self._content[offset : offset + size]

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        if self.descriptor >= 0:
            os.close(self.descriptor)


class MemoryTree:
    """`calls` counts what was asked; `before` is called with the name of the method (or `read`) and its arguments,
    and may block or raise; one and the same Node object under several names is a hard link."""

    def __init__(self, root: Mapping[bytes, Spec] | Node) -> None:
        self._inodes: dict[int, _Inode] = {}
        self._numbers = itertools.count(ROOT_INODE)
        self._known: dict[object, int] = {}
        self.calls: dict[str, int] = {}
        self.opened: list[MemoryFile] = []
        self.before: Callable[..., None] = lambda *_: None
        self._add(root, ROOT_INODE)

    @classmethod
    def of_directory(cls, path: Path) -> Self:
        tree = cls({})
        tree._inodes.clear()
        tree._numbers = itertools.count(ROOT_INODE)
        tree._add_path(os.fsencode(path), ROOT_INODE)
        return tree

    def inode(self, path: bytes) -> int:
        number = ROOT_INODE
        for name in path.split(b"/"):
            number = self._inodes[number].names[name] if name else number
        return number

    def change(self, path: bytes, content: bytes) -> None:
        inode = self._inodes[self.inode(path)]
        inode.content = content
        inode.attributes = inode.attributes._replace(size=len(content))

    def rename(self, parent: bytes, old: bytes, new: bytes) -> None:
        names = self._inodes[self.inode(parent)].names
        names[new] = names.pop(old)

    # Tree

    def attributes(self, inode: int) -> Attributes:
        return self._ask("attributes", inode).attributes

    def lookup(self, directory: int, name: bytes) -> Attributes:
        names = self._directory("lookup", directory, name).names
        if name not in names:
            raise FileNotFoundError(errno.ENOENT, "no such name", os.fsdecode(name))
        return self._inodes[names[name]].attributes

    def children(self, directory: int) -> Iterator[Child]:
        names = self._directory("children", directory).names
        return iter([Child(name, self._inodes[number].attributes) for name, number in names.items()])

    def parent(self, directory: int) -> int:
        return self._directory("parent", directory).parent

    def readlink(self, inode: int) -> bytes:
        found = self._ask("readlink", inode)
        if not stat.S_ISLNK(found.attributes.mode):
            raise OSError(errno.EINVAL, "not a link")
        return found.target

    def xattrs(self, inode: int) -> dict[bytes, bytes]:
        return self._ask("xattrs", inode).xattrs

    def open(self, inode: int) -> OpenFile:
        found = self._ask("open", inode)
        descriptor = os.open(found.path, os.O_RDONLY | os.O_CLOEXEC) if found.path else -1
        file = MemoryFile(found.content, descriptor, lambda: self.before("read", inode))
        self.opened.append(file)
        return file

    def statistics(self) -> tuple[int, int]:
        self._ask("statistics", ROOT_INODE)
        return len(self._inodes), sum(inode.attributes.size for inode in self._inodes.values())

    # Inside

    def _ask(self, method: str, inode: int, *more: object) -> _Inode:
        self.calls[method] = self.calls.get(method, 0) + 1
        self.before(method, inode, *more)
        try:
            return self._inodes[inode]
        except KeyError:
            raise OSError(errno.ESTALE, "no such inode") from None

    def _directory(self, method: str, inode: int, *more: object) -> _Inode:
        found = self._ask(method, inode, *more)
        if not stat.S_ISDIR(found.attributes.mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        return found

    def _add(self, spec: Spec, parent: int) -> int:
        node = _node(spec)
        if id(spec) in self._known and isinstance(spec, Node):
            return self._link(self._known[id(spec)])
        number = next(self._numbers)
        self._known[id(spec)] = number
        size = len(node.content) or len(node.target)
        attributes = Attributes(
            number, node.mode, 1, node.uid, node.gid, node.rdev, size, node.mtime_s, node.mtime_ns
        )  # fmt: skip
        inode = _Inode(attributes, node.content, node.target, b"", dict(node.xattrs), parent)
        self._inodes[number] = inode
        for name, child in node.children.items():
            inode.names[name] = self._add(child, number)
        self._count_links(inode)
        return number

    def _add_path(self, path: bytes, parent: int) -> int:
        info = os.lstat(path)
        key = (info.st_dev, info.st_ino)
        if key in self._known and not stat.S_ISDIR(info.st_mode):
            return self._link(self._known[key])
        number = next(self._numbers)
        self._known[key] = number
        seconds, nanoseconds = divmod(info.st_mtime_ns, 10**9)
        attributes = Attributes(
            number, info.st_mode, 1, info.st_uid, info.st_gid, info.st_rdev, info.st_size, seconds, nanoseconds
        )  # fmt: skip
        names = os.listxattr(path, follow_symlinks=False)
        inode = _Inode(attributes, parent=parent)
        inode.xattrs = {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}
        inode.target = os.readlink(path) if stat.S_ISLNK(info.st_mode) else b""
        inode.path = path if stat.S_ISREG(info.st_mode) else b""
        self._inodes[number] = inode
        if stat.S_ISDIR(info.st_mode):
            inode.names = {name: self._add_path(path + b"/" + name, number) for name in sorted(os.listdir(path))}
        self._count_links(inode)
        return number

    def _link(self, number: int) -> int:
        inode = self._inodes[number]
        inode.attributes = inode.attributes._replace(links=inode.attributes.links + 1)
        return number

    def _count_links(self, inode: _Inode) -> None:
        if stat.S_ISDIR(inode.attributes.mode):
            children = [self._inodes[number].attributes for number in inode.names.values()]
            links = 2 + sum(stat.S_ISDIR(child.mode) for child in children)
            inode.attributes = inode.attributes._replace(links=links)


def _node(spec: Spec) -> Node:
    if isinstance(spec, Node):
        return spec
    return Node(content=spec) if isinstance(spec, bytes) else directory(spec)
