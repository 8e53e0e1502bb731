"""What a row of the POSIX table can do: one function for each operation, from words to system calls.

Paths are relative to the kit. An operation returns what a program sees of it, as JSON would have it, or raises the
OSError. Called in processes of the suite that do nothing else, so that umask and working directory can be changed.
"""

import contextlib
import functools
import hashlib
import os
import re
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.support import syscalls
from tests.support.syscalls import UTIME_NOW, UTIME_OMIT
from tests.support.trees import CAPABILITY, format_acl

from mica.files import owned_fd

_TOO_LONG = "d/../" * 900
_MODES: Final = {"any": 0, "create": os.XATTR_CREATE, "replace": os.XATTR_REPLACE}
_RENAME: Final = {"noreplace": syscalls.RENAME_NOREPLACE, "exchange": syscalls.RENAME_EXCHANGE,
                  "whiteout": syscalls.RENAME_WHITEOUT}  # fmt: skip
_FALLOCATE: Final = {
    "any": 0,
    "keep": syscalls.FALLOC_FL_KEEP_SIZE,
    "punch": syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE,
    "zero": syscalls.FALLOC_FL_ZERO_RANGE,
}
_KINDS: Final = {"reg": stat.S_IFREG, "fifo": stat.S_IFIFO, "sock": stat.S_IFSOCK, "chr": stat.S_IFCHR,
                 "blk": stat.S_IFBLK, "dir": stat.S_IFDIR}  # fmt: skip
_ACCESS: Final = {"F": os.F_OK, "R": os.R_OK, "W": os.W_OK, "X": os.X_OK}


def expand(word: str) -> str:
    """The special words of the table."""
    if word == "@path":
        return _TOO_LONG
    if word == "@empty":
        return ""
    return "n" * int(word[1:]) if re.fullmatch(r"@[0-9]+", word) else word


def _flags(text: str, values: dict[str, int]) -> int:
    return functools.reduce(lambda total, name: total | values[name], text.split("|"), 0)


def _open_flags(text: str) -> int:
    return functools.reduce(lambda total, name: total | getattr(os, f"O_{name}"), text.split("|"), os.O_CLOEXEC)


@contextlib.contextmanager
def _opened(path: str, flags: str, mode: str = "0") -> Iterator[int]:
    with owned_fd(os.open(path, _open_flags(flags), int(mode, 8))) as fd:
        yield fd


def summary(data: bytes) -> str:
    """Short content as it is, longer content by size and digest."""
    return ascii(data) if len(data) <= 200 else f"{len(data)} bytes {hashlib.sha256(data).hexdigest()[:16]}"


def status_of(status: os.stat_result) -> list[object]:
    """What programs decide by; sizes and link counts of directories are the file system's own affair."""
    own = [] if stat.S_ISDIR(status.st_mode) else [status.st_size, status.st_nlink]
    return [f"{status.st_mode:o}", status.st_uid, status.st_gid, status.st_rdev, *own]


def _time(text: str) -> tuple[int, int]:
    named = {"now": (0, UTIME_NOW), "omit": (0, UTIME_OMIT)}
    if text in named:
        return named[text]
    seconds, _, fraction = text.partition(".")
    return int(seconds), int(fraction.ljust(9, "0")) if fraction else 0


def _read(path: str) -> str:
    with open(path, "rb") as file:
        return summary(file.read())


def _write(path: str, flags: str, text: str) -> int:
    with _opened(path, flags) as fd:
        return os.write(fd, text.encode())


def _pwrite(path: str, offset: str, text: str) -> int:
    with _opened(path, "WRONLY") as fd:
        return os.pwrite(fd, text.encode(), int(offset))


def _open(path: str, flags: str, mode: str = "0") -> list[object]:
    with _opened(path, flags, mode) as fd:
        return status_of(os.fstat(fd))


def _fchmod(path: str, mode: str) -> None:
    with _opened(path, "RDONLY") as fd:
        os.fchmod(fd, int(mode, 8))


def _fchown(path: str, uid: str, gid: str) -> None:
    with _opened(path, "RDONLY") as fd:
        os.fchown(fd, int(uid), int(gid))


def _futime(path: str, accessed: str, modified: str) -> None:
    with _opened(path, "RDONLY") as fd:
        os.utime(fd, (int(accessed), int(modified)))


def _ftruncate(path: str, flags: str, size: str) -> None:
    with _opened(path, flags) as fd:
        os.ftruncate(fd, int(size))


def _fallocate(path: str, how: str, offset: str, size: str) -> None:
    with _opened(path, "RDWR") as fd:
        syscalls.fallocate(fd, _FALLOCATE[how], int(offset), int(size))


def _fsync(path: str, flags: str) -> None:
    with _opened(path, flags) as fd:
        os.fsync(fd)
        os.fdatasync(fd)


def _link_followed(old: str, new: str) -> None:
    with _opened(".", "RDONLY|DIRECTORY") as here:
        os.link(old, new, src_dir_fd=here, follow_symlinks=True)


