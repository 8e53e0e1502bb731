"""Metadata images, reading: every byte of a foreign image is checked before the kernel gets it. Pure.

    for path, inode in read_image(file, "the image of …"):
        ...

Only images that `writer.py` can make are accepted, and nothing else of EROFS (docs/format/erofs-image.md); `read_image`
gives the input of `write_image`. Each byte of an image belongs to one thing at most, so the image's length bounds the
work: directories in a circle, and things that overlap, are refused where they are met. Memory: a 32nd of the image, and
the files of which some names were not met yet. Any thread.
"""

import contextlib
import io
import mmap
import os
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from mica.digest import Digest
from mica.errors import IntegrityError
from mica.metaimage.chunktable import has_chunk_list, image_version, parse_chunk_table
from mica.metaimage.dirents import Dirent
from mica.metaimage.erofs_abi import (
    BLOCK_BYTES,
    FILE_TYPES,
    SUPERBLOCK_BYTES,
    SUPERBLOCK_OFFSET,
    TYPE_BITS,
    Superblock,
    parse_superblock,
)
from mica.metaimage.inode import ENTRIES_MAX, PATH_MAX, Inode
from mica.metaimage.records import BrokenError, Image, Records
from mica.texts import quoted
from mica.unionsigns import ORIGIN


def read_superblock(file: BinaryIO, what: str) -> Superblock:
    """Raises IntegrityError if it is not that of a metadata image, or if the file is shorter than it says."""
    with _contents(file) as image:
        return _superblock(image, what)


def read_chunk_lists(file: BinaryIO, what: str) -> Iterator[tuple[Digest, bytes]]:
    """The chunk lists of the layer's files in chunks, each compared with its digest. Raises IntegrityError."""
    with _contents(file) as image:
        yield from _chunk_lists(image, _superblock(image, what), what)


def read_image(file: BinaryIO, what: str) -> Iterator[tuple[bytes, Inode]]:
    """Every path with its file, in tree order. The image is proved right only when the last path was given.

    Raises IntegrityError naming `what` and the first thing wrong.
    """
    with _contents(file) as image:
        superblock = _superblock(image, what)
        table = superblock.blocks * BLOCK_BYTES
        deque(_chunk_lists(image, superblock, what), maxlen=0)
        version = image_version(image, table)
        try:
            for path, inode in _Walk(image, superblock).run():
                content = inode.content
                if content is not None and content.in_chunks and not has_chunk_list(image, table, content.digest):
                    raise BrokenError(f"{quoted(path)} has no chunk list")
                if version == 1 and ORIGIN in inode.xattrs:
                    raise BrokenError(f"{quoted(path)} has an attribute that images have since version 2")
                yield path, inode
        except BrokenError as error:
            raise IntegrityError(f"{what} is broken: {error}.") from error


def _chunk_lists(image: Image, superblock: Superblock, what: str) -> Iterator[tuple[Digest, bytes]]:
    return parse_chunk_table(image, superblock.blocks * BLOCK_BYTES, what, most=superblock.inodes)


def _superblock(image: Image, what: str) -> Superblock:
    superblock = parse_superblock(image[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES], what)
    if not 0 < superblock.blocks * BLOCK_BYTES <= len(image):
        raise IntegrityError(f"{what} has {len(image)} bytes and says it has {superblock.blocks} blocks of 4096.")
    if superblock.inodes > ENTRIES_MAX:
        raise IntegrityError(f"{what} has {superblock.inodes} files, more than the {ENTRIES_MAX} of the largest layer.")
    return superblock


@contextlib.contextmanager
def _contents(file: BinaryIO) -> Iterator[Image]:
    """All bytes of a file. A file of the system is mapped, so nobody may shorten it meanwhile."""
    try:
        descriptor = file.fileno()
    except io.UnsupportedOperation:
        file.seek(0)
        yield file.read()
        return
    if not os.fstat(descriptor).st_size:
        yield b""
        return
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as image:
        yield image


class _Open(NamedTuple):
    """A directory that the walk is in."""

    path: bytes
    nid: int
    children: Iterator[Dirent]


class _Walk:
    def __init__(self, image: Image, superblock: Superblock) -> None:
        self._superblock = superblock
        self._records = Records(image, superblock.blocks * BLOCK_BYTES, SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES)
        self._linked: dict[int, tuple[Inode, int]] = {}
        self._inodes = 0
        self._names_left = ENTRIES_MAX

    def run(self) -> Iterator[tuple[bytes, Inode]]:
        root = self._superblock.root_nid
        inode, below = self._read(root, root)
        yield b"", inode
        pending = [_Open(b"", root, below)] if below is not None else []
        if not pending:
            raise BrokenError("its root is no directory")
        while pending:
            directory = pending[-1]
            for child in directory.children:
                path = directory.path + b"/" + child.name
                if len(path) > PATH_MAX:
                    raise BrokenError(f"{quoted(path)} is too long")
                inode, below = self._child(path, child, directory.nid)
                yield path, inode
                if below is not None:
                    pending.append(_Open(path, child.nid, below))
                    break
            else:
                pending.pop()
        self._check_whole()

    def _child(self, path: bytes, child: Dirent, parent: int) -> tuple[Inode, Iterator[Dirent] | None]:
        """A file and, if it is a directory, its members."""
        self._names_left -= 1
        if not self._names_left:
            raise BrokenError(f"it has more than {ENTRIES_MAX} names")
        known = self._linked.pop(child.nid, None)
        inode, below = self._read(child.nid, parent) if known is None else (known[0], None)
        if FILE_TYPES[inode.mode & TYPE_BITS] != child.file_type:
            raise BrokenError(f"{quoted(path)} is of another type than its directory says")
        left = inode.links if known is None else known[1]
        if left > 1:
            self._linked[child.nid] = inode, left - 1
        return inode, below

    def _read(self, nid: int, parent: int) -> tuple[Inode, Iterator[Dirent] | None]:
        self._inodes += 1
        inode, directory = self._records.read(nid)
        return inode, None if directory is None else self._records.children(directory, parent)

    def _check_whole(self) -> None:
        if self._linked:
            raise BrokenError(f"{len(self._linked)} files have fewer names than links")
        if self._inodes != self._superblock.inodes:
            raise BrokenError(f"it has {self._inodes} inodes and says {self._superblock.inodes}")
