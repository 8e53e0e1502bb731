"""Trees for metadata images, as the writer takes them: one with everything, random ones; and what a mount shows."""

import functools
import os
import random
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.support.trees import CAPABILITY, format_acl

from mica.digest import Algorithm, digest_of
from mica.metaimage.inode import Inode
from mica.repo.chunklist import format_chunk_list
from mica.repo.entry import Chunk
from mica.repo.localname import LocalName, chunked_name
from mica.repo.objects import Compression
from mica.unionsigns import METACOPY, OPAQUE, REDIRECT

Entries = list[tuple[bytes, Inode]]
REGULAR, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
SECOND = 1_000_000_000
TEBIBYTE = 1 << 40
ACL = format_acl(0o644, 1000, may=6)


def content(seed: object, size: int, *, algorithm: Algorithm = Algorithm.SHA1, raw: bool = False) -> LocalName:
    digest = digest_of(repr(seed).encode(), algorithm)
    return LocalName(digest, Compression.NONE if raw else Compression.ZLIB, size)


def file(seed: object, size: int = 1000, **fields: object) -> Inode:
    return Inode(REGULAR, size=size, content=content(seed, size) if size else None)._replace(**fields)


def chunks_of(size: int, piece: int = 1 << 20) -> list[Chunk]:
    return [Chunk(offset, min(piece, size - offset), digest_of(b"%d" % offset)) for offset in range(0, size, piece)]


LARGE = chunks_of(5_000_000)
HUGE = chunks_of(40_000_000, 3_000_000)
CHUNK_LISTS = {chunked_name(chunks, Compression.ZLIB).digest: format_chunk_list(chunks) for chunks in (LARGE, HUGE)}


def in_tree_order(files: dict[bytes, Inode]) -> Entries:
    """Directories that are not given are made. Sorted by components, which is not the order of whole paths."""
    for path in list(files):
        while path := path.rpartition(b"/")[0]:
            files.setdefault(path, Inode(DIRECTORY))
    files.setdefault(b"", Inode(DIRECTORY))
    return sorted(files.items(), key=lambda item: item[0].split(b"/"))


@functools.cache
def everything() -> Entries:
    files: dict[bytes, Inode] = {b"": Inode(DIRECTORY | 0o1777, 7, 8, 1234, 5678, xattrs={b"user.root": b"yes"})}
    _add_content(files)
    _add_special(files)
    _add_names(files)
    _add_xattrs(files)
    _add_times(files)
    return in_tree_order(files)


def _add_content(files: dict[bytes, Inode]) -> None:
    files[b"/content/empty"] = file(0, 0)
    for size in (1, 4095, 4096, 4097, 1 << 31, 1 << 32, TEBIBYTE, 8 * TEBIBYTE):
        files[b"/content/of-%d" % size] = file(size, size)
    for algorithm in Algorithm:
        name = content(algorithm, 10, algorithm=algorithm, raw=True)
        files[b"/content/by-%d" % algorithm] = Inode(REGULAR, size=10, content=name)
    for name, chunks in ((b"large", LARGE), (b"huge", HUGE)):
        parts = chunked_name(chunks, Compression.ZLIB)
        files[b"/content/" + name] = Inode(REGULAR, size=parts.size, content=parts)
    for mode in (0o000, 0o4755, 0o2711, 0o1777, 0o7777):
        files[b"/modes/file-%o" % mode] = file(mode, mode=stat.S_IFREG | mode)
        files[b"/modes/directory-%o" % mode] = Inode(stat.S_IFDIR | mode)
    files[b"/modes/owned"] = file(b"owned", uid=4_294_967_294, gid=4_000_000_000)
    linked = file(b"linked", links=4, group=11)
    for path in (b"/links/a", b"/links/b", b"/links/c", b"/other/d"):
        files[path] = linked
    for path in (b"/links/fifo-1", b"/links/fifo-2"):
        files[path] = Inode(stat.S_IFIFO | 0o600, links=2, group=12)
    for path in (b"/links/link-1", b"/links/link-2"):
        files[path] = Inode(LINK, target=b"a" * 70, links=2, group=13)


