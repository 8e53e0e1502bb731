"""Trees of files on disk: making one with everything in it, archiving it, and comparing what two trees show."""

import hashlib
import io
import os
import stat
import struct
import tarfile
from pathlib import Path
from typing import NamedTuple

from tests.support.noise import noise

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)  # cap_net_raw+ep, linux/capability.h


def format_acl(mode: int, user: int, *, may: int = 4) -> bytes:
    """An access list with what a mode says and one more user (linux/posix_acl_xattr.h, version 2)."""
    owner, group, others = mode >> 6 & 7, mode >> 3 & 7, mode & 7
    nobody = 0xFFFFFFFF
    entries = ((1, owner, nobody), (2, may, user), (4, group, nobody), (16, 7, nobody), (32, others, nobody))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


class Seen(NamedTuple):
    """What a tree shows of one path. `links` is the group of paths that are the same file, itself included."""

    mode: int
    uid: int
    gid: int
    rdev: int
    size: int
    mtime_ns: int
    target: bytes
    sha256: str
    xattrs: tuple[tuple[bytes, bytes], ...]
    links: tuple[bytes, ...]


def snapshot(root: bytes, *, directory_times: bool = True) -> dict[bytes, Seen]:
    """Every path below and including a root (`b""`), with everything that a program can see of it."""
    paths = [b""]
    for directory, names, files in os.walk(root):
        relative = directory[len(root) :]
        paths += [relative + b"/" + name for name in (*names, *files)]
    status = {path: os.lstat(root + path) for path in paths}
    groups: dict[tuple[int, int], list[bytes]] = {}
    for path, seen in status.items():
        if not stat.S_ISDIR(seen.st_mode):
            groups.setdefault((seen.st_dev, seen.st_ino), []).append(path)
    return {
        path: _seen(
            root + path,
            status[path],
            groups.get((status[path].st_dev, status[path].st_ino), [path]),
            directory_times=directory_times,
        )
        for path in paths
    }


def look_at(path: Path) -> Seen:
    """What a tree shows of one path; the other names of the same file are not looked for."""
    name = os.fsencode(path)
    return _seen(name, os.lstat(name), [], directory_times=True)


def _seen(path: bytes, status: os.stat_result, group: list[bytes], *, directory_times: bool) -> Seen:
    mode = status.st_mode
    is_file, is_directory, is_link = stat.S_ISREG(mode), stat.S_ISDIR(mode), stat.S_ISLNK(mode)
    names = sorted(os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False))
    return Seen(
        mode, status.st_uid, status.st_gid, status.st_rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0,
        status.st_size if is_file or is_link else 0,
        status.st_mtime_ns if directory_times or not is_directory else 0,
        os.readlink(path) if is_link else b"",
        sha256_of(path) if is_file else "",
        tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names),
        tuple(sorted(group)),
    )  # fmt: skip


def sha256_of(path: bytes) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(expected: dict[bytes, Seen], found: dict[bytes, Seen]) -> list[str]:
    """Sentences, at most fifty; empty if the trees are the same."""
    told = [f"missing: {path!r}" for path in sorted(expected.keys() - found.keys())]
    told += [f"extra: {path!r}" for path in sorted(found.keys() - expected.keys())]
    for path in sorted(expected.keys() & found.keys()):
        for name, before, after in zip(Seen._fields, expected[path], found[path], strict=True):
            if before != after:
                told.append(f"{path!r} {name}: {before!r} became {after!r}")
    return told[:50]


def make_everything(root: Path) -> None:
    """A tree with every kind of file that an archive can hold (sockets cannot be archived). Needs root."""
    top = os.fsencode(root)
    os.makedirs(top + b"/plain/empty-directory")
    _write(top + b"/plain/empty", b"")
    _write(top + b"/plain/one", b"1")
    _write(top + b"/plain/text", b"hello world\n" * 5000)
    _write(top + b"/plain/incompressible", noise(300_000))
    _write(top + b"/plain/chunked", b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(700_000)))
    _make_sparse(top + b"/plain/sparse")
    for name in (b"new\nline", b"n" * 255, b"\xff\xfe not utf-8", b" blanks ", b"tab\t", b'quo"te', b"-dash", b"*?[x]",
                 b"$(VAR)", "\u00fcn\u00ef".encode(), b"\\back", b".wh.not-a-whiteout-here", b"a:b,c"):  # fmt: skip
        _write(top + b"/plain/" + name, name)
    _make_special(top + b"/special")
    _make_modes(top + b"/modes")
    _make_links(top + b"/links")
    _make_xattrs(top + b"/xattrs")
    deep = top + b"/deep"
    for number in range(60):
        deep += b"/" + b"d" * 40 + b"%02d" % number
    os.makedirs(deep)
    _write(deep + b"/leaf", b"leaf")
    _make_times(top + b"/times")


def _write(path: bytes, data: bytes, mode: int = 0o644) -> None:
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)


