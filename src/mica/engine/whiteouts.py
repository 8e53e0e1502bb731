"""Writing signs into the directories of a layer, by which names of lower layers are gone: those of overlayfs or of AUFS
(unionsigns.py). Any thread.

For overlayfs the directory gets its origin too: without it a directory that only one layer has would list the devices.
"""

import contextlib
import os
import stat
from typing import Protocol

from mica.unionsigns import AUFS_PREFIX, OPAQUE, OPAQUE_MARKER, ORIGIN, WHITEOUT_PREFIX, is_whiteout_device

_MODE = 0o600


class Whiteouts(Protocol):
    """A kind of union's signs, in directories given by descriptor.

    `signs_are_devices`: a character device 0:0 of a program's own would be taken for a sign. `name_max_bytes`: longer
    names cannot be used in the union.
    """

    signs_are_devices: bool
    name_max_bytes: int

    def remove(self, directory: int, name: bytes) -> None:
        """Remove `name` of lower layers; this layer does not have it."""

    def restore(self, directory: int, name: bytes) -> bool:
        """Undo `remove`, to make room for an entry; returns whether there was anything to undo."""

    def hide_below(self, directory: int) -> None:
        """Hide everything that lower layers have in this directory."""

    def hides_below(self, directory: int) -> bool:
        """Whether all that lower layers have in this directory is hidden."""

    def removed_name(self, name: bytes, status: os.stat_result) -> bytes | None:
        """The name that an entry of a directory takes away; None for an ordinary entry."""

    def meant_name(self, name: bytes) -> bytes:
        """The name that an entry of a directory is about, as far as its own name tells: for sorting."""

    def is_own(self, name: bytes) -> bool:
        """Whether an entry belongs to the union itself and not to the layer."""


class OverlayWhiteouts:
    signs_are_devices = True
    name_max_bytes = 255

    def remove(self, directory: int, name: bytes) -> None:
        os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=directory)
        # Through /proc: an attribute cannot be set on an O_PATH descriptor itself.
        os.setxattr(f"/proc/self/fd/{directory}", ORIGIN, b"")

    def restore(self, directory: int, name: bytes) -> bool:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if self.removed_name(name, status) is None:
            return False
        os.unlink(name, dir_fd=directory)
        return True

    def hide_below(self, directory: int) -> None:
        os.setxattr(directory, OPAQUE, b"y")

    def hides_below(self, directory: int) -> bool:
        with contextlib.suppress(OSError):
            return os.getxattr(directory, OPAQUE) == b"y"
        return False

    def removed_name(self, name: bytes, status: os.stat_result) -> bytes | None:
        return name if is_whiteout_device(status) else None

    def meant_name(self, name: bytes) -> bytes:
        return name

    def is_own(self, name: bytes) -> bool:  # noqa: ARG002
        return False


class AufsWhiteouts:
    """In a branch, AUFS looks for the whiteout of a name before it looks for the name (fs/aufs/dentry.c,
    `au_do_lookup`): an entry must not have a whiteout beside it."""

    signs_are_devices = False
    # AUFS_MAX_NAMELEN: room for two prefixes, a dot and four digits in names of its own (uapi/linux/aufs_type.h).
    name_max_bytes = 255 - 2 * len(WHITEOUT_PREFIX) - 5

    def remove(self, directory: int, name: bytes) -> None:
        self._touch(directory, WHITEOUT_PREFIX + name)

    def restore(self, directory: int, name: bytes) -> bool:
        try:
            os.unlink(WHITEOUT_PREFIX + name, dir_fd=directory)
        except FileNotFoundError:
            return False
        return True

    def hide_below(self, directory: int) -> None:
        self._touch(directory, OPAQUE_MARKER)

    def hides_below(self, directory: int) -> bool:
        try:
            os.stat(OPAQUE_MARKER, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def removed_name(self, name: bytes, status: os.stat_result) -> bytes | None:  # noqa: ARG002 - overlayfs looks at it
        return name[len(WHITEOUT_PREFIX) :] if name.startswith(WHITEOUT_PREFIX) and not self.is_own(name) else None

    def meant_name(self, name: bytes) -> bytes:
        return name.removeprefix(WHITEOUT_PREFIX)

    def is_own(self, name: bytes) -> bool:
        return name.startswith(AUFS_PREFIX)

    @staticmethod
    def _touch(directory: int, name: bytes) -> None:
        flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(name, flags, _MODE, dir_fd=directory))
