"""The rules for one entry: each is broken once, alone, and named. What other publishers write is no fault."""

import os
import stat
from collections.abc import Callable

import pytest
from tests.support.catalogs import a_file, a_link, some_digest

from mica.digest import Algorithm
from mica.publish.catalogtree import directory_entry
from mica.publish.checkentry import broken_rules
from mica.repo.entry import XATTR_LIMIT, XATTR_VALUE_LIMIT, Entry, Flag, content_flags, format_xattrs
from mica.repo.objects import Compression

FIFO, SOCKET = stat.S_IFIFO | 0o600, stat.S_IFSOCK | 0o600
CHARACTER, BLOCK = stat.S_IFCHR | 0o600, stat.S_IFBLK | 0o600
CHUNKED_FLAGS = int(Flag.FILE) | content_flags(Algorithm.SHA1, Compression.ZLIB, chunked=True)

MANY_ATTRIBUTES = {b"%0255d" % number: b"1" for number in range(XATTR_LIMIT - 1)} | {b"long": bytes(XATTR_VALUE_LIMIT)}


def a_directory(**changes: object) -> Entry:
    return directory_entry(b"directory")._replace(**changes)  # type: ignore[arg-type]


def a_special(mode: int, **changes: object) -> Entry:
    entry = Entry(b"special", mode, 0, 0, None, 0, 0, int(Flag.FILE | Flag.SPECIAL))
    return entry._replace(**changes)  # type: ignore[arg-type]


def a_file_of(algorithm: int, compression: int) -> Entry:
    return a_file(b"file", flags=int(Flag.FILE) | algorithm << 8 | compression << 11)


SOUND = {
    "file": a_file(b"file"),
    "empty file": a_file(b"file", size=0),
    "file in chunks alone": a_file(b"file", flags=CHUNKED_FLAGS, digest=None),
    "file in chunks with an object of all": a_file(b"file", flags=CHUNKED_FLAGS),
    "external file": a_file(b"file", flags=a_file(b"").flags | Flag.EXTERNAL | Flag.DIRECT_IO),
    "hidden file": a_file(b"file", flags=a_file(b"").flags | Flag.HIDDEN),
    "file of a group": a_file(b"file", links=2, group=7),
    "file alone in a group": a_file(b"file", links=1, group=7),
    "newest algorithm and no compression": a_file_of(Algorithm.SHAKE128 - 1, Compression.NONE),
    "file with attributes": a_file(b"file", xattrs=format_xattrs({b"user.x": b"1"})),
    "as many and as long attributes as there can be": a_file(
        b"file", xattrs=format_xattrs(MANY_ATTRIBUTES)
    ),
    "attributes and more bytes": a_file(b"file", xattrs=(format_xattrs({b"user.x": b"1"}) or b"") + b"more"),
    "blob of no attributes": a_file(b"file", xattrs=b"\1\0"),
    "link": a_link(b"link", b"target"),
    "link without a size, by the stock server": a_link(b"link", b"target")._replace(size=0),
    "directory": a_directory(),
    "mountpoint": a_directory(flags=Flag.DIRECTORY | Flag.MOUNTPOINT),
    "root of a catalog": a_directory(flags=Flag.DIRECTORY | Flag.NESTED_ROOT),
    "bind mountpoint": a_directory(flags=Flag.DIRECTORY | Flag.BIND_MOUNTPOINT),
    "directory without links, which another rule counts": a_directory(links=0),
    "character device": a_special(CHARACTER, size=os.makedev(5, 1)),
    "block device": a_special(BLOCK, size=os.makedev(8, 0)),
    "fifo": a_special(FIFO),
    "socket": a_special(SOCKET),
}  # fmt: skip


@pytest.mark.parametrize("entry", SOUND.values(), ids=SOUND)
def test_sound_entries_break_no_rule(entry: Entry) -> None:
    assert list(broken_rules(entry)) == []


BROKEN = [
    (a_file(b"file", mode=0o644), "has mode 644, which is no type of file"),
    (a_file(b"file", mode=0o170644), "has mode 170644, which is no type of file"),
    (a_file(b"file", target=b"x"), "has a link target but is no symbolic link"),
    (a_directory(target=b"x"), "has a link target but is no symbolic link"),
    (a_file(b"file", digest=None), "has neither an object nor chunks"),
    (a_file_of(Algorithm.SHAKE128, Compression.ZLIB), "names an unknown algorithm in its flags 0x304"),
    (a_file_of(7, Compression.ZLIB), "names an unknown algorithm in its flags 0x704"),
    (a_file_of(0, 2), "names an unknown compression in its flags 0x1004"),
    (a_directory(digest=some_digest("x")), "has an object though it is no regular file"),
    (a_link(b"link", b"x")._replace(digest=some_digest("x")), "has an object though it is no regular file"),
    (a_special(FIFO, digest=some_digest("x")), "has an object though it is no regular file"),
    (a_link(b"link", b"")._replace(size=0), "is a symbolic link without a target"),
    (a_link(b"link", b"target")._replace(size=5), "has size 5 but a target of 6 bytes"),
    (a_special(FIFO, size=1), "has size 1 though it is a fifo or socket"),
    (a_special(SOCKET, size=1), "has size 1 though it is a fifo or socket"),
    (a_directory(group=1), "is a directory in a hard link group"),
    (a_file(b"file", links=0), "has no link"),
    (a_link(b"link", b"target")._replace(links=0), "has no link"),
    (a_file(b"file", links=2), "has 2 links but belongs to no hard link group"),
    (a_special(CHARACTER, links=2), "has 2 links but belongs to no hard link group"),
]


