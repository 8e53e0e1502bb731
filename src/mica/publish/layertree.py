"""From the members of an archive to a layer tree: it plans the layer and stores nothing.

It takes members in tar order, legal or hostile, and keeps a tree of nodes. `finish()` decides everything that needs the
whole archive: attributes of directories, duplicates, hard links, whiteouts against entries. File data is never seen
here: when `add()` hands out a node, the caller stores its data and puts the result into `node.content`, so a layer of a
million entries streams. Pure; called by publishing only; one tree belongs to one thread.

Sources of the rules: OCI image-spec layer.md (whiteouts, hard links); the kernel's overlayfs.rst (what a layer tree
looks like); `tar -x` (the last member of a name wins); docs/format/catalog.md (limits of attributes and links).

Members of a layer below a symbolic link of the same layer go where it leads inside the root, as engines unpack them. In
a plain archive such members are refused, because its links may mean the repository around it. One deliberate difference
from engines: a character device 0:0 in a layer is refused, because overlayfs would take it for a whiteout.
"""

import enum
import os
import stat
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from mica.errors import UserError
from mica.oci.layermembers import engine_time, is_aufs, path_parts
from mica.repo.entry import XATTR_LIMIT, XATTR_VALUE_LIMIT
from mica.tarstream import Kind, TarEntry
from mica.texts import printable, printable_path, quoted
from mica.unionsigns import (
    AUFS_PREFIX,
    OPAQUE,
    OPAQUE_MARKER,
    ORIGIN,
    OVERLAY_PREFIX,
    WHITEOUT_PREFIX,
    is_overlay_attribute,
    is_whiteout_name,
)

# ruff: noqa: SLF001 - tree and node are one thing in two classes

XATTR_TOTAL_BYTES = 128 << 10
"""Most bytes of all attributes of one file, well below what a metadata image can hold for one."""
LIST_CAP = 1000
_LIST_CHARACTERS = 1 << 20
_LINKS_SHOWN = 20

_TYPE_BITS = {
    Kind.REGULAR: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}
_NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})
_NO_CHILDREN: Mapping[bytes, "Node"] = MappingProxyType({})
_MODES = tuple(range(0o10000))  # one shared object per mode
_NODE_BYTES = 300
_XATTR_BYTES = 120
_MAX_MEMORY_BYTES = 4 << 30
_LINKS_FOLLOWED = 40  # as many as the kernel follows on one path (MAXSYMLINKS)
_LINK_STEPS = 1 << 26
"""Names looked up on all ways through links of one archive, about half a minute: a short name can cost thousands."""
_LINK_MODE = 0o777
"""Mode of every symbolic link: Linux has no other (symlink(7)), so unpacking never gives another mode."""


class Mode(enum.Enum):
    """How names and attributes are meant: an OCI layer with whiteouts, or any archive."""

    LAYER = "layer"
    PLAIN = "plain"


LAYER = Mode.LAYER
PLAIN = Mode.PLAIN


@dataclass(frozen=True, slots=True, eq=False)
class LinkGroup:
    """Names of one file in one directory, sorted; at least two. Equal only to itself: hashing names costs."""

    paths: tuple[bytes, ...]


class Node:
    """A file of the tree, under one or more names.

    `mode` has the permission bits, `st_mode` the type as well; `device` is a device number as in `st_rdev`; `size` is
    that of a regular file's content or a link's target; `link` is a symlink's target. `content` belongs to the caller
    and is set before `finish()`. `group` is set by `finish()` for files with several names in one directory.
    """

    __slots__ = (
        "_children",
        "content",
        "device",
        "gid",
        "group",
        "kind",
        "link",
        "mode",
        "mtime_ns",
        "mtime_s",
        "size",
        "uid",
        "xattrs",
    )

    def __init__(self, kind: Kind, mode: int) -> None:
        self.kind = kind
        self.mode = mode
        self.uid = 0
        self.gid = 0
        self.size = 0
        self.mtime_s = 0
        self.mtime_ns = 0
        self.link = b""
        self.device = 0
        self.xattrs = _NO_XATTRS
        self.content: object = None
        self.group: LinkGroup | None = None
        self._children: dict[bytes, Node] | None = None

    @property
    def st_mode(self) -> int:
        return _TYPE_BITS[self.kind] | self.mode

    @property
    def children(self) -> Mapping[bytes, "Node"]:
        return self._children if self._children is not None else _NO_CHILDREN

    @property
    def is_whiteout(self) -> bool:
        """Overlayfs's sign for a removed name: a character device 0:0."""
        return self.kind is Kind.CHARACTER and self.device == 0

    def __repr__(self) -> str:
        return f"<Node {self.kind.value} {self.mode:04o} {self.size} bytes>"


