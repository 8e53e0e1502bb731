"""Mounting metadata images: EROFS from a file (Linux 6.12), or by way of a loop device. Any thread.

Called by the node. Knows nothing about the content of an image (`metaimage/`).
"""

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mica import linux
from mica.files import owned_fd

# include/uapi/linux/loop.h
_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LO_FLAGS_READ_ONLY: Final = 1
_LO_FLAGS_AUTOCLEAR: Final = 4
# struct loop_config: fd, block_size, loop_info64 (232 bytes, of which lo_flags is at 52), 8 reserved words.
_LOOP_CONFIG = struct.Struct("<II52sI176s64s")
_LOOP_ATTEMPTS: Final = 32
# Documentation/admin-guide/devices.txt
_LOOP_CONTROL: Final = os.makedev(10, 237)
_LOOP_MAJOR: Final = 7
_VALUE_MAX_BYTES: Final = 255  # of one fsconfig string
_ATTRIBUTES: Final = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOATIME


def mount_image(image: Path, target: Path, *, by_loop: bool = False) -> None:
    """Mount an EROFS image read-only on a directory. Raises OSError with the kernel's reason."""
    if by_loop:
        with _loop_device(image) as device:
            _mount_erofs(device, target)
    else:
        _mount_erofs(os.fspath(image), target)


def _mount_erofs(source: str, target: Path) -> None:
    with contextlib.ExitStack() as stack:
        context = linux.fsopen("erofs")
        stack.callback(os.close, context)
        if len(os.fsencode(source)) > _VALUE_MAX_BYTES:
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            source = f"/proc/self/fd/{fd}"
        linux.fsconfig_string(context, "source", source)
        linux.fsconfig_flag(context, "ro")
        linux.fsconfig_create(context)
        mount_fd = linux.fsmount(context, _ATTRIBUTES)
        stack.callback(os.close, mount_fd)
        linux.move_mount(mount_fd, target)


@contextlib.contextmanager
def _loop_device(image: Path) -> Iterator[str]:
    """A loop device of the file, which goes away with its last user: after the block with the mount."""
    with (
        owned_fd(os.open(image, os.O_RDONLY | os.O_CLOEXEC)) as backing,
        owned_fd(_open_device("/dev/loop-control", os.O_RDWR, stat.S_IFCHR, _LOOP_CONTROL)) as control,
    ):
        flags = _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR
        config = _LOOP_CONFIG.pack(backing, 4096, b"", flags, b"", b"")
        for _ in range(_LOOP_ATTEMPTS):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            path = f"/dev/loop{number}"
            with owned_fd(_open_device(path, os.O_RDONLY, stat.S_IFBLK, os.makedev(_LOOP_MAJOR, number))) as device:
                try:
                    fcntl.ioctl(device, _LOOP_CONFIGURE, config)
                except OSError as error:
                    if error.errno == errno.EBUSY:  # another process took it meanwhile
                        continue
                    raise
                yield path
                return
    raise OSError(errno.EBUSY, "no loop device is free", os.fspath(image))


def _open_device(path: str, flags: int, kind: int, number: int) -> int:
    """Make the node where it is missing: the /dev of a container, such as an engine's plugin, has only a few."""
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mknod(path, kind | 0o600, number)
        return os.open(path, flags | os.O_CLOEXEC)