def _make_sparse(path: bytes) -> None:
    with open(path, "wb") as file:
        file.truncate(20 << 20)
        file.seek(9 << 20)
        file.write(b"in the middle")


def _make_special(top: bytes) -> None:
    os.mkdir(top)
    os.mkfifo(top + b"/fifo", 0o640)
    for name, kind, major, minor in (
        (b"null", stat.S_IFCHR, 1, 3), (b"loop", stat.S_IFBLK, 7, 0), (b"big", stat.S_IFCHR, 4095, 1048575),
    ):  # fmt: skip
        os.mknod(top + b"/" + name, kind | 0o600, os.makedev(major, minor))


def _make_modes(top: bytes) -> None:
    os.mkdir(top)
    for mode in (0o000, 0o400, 0o111, 0o4755, 0o2755, 0o6755, 0o1777, 0o777):
        _write(top + b"/f%04o" % mode, b"%o" % mode, mode)
        os.mkdir(top + b"/d%04o" % mode)
        os.chmod(top + b"/d%04o" % mode, mode)
    _write(top + b"/owned", b"owned")
    os.chown(top + b"/owned", 1000, 2000)
    _write(top + b"/owned-big", b"owned")
    os.chown(top + b"/owned-big", 4_000_000_000, 3_999_999_999)
    _write(top + b"/owned-suid", b"owned")
    os.chown(top + b"/owned-suid", 1000, 1000)
    os.chmod(top + b"/owned-suid", 0o4755)


def _make_links(top: bytes) -> None:
    os.mkdir(top)
    _write(top + b"/a", b"three names")
    os.link(top + b"/a", top + b"/b")
    os.link(top + b"/a", top + b"/c")
    os.symlink(b"a", top + b"/relative")
    os.symlink(b"/etc/passwd", top + b"/absolute")
    os.symlink(b"../../../../..", top + b"/outward")
    os.symlink(b"nowhere", top + b"/dangling")
    os.symlink(b"t" * 4000, top + b"/long")
    os.symlink(b"\xff\n", top + b"/odd")
    os.symlink(b"relative", top + b"/owned")
    os.chown(top + b"/owned", 1000, 1000, follow_symlinks=False)


def _make_xattrs(top: bytes) -> None:
    os.mkdir(top)
    for name, attributes in {
        b"user": {b"user.a": b"1", b"user.empty": b"", b"user.binary": bytes(range(255))},
        b"capability": {b"security.capability": CAPABILITY},
        b"acl": {b"system.posix_acl_access": format_acl(0o644, 1000, may=6)},
        b"trusted": {b"trusted.mine": b"t"},
        b"many": {b"user.k%03d" % n: b"%d" % n for n in range(60)},
    }.items():
        _write(top + b"/" + name, name)
        for key, value in attributes.items():
            os.setxattr(top + b"/" + name, key, value)
    os.setxattr(top, b"user.directory", b"yes")


def _make_times(top: bytes) -> None:
    os.mkdir(top)
    second = 1_000_000_000
    for name, time_ns in {
        b"ns": 1_600_000_000_123_456_789, b"epoch": 0, b"before": -1, b"y1969": -86400 * second + 500_000_000,
        b"y1902": -2_145_916_800 * second, b"y2106": 4_294_967_296 * second + 7,
    }.items():  # fmt: skip
        _write(top + b"/" + name, name)
        os.utime(top + b"/" + name, ns=(time_ns, time_ns))
    os.utime(top, ns=(1, 1))


def archive(root: Path, target: Path) -> None:
    """A pax archive of a tree, with attributes of every namespace, hard links and exact times. Members sorted."""
    top = os.fsencode(root)
    first_names: dict[tuple[int, int], bytes] = {}
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        for path in sorted(snapshot(top)):
            status = os.lstat(top + path)
            member = tar.gettarinfo(os.fsdecode(top + path), arcname=os.fsdecode(b"." + path))
            member.uname = member.gname = ""
            seconds, nanoseconds = divmod(status.st_mtime_ns, 1_000_000_000)
            member.mtime = 0
            member.pax_headers["mtime"] = _decimal(seconds, nanoseconds)
            if path.startswith(b"/special/b"):
                member.devmajor, member.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
            for key in os.listxattr(top + path, follow_symlinks=False):
                value = os.getxattr(top + path, key, follow_symlinks=False)
                member.pax_headers[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
            identity = (status.st_dev, status.st_ino)
            if stat.S_ISREG(status.st_mode) and identity not in first_names:
                first_names[identity] = path
                member.type = tarfile.REGTYPE
                member.size = status.st_size
                with open(top + path, "rb") as file:
                    tar.addfile(member, file)
            else:
                tar.addfile(member, io.BytesIO())


def _decimal(seconds: int, nanoseconds: int) -> str:
    total = seconds * 1_000_000_000 + nanoseconds
    sign, total = ("-", -total) if total < 0 else ("", total)
    return f"{sign}{total // 1_000_000_000}.{total % 1_000_000_000:09d}"
