"""Linux system calls that Python 3.11 lacks, with their constants; nothing clever.

Called by code that mounts or enters namespaces. It knows no file system and no policy. Any thread, but `unshare` and
`setns` act on the calling thread alone, as in the kernel. Every failure is an OSError whose `strerror` begins with the
name of the call; the mount calls also carry the kernel's own log lines and the path as `filename`.

Numbers and layouts: include/uapi/linux/mount.h, include/uapi/linux/sched.h, include/uapi/linux/prctl.h and
include/uapi/asm-generic/unistd.h (428-442 are the same on all architectures).
"""

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import struct
from pathlib import Path
from typing import Final

from mica.mountinfo import read_mounts

AnyPath = str | bytes | Path

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_NOATIME: Final = 1 << 10
MS_BIND: Final = 1 << 12
MS_MOVE: Final = 1 << 13
MS_REC: Final = 1 << 14
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_STRICTATIME: Final = 1 << 24

MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_SET_FD: Final = 5
FSCONFIG_CMD_CREATE: Final = 6
FSCONFIG_CMD_RECONFIGURE: Final = 7
FSPICK_CLOEXEC: Final = 1
FSPICK_EMPTY_PATH: Final = 8
MOVE_MOUNT_F_EMPTY_PATH: Final = 4
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_IDMAP: Final = 0x100000

CLONE_NEWTIME: Final = 0x00000080
CLONE_FS: Final = 0x00000200
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15
PR_SET_CHILD_SUBREAPER: Final = 36

# statfs f_type, include/uapi/linux/magic.h
BTRFS_SUPER_MAGIC: Final = 0x9123683E
EROFS_SUPER_MAGIC_V1: Final = 0xE0F5E1E2
EXT4_SUPER_MAGIC: Final = 0xEF53
FUSE_SUPER_MAGIC: Final = 0x65735546
NFS_SUPER_MAGIC: Final = 0x6969
OVERLAYFS_SUPER_MAGIC: Final = 0x794C7630
TMPFS_MAGIC: Final = 0x01021994
RAMFS_MAGIC: Final = 0x858458F6
XFS_SUPER_MAGIC: Final = 0x58465342

FLOCK: Final = struct.Struct("@hhqqi4x")
"""struct flock of fcntl(2): type, whence, start, length, pid."""

_NR_OPEN_TREE, _NR_MOVE_MOUNT, _NR_FSOPEN, _NR_FSCONFIG, _NR_FSMOUNT, _NR_FSPICK = 428, 429, 430, 431, 432, 433
_NR_OPENAT2, _NR_MOUNT_SETATTR, _NR_CACHESTAT = 437, 442, 451

_libc = ctypes.CDLL(None, use_errno=True)
# Keeps the interpreter lock during calls: for two calls between which no other thread may run.
_libc_at_once = ctypes.PyDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    """struct mount_attr of mount_setattr(2), version 0 (32 bytes)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _OpenHow(ctypes.Structure):
    """struct open_how of openat2(2), version 0."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def mount(source: AnyPath, target: AnyPath, fstype: str = "", *, flags: int = 0, data: str | bytes = "") -> None:
    """Mount in the classic way. The kernel cuts `data` off at one page: use the fsopen family for long options."""
    _checked(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            fstype.encode() or None,
            ctypes.c_ulong(flags),
            os.fsencode(data) or None,
        ),
        "mount",
        target,
    )


def umount2(target: AnyPath, flags: int = 0) -> None:
    _checked(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), "umount2", target)


def unmount_all(target: AnyPath) -> None:
    """Undo every mount at exactly this path, if there is one, even while it is in use."""
    while True:
        try:
            umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno == errno.EINVAL:  # not a mount point (any more)
                return
            raise


def mounted_device(target: AnyPath) -> tuple[int, int] | None:
    """Major and minor device number of the topmost mount at exactly this path (no symbolic links in it), or None.

    Asks the mount table (`mountinfo.py`) and thus never the file system, which may be dead.
    """
    wanted = os.fsencode(target)
    devices = [mount.device for mount in read_mounts() if mount.target == wanted]
    return devices[-1] if devices else None


def fsopen(fstype: str) -> int:
    """Begin to configure a file system; the caller closes the descriptor."""
    return _syscall(_NR_FSOPEN, "fsopen", fstype.encode(), ctypes.c_uint(FSOPEN_CLOEXEC))


def fsconfig_flag(context: int, key: str) -> None:
    _fsconfig(context, FSCONFIG_SET_FLAG, key, None, 0)


def fsconfig_string(context: int, key: str, value: AnyPath) -> None:
    """A value is at most 255 bytes (strndup_user in fs/fsopen.c)."""
    _fsconfig(context, FSCONFIG_SET_STRING, key, os.fsencode(value), 0)


