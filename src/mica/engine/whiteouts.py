"""How the layers of a union say that something of lower layers is gone: overlayfs's way and AUFS's. Any thread.

                removed                    hides what is below
overlayfs       character device 0:0       trusted.overlay.opaque=y     (Documentation/filesystems/overlayfs.rst)
AUFS, archives  a file .wh.<name>          a file .wh..wh..opq          (OCI image-spec, layer.md)
"""

import contextlib
import os
import stat
from typing import Protocol

from mica.metaimage.xattrs import OPAQUE, OVERLAY_PREFIX
from mica.oci.whiteouts import AUFS_PREFIX, OPAQUE_MARKER, WHITEOUT_PREFIX

_MODE = 0o600


class Whiteouts(Protocol):
    """A kind of union's signs, in directories given by descriptor."""

    def remove(self, directory: int, name: bytes) -> None:
        """Have `name`, which is not there, be gone from lower layers too."""

    def hide_below(self, directory: int) -> None:
        """Hide everything that lower layers have in this directory."""

    def hides_below(self, directory: int, names: frozenset[bytes]) -> bool:
        """Whether it is hidden; `names` is what is in the directory."""

    def removed_name(self, name: bytes, status: os.stat_result) -> bytes | None:
        """The name that an entry of a directory takes away; None for what is an ordinary entry."""

    def is_own(self, name: bytes) -> bool:
        """Whether an entry is the union's own affair and no part of the layer."""


class OverlayWhiteouts:
    def remove(self, directory: int, name: bytes) -> None:
        os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=directory)

    def hide_below(self, directory: int) -> None:
        os.setxattr(directory, OPAQUE, b"y")

    def hides_below(self, directory: int, names: frozenset[bytes]) -> bool:  # noqa: ARG002 - AUFS looks at them
        with contextlib.suppress(OSError):
            return os.getxattr(directory, OPAQUE) == b"y"
        return False

    def removed_name(self, name: bytes, status: os.stat_result) -> bytes | None:
        return name if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0 else None

    def is_own(self, name: bytes) -> bool:  # noqa: ARG002
        return False


class AufsWhiteouts:
    def remove(self, directory: int, name: bytes) -> None:
        self._touch(directory, WHITEOUT_PREFIX + name)

    def hide_below(self, directory: int) -> None:
        self._touch(directory, OPAQUE_MARKER)

    def hides_below(self, directory: int, names: frozenset[bytes]) -> bool:  # noqa: ARG002 - overlayfs looks at it
        return OPAQUE_MARKER in names

    def removed_name(self, name: bytes, status: os.stat_result) -> bytes | None:  # noqa: ARG002
        return name[len(WHITEOUT_PREFIX) :] if name.startswith(WHITEOUT_PREFIX) and not self.is_own(name) else None

    def is_own(self, name: bytes) -> bool:
        return name.startswith(AUFS_PREFIX)

    @staticmethod
    def _touch(directory: int, name: bytes) -> None:
        flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(name, flags, _MODE, dir_fd=directory))


def is_overlay_attribute(name: bytes) -> bool:
    """Extended attributes by which overlayfs is steered: they never pass between a layer and an archive."""
    return name.startswith((OVERLAY_PREFIX, b"user.overlay."))