def _add_special(files: dict[bytes, Inode]) -> None:
    files[b"/special/fifo"] = Inode(stat.S_IFIFO | 0o640)
    files[b"/special/socket"] = Inode(stat.S_IFSOCK | 0o755, uid=1)
    for name, kind, major, minor in (
        (b"null", stat.S_IFCHR, 1, 3), (b"loop", stat.S_IFBLK, 7, 0), (b"last", stat.S_IFBLK, 4095, 1048575),
        (b"one", stat.S_IFCHR, 0, 1), (b"minor", stat.S_IFCHR, 1, 256), (b"major", stat.S_IFBLK, 256, 0),
    ):  # fmt: skip
        files[b"/special/" + name] = Inode(kind | 0o600, device=os.makedev(major, minor))
    files[b"/special/whiteout"] = Inode(stat.S_IFCHR)
    files[b"/special/opaque"] = Inode(DIRECTORY, xattrs={OPAQUE: b"y"})
    files[b"/special/opaque/kept"] = file(b"kept")
    for size in (1, 2, 63, 1000, 3000, 4000, 4031, 4032, 4033, 4094, 4095):
        files[b"/symlinks/of-%d" % size] = Inode(LINK, target=b"t" * size)
    files[b"/symlinks/odd"] = Inode(LINK, 1000, 1000, target=b"../\xff\n/x")
    files[b"/symlinks/described"] = Inode(LINK, target=b"d" * 4000, xattrs={b"trusted.a": b"v" * 90})


def _add_names(files: dict[bytes, Inode]) -> None:
    odd = (b"!", b"-", b"--", b".-", b".a", b"...", b"..a", b"+x", b"\x01", b"\xff", b"new\nline", b" ", b"a:b,c",
           b"\\", b"$(VAR)", b".wh.no", b".cvmfscatalog", b"\xc3\xbc", b"~")  # fmt: skip
    for name in odd:
        files[b"/names/odd/" + name] = file(name)
    for number in range(40):
        files[b"/names/long/" + b"n" * 251 + b"%04d" % number] = file(number)
    for count in (1, 2, 100, 170, 171, 172, 341, 342, 1000):
        for number in range(count):
            files[b"/names/%d/%012d" % (count, number)] = Inode(stat.S_IFIFO | 0o600)
    for number in range(300):
        files[b"/names/directories/%d" % number] = Inode(DIRECTORY)
    files[b"/names/" + b"/".join([b"d" * 200] * 19) + b"/deep"] = file(b"deep")
    files[b"/names/empty"] = Inode(DIRECTORY)


def _add_xattrs(files: dict[bytes, Inode]) -> None:
    sets = {
        b"user": {b"user.a": b"1", b"user.empty": b"", b"user.binary": bytes(range(256))},
        b"same": {b"user.a": b"1"},
        b"capability": {b"security.capability": CAPABILITY},
        b"acl": {b"system.posix_acl_access": format_acl(0o644, 1000, may=6)},
        b"trusted": {b"trusted.mine": b"t", b"trusted.overlayfs": b"not its own"},
        b"many": {b"user.k%03d" % number: b"%d" % number for number in range(255)},
        b"large": {b"user.large": b"l" * 60_000},
        b"long": {b"user." + b"n" * 250: b"v" * 255},
    }
    for name, xattrs in sets.items():
        files[b"/xattrs/file-" + name] = file(name, xattrs=xattrs)
        files[b"/xattrs/empty-" + name] = file(name, 0, xattrs=xattrs)
        files[b"/xattrs/directory-" + name] = Inode(DIRECTORY, xattrs=xattrs)
        files[b"/xattrs/directory-" + name + b"/child"] = file(name)
    files[b"/xattrs/default"] = Inode(DIRECTORY, xattrs={b"system.posix_acl_default": format_acl(0o644, 1000, may=6)})
    for number in range(30):
        files[b"/xattrs/labelled-%02d" % number] = file(number, xattrs={b"security.selinux": b"system_u:object_r:x\0"})


def _add_times(files: dict[bytes, Inode]) -> None:
    for name, seconds, nanoseconds in (
        (b"ns", 1_600_000_000, 123_456_789), (b"epoch", 0, 0), (b"before", -1, 999_999_999), (b"y1901", -(1 << 31), 1),
        (b"y1900", -(1 << 31) - 1, 0), (b"y2038", 1 << 31, 7), (b"y2106", 1 << 32, 7), (b"y2500", 16_725_225_600, 5),
    ):  # fmt: skip
        files[b"/times/" + name] = file(name, mtime_s=seconds, mtime_ns=nanoseconds)
        files[b"/times/d-" + name] = Inode(DIRECTORY, mtime_s=seconds, mtime_ns=nanoseconds)


def random_tree(seed: int) -> Entries:
    """Some hundred files of all kinds, names, sizes and attributes."""
    chance = random.Random(seed)
    directories = [b""]
    files: dict[bytes, Inode] = {b"": _random_inode(chance, DIRECTORY)}
    for number in range(chance.choice((3, 60, 900))):
        parent = chance.choice(directories[-8:] if chance.random() < 0.7 else directories)
        path = parent + b"/" + _random_name(chance, number)
        if len(path) > 4000:
            continue
        kind = chance.choice((REGULAR, REGULAR, REGULAR, DIRECTORY, LINK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO))
        files[path] = _random_inode(chance, kind)
        if kind == DIRECTORY:
            directories.append(path)
        elif chance.random() < 0.1:
            linked = files[path]._replace(links=2, group=number + 1)
            files[path] = files[chance.choice(directories) + b"/link-%d" % number] = linked
    return in_tree_order(files)