def fsconfig_fd(context: int, key: str, fd: int) -> None:
    _fsconfig(context, FSCONFIG_SET_FD, key, None, fd)


def fsconfig_create(context: int) -> None:
    _fsconfig(context, FSCONFIG_CMD_CREATE, None, None, 0)


def fsmount(context: int, attributes: int = 0) -> int:
    """A detached mount of a created file system, visible nowhere until `move_mount`; closing it unmounts."""
    result = _raw_syscall(_NR_FSMOUNT, ctypes.c_int(context), ctypes.c_uint(FSMOUNT_CLOEXEC), ctypes.c_uint(attributes))
    return _checked(result, "fsmount", log_of=context)


def move_mount(mount_fd: int, target: AnyPath) -> None:
    """Attach a detached mount at a path."""
    _syscall(
        _NR_MOVE_MOUNT,
        "move_mount",
        ctypes.c_int(mount_fd),
        b"",
        ctypes.c_int(AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH),
        path=target,
    )


def open_tree(path: AnyPath, flags: int = OPEN_TREE_CLONE) -> int:
    """A detached copy (bind mount) of the mount at a path; the caller closes the descriptor."""
    return _syscall(
        _NR_OPEN_TREE,
        "open_tree",
        ctypes.c_int(AT_FDCWD),
        os.fsencode(path),
        ctypes.c_uint(flags | OPEN_TREE_CLOEXEC),
        path=path,
    )


def mount_setattr(
    mount_fd: int,
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
    recursive: bool = False,
) -> None:
    value = _MountAttr(attr_set, attr_clr, propagation, userns_fd)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _syscall(
        _NR_MOUNT_SETATTR,
        "mount_setattr",
        ctypes.c_int(mount_fd),
        b"",
        ctypes.c_uint(flags),
        ctypes.byref(value),
        ctypes.c_size_t(ctypes.sizeof(value)),
    )


def fspick(fd: int) -> int:
    """Begin to configure a mounted file system again, by a descriptor of a mount point; the caller closes the
    result."""
    return _syscall(_NR_FSPICK, "fspick", ctypes.c_int(fd), b"", ctypes.c_uint(FSPICK_CLOEXEC | FSPICK_EMPTY_PATH))


def fsconfig_reconfigure(context: int) -> None:
    _fsconfig(context, FSCONFIG_CMD_RECONFIGURE, None, None, 0)