def _link_nameless(directory: str, new: str) -> list[object]:
    """O_TMPFILE, then a name for it."""
    with _opened(directory, "RDWR|TMPFILE", "0640") as fd, _opened(".", "RDONLY|DIRECTORY") as here:
        os.write(fd, b"nameless\n")
        before = status_of(os.fstat(fd))
        os.link(f"/proc/self/fd/{fd}", new, dst_dir_fd=here, follow_symlinks=True)
        return [before, status_of(os.fstat(fd))]


def _mknod(path: str, kind: str, mode: str, major: str = "0", minor: str = "0") -> None:
    if kind == "sock":  # by bind(2): whoever makes sockets does it so
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
        os.chmod(path, int(mode, 8))
        return
    os.mknod(path, _KINDS[kind] | int(mode, 8), os.makedev(int(major), int(minor)))


def _ghost(path: str, flags: str) -> list[object]:
    """Use a file after its last name is gone."""
    with _opened(path, flags) as fd:
        os.unlink(path)
        seen = [status_of(os.fstat(fd)), summary(os.pread(fd, 1 << 20, 0))]
        if _open_flags(flags) & os.O_ACCMODE != os.O_RDONLY:
            os.pwrite(fd, b"later", 2)
            os.fchmod(fd, 0o600)
            seen += [status_of(os.fstat(fd)), summary(os.pread(fd, 1 << 20, 0))]
        return seen


def _ghost_directory(path: str) -> list[object]:
    with _opened(path, "RDONLY|DIRECTORY") as fd:
        os.rmdir(path)
        seen: list[object] = [f"{os.fstat(fd).st_mode:o}", os.listdir(fd)]
        try:
            os.mkdir("x", dir_fd=fd)
        except OSError as error:
            seen.append(error.errno)
        return seen


def _spawn(path: str, *arguments: str) -> int:
    return os.posix_spawn(f"./{path}", [path, *arguments], {})


def _execute(path: str) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(_spawn(path, "0"), 0)[1])


def _write_to_running(path: str) -> None:
    pid = _spawn(path, "100")
    try:
        with _opened(path, "WRONLY"):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _execute_written(path: str) -> int:
    with _opened(path, "WRONLY"):
        return _execute(path)


def _set_acl(path: str, mode: str, user: str) -> None:
    os.setxattr(path, "system.posix_acl_access", format_acl(int(mode, 8), int(user)))


def _set_xattr(path: str, name: str, value: str, how: str, *, follow: bool = True) -> None:
    data = CAPABILITY if value == "@cap" else value.encode()
    os.setxattr(path, name, data, _MODES[how], follow_symlinks=follow)


def _umask(mask: str) -> None:
    os.umask(int(mask, 8))


def _access(path: str, modes: str, *, effective: bool = False) -> None:
    syscalls.faccessat(path, _flags(modes, _ACCESS), effective=effective)


def xattrs_of(path: str | bytes, *, follow: bool = True) -> dict[str, str]:
    names = os.listxattr(path, follow_symlinks=follow)
    return {name: summary(os.getxattr(path, name, follow_symlinks=follow)) for name in sorted(names)}


OPERATIONS: Final[dict[str, Callable[..., Any]]] = {
    "access": _access,
    "busy": _write_to_running,
    "chmod": lambda path, mode: os.chmod(path, int(mode, 8)),
    "chown": lambda path, uid, gid: os.chown(path, int(uid), int(gid)),
    "eaccess": functools.partial(_access, effective=True),
    "exec": _execute,
    "fallocate": _fallocate,
    "fchmod": _fchmod,
    "fchown": _fchown,
    "fsync": _fsync,
    "ftruncate": _ftruncate,
    "futime": _futime,
    "getxattr": lambda path, name: summary(os.getxattr(path, name)),
    "ghost": _ghost,
    "ghostdir": _ghost_directory,
    "lchown": lambda path, uid, gid: os.chown(path, int(uid), int(gid), follow_symlinks=False),
    "link": lambda old, new: os.link(old, new, follow_symlinks=False),
    "linkfollow": _link_followed,
    "list": lambda path: sorted(os.listdir(path)),
    "listxattr": xattrs_of,
    "llistxattr": functools.partial(xattrs_of, follow=False),
    "lsetxattr": functools.partial(_set_xattr, follow=False),
    "lstat": lambda path: status_of(os.lstat(path)),
    "lutime": lambda path, *times: syscalls.utimensat(path, *map(_time, times), follow=False),
    "mkdir": lambda path, mode: os.mkdir(path, int(mode, 8)),
    "mknod": _mknod,
    "open": _open,
    "pwrite": _pwrite,
    "read": _read,
    "readlink": os.readlink,
    "removexattr": os.removexattr,
    "rename": os.rename,
    "rename2": lambda old, new, flags: syscalls.renameat2(old, new, _flags(flags, _RENAME)),
    "rmdir": os.rmdir,
    "running": _execute_written,
    "setacl": _set_acl,
    "setxattr": _set_xattr,
    "stat": lambda path: status_of(os.stat(path)),
    "symlink": os.symlink,
    "tmplink": _link_nameless,
    "truncate": lambda path, size: os.truncate(path, int(size)),
    "umask": _umask,
    "unlink": os.unlink,
    "utime": lambda path, *times: syscalls.utimensat(path, *map(_time, times)),
    "write": _write,
}
