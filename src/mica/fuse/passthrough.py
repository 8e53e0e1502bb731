"""Passthrough: files that the kernel reads by itself from a file of the host, without asking us (Linux 6.9).

`BackingFiles` is our copy of the kernel's table of such files for one FUSE session. The session connects it after the
handshake; the file system asks it at every open. Any thread.
Rules without a source are those of fs/fuse/{backing,iomode,passthrough}.c; figures in docs/adr/0004-passthrough.md.

All overlapping opens of an inode pass through the same backing id, or none does: the kernel refuses any other open with
EIO. So the first open of an inode decides for all that overlap with it. We may count by requests because the kernel
ends its own count of an open before it sends RELEASE.
"""

import errno
import logging
import os
import threading
from collections.abc import Callable
from typing import Final

from mica.fuse import abi as fuse_abi

logger = logging.getLogger(__name__)

LEAST_BYTES: Final = 128 << 10
"""Smaller files are read through us once and then kept by the kernel. To open such a file again is cheaper by two
ioctls: 57 µs against 96 at 4 KiB, 89 against 107 here, while to read it the first time is 90 against 96 at 4 KiB and
207 against 110 here (docs/adr/0004-passthrough.md)."""

Ioctl = Callable[[int, bytearray], int]
"""ioctl(2) on the session's device; raises OSError."""

NOT_WANTED: Final = "it was not asked for"
NOT_CONNECTED: Final = "the kernel has not been asked yet"
NOT_OFFERED: Final = "this kernel has no FUSE passthrough, which came with Linux 6.9"
_FOR_GOOD: Final = {
    errno.EPERM: "it needs CAP_SYS_ADMIN on the host",
    errno.ELOOP: "the cache lies on a stacked file system such as overlayfs",
}


class _Opens:
    """How an inode is open: its backing id (0 if the kernel asks us), and how many times."""

    __slots__ = ("backing_id", "count")

    def __init__(self, backing_id: int) -> None:
        self.backing_id = backing_id
        self.count = 0


class BackingFiles:
    """`max_stack_depth` 1 lets the cache be on a plain file system and one overlayfs be on top of the mount: the kernel
    counts the mount as a stacked file system and has a limit of 2. With 2 the cache might be on overlayfs too, but
    nothing could be on top."""

    def __init__(self, *, least_bytes: int = LEAST_BYTES, max_stack_depth: int = 1) -> None:
        self.least_bytes = least_bytes
        self.max_stack_depth = max_stack_depth
        self.refusal = NOT_CONNECTED
        """Why no file passes through, empty if files do."""
        self._ioctl: Ioctl | None = None
        self._lock = threading.Lock()
        self._inodes: dict[int, _Opens] = {}

    def __len__(self) -> int:
        """How many files the kernel holds for us."""
        with self._lock:
            return sum(opens.backing_id > 0 for opens in self._inodes.values())

    def connect(self, ioctl: Ioctl | None) -> None:
        """The handshake is done; None if the kernel did not agree."""
        self._ioctl = ioctl
        self.refusal = NOT_OFFERED if ioctl is None else ""

    def check(self, descriptor: int) -> None:
        """Try it with a file of the directory that all backing files are in; then `refusal` is right."""
        backing_id = self._register(descriptor)
        if backing_id:
            self._close(backing_id)

    def open(self, inode: int, descriptor: int) -> int:
        """How to open the inode once more: the backing id, or 0 to have the kernel ask us. `close` undoes it.

        `descriptor` is a plain file with its whole content, or -1.
        """
        # The ioctl is made under the lock: two openers of one inode must not register two files. It takes
        # microseconds and waits for nobody.
        with self._lock:
            opens = self._inodes.get(inode)
            if opens is None:
                worth = descriptor >= 0 and os.fstat(descriptor).st_size >= self.least_bytes
                opens = self._inodes[inode] = _Opens(self._register(descriptor) if worth else 0)
            opens.count += 1
            return opens.backing_id

    def close(self, inode: int) -> None:
        # Table and kernel agree on what is open: this ioctl is made under the lock too.
        with self._lock:
            opens = self._inodes[inode]
            opens.count -= 1
            if opens.count:
                return
            del self._inodes[inode]
            if opens.backing_id:
                self._close(opens.backing_id)

    def _register(self, descriptor: int) -> int:
        if self.refusal or self._ioctl is None:
            return 0
        try:
            return self._ioctl(fuse_abi.FUSE_DEV_IOC_BACKING_OPEN, fuse_abi.format_backing_map(descriptor))
        except OSError as error:
            if error.errno in _FOR_GOOD:
                self.refusal = _FOR_GOOD[error.errno]
            logger.info("A file is read through this server instead of by the kernel: %s", self.refusal or error)
            return 0

    def _close(self, backing_id: int) -> None:
        assert self._ioctl is not None
        try:
            self._ioctl(fuse_abi.FUSE_DEV_IOC_BACKING_CLOSE, fuse_abi.format_backing_id(backing_id))
        except OSError as error:
            if error.errno != errno.ENODEV:  # unmounted: the kernel has closed them all
                logger.warning("Backing file %d cannot be closed: %s", backing_id, error)
