"""Inodes, attributes and directories of an image that is being read. Each byte belongs to one of them at most.

The bytes are foreign: a fault in them is a BrokenError. Called by `reader.py`; one thread.
"""

import mmap
import stat
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mica.metaimage.dirents import Dirent, parse_dirents
from mica.metaimage.erofs_abi import (
    BLOCK_BYTES,
    DIRECTORY_TYPE,
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
from mica.metaimage.xattrs import SHARED_BYTES_MAX, SHARED_ENTRIES_MAX, filter_bits, join_name, may_enter, split_name
from mica.repo.localname import LocalName
from mica.unionsigns import METACOPY, REDIRECT

Image = bytes | mmap.mmap

_SECOND_NS = 1_000_000_000
_USED = b"\1"
_REDIRECT_INDEX, _REDIRECT_REST = split_name(REDIRECT)
_STUB_HEAD_BYTES = XATTR_BODY_BYTES + XATTR_ID_BYTES + XATTR_ENTRY_BYTES + len(_REDIRECT_REST)
_STUB_HEADS_MAX = 64
"""Most kept results; an honest image has one for each length of a redirect."""
_DEVICES = {stat.S_IFCHR, stat.S_IFBLK}


class BrokenError(Exception):
    """The second half of a sentence about an image."""


class DirectoryRecord(NamedTuple):
    """The place of a directory's content of `size` bytes. Whole blocks begin at `block`; the rest begins at `tail` if
    it follows the inode."""

    nid: int
    links: int
    is_inline: bool
    size: int
    tail: int
    block: int


class Records:
    """Reads an image whose blocks end at `end`; the first `taken` bytes are the superblock's."""

    def __init__(self, image: Image, end: int, taken: int) -> None:
        self._image = image
        self._end = end
        self._used = bytearray(end // SLOT_BYTES)
        self._shared: dict[int, tuple[bytes, bytes]] = {}
        self._redirect_bytes: dict[bytes, int] = {}
        self._claim(0, taken)

    def read(self, nid: int) -> tuple[Inode, DirectoryRecord | None]:
        """The inode with that number, which was not read before."""
        start = nid * SLOT_BYTES
        if start + INODE_BYTES > self._end:
            raise BrokenError(f"it has no inode {nid}")
        (layout, count, mode, high, size, union, number, uid, gid, mtime_s, mtime_ns, links) = INODE.unpack_from(
            self._image, start
        )
        if high or number != nid & 0xFFFFFFFF or mtime_ns >= _SECOND_NS or not links:
            raise BrokenError(f"inode {nid} has impossible values")
        kind = mode & TYPE_BITS
        body = start + INODE_BYTES
        tail = body + XATTR_BODY_BYTES + XATTR_ID_BYTES * (count - 1) if count else body
        self._claim(start, tail + _tail_bytes(nid, kind, layout, size))
        xattrs = self._stub_xattrs(nid, body, tail) if layout == FORMAT_CHUNKED else None
        if xattrs is None:
            xattrs = self._xattrs(nid, body, tail) if count else {}
        content = self._content(nid, size, union, tail, xattrs) if layout == FORMAT_CHUNKED else None
        if xattrs and not all(may_enter(name, value, mode) for name, value in xattrs.items()):
            raise BrokenError(f"inode {nid} has attributes that a metadata image must not have")
        known: Mapping[bytes, bytes] = xattrs or NO_XATTRS
        if content is not None:
            group = nid if links > 1 else 0
            return Inode(mode, uid, gid, mtime_s, mtime_ns, size, content, 0, b"", known, links, group), None
        if kind == stat.S_IFDIR:
            directory = DirectoryRecord(nid, links, layout == FORMAT_INLINE, size, tail, union)
            return Inode(mode, uid, gid, mtime_s, mtime_ns, xattrs=known), directory
        device, target = 0, b""
        if kind == stat.S_IFLNK:
            target = self._target(nid, layout, size, union, tail)
        elif kind in _DEVICES:
            device = decode_device(union)
        elif union:
            raise BrokenError(f"inode {nid} is empty and has a block")
        group = nid if links > 1 else 0
        return Inode(mode, uid, gid, mtime_s, mtime_ns, 0, None, device, target, known, links, group), None

    def children(self, record: DirectoryRecord, parent: int) -> Iterator[Dirent]:
        """The members of a directory, sorted. Faults that need all of them are raised at the end."""
        nid = record.nid
        dots = {b".": nid, b"..": parent}
        last = b""
        directories = 0  # two of which are itself and its parent, as in its number of links
        for block in self._blocks(record):
            try:
                entries = parse_dirents(block)
            except ValueError as error:
                raise BrokenError(f"directory {nid} {error}") from error
            for entry in entries:
                if entry.name <= last:
                    raise BrokenError(f"the names of directory {nid} are not sorted")
                last = entry.name
                directories += entry.file_type == DIRECTORY_TYPE
                if last not in dots:
                    yield entry
                elif dots.pop(last) != entry.nid or entry.file_type != DIRECTORY_TYPE:
                    raise BrokenError(f"directory {nid} has a wrong {last.decode('ascii')}")
        if dots or directories != record.links:
            raise BrokenError(f"directory {nid} has {record.links} links and {directories} directories in it")

    def _claim(self, start: int, end: int) -> None:
        if end > self._end:
            raise BrokenError(f"something at {start} ends at {end}, after the last block")
        first, last = start // SLOT_BYTES, -(-end // SLOT_BYTES)
        if self._used.find(_USED, first, last) >= 0:
            raise BrokenError(f"two things overlap between {start} and {end}")
        self._used[first:last] = _USED * (last - first)

    def _content(self, nid: int, size: int, union: int, tail: int, xattrs: dict[bytes, bytes]) -> LocalName:
        """The content that the redirect of a stub names; redirect and metacopy are taken out of the attributes."""
        if union != chunk_format(size) or self._image[tail : tail + len(NULL_BLOCK)] != NULL_BLOCK:
            raise BrokenError(f"inode {nid} has data in the image")
        redirect = xattrs.pop(REDIRECT, b"")
        if xattrs.pop(METACOPY, None) != b"" or redirect[:1] != b"/":
            raise BrokenError(f"inode {nid} does not say where its content is")
        try:
            content = LocalName.parse_redirect(redirect)
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
            raise BrokenError(f"inode {nid} is a symbolic link that lies in two blocks")
        target = self._image[start : start + size]
        if b"\0" in target:
            raise BrokenError(f"inode {nid} is a symbolic link with a zero in its target")
        return target

    def _blocks(self, record: DirectoryRecord) -> Iterator[bytes]:
        inline = record.size % BLOCK_BYTES if record.is_inline else 0
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

    def _stub_xattrs(self, nid: int, start: int, end: int) -> dict[bytes, bytes] | None:
        """Attributes of a stub that has only those of every stub, as most files; None for any other.

        Up to the value of the redirect, the bytes are the same in all stubs with a redirect of the same length, so they
        are parsed once for each length.
        """
        value = start + _STUB_HEAD_BYTES
        head = self._image[start:value]
        size = self._redirect_bytes.get(head)
        if size is None:
            size = _redirect_bytes(head)
            if size is None or len(self._redirect_bytes) == _STUB_HEADS_MAX:
                return None
            if tuple(self._xattrs(nid, start, end)) != (METACOPY, REDIRECT):
                return None
            self._redirect_bytes[head] = size
        if value + size + -size % XATTR_ID_BYTES != end:
            return None
        return {METACOPY: b"", REDIRECT: self._image[value : value + size]}

    def _xattrs(self, nid: int, start: int, end: int) -> dict[bytes, bytes]:
        absent, shared = XATTR_BODY.unpack_from(self._image, start)
        ids = start + XATTR_BODY_BYTES
        place = ids + XATTR_ID_BYTES * shared
        if place > end:
            raise BrokenError(f"inode {nid} has more shared attributes than fit into its attribute body")
        pairs = [self._shared_xattr(at) for at in range(ids, place, XATTR_ID_BYTES)]
        while place < end:
            pair, place = self._xattr(place, end)
            pairs.append(pair)
        xattrs = dict(pairs)
        if len(xattrs) != len(pairs) or not pairs:
            raise BrokenError(f"inode {nid} has an attribute twice, or an attribute body without any")
        if absent & filter_bits(tuple(xattrs)):
            raise BrokenError(f"inode {nid} has a filter that hides its attributes")
        return xattrs

    def _shared_xattr(self, at: int) -> tuple[bytes, bytes]:
        (number,) = XATTR_ID.unpack_from(self._image, at)
        found = self._shared.get(number)
        if found is None:
            start = number * XATTR_ID_BYTES
            if start % SLOT_BYTES:
                raise BrokenError(f"a shared attribute lies at {start}")
            found, end = self._xattr(start, self._end)
            if end - start > SHARED_BYTES_MAX or len(self._shared) == SHARED_ENTRIES_MAX:
                raise BrokenError("it shares too many or too large attributes")
            self._claim(start, end)
            self._shared[number] = found
        return found

    def _xattr(self, place: int, end: int) -> tuple[tuple[bytes, bytes], int]:
        """Name and value of an entry, and the place of the next one."""
        start = place + XATTR_ENTRY_BYTES
        if start > end:
            raise BrokenError(f"an attribute at {place} is cut short")
        length, index, size = XATTR_ENTRY.unpack_from(self._image, place)
        value = start + length
        after = value + size
        following = after + -after % XATTR_ID_BYTES
        if following > end:
            raise BrokenError(f"an attribute at {place} is cut short")
        try:
            name = join_name(index, self._image[start:value])
        except ValueError as error:
            raise BrokenError(f"an attribute at {place} has an impossible name") from error
        return (name, self._image[value:after]), following


def _redirect_bytes(head: bytes) -> int | None:
    """The length of the value that follows, if there is one shared attribute and then the redirect."""
    if len(head) != _STUB_HEAD_BYTES or XATTR_BODY.unpack_from(head)[1] != 1:
        return None
    length, index, size = XATTR_ENTRY.unpack_from(head, XATTR_BODY_BYTES + XATTR_ID_BYTES)
    return int(size) if (length, index) == (len(_REDIRECT_REST), _REDIRECT_INDEX) else None


def _tail_bytes(nid: int, kind: int, layout: int, size: int) -> int:
    """How much of the content, or of its map, follows the attributes of an inode."""
    if kind == stat.S_IFREG and size:
        if layout == FORMAT_CHUNKED and size <= FILE_SIZE_MAX:
            return len(NULL_BLOCK)
    elif kind in {stat.S_IFDIR, stat.S_IFLNK}:
        if layout == FORMAT_INLINE and size % BLOCK_BYTES:
            return size % BLOCK_BYTES
        if layout == FORMAT_PLAIN and size:
            return 0
    elif kind in FILE_TYPES and layout == FORMAT_PLAIN and not size:
        return 0
    raise BrokenError(f"inode {nid} of type {kind:o} with {size} bytes has layout {layout}")
