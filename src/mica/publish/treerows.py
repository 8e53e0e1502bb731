"""The tree of an archive as rows of a catalog. Pure; called by publishing, for catalogs and for metadata images."""

from collections.abc import Iterator

from mica.errors import UserError
from mica.publish.catalogtree import base_name, parent_path, shown
from mica.publish.layertree import LayerTree, LinkGroup, Node
from mica.publish.objectwriter import Content
from mica.repo.entry import MARKER, Chunk, Entry, Flag, flags_for, format_xattrs
from mica.tarstream import Kind


class TreeRows:
    """The entries of a tree below a mountpoint, in its order. What cannot go into a row collects beside them: before an
    entry is given, its chunks are the last of `chunks`, its directory the last of `marked`."""

    def __init__(self, tree: LayerTree, mountpoint: bytes) -> None:
        self._tree = tree
        self._mountpoint = mountpoint
        self._groups: dict[LinkGroup, int] = {}
        self.chunks: list[tuple[bytes, tuple[Chunk, ...]]] = []
        self.marked: list[bytes] = []
        self.newest_s = 0

    def __iter__(self) -> Iterator[tuple[bytes, Entry]]:
        for relative, node in self._tree.walk():
            path = self._mountpoint + relative
            group = node.group
            number = (
                None if group is None else (self._groups.setdefault(group, len(self._groups) + 1), len(group.paths))
            )
            self.newest_s = max(self.newest_s, node.mtime_s)
            if node.kind is Kind.REGULAR:
                content = node.content
                assert isinstance(content, Content), "every file was stored"
                if content.chunks:
                    self.chunks.append((path, content.chunks))
            if path.endswith(b"/" + MARKER):
                self._note_marker(path, node)
            yield path, entry_of(node, base_name(path), number)

    def _note_marker(self, path: bytes, node: Node) -> None:
        if node.kind is not Kind.REGULAR:
            raise UserError(f"{shown(path)} is not a regular file, which a catalog marker has to be.")
        self.marked.append(parent_path(path))


def entry_of(node: Node, name: bytes, group: tuple[int, int] | None = None) -> Entry:
    """`group` is the number of a hard link group and of its names."""
    mode = node.st_mode
    flags = flags_for(mode)
    size, digest, links = node.size, None, 1
    if node.kind is Kind.REGULAR:
        content = node.content
        assert isinstance(content, Content)
        digest = content.digest
        flags |= content.flags
    elif node.kind is Kind.DIRECTORY:
        size, links = 4096, 2
    elif node.kind in {Kind.CHARACTER, Kind.BLOCK}:
        size = node.device
    number, links = group or (0, links)
    return Entry(
        name, mode, size, node.mtime_s, node.mtime_ns, node.uid, node.gid, int(flags), digest, links, number,
        node.link, format_xattrs(dict(node.xattrs)) if node.xattrs else None,
    )  # fmt: skip


def file_entry(name: bytes, size: int, content: Content, *, mtime_s: int = 0) -> Entry:
    """A small file of root's that we make ourselves."""
    return Entry(name, 0o100644, size, mtime_s, 0, 0, 0, int(Flag.FILE) | content.flags, content.digest)
