"""Inodes, attributes and directories of an image being read, each byte of it given to one of them at most.

The bytes of a foreign image: `BrokenError` has the second half of a sentence about it. Called by `reader.py`.
"""

import mmap
import stat
from collections.abc import Iterator
from typing import NamedTuple

from mica.metaimage.dirents import Dirent, parse_dirents
from mica.metaimage.erofs_abi import (
    BLOCK_BYTES,
    FILE_SIZE_MAX,
    FILE_TYPES,
    FORMAT_CHUNKED,
    FORMAT_INLINE,
    FORMAT_PLAIN,
    INODE,
    INODE_BYTES,
    LINK_MAX,
    NULL_BLOCK,
    SLOT_BYTES,
    TYPE_BITS,
    XATTR_BODY,
    XATTR_BODY_BYTES,
    XATTR_ENTRY,
    XATTR_ENTRY_BYTES,
    XATTR_ID,
    XATTR_ID_BYTES,
    chunk_format,
    decode_device,
)
from mica.metaimage.inode import NO_XATTRS, Inode
from mica.metaimage.xattrs import METACOPY, REDIRECT, join_name, may_enter
from mica.repo.localname import LocalName

Image = bytes | mmap.mmap

_SECOND_NS = 1_000_000_000


class BrokenError(Exception):
    """The second half of a sentence about an image."""


class Record(NamedTuple):
    """An inode, and what else its bytes say: its number, its layout, the links it claims, the bytes of its content and
    where they begin behind the inode, and the first of its blocks."""

    inode: Inode
    nid: int
    layout: int
    links: int
    size: int
    tail: int
    block: int


