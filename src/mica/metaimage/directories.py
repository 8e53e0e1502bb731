"""Directories of an image that is being written. Their final bytes are kept until all numbers are known, then placed.

The end of a directory's content follows its inode, in one block, as far as it fits (LAYOUT_INLINE); everything before
it, and what does not fit, has blocks of its own after the last inode.
"""

from bisect import bisect_left
from collections.abc import Sequence

from mica.metaimage.dirents import format_dirents
from mica.metaimage.erofs_abi import (
    BLOCK_BYTES,
    DIRECTORY_TYPE,
    FORMAT_INLINE,
    FORMAT_PLAIN,
    INODE_BYTES,
    NID,
    SLOT_BYTES,
    pad_to,
)
from mica.metaimage.inode import Inode, format_inode
from mica.metaimage.output import ImageOutput


class Directory:
    """`add` children by name, subdirectories without a number, then `close`. `place_directories` sets `nid`."""

    __slots__ = ("_dots", "_names", "_nids", "_slot", "_subdirectories", "_types", "body", "data", "inode", "is_inline",
                 "links", "nid", "parent", "path")  # fmt: skip

    def __init__(self, path: bytes, inode: Inode, body: bytes, parent: "Directory | None") -> None:
        """The root is its own parent. `body` are the attributes."""
        self.path = path
        self.inode = inode
        self.body = body
        self.parent = self if parent is None else parent
        self.data = bytearray()
        self.links = 2
        self.nid = 0
        self.is_inline = False
        self._names: list[bytes] = []
        self._nids: list[int] = []
        self._types = bytearray()
        self._subdirectories: list[tuple[int, Directory]] = []
        self._dots = (0, 0)
        self._slot = 0

    def add(self, name: bytes, nid: int, file_type: int) -> None:
        if self._names and name <= self._names[-1]:
            raise ValueError(f"{name!r} comes after {self._names[-1]!r} in {self.path!r}")
        self._names.append(name)
        self._nids.append(nid)
        self._types.append(file_type)

    def add_directory(self, name: bytes, child: "Directory") -> None:
        self.add(name, 0, DIRECTORY_TYPE)
        self._subdirectories.append((len(self._names) - 1, child))

    def close(self) -> None:
        """All children are known: make the content, and note where numbers of directories are missing in it."""
        dot, dots = (self._insert_self(name) for name in (b".", b".."))
        self.data, places = format_dirents(self._names, self._nids, self._types)
        self._dots = places[dot], places[dots]
        for number, child in self._subdirectories:
            after_dot = number + (number >= dot)
            child._slot = places[after_dot + (after_dot >= dots)]  # noqa: SLF001 - of the same class
        self.links += len(self._subdirectories)
        self.path = b""
        del self._names, self._nids, self._types, self._subdirectories

    def fill_in(self) -> None:
        """Put the number of this directory, which is known now, into the records that lack it."""
        NID.pack_into(self.data, self._dots[0], self.nid)
        NID.pack_into(self.data, self._dots[1], self.parent.nid)
        if self.parent is not self:
            NID.pack_into(self.parent.data, self._slot, self.nid)

    @property
    def head_bytes(self) -> int:
        return INODE_BYTES + len(self.body)

    @property
    def tail_bytes(self) -> int:
        """Bytes of the content that follow the inode."""
        return len(self.data) % BLOCK_BYTES if self.is_inline else 0

    @property
    def block_count(self) -> int:
        return -(-(len(self.data) - self.tail_bytes) // BLOCK_BYTES)

    def format(self, first_block: int) -> bytes:
        """The inode. `first_block` is the number of the first block of content, if there is one."""
        layout = FORMAT_INLINE if self.is_inline else FORMAT_PLAIN
        union = first_block if self.block_count else 0
        return format_inode(layout, self.inode, self.body, self.nid, self.links, len(self.data), union)

    def _insert_self(self, name: bytes) -> int:
        at = bisect_left(self._names, name)
        self._names.insert(at, name)
        self._nids.insert(at, 0)
        self._types.insert(at, DIRECTORY_TYPE)
        return at


def put_directories(output: ImageOutput, directories: Sequence[Directory]) -> None:
    """Place and write all directories. The first is the root, whose inode has a fixed place in the first block."""
    root = directories[0]
    block = -(-_place(output.position, directories[1:]) // BLOCK_BYTES)
    for directory in directories:
        directory.fill_in()
    output.flush()
    at = root.nid * SLOT_BYTES
    output.first[at : at + INODE_BYTES] = root.format(block)
    block += root.block_count
    for directory in directories[1:]:
        output.skip_to(directory.nid * SLOT_BYTES)
        output.put(directory.format(block) + directory.body)
        output.put(directory.data[len(directory.data) - directory.tail_bytes :])
        block += directory.block_count
    output.align()
    for directory in directories:
        output.put(directory.data[: len(directory.data) - directory.tail_bytes])
        output.align()
        directory.data = bytearray()


def _place(position: int, directories: Sequence[Directory]) -> int:
    """Number all of them from a position on, and return where they end."""
    for directory in directories:
        position += pad_to(position, SLOT_BYTES)
        head, tail = directory.head_bytes, len(directory.data) % BLOCK_BYTES
        inline = _inline_place(position, head, tail) if tail else None
        directory.is_inline = inline is not None
        directory.nid = (position if inline is None else inline) // SLOT_BYTES
        position = directory.nid * SLOT_BYTES + head + directory.tail_bytes
    return position


def _inline_place(position: int, head: int, tail: int) -> int | None:
    """The first place from a position on where a tail after a head lies in one block, None if it never does."""
    start = position + head
    boundary = start + pad_to(start, BLOCK_BYTES)
    if start + tail <= boundary:
        return position
    # The head may lie in the block before; of it, only whole slots do.
    over = head % SLOT_BYTES
    return boundary - (head - over) if over + tail <= BLOCK_BYTES else None
