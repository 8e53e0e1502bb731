"""The tree of an archive as rows of a catalog, and as a metadata image of the same rows. Pure; called by publishing."""

from collections.abc import Container, Iterator
from typing import BinaryIO

from mica.metaimage.fromcatalog import InodeMaker
from mica.metaimage.inode import Inode
from mica.metaimage.writer import ImageReport, write_image
from mica.publish.catalogtree import base_name
from mica.publish.layertree import LayerTree, LinkGroup, Node
from mica.publish.objectwriter import Content
from mica.repo.entry import MARKER, Chunk, Entry, Flag, flags_for, format_xattrs
from mica.tarstream import Kind


class TreeRows:
    """The entries of a tree below a mountpoint, in its order; `top` and `closed` as `LayerTree.walk` takes them.

    Chunks do not fit into a row, so they are collected: when an entry is given, its chunks are the last of `chunks`.
    """

    def __init__(
        self,
        tree: LayerTree,
        mountpoint: bytes,
        *,
        top: tuple[bytes, Node] | None = None,
        closed: Container[bytes] = (),
    ) -> None:
        self._walk = tree.walk(top, closed=closed)
        self._mountpoint = mountpoint
        self._groups: dict[LinkGroup, int] = {}
        self.chunks: list[tuple[bytes, tuple[Chunk, ...]]] = []
        self.newest_s = 0

    def __iter__(self) -> Iterator[tuple[bytes, Entry]]:
        for relative, node in self._walk:
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
            yield path, entry_of(node, base_name(path), number)


def marked_directories(tree: LayerTree) -> list[tuple[bytes, Node]]:
    """The directories with an entry that has a catalog marker's name, in tree order."""
    return [(path, node) for path, node in tree.walk() if node.kind is Kind.DIRECTORY and MARKER in node.children]


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
    """A small file that mica makes itself; it belongs to root."""
    return Entry(name, 0o100644, size, mtime_s, 0, 0, 0, int(Flag.FILE) | content.flags, content.digest)


def write_layer_image(tree: LayerTree, file: BinaryIO) -> ImageReport:
    """Write the metadata image of a layer into an empty file that can seek. Raises UserError for a tree that no image
    can hold."""
    maker = InodeMaker()
    return write_image(_inodes(TreeRows(tree, b""), maker), file, maker.chunk_lists)


def _inodes(rows: TreeRows, maker: InodeMaker) -> Iterator[tuple[bytes, Inode]]:
    for path, entry in rows:
        chunks = rows.chunks[-1][1] if entry.flags & Flag.CHUNKED else ()
        yield path, maker.make(entry, chunks, group=entry.group, links=entry.links)