class Records:
    """Of an image whose blocks end at `end`; the superblock is taken already."""

    def __init__(self, image: Image, end: int, taken: int) -> None:
        self._image = image
        self._end = end
        self._used = bytearray(end // SLOT_BYTES)
        self._shared: dict[int, tuple[bytes, bytes]] = {}
        self._claim(0, taken)

    def read(self, nid: int) -> Record:
        """The inode with that number, which was not read before."""
        start = nid * SLOT_BYTES
        if start + INODE_BYTES > self._end:
            raise BrokenError(f"it has no inode {nid}")
        (layout, count, mode, high, size, union, number, uid, gid, mtime_s, mtime_ns, links) = INODE.unpack_from(
            self._image, start
        )
        kind = mode & TYPE_BITS
        if kind not in FILE_TYPES or high or number != nid & 0xFFFFFFFF or mtime_ns >= _SECOND_NS or not links:
            raise BrokenError(f"inode {nid} has impossible values")
        body = XATTR_BODY_BYTES + XATTR_ID_BYTES * (count - 1) if count else 0
        tail = start + INODE_BYTES + body
        self._claim(start, tail + self._tail_bytes(nid, kind, layout, size))
        xattrs = self._xattrs(nid, start + INODE_BYTES, body) if body else {}
        content = self._content(nid, kind, layout, size, union, tail, xattrs)
        if not all(may_enter(name, value, mode) for name, value in xattrs.items()):
            raise BrokenError(f"inode {nid} has attributes that only others may set")
        target = self._target(nid, layout, size, union, tail) if kind == stat.S_IFLNK else b""
        device = decode_device(union) if kind in {stat.S_IFCHR, stat.S_IFBLK} else 0
        inode = Inode(
            mode, uid, gid, mtime_s, mtime_ns, size if kind == stat.S_IFREG else 0, content, device, target,
            xattrs or NO_XATTRS, 1 if kind == stat.S_IFDIR else links, nid if links > 1 and kind != stat.S_IFDIR else 0,
        )  # fmt: skip
        return Record(inode, nid, layout, links, size, tail, union)

    def children(self, record: Record, parent: int) -> Iterator[Dirent]:
        """What is in a directory, sorted; at its end it is known whether all of it was right."""
        nid = record.nid
        dots = {b".": nid, b"..": parent}
        last = b""
        subdirectories = 0
        for block in self._directory_blocks(record):
            try:
                entries = parse_dirents(block)
            except ValueError as error:
                raise BrokenError(f"directory {nid} {error}") from error
            for entry in entries:
                if entry.name <= last:
                    raise BrokenError(f"the names of directory {nid} are not sorted")
                last = entry.name
                subdirectories += entry.file_type == FILE_TYPES[stat.S_IFDIR]
                if last not in {b".", b".."}:
                    yield entry
                elif dots.pop(last) != entry.nid or entry.file_type != FILE_TYPES[stat.S_IFDIR]:
                    raise BrokenError(f"directory {nid} has a wrong {last.decode('ascii')}")
        if dots or subdirectories != record.links:
            raise BrokenError(f"directory {nid} has {record.links} links and {subdirectories} directories in it")

    def _claim(self, start: int, end: int) -> None:
        if end > self._end:
            raise BrokenError(f"something at {start} ends at {end}, after the last block")
        first, last = start // SLOT_BYTES, -(-end // SLOT_BYTES)
        if self._used.find(1, first, last) >= 0:
            raise BrokenError(f"two things lie over each other between {start} and {end}")
        self._used[first:last] = b"\1" * (last - first)

    def _tail_bytes(self, nid: int, kind: int, layout: int, size: int) -> int:
        """How much of the content, or of its map, follows the attributes of an inode."""
        if kind == stat.S_IFREG and size:
            if layout == FORMAT_CHUNKED and size <= FILE_SIZE_MAX:
                return len(NULL_BLOCK)
        elif kind in {stat.S_IFDIR, stat.S_IFLNK}:
            if layout == FORMAT_INLINE and size % BLOCK_BYTES:
                return size % BLOCK_BYTES
            if layout == FORMAT_PLAIN and size:
                return 0
        elif layout == FORMAT_PLAIN and not size:
            return 0
        raise BrokenError(f"inode {nid} of type {kind:o} and {size} bytes has layout {layout}")

    def _content(
        self, nid: int, kind: int, layout: int, size: int, union: int, tail: int, xattrs: dict[bytes, bytes]
    ) -> LocalName | None:
        """What the redirect of a stub names; that and its sign are taken out of the attributes."""
        if layout != FORMAT_CHUNKED:
            if union and kind not in {stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK}:
                raise BrokenError(f"inode {nid} is empty and has a block")
            return None
        if union != chunk_format(size) or self._image[tail : tail + len(NULL_BLOCK)] != NULL_BLOCK:
            raise BrokenError(f"inode {nid} has data in the image")
        redirect = xattrs.pop(REDIRECT, b"")
        if xattrs.pop(METACOPY, None) != b"" or redirect[:1] != b"/":
            raise BrokenError(f"inode {nid} does not say where its content is")
        try:
            content = LocalName.parse(redirect[1:].decode("ascii"))
        except ValueError as error:
            raise BrokenError(f"inode {nid} has a redirect that names no content") from error
        if content.size != size:
            raise BrokenError(f"inode {nid} has {size} bytes and its content {content.size}")
        return content

    def _target(self, nid: int, layout: int, size: int, block: int, tail: int) -> bytes:
        if size > LINK_MAX:
            raise BrokenError(f"inode {nid} is a symbolic link of {size} bytes")
        start = tail
        if layout == FORMAT_PLAIN:
            start = block * BLOCK_BYTES
            self._claim(start, start + BLOCK_BYTES)
        elif nid * SLOT_BYTES // BLOCK_BYTES != (tail + size - 1) // BLOCK_BYTES:
            raise BrokenError(f"inode {nid} is a symbolic link over two blocks")
        target = self._image[start : start + size]
        if b"\0" in target:
            raise BrokenError(f"inode {nid} is a symbolic link with a zero in its target")
        return target

    def _directory_blocks(self, record: Record) -> Iterator[bytes]:
        inline = record.size % BLOCK_BYTES if record.layout == FORMAT_INLINE else 0
        start = record.block * BLOCK_BYTES
        end = start + record.size - inline
        if end > start:
            self._claim(start, end + -end % BLOCK_BYTES)
        elif start:
            raise BrokenError(f"directory {record.nid} has a block too many")
        for place in range(start, end, BLOCK_BYTES):
            yield self._image[place : min(place + BLOCK_BYTES, end)]
        if inline:
            if record.tail // BLOCK_BYTES != (record.tail + inline - 1) // BLOCK_BYTES:
                raise BrokenError(f"the end of directory {record.nid} lies in two blocks")
            yield self._image[record.tail : record.tail + inline]

    def _xattrs(self, nid: int, start: int, size: int) -> dict[bytes, bytes]:
        _, shared = XATTR_BODY.unpack_from(self._image, start)
        end = start + size
        place = start + XATTR_BODY_BYTES + XATTR_ID_BYTES * shared
        if place > end:
            raise BrokenError(f"inode {nid} has more shared attributes than it has room for")
        pairs = [self._shared_xattr(start + XATTR_BODY_BYTES + XATTR_ID_BYTES * index) for index in range(shared)]
        while place < end:
            pair, place = self._xattr(place, end)
            pairs.append(pair)
        xattrs = dict(pairs)
        if len(xattrs) != len(pairs) or not pairs:
            raise BrokenError(f"inode {nid} has an attribute twice, or room for none")
        return xattrs

    def _shared_xattr(self, at: int) -> tuple[bytes, bytes]:
        (number,) = XATTR_ID.unpack_from(self._image, at)
        found = self._shared.get(number)
        if found is None:
            start = number * XATTR_ID_BYTES
            found, end = self._xattr(start, self._end)
            if start % SLOT_BYTES:
                raise BrokenError(f"shared attribute {number} is not where one can be")
            self._claim(start, end)
            self._shared[number] = found
        return found

    def _xattr(self, place: int, end: int) -> tuple[tuple[bytes, bytes], int]:
        """Name and value of an entry, and where the next one begins."""
        start = place + XATTR_ENTRY_BYTES
        if start > end:
            raise BrokenError(f"an attribute at {place} is cut short")
        length, index, size = XATTR_ENTRY.unpack_from(self._image, place)
        after = start + length + size
        after += -after % XATTR_ID_BYTES
        if after > end:
            raise BrokenError(f"an attribute at {place} is cut short")
        try:
            name = join_name(index, self._image[start : start + length])
        except ValueError as error:
            raise BrokenError(f"an attribute at {place} has an impossible name") from error
        return (name, self._image[start + length : start + length + size]), after