def _random_name(chance: random.Random, number: int) -> bytes:
    alphabet = bytes(set(range(1, 256)) - {ord("/")})
    name = bytes(chance.choices(alphabet, k=chance.choice((1, 3, 8, 20, 250))))
    return name[:245] + b"%d" % number


def _random_inode(chance: random.Random, mode: int) -> Inode:
    kind = stat.S_IFMT(mode)
    size = chance.choice((0, 1, 4096, chance.randrange(1 << 20), chance.randrange(1 << 42))) if mode == REGULAR else 0
    xattrs = {
        b"%s.%s" % (chance.choice((b"user", b"trusted", b"security")), b"k%d" % chance.randrange(40)): chance.randbytes(
            chance.choice((0, 3, 40, 255))
        )
        for _ in range(chance.choice((0, 0, 0, 1, 3, 30)))
        if kind in {stat.S_IFREG, stat.S_IFDIR}
    }
    device = (
        os.makedev(chance.randrange(4096), chance.randrange(1 << 20)) if kind in {stat.S_IFCHR, stat.S_IFBLK} else 0
    )
    return Inode(
        kind | chance.randrange(0o10000), chance.randrange(1 << 32), chance.randrange(1 << 32),
        chance.randrange(-(1 << 33), 1 << 34), chance.randrange(SECOND), size,
        content(chance.random(), size, raw=chance.random() < 0.5) if size else None, device,
        bytes(chance.choices(range(1, 256), k=chance.choice((1, 20, 300, 4095)))) if kind == stat.S_IFLNK else b"",
        xattrs,
    )  # fmt: skip


class Shown(NamedTuple):
    """What a mounted image shows of one path. `links` are the paths that are the same file, itself among them."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    device: int
    target: bytes
    xattrs: dict[bytes, bytes]
    link_count: int
    links: frozenset[bytes]


def expected_of(entries: Iterable[tuple[bytes, Inode]]) -> dict[bytes, Shown]:
    """What the kernel has to show of a tree."""
    tree = dict(entries)
    groups: dict[int, set[bytes]] = {}
    subdirectories = dict.fromkeys(tree, 0)
    for path, inode in tree.items():
        groups.setdefault(inode.group, set()).add(path)
        if path and stat.S_ISDIR(inode.mode):
            subdirectories[path.rpartition(b"/")[0]] += 1
    return {
        path: Shown(
            inode.mode, inode.uid, inode.gid, inode.mtime_s * SECOND + inode.mtime_ns,
            inode.size or len(inode.target), inode.device, inode.target, _stored_xattrs(inode),
            subdirectories[path] + 2 if stat.S_ISDIR(inode.mode) else inode.links,
            frozenset(groups[inode.group] if inode.group else {path}),
        )
        for path, inode in tree.items()
    }  # fmt: skip


def _stored_xattrs(inode: Inode) -> dict[bytes, bytes]:
    stub = {} if inode.content is None else {METACOPY: b"", REDIRECT: f"/{inode.content}".encode()}
    return {**inode.xattrs, **stub}


def shown_by(root: Path) -> dict[bytes, Shown]:
    """Every path of a mounted image, with everything that can be seen of it."""
    top = os.fsencode(root)
    paths = [b""]
    for directory, directories, files in os.walk(top):
        paths += [directory[len(top) :] + b"/" + name for name in (*directories, *files)]
    status = {path: os.lstat(top + path) for path in paths}
    names: dict[int, set[bytes]] = {}
    for path, seen in status.items():
        names.setdefault(seen.st_ino, set()).add(path)
    return {path: _shown(top + path, seen, frozenset(names[seen.st_ino])) for path, seen in status.items()}


def _shown(path: bytes, seen: os.stat_result, links: frozenset[bytes]) -> Shown:
    names = os.listxattr(path, follow_symlinks=False)
    is_directory = stat.S_ISDIR(seen.st_mode)
    return Shown(
        seen.st_mode, seen.st_uid, seen.st_gid, seen.st_mtime_ns, 0 if is_directory else seen.st_size,
        seen.st_rdev if stat.S_ISCHR(seen.st_mode) or stat.S_ISBLK(seen.st_mode) else 0,
        os.readlink(path) if stat.S_ISLNK(seen.st_mode) else b"",
        {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names},
        seen.st_nlink, links,
    )  # fmt: skip
