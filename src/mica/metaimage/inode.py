"""A file of a metadata image, as a value and as the bytes of its inode. Pure."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from mica.metaimage.erofs_abi import INODE, XATTR_BODY_BYTES, XATTR_COUNT_MAX, XATTR_ID_BYTES
from mica.repo.localname import LocalName

ENTRIES_MAX = 4_000_000
"""Most names in a layer."""
IMAGE_BYTES_MAX = 4 << 30
PATH_MAX = 4096
"""Most bytes of a path with the slash in front."""
NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


class Inode(NamedTuple):
    """A file, under one or more names.

    `mode` includes the type. `mtime_s` may be negative, `mtime_ns` is 0..999999999. `size` is that of a regular file;
    `content` is the name of its content, None for an empty one. `device` is the number of a device as in `st_rdev`,
    `target` that of a symbolic link. A file with several names has a `group` of its own, not 0, and `links` names in
    all. The writer of the image counts the links of a directory.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime_s: int = 0
    mtime_ns: int = 0
    size: int = 0
    content: LocalName | None = None
    device: int = 0
    target: bytes = b""
    xattrs: Mapping[bytes, bytes] = NO_XATTRS
    links: int = 1
    group: int = 0


def format_inode(layout: int, inode: Inode, body: bytes, nid: int, links: int, size: int, union: int) -> bytes:
    """The 64 bytes of an inode, behind which the attributes in `body` lie. `union` depends on layout and type:
    the first block, a device number, a chunk format. Raises ValueError if the attributes are too long."""
    count = (len(body) - XATTR_BODY_BYTES) // XATTR_ID_BYTES + 1 if body else 0
    if count > XATTR_COUNT_MAX:
        raise ValueError(f"attributes of {len(body)} bytes")
    return INODE.pack(
        layout, count, inode.mode, 0, size, union, nid & 0xFFFFFFFF, inode.uid, inode.gid, inode.mtime_s,
        inode.mtime_ns, links,
    )  # fmt: skip