def openat2(dir_fd: int, path: AnyPath, flags: int, *, resolve: int) -> int:
    """Open a path as seen from a directory, with the kernel's guarantees about the way there (RESOLVE_*)."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    arguments = (ctypes.c_int(dir_fd), os.fsencode(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))
    return _syscall(_NR_OPENAT2, "openat2", *arguments, path=path)


def unshare(flags: int) -> None:
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, flags: int = 0) -> None:
    _checked(_libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)), "setns")


def set_parent_death_signal(signal: int) -> None:
    """Get a signal when the *thread* that started this process ends (prctl(2), PR_SET_PDEATHSIG); 0 cancels it.

    This survives exec but not fork. The caller compares os.getppid() afterwards, because the parent may have ended
    before.
    """
    prctl(PR_SET_PDEATHSIG, signal)


def prctl(option: int, *arguments: int) -> int:
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return _checked(_libc.prctl(ctypes.c_int(option), *values), "prctl")


def syncfs(fd: int) -> None:
    """Write back the file system that holds an open file, and report its write errors."""
    _checked(_libc.syncfs(ctypes.c_int(fd)), "syncfs")


def is_open_elsewhere(fd: int) -> bool:
    """Whether this regular file is open elsewhere too: in any process, in the kernel itself (a stacked file system, a
    mapping, a running program, a mounted image), or by another descriptor of this process. `fd` is open for reading
    only.

    The kernel grants a write lease (fcntl(2), F_SETLEASE) only while nothing else has the file open. The next call
    returns the lease; a process that opens the file between the two waits that long. The signal that would tell of this
    is set to one that is ignored by default. Raises OSError if leases cannot be had here (EINVAL: not on this file
    system, EACCES: not on this file).
    """
    _libc_at_once.fcntl(fd, fcntl.F_SETSIG, ctypes.c_long(signal.SIGURG))
    if _libc_at_once.fcntl(fd, fcntl.F_SETLEASE, ctypes.c_long(fcntl.F_WRLCK)) == 0:
        _libc_at_once.fcntl(fd, fcntl.F_SETLEASE, ctypes.c_long(fcntl.F_UNLCK))
        return False
    number = ctypes.get_errno()
    if number in {errno.EAGAIN, errno.EBUSY}:
        return True
    raise OSError(number, f"F_SETLEASE: {os.strerror(number)}")


def resident_pages(fd: int) -> int:
    """How many pages of a regular file are in memory: by cachestat(2), before Linux 6.5 by mincore(2)."""
    try:
        return _cachestat(fd)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    return _mincore(fd)


def _cachestat(fd: int) -> int:
    whole_file = (ctypes.c_uint64 * 2)(0, 0)
    # cached, dirty, under writeback, evicted, recently evicted: struct cachestat of include/uapi/linux/mman.h
    counts = (ctypes.c_uint64 * 5)()
    _syscall(_NR_CACHESTAT, "cachestat", ctypes.c_int(fd), whole_file, counts, ctypes.c_uint(0))
    return int(counts[0])


def _mincore(fd: int) -> int:
    size = os.fstat(fd).st_size
    if not size:
        return 0
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    # Private and writable so that its address can be had; nothing is written to it.
    with mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as content:
        start = ctypes.c_char.from_buffer(content)
        try:
            _checked(_libc.mincore(ctypes.byref(start), ctypes.c_size_t(size), pages), "mincore")
        finally:
            del start
    return sum(page & 1 for page in pages)


_HANDLE_HEAD = struct.Struct("=Ii")
_HANDLE_BYTES_MAX = 128


def name_to_handle(fd: int) -> bytes:
    """A handle that identifies an open file whatever its names are (struct file_handle of open_by_handle_at(2))."""
    buffer = ctypes.create_string_buffer(_HANDLE_HEAD.pack(_HANDLE_BYTES_MAX, 0), _HANDLE_HEAD.size + _HANDLE_BYTES_MAX)
    mount_id = ctypes.c_int()
    _checked(
        _libc.name_to_handle_at(ctypes.c_int(fd), b"", buffer, ctypes.byref(mount_id), ctypes.c_int(AT_EMPTY_PATH)),
        "name_to_handle_at",
    )
    size, _ = _HANDLE_HEAD.unpack_from(buffer.raw)
    return buffer.raw[: _HANDLE_HEAD.size + size]


def open_by_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """Open a file by its handle; `mount_fd` is any file of its file system. ESTALE: it is gone. Needs
    CAP_DAC_READ_SEARCH."""
    buffer = ctypes.create_string_buffer(handle, len(handle))
    return _checked(
        _libc.open_by_handle_at(ctypes.c_int(mount_fd), buffer, ctypes.c_int(flags | os.O_CLOEXEC)), "open_by_handle_at"
    )


def filesystem_type(path: AnyPath | int) -> int:
    """The f_type of statfs(2), or of fstatfs(2) for a descriptor: compare with the *_MAGIC constants."""
    # f_type is the first word on all 64-bit architectures; the structure is 120 bytes, the rest is slack.
    buffer = (ctypes.c_ulong * 32)()
    if isinstance(path, int):
        _checked(_libc.fstatfs(ctypes.c_int(path), buffer), "fstatfs")
    else:
        _checked(_libc.statfs(os.fsencode(path), buffer), "statfs", path)
    return int(buffer[0]) & 0xFFFFFFFF


def _fsconfig(context: int, command: int, key: str | None, value: bytes | None, auxiliary: int) -> None:
    result = _raw_syscall(
        _NR_FSCONFIG,
        ctypes.c_int(context),
        ctypes.c_uint(command),
        key.encode() if key is not None else None,
        value,
        ctypes.c_int(auxiliary),
    )
    name = "fsconfig create" if key is None else f"fsconfig {key}"
    _checked(result, name if value is None else f"{name}={os.fsdecode(value)}", log_of=context)


def _syscall(number: int, name: str, *arguments: object, path: AnyPath | None = None) -> int:
    return _checked(_raw_syscall(number, *arguments), name, path)


def _raw_syscall(number: int, *arguments: object) -> int:
    return int(_libc.syscall(ctypes.c_long(number), *arguments))


def _checked(result: int, name: str, path: AnyPath | None = None, *, log_of: int | None = None) -> int:
    if result >= 0:
        return result
    number = ctypes.get_errno()
    lines = [] if log_of is None else read_kernel_log(log_of)
    message = "; ".join([f"{name}: {os.strerror(number)}", *lines])
    raise OSError(number, message, *([] if path is None else [os.fspath(path)]))


def read_kernel_log(context: int) -> list[str]:
    """The kernel's messages about a configuration so far, for example `e overlay: Unknown parameter 'x'`."""
    lines: list[str] = []
    while True:
        try:
            line = os.read(context, 8192)
        except OSError:  # ENODATA: nothing (more) to read
            return lines
        lines.append(line.decode(errors="replace").strip())