def _new_directory() -> Node:
    return Node(Kind.DIRECTORY, 0o755)


@dataclass(slots=True)
class CappedList:
    """The first thousand of something, or the first MiB of its text, and how many there were."""

    items: list[object] = field(default_factory=list)
    total: int = 0
    _room: int = _LIST_CHARACTERS

    def append(self, item: object) -> None:
        self.total += 1
        if len(self.items) < LIST_CAP and self._room > 0:
            self.items.append(item)
            self._room -= len(str(item))

    def to_json(self) -> dict[str, object]:
        return {"total": self.total, "items": self.items}


@dataclass(slots=True)
class LayerReport:
    r"""What is in the tree and what was changed to fit. Paths are text with \xNN for what is not printable.

    `counts` is by kind, `hardlink` being names beyond a file's first; `bytes` counts such a file once.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((kind.value for kind in Kind), 0))
    bytes: int = 0
    implied_directories: CappedList = field(default_factory=CappedList)
    split_hardlinks: CappedList = field(default_factory=CappedList)
    dropped_xattrs: CappedList = field(default_factory=CappedList)
    changed_times: CappedList = field(default_factory=CappedList)
    whiteouts: CappedList = field(default_factory=CappedList)
    opaque: CappedList = field(default_factory=CappedList)

    def to_json(self) -> dict[str, object]:
        return {
            "counts": dict(self.counts),
            "bytes": self.bytes,
            "implied_directories": self.implied_directories.to_json(),
            "split_hardlinks": self.split_hardlinks.to_json(),
            "dropped_xattrs": self.dropped_xattrs.to_json(),
            "changed_times": self.changed_times.to_json(),
            "whiteouts": self.whiteouts.to_json(),
            "opaque": self.opaque.to_json(),
        }


class LayerTree:
    """The tree of one archive: `add()` every member, `finish()` once, then `walk()`.

    `max_memory_bytes` bounds, by estimate, what the plan itself may hold; a hostile archive of deep names or huge
    attributes is refused there. `max_link_steps` bounds the names looked up on all ways through links. After an error
    the tree must not be used.
    """

    def __init__(
        self, mode: Mode = LAYER, *, max_memory_bytes: int = _MAX_MEMORY_BYTES, max_link_steps: int = _LINK_STEPS
    ) -> None:
        self.root = _new_directory()
        self._is_layer = mode is LAYER
        self._root_is_implied = True
        self._implied: set[Node] = set()
        self._linked: set[Node] = set()
        self._alone: set[Node] = set()  # directories of which lower layers show nothing
        self._report = LayerReport()
        self._memory_left = max_memory_bytes
        self._steps_left = max_link_steps
        self._finished = False

    # Taking members

    def add(self, entry: TarEntry) -> Node | None:
        """Take one member. The caller stores the data of a REGULAR node that it gets; None: there is nothing to store.

        Raises UserError for members that cannot or must not be unpacked.
        """
        if self._finished:
            raise ValueError("a finished layer tree takes no more members")
        parts = path_parts(entry.name)
        if not parts:
            return self._set_root(entry)
        *parents, name = parts
        if self._is_layer:
            self._check_below_whiteout(parts, entry.name)
            if name.startswith(WHITEOUT_PREFIX) and not is_aufs(parts):
                self._add_marker(self._directory(parents, entry.name), name, entry.name)
                return None
        if entry.kind is Kind.HARDLINK:
            self._add_hardlink(parents, name, entry)
            return None
        if entry.kind is Kind.DIRECTORY:
            return self._add_directory(parents, name, entry)
        if self._is_layer and entry.kind is Kind.CHARACTER and entry.device_major == entry.device_minor == 0:
            raise UserError(
                f"Archive member {quoted(entry.name)} is a character device 0:0, which overlayfs takes for a deletion.",
                hint="Layers mark deletions by .wh. names.",
            )
        directory = self._directory(parents, entry.name)
        self._check_replaceable(directory, name, entry.name)
        node = Node(entry.kind, 0)
        self._set_attributes(node, entry)
        self._put(directory, name, node)
        return node

    def _set_root(self, entry: TarEntry) -> Node:
        if entry.kind is not Kind.DIRECTORY:
            raise UserError(f"Archive member {quoted(entry.name)} would replace the root directory.")
        self._root_is_implied = False
        self._set_attributes(self.root, entry)
        return self.root

    def _add_directory(self, parents: list[bytes], name: bytes, entry: TarEntry) -> Node:
        directory = self._directory(parents, entry.name)
        node = directory.children.get(name)
        if node is None or node.kind is not Kind.DIRECTORY:
            node = _new_directory()
            self._put(directory, name, node)
        self._implied.discard(node)
        self._set_attributes(node, entry)
        return node

    def _add_hardlink(self, parents: list[bytes], name: bytes, entry: TarEntry) -> None:
        target = self._find(path_parts(entry.link), entry.name)
        if target is None or target.kind is Kind.DIRECTORY:
            what = "a directory" if target is not None else "no earlier member of this archive"
            raise UserError(
                f"Archive member {quoted(entry.name)} is a hard link to {quoted(entry.link)}, which is {what}."
            )
        directory = self._directory(parents, entry.name)
        self._check_replaceable(directory, name, entry.name)
        self._put(directory, name, target)
        self._linked.add(target)

    def _add_marker(self, directory: Node, name: bytes, member: bytes) -> None:
        """Whiteouts stay under their own name, which no file can have, until all entries are known."""
        if name[len(WHITEOUT_PREFIX) :] in {b"", b".", b".."}:
            raise UserError(f"Archive member {quoted(member)} is a whiteout that names no file.")
        self._put(directory, name, Node(Kind.CHARACTER, 0))

    def _put(self, directory: Node, name: bytes, node: Node) -> None:
        self._charge(_NODE_BYTES + len(name))
        if directory._children is None:
            directory._children = {}
        directory._children[name] = node

    def _charge(self, size: int) -> None:
        self._memory_left -= size
        if self._memory_left < 0:
            raise UserError("The archive has too many or too large names and attributes.")

    def _directory(self, parents: list[bytes], member: bytes) -> Node:
        """The directory of a member; it is made if the archive has no entry for it (yet)."""
        node = self.root
        for depth, name in enumerate(parents):
            child = node.children.get(name)
            if child is None:
                child = self._imply(node, name)
            elif child.kind is not Kind.DIRECTORY:
                if child.kind is Kind.SYMLINK and self._is_layer:
                    found = self._follow(parents, member, make=True)
                    assert found is not None
                    return found
                raise _blocked(member, b"/".join(parents[: depth + 1]), child)
            node = child
        return node

    def _imply(self, directory: Node, name: bytes) -> Node:
        node = _new_directory()
        self._implied.add(node)
        self._put(directory, name, node)
        return node

    def _follow(self, parts: list[bytes], member: bytes, *, make: bool) -> Node | None:
        """The directory at a path through links of the archive, which lead nowhere but inside the root, as in a chroot
        (openat2(2), RESOLVE_IN_ROOT). Missing directories are made, or the answer is None.
        """
        way = [self.root]
        pending = parts[::-1]
        links = 0
        while pending:
            name = pending.pop()
            self._steps_left -= 1
            if name in {b"", b"."}:
                continue
            if name == b"..":
                if len(way) > 1:
                    way.pop()
                continue
            child = way[-1].children.get(name)
            if child is None:
                if not make:
                    return None
                child = self._imply(way[-1], name)
            if child.kind is Kind.SYMLINK:
                links += 1
                if links > _LINKS_FOLLOWED or self._steps_left < 0:
                    raise UserError(f"Archive member {quoted(member)} leads through too many symbolic links.")
                if child.link.startswith(b"/"):
                    del way[1:]
                pending += child.link.split(b"/")[::-1]
            elif child.kind is Kind.DIRECTORY:
                way.append(child)
            elif make:
                raise _blocked(member, name, child)
            else:
                return None
        return way[-1]

    def _find(self, parts: list[bytes], member: bytes) -> Node | None:
        """The file that a hard link names: the last name is taken as it is, links before it are followed."""
        *parents, last = parts or [b""]
        node: Node | None = self.root
        for name in parents:
            assert node is not None
            node = node.children.get(name)
            if node is None:
                return None
            if node.kind is Kind.SYMLINK and self._is_layer:
                node = self._follow(parents, member, make=False)
                break
        if node is None or not last:
            return node
        if self._is_layer and last.startswith(WHITEOUT_PREFIX) and not is_aufs(parts):
            return None
        return node.children.get(last)

    def _check_replaceable(self, directory: Node, name: bytes, member: bytes) -> None:
        node = directory.children.get(name)
        if node is not None and node.kind is Kind.DIRECTORY and not self._is_empty(node):
            raise UserError(f"Archive member {quoted(member)} would replace a directory that is not empty.")

    def _is_empty(self, directory: Node) -> bool:
        """A directory that has only whiteouts counts as empty: they go with it."""
        return not directory.children or (
            self._is_layer and all(name.startswith(WHITEOUT_PREFIX) for name in directory.children)
        )

    @staticmethod
    def _check_below_whiteout(parts: list[bytes], member: bytes) -> None:
        for name in parts[:-1]:
            if is_whiteout_name(name):
                raise UserError(f"Archive member {quoted(member)} lies below a whiteout.")

    # Attributes

    def _set_attributes(self, node: Node, entry: TarEntry) -> None:
        node.mode = _MODES[entry.mode & 0o7777 if entry.kind is not Kind.SYMLINK else _LINK_MODE]
        node.uid = entry.uid
        node.gid = entry.gid
        node.mtime_s, node.mtime_ns = engine_time(entry) if self._is_layer else (entry.mtime_s, entry.mtime_ns)
        if node.mtime_s != entry.mtime_s:
            self._report.changed_times.append({"path": _shown_path(entry), "mtime": entry.mtime_s})
        node.xattrs = self._fitting_xattrs(entry) if entry.xattrs else _NO_XATTRS
        kind = node.kind
        if kind is Kind.REGULAR:
            node.size = entry.size
        elif kind is Kind.SYMLINK:
            node.link = entry.link
            node.size = len(entry.link)
            self._charge(node.size)
        elif kind is Kind.CHARACTER or kind is Kind.BLOCK:
            node.device = os.makedev(entry.device_major, entry.device_minor)

    def _fitting_xattrs(self, entry: TarEntry) -> Mapping[bytes, bytes]:
        """Attributes that the catalog can hold and an archive may set, which excludes overlayfs's own."""
        kept: dict[bytes, bytes] = {}
        room = XATTR_TOTAL_BYTES
        for key, value in sorted(entry.xattrs.items()):
            size = len(key) + len(value)
            if self._is_allowed(key) and _fits(key, value) and size <= room and len(kept) < XATTR_LIMIT:
                kept[key] = value
                room -= size
                self._charge(_XATTR_BYTES + len(key) + len(value))
            else:
                self._drop_xattr(_shown_path(entry), key, value)
        return kept or _NO_XATTRS

    def _is_allowed(self, key: bytes) -> bool:
        return not (is_overlay_attribute(key) if self._is_layer else key.startswith(OVERLAY_PREFIX))

    def _drop_xattr(self, path: str, key: bytes, value: bytes) -> None:
        self._report.dropped_xattrs.append(
            {"path": path, "name": printable(key[: XATTR_LIMIT + 1]), "bytes": len(value)}
        )

    # Decisions that need the whole archive

    def finish(self) -> LayerReport:
        """Decide everything that needs the whole archive; no member is taken after this."""
        if self._finished:
            raise ValueError("a layer tree is finished once")
        self._finished = True
        names_of_linked: dict[Node, list[tuple[Node, bytes, bytes]]] = {}
        for path, node in self.walk():
            if node.kind is Kind.DIRECTORY:
                if self._is_layer:
                    self._settle_markers(path, node)
                self._note_linked(path, node, names_of_linked)
            self._count(path, node)
        for node, names in names_of_linked.items():
            self._settle_links(node, names)
        self._linked.clear()
        self._implied.clear()
        self._alone.clear()
        return self._report

    def walk(
        self, top: tuple[bytes, Node] | None = None, *, closed: Container[bytes] = ()
    ) -> Iterator[tuple[bytes, Node]]:
        """Every path of the tree once, `b""` for the root, directories before what is in them, siblings by bytes.

        The walk begins at another directory, if one is given, and leaves out everything below the `closed` ones.
        """
        start, directory = top or (b"", self.root)
        yield start, directory
        if start in closed:
            return
        pending = [(start + b"/", directory, iter(sorted(directory.children)))]
        while pending:
            prefix, directory, names = pending[-1]
            for name in names:
                path, node = prefix + name, directory.children[name]
                yield path, node
                if node._children and path not in closed:
                    pending.append((path + b"/", node, iter(sorted(node._children))))
                    break
            else:
                pending.pop()

    def _settle_markers(self, path: bytes, directory: Node) -> None:
        """A whiteout yields to an entry of its name: lower layers cannot show through a file, and are hidden below a
        directory by making it opaque. Where lower layers show nothing it is dropped. A directory with whiteouts says so
        by an attribute: without it overlayfs lists them, where the directory is in one layer only, as names that nobody
        can open (ovl_iterate). A directory whose name a whiteout takes from lower layers is a new one and not implied.
        """
        markers = sorted(name for name in directory.children if name.startswith(WHITEOUT_PREFIX))
        if OPAQUE_MARKER in markers:
            self._make_opaque(path, directory)
        is_alone = OPAQUE in directory.xattrs or directory in self._alone
        keeps_any = False
        for marker in markers:
            assert directory._children is not None
            whiteout = directory._children.pop(marker)
            if marker.startswith(AUFS_PREFIX):
                continue
            name = marker[len(WHITEOUT_PREFIX) :]
            entry = directory._children.get(name)
            if entry is None and not is_alone:
                directory._children[name] = whiteout
                keeps_any = True
            elif entry is not None and entry.kind is Kind.DIRECTORY:
                self._make_opaque(path + b"/" + name, entry)
                self._implied.discard(entry)
        if keeps_any:
            self._sign(path, directory, ORIGIN, b"")
        if is_alone:
            self._alone.update(child for child in directory.children.values() if child.kind is Kind.DIRECTORY)

    def _make_opaque(self, path: bytes, directory: Node) -> None:
        if OPAQUE not in directory.xattrs:
            self._sign(path, directory, OPAQUE, b"y")
            self._report.opaque.append(printable_path(path))

    def _sign(self, path: bytes, directory: Node, name: bytes, value: bytes) -> None:
        """Give a directory an attribute for overlayfs, even if another attribute has to make room."""
        xattrs = dict(directory.xattrs)
        if len(xattrs) == XATTR_LIMIT:
            key = max(xattrs)
            self._drop_xattr(printable_path(path), key, xattrs.pop(key))
        xattrs[name] = value
        directory.xattrs = xattrs

    def _note_linked(self, path: bytes, directory: Node, names: dict[Node, list[tuple[Node, bytes, bytes]]]) -> None:
        if not self._linked:
            return
        for name in sorted(directory.children):
            node = directory.children[name]
            if node in self._linked:
                names.setdefault(node, []).append((directory, path, name))

    def _settle_links(self, node: Node, names: list[tuple[Node, bytes, bytes]]) -> None:
        """A catalog has hard links inside one directory only (§ link counts): other directories get files of their own
        with the same content.
        """
        report = self._report
        extra = len(names) - 1
        report.counts[Kind.HARDLINK.value] += extra
        report.counts[node.kind.value] -= extra
        report.bytes -= extra * node.size if node.kind is Kind.REGULAR else 0
        by_directory: dict[Node, list[tuple[bytes, bytes]]] = {}
        for directory, path, name in names:
            by_directory.setdefault(directory, []).append((path, name))
        if len(by_directory) > 1:
            paths = sorted(path + b"/" + name for _, path, name in names)
            shown = [printable(path) for path in paths[:_LINKS_SHOWN]]
            report.split_hardlinks.append({"names": len(paths), "paths": shown})
        for number, (directory, members) in enumerate(by_directory.items()):
            own = node if number == 0 else _copy(node)
            assert directory._children is not None
            directory._children.update((name, own) for _, name in members)
            if len(members) > 1:
                own.group = LinkGroup(tuple(path + b"/" + name for path, name in members))

    def _count(self, path: bytes, node: Node) -> None:
        report = self._report
        if self._is_layer and node.is_whiteout:
            report.whiteouts.append(printable(path))
            return
        if path:
            report.counts[node.kind.value] += 1
        if node.kind is Kind.REGULAR:
            report.bytes += node.size
        elif node in self._implied or (not path and self._root_is_implied):
            report.implied_directories.append(printable_path(path))


def _blocked(member: bytes, blocker: bytes, node: Node) -> UserError:
    return UserError(
        f"Archive member {quoted(member)} lies below {quoted(blocker)}, which is a {node.kind.value}, not a directory."
    )


def _shown_path(entry: TarEntry) -> str:
    return printable(b"/" + b"/".join(path_parts(entry.name)))


def _fits(key: bytes, value: bytes) -> bool:
    return 0 < len(key) <= XATTR_LIMIT and len(value) <= XATTR_VALUE_LIMIT and b"\0" not in key


def _copy(node: Node) -> Node:
    copy = Node(node.kind, node.mode)
    for name in ("uid", "gid", "size", "mtime_s", "mtime_ns", "link", "device", "xattrs", "content"):
        setattr(copy, name, getattr(node, name))
    return copy
