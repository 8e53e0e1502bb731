"""The signs by which a layer takes things away from lower ones, and the attributes that steer overlayfs. Pure.

                removed                    hides what is below
overlayfs       character device 0:0       trusted.overlay.opaque=y     (Documentation/filesystems/overlayfs.rst)
AUFS, archives  a file .wh.<name>          a file .wh..wh..opq          (OCI image-spec, layer.md, "Whiteouts")

A directory in which overlayfs is to look for such devices says so by `trusted.overlay.origin`.
"""

import os
import stat

WHITEOUT_PREFIX = b".wh."
"""`.wh.NAME` removes NAME."""
AUFS_PREFIX = b".wh..wh."
"""Aufs's own files, of no meaning to others."""
OPAQUE_MARKER = b".wh..wh..opq"
"""But for this one: its directory hides everything that lower layers have there."""

OVERLAY_PREFIX = b"trusted.overlay."
OPAQUE = b"trusted.overlay.opaque"
ORIGIN = b"trusted.overlay.origin"
"""An attribute of a directory. With it overlayfs looks for whiteouts also in a directory that is in a single layer;
otherwise it lists them as names that cannot be opened (ovl_get_inode, ovl_path_check_origin_xattr). The value is empty,
because a value would name a file."""
METACOPY = b"trusted.overlay.metacopy"
REDIRECT = b"trusted.overlay.redirect"
_USER_PREFIX = b"user.overlay."


def is_whiteout_name(name: bytes) -> bool:
    """Whether the last component of a member's name makes it one of the signs of archives."""
    return name.startswith(WHITEOUT_PREFIX) and (name == OPAQUE_MARKER or not name.startswith(AUFS_PREFIX))


def is_whiteout_device(status: os.stat_result) -> bool:
    """Whether overlayfs takes the file for a deletion."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_overlay_attribute(name: bytes) -> bool:
    """Extended attributes by which overlayfs is steered: they never pass between a layer and an archive."""
    return name.startswith((OVERLAY_PREFIX, _USER_PREFIX))
