"""A tree of files into a metadata image, byte for byte the same for the same tree (docs/format/erofs-image.md).

    superblock, root | other files in tree order | directories in tree order | blocks of large directories | chunk table

Files that are no directories are written as they come. Directories are kept until the end (directories.py): 12 bytes
and the name for each entry. Nothing else grows with the tree. The first block is written last, so an unfinished file
is not an image. Called by publishing and by the node; no I/O but to the given file; one thread.
"""

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

from mica.digest import Digest
from mica.errors import UserError
from mica.metaimage.chunktable import format_chunk_table
from mica.metaimage.directories import Directory, put_directories
from mica.metaimage.erofs_abi import (
    BLOCK_BYTES,
    FILE_SIZE_MAX,
    FILE_TYPES,
    FORMAT_CHUNKED,
    FORMAT_INLINE,
    FORMAT_PLAIN,
    INODE_BYTES,
    LINK_MAX,
    NAME_MAX,
    NULL_BLOCK,
    SLOT_BYTES,
    SUPERBLOCK_BYTES,
    SUPERBLOCK_OFFSET,
    TYPE_BITS,
    UUID_BYTES,
    Superblock,
    chunk_format,
    encode_device,
    format_superblock,
)
from mica.metaimage.inode import ENTRIES_MAX, IMAGE_BYTES_MAX, PATH_MAX, Inode, format_inode
from mica.metaimage.output import ImageOutput
from mica.metaimage.xattrs import XattrBodies, may_enter
from mica.texts import quoted
from mica.unionsigns import ORIGIN

_DROPPED_SHOWN = 1000
_DIRECTORY_BYTES = 700
"""Memory of a directory besides its content, roughly."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits of one image: names, bytes, and bytes of its directories, which are kept in memory."""

    max_entries: int = ENTRIES_MAX
    max_bytes: int = IMAGE_BYTES_MAX
    max_directory_bytes: int = 1 << 30


STANDARD_LIMITS = ImageLimits()
NO_LISTS: Mapping[Digest, bytes] = MappingProxyType({})


class DroppedXattr(NamedTuple):
    """An attribute that was left out of the image; its value has `size` bytes."""

    path: bytes
    name: bytes
    size: int


@dataclass(slots=True)
class ImageReport:
    """Facts of a written image. `image_bytes` are the bytes for the kernel, `file_bytes` include the chunk table.
    `dropped` has the first thousand attributes that were left out, `dropped_total` counts all. `version` is 2 if a
    directory is marked as having whiteouts, otherwise 1."""

    inodes: int = 0
    image_bytes: int = 0
    file_bytes: int = 0
    dropped: list[DroppedXattr] = field(default_factory=list)
    dropped_total: int = 0
    version: int = 1


def write_image(
    entries: Iterable[tuple[bytes, Inode]],
    file: BinaryIO,
    chunk_lists: Mapping[Digest, bytes] = NO_LISTS,
    *,
    limits: ImageLimits = STANDARD_LIMITS,
) -> ImageReport:
    """Write the image of a tree into an empty file that can seek.

    `entries` in tree order: the root with the empty path first, directories before what is in them, siblings by bytes.
    `chunk_lists`, looked at after the last entry, has those of all files in chunks. Raises UserError for what no image
    can hold, ValueError for entries in another order, and for a hard link group or a chunk list that is not whole.
    """
    output = ImageOutput(file)
    tree = _Tree(output, limits)
    for path, inode in entries:
        tree.add(path, inode)
    report = tree.finish()
    if not tree.in_chunks <= chunk_lists.keys():
        raise ValueError("a file in chunks comes without its chunk list")
    for part in format_chunk_table({digest: chunk_lists[digest] for digest in tree.in_chunks}, report.version):
        output.put(part)
    output.finish()
    report.file_bytes = output.position
    return report