@pytest.mark.parametrize(
    ("entry", "fault"), BROKEN, ids=[f"{number}-{fault}" for number, (_, fault) in enumerate(BROKEN)]
)
def test_each_broken_rule_is_named(entry: Entry, fault: str) -> None:
    assert list(broken_rules(entry)) == [fault]


@pytest.mark.parametrize(
    ("entry", "flags"),
    [
        (a_file(b"file"), Flag.DIRECTORY),
        (a_file(b"file"), Flag.LINK),
        (a_file(b"file"), Flag.SPECIAL),
        (a_directory(), Flag.FILE),
        (a_link(b"link", b"target"), Flag.SPECIAL),
        (a_special(BLOCK), Flag.LINK),
    ],
    ids=str,
)
def test_a_kind_flag_that_does_not_fit_the_mode_is_named(entry: Entry, flags: Flag) -> None:
    wrong = entry._replace(flags=entry.flags | flags)
    assert list(broken_rules(wrong)) == [f"has flags {wrong.flags:#x}, which do not fit its mode {wrong.mode:o}"]
    none = entry._replace(flags=entry.flags & ~0x1F)
    assert f"has flags {none.flags:#x}, which do not fit its mode {none.mode:o}" in list(broken_rules(none))


@pytest.mark.parametrize("flag", [Flag.CHUNKED, Flag.EXTERNAL, Flag.DIRECT_IO])
@pytest.mark.parametrize("make", [a_directory, lambda: a_link(b"link", b"x"), lambda: a_special(FIFO)])
def test_a_flag_of_files_on_another_entry_is_named(make: Callable[[], Entry], flag: Flag) -> None:
    entry = make()
    faults = list(broken_rules(entry._replace(flags=entry.flags | flag)))
    assert faults == [f"has the flag {flag.name} though it is no regular file"]


@pytest.mark.parametrize("bit", range(8, 14))
def test_each_bit_about_content_on_another_entry_is_named(bit: int) -> None:
    entry = a_directory(flags=Flag.DIRECTORY | 1 << bit)
    assert list(broken_rules(entry)) == [f"has flags {entry.flags:#x} about content though it is no regular file"]


ROLES = (Flag.MOUNTPOINT, Flag.NESTED_ROOT, Flag.BIND_MOUNTPOINT)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_of_directories_on_another_entry_is_named(role: Flag) -> None:
    for entry in (a_file(b"file"), a_link(b"link", b"x"), a_special(FIFO)):
        flags = entry.flags | role
        faults = list(broken_rules(entry._replace(flags=flags)))
        assert faults == [f"has flags {flags:#x} of a mountpoint though it is no directory"]


@pytest.mark.parametrize("left_out", [*ROLES, Flag.DIRECTORY])
def test_two_roles_of_one_directory_are_named(left_out: Flag) -> None:
    flags = int(Flag.DIRECTORY | Flag.MOUNTPOINT | Flag.NESTED_ROOT | Flag.BIND_MOUNTPOINT) & ~(
        left_out & ~Flag.DIRECTORY
    )
    faults = list(broken_rules(a_directory(flags=flags)))
    assert faults == [f"has flags {flags:#x}, which name more than one role for one directory"]


@pytest.mark.parametrize(
    "blob",
    [
        b"", b"\1", b"\0\0", b"\3\1\1\1kv", b"\1\1", b"\1\2\1\1kv", b"\1\1\1\2kv", b"\1\1\0\1v",
        b"\1\1\2\1k\0v", b"\2\1\1\1kv", b"\1\2\1\1kv\1\1kw",
    ],
    ids=repr,
)  # fmt: skip
def test_damaged_attributes_are_named(blob: bytes) -> None:
    for entry in (a_file(b"file"), a_directory(), a_link(b"link", b"x")):
        assert list(broken_rules(entry._replace(xattrs=blob))) == ["has extended attributes that cannot be read"]


def test_several_faults_of_one_entry_are_all_named() -> None:
    entry = a_file(b"file", target=b"x", digest=None, links=3, xattrs=b"")
    assert list(broken_rules(entry)) == [
        "has a link target but is no symbolic link",
        "has extended attributes that cannot be read",
        "has neither an object nor chunks",
        "has 3 links but belongs to no hard link group",
    ]
