"""Structures of EROFS on disk, those that metadata images have (docs/format/erofs-image.md). Pure.

Sources: fs/erofs/erofs_fs.h of the kernel (little-endian throughout), and for the rules of its readers fs/erofs/
{super,inode,dir,xattr,data}.c of 6.1 to 6.18. This module has no trees and no files.
"""

import os
import stat
from struct import Struct
from typing import Final, NamedTuple

from mica.errors import IntegrityError

BLOCK_BITS: Final = 12
BLOCK_BYTES: Final = 1 << BLOCK_BITS
SLOT_BYTES: Final = 32
"""Everything in an image lies on a boundary of this many bytes; an inode's number is its offset divided by it."""

SUPERBLOCK_OFFSET: Final = 1024
MAGIC: Final = 0xE0F5E1E2
FEATURE_COMPAT_MTIME: Final = 0x2
FEATURE_COMPAT_XATTR_FILTER: Final = 0x4
FEATURES_COMPAT: Final = FEATURE_COMPAT_MTIME | FEATURE_COMPAT_XATTR_FILTER
FEATURES_INCOMPAT: Final = 0x4
"""Chunk-based files, as sparse stubs are."""

LAYOUT_PLAIN: Final = 0
LAYOUT_INLINE: Final = 2
LAYOUT_CHUNKED: Final = 4

CHUNK_BITS_MAX: Final = 31
FILE_SIZE_MAX: Final = 1 << (BLOCK_BITS + CHUNK_BITS_MAX)
"""Bytes of the largest file that one chunk covers."""
NULL_BLOCK: Final = b"\xff\xff\xff\xff"
"""The block map of a file that is one hole."""

NAME_MAX: Final = 255
LINK_MAX: Final = BLOCK_BYTES - 1
ROOT_NID_MAX: Final = 0xFFFF
"""The superblock has 16 bits for it."""
SHARED_XATTRS_MAX: Final = 255

TYPE_BITS: Final = 0o170000
"""The bits of a mode that are the type."""
FILE_TYPES: Final = {
    stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}  # fmt: skip
DIRECTORY_TYPE: Final = FILE_TYPES[stat.S_IFDIR]

SUPERBLOCK: Final = Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24s")
SUPERBLOCK_BYTES: Final = 128
UUID_OFFSET: Final = SUPERBLOCK_OFFSET + 48
UUID_BYTES: Final = 16

INODE: Final = Struct("<HHHHQIIIIqII16x")
"""An extended inode: format, xattr count, mode, reserved, size, union, number, uid, gid, mtime, its ns, links."""
INODE_BYTES: Final = 64
_INODE_VERSION: Final = 1
FORMAT_PLAIN: Final = _INODE_VERSION | LAYOUT_PLAIN << 1
FORMAT_INLINE: Final = _INODE_VERSION | LAYOUT_INLINE << 1
FORMAT_CHUNKED: Final = _INODE_VERSION | LAYOUT_CHUNKED << 1

DIRENT: Final = Struct("<QHBB")
"""Inode number, offset of the name in this block, type, reserved."""
DIRENT_BYTES: Final = 12
NID: Final = Struct("<Q")

XATTR_BODY: Final = Struct("<IB7x")
"""Name filter, number of shared attributes; their ids follow."""
XATTR_BODY_BYTES: Final = 12
XATTR_ID: Final = Struct("<I")
XATTR_ID_BYTES: Final = 4
"""Ids count in this unit from the beginning of the image: the superblock says that shared attributes begin at 0."""
XATTR_ENTRY: Final = Struct("<BBH")
"""Bytes of the name after its prefix, index of the prefix, bytes of the value."""
XATTR_ENTRY_BYTES: Final = 4
XATTR_COUNT_MAX: Final = 0xFFFF

assert SUPERBLOCK.size == SUPERBLOCK_BYTES
assert INODE.size == INODE_BYTES
assert DIRENT.size == DIRENT_BYTES


class Superblock(NamedTuple):
    """The fields that differ between metadata images; all others are constant. `blocks` are of 4096 bytes."""

    root_nid: int
    inodes: int
    blocks: int
    uuid: bytes


def format_superblock(superblock: Superblock) -> bytes:
    return SUPERBLOCK.pack(
        MAGIC, 0, FEATURES_COMPAT, BLOCK_BITS, 0, superblock.root_nid, superblock.inodes, 0, 0, superblock.blocks,
        0, 0, superblock.uuid, b"", FEATURES_INCOMPAT, 0, 0, 0, 0, 0, 0, 0, b"",
    )  # fmt: skip


def parse_superblock(data: bytes, what: str) -> Superblock:
    """The inverse of `format_superblock`. Raises IntegrityError for all other bytes."""
    if len(data) != SUPERBLOCK_BYTES:
        raise IntegrityError(f"{what} is cut short: {len(data)} bytes of a superblock of {SUPERBLOCK_BYTES}.")
    values = SUPERBLOCK.unpack(data)
    if values[0] != MAGIC:
        raise IntegrityError(f"{what} is no EROFS image: its magic is {values[0]:#x}.")
    superblock = Superblock(root_nid=values[5], inodes=values[6], blocks=values[9], uuid=values[12])
    if format_superblock(superblock) != data:
        raise IntegrityError(f"{what} has EROFS features or places that metadata images do not have.")
    return superblock


def pad_to(size: int, boundary: int) -> int:
    """Bytes from `size` to the next boundary, a power of two."""
    return -size & (boundary - 1)


def chunk_format(size: int) -> int:
    """The format of a file with one chunk, a hole: chunks of `4096 << format` bytes. `size` is not 0."""
    return max(0, (size - 1).bit_length() - BLOCK_BITS)


def encode_device(device: int) -> int:
    """A device number in the form of the kernel's `new_encode_dev` (include/linux/kdev_t.h). Raises ValueError for
    more bits than the kernel's."""
    major, minor = os.major(device), os.minor(device)
    if major >= 1 << 12 or minor >= 1 << 20:
        raise ValueError(f"device {major}:{minor}")
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def decode_device(number: int) -> int:
    return os.makedev((number & 0xFFF00) >> 8, (number & 0xFF) | (number >> 12 & 0xFFF00))