class _Tree:
    """The entries of one image on their way into the output."""

    def __init__(self, output: ImageOutput, limits: ImageLimits) -> None:
        self._output = output
        self._limits = limits
        self._directory_bytes = 0
        self._entries = 0
        self._directories: list[Directory] = []
        self._open: list[Directory] = []
        self._groups: dict[int, tuple[int, int]] = {}
        self._report = ImageReport()
        self.in_chunks: set[Digest] = set()
        output.put(bytes(SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES))
        self._bodies = XattrBodies(output.put_slots)

    def add(self, path: bytes, inode: Inode) -> None:
        self._entries += 1
        if self._entries > self._limits.max_entries:
            raise UserError(f"The tree has more than the {self._limits.max_entries} entries that an image may have.")
        if self._output.position > self._limits.max_bytes:
            raise UserError(f"The tree needs more than the {self._limits.max_bytes} bytes that an image may have.")
        if not self._open:
            self._add_root(path, inode)
            return
        slash = path.rfind(b"/")
        if slash < 0:
            raise ValueError(f"{path!r} comes after the root")
        parent, name = self._open[-1], path[slash + 1 :]
        if parent.path != path[:slash]:
            parent = self._parent_of(path, path[:slash])
        if not name or len(name) > NAME_MAX or len(path) > PATH_MAX or b"\0" in name or name in {b".", b".."}:
            raise _refused(path, "has a name or a path that no file can have")
        kind = inode.mode & TYPE_BITS
        if kind == stat.S_IFDIR:
            directory = Directory(path, inode, self._body(path, inode), parent)
            parent.add_directory(name, directory)
            self._keep(directory)
        else:
            nid = self._put_grouped(path, inode) if inode.group else self._put(path, inode, 1)
            parent.add(name, nid, FILE_TYPES[kind])

    def finish(self) -> ImageReport:
        """Write directories and superblock; the kernel does not read the bytes that follow in the file."""
        while self._open:
            self._close_last()
        if not self._directories:
            raise ValueError("a tree without a root")
        if self._groups:
            raise ValueError(f"{len(self._groups)} hard link groups are not whole")
        output, report = self._output, self._report
        put_directories(output, self._directories)
        report.inodes += len(self._directories)
        report.image_bytes = output.position
        blocks = output.position // BLOCK_BYTES
        superblock = Superblock(self._directories[0].nid, report.inodes, blocks, bytes(UUID_BYTES))
        output.first[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES] = format_superblock(superblock)
        return report

    def _add_root(self, path: bytes, inode: Inode) -> None:
        if path or self._directories or not stat.S_ISDIR(inode.mode):
            raise ValueError(f"{path!r} comes where the root has to be")
        # Its attributes are not shared, so its inode has the first place: the superblock has 16 bits for its number.
        root = Directory(path, inode, self._bodies.of_file(self._xattrs(path, inode), shares=False), None)
        root.nid = self._output.put_slots(bytes(INODE_BYTES) + root.body) // SLOT_BYTES
        self._keep(root)

    def _keep(self, directory: Directory) -> None:
        self._charge(_DIRECTORY_BYTES + len(directory.body))
        self._directories.append(directory)
        self._open.append(directory)

    def _charge(self, size: int) -> None:
        self._directory_bytes += size
        if self._directory_bytes > self._limits.max_directory_bytes:
            raise UserError("The tree has too many or too large directories for an image.")

    def _parent_of(self, path: bytes, parent: bytes) -> Directory:
        """The open directory of that path; directories below it are complete now."""
        while self._open and self._open[-1].path != parent:
            self._close_last()
        if not self._open:
            raise ValueError(f"{path!r} comes before its directory or after the end of it")
        return self._open[-1]

    def _close_last(self) -> None:
        directory = self._open.pop()
        directory.close()
        self._charge(len(directory.data))

    def _put_grouped(self, path: bytes, inode: Inode) -> int:
        """Number of a file with several names; the first of them writes it."""
        known = self._groups.pop(inode.group, None)
        nid, left = known or (self._put(path, inode, inode.links), inode.links)
        if left > 1:
            self._groups[inode.group] = nid, left - 1
        return nid

    def _put(self, path: bytes, inode: Inode, links: int) -> int:
        """Write a file that is no directory and return its number."""
        self._report.inodes += 1
        kind = inode.mode & TYPE_BITS
        if kind == stat.S_IFREG and inode.size:
            return self._put_stub(path, inode, links)
        if kind == stat.S_IFLNK:
            return self._put_link(path, inode, links)
        if kind not in FILE_TYPES:
            raise ValueError(f"{path!r} has mode {inode.mode:o}")
        body = self._body(path, inode)
        union = _device(path, inode) if kind in {stat.S_IFCHR, stat.S_IFBLK} else 0
        nid = self._output.position // SLOT_BYTES
        self._output.put_slots(format_inode(FORMAT_PLAIN, inode, body, nid, links, 0, union) + body)
        return nid

    def _put_stub(self, path: bytes, inode: Inode, links: int) -> int:
        content = inode.content
        if content is None or content.size != inode.size:
            raise ValueError(f"{path!r} has {inode.size} bytes and the content {content}")
        if inode.size > FILE_SIZE_MAX:
            raise _refused(path, f"has {inode.size} bytes")
        if content.in_chunks:
            self.in_chunks.add(content.digest)
        xattrs = self._xattrs(path, inode) if inode.xattrs else []
        body = self._bodies.of_stub(content.redirect, xattrs)
        nid = self._output.position // SLOT_BYTES
        head = format_inode(FORMAT_CHUNKED, inode, body, nid, links, inode.size, chunk_format(inode.size))
        self._output.put_slots(head + body + NULL_BLOCK)
        return nid

    def _put_link(self, path: bytes, inode: Inode, links: int) -> int:
        """Inode, attributes and target in one block, as Linux 6.1 requires (erofs_fill_symlink), or the target in a
        block of its own before them."""
        output, target = self._output, inode.target
        if not 0 < len(target) <= LINK_MAX or b"\0" in target:
            raise _refused(path, f"is a symbolic link with a target of {len(target)} bytes")
        body = self._body(path, inode)
        layout, union, tail = FORMAT_INLINE, 0, target
        if INODE_BYTES + len(body) + len(target) > BLOCK_BYTES:
            output.align()
            layout, union, tail = FORMAT_PLAIN, output.position // BLOCK_BYTES, b""
            output.put(target)
            output.align()
        elif output.position % BLOCK_BYTES + INODE_BYTES + len(body) + len(target) > BLOCK_BYTES:
            output.align()
        nid = output.position // SLOT_BYTES
        output.put_slots(format_inode(layout, inode, body, nid, links, len(target), union) + body + tail)
        return nid

    def _body(self, path: bytes, inode: Inode) -> bytes:
        return self._bodies.of_file(self._xattrs(path, inode)) if inode.xattrs else b""

    def _xattrs(self, path: bytes, inode: Inode) -> list[tuple[bytes, bytes]]:
        """A file's attributes that may enter the image; the others are reported."""
        report = self._report
        kept = []
        for name, value in sorted(inode.xattrs.items()):
            if may_enter(name, value, inode.mode):
                kept.append((name, value))
                if name == ORIGIN:
                    report.version = 2
                continue
            report.dropped_total += 1
            if len(report.dropped) < _DROPPED_SHOWN:
                report.dropped.append(DroppedXattr(path, name, len(value)))
        return kept


def _device(path: bytes, inode: Inode) -> int:
    try:
        return encode_device(inode.device)
    except ValueError as error:
        raise _refused(path, f"is {error}") from error


def _refused(path: bytes, problem: str) -> UserError:
    return UserError(f"{quoted(path)} {problem}, which a metadata image cannot hold.")
