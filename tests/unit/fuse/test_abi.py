"""Byte vectors taken from the header file's layouts, round trips, and messages cut short."""

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mica.fuse import abi
from mica.fuse.tree import Attributes

u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
names = st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name)
attribute_values = st.builds(
    Attributes,
    inode=st.integers(1, (1 << 64) - 1),
    mode=u32,
    links=u32,
    uid=u32,
    gid=u32,
    rdev=u32,
    size=st.integers(0, (1 << 63) - 1),
    mtime_s=st.integers(-(1 << 63), (1 << 63) - 1),
    mtime_ns=st.integers(0, 999_999_999),
)
validities = st.builds(abi.Validity, u64, u32)
entries = st.builds(abi.Entry, st.one_of(st.none(), attribute_values), validities, validities)
dirents = st.builds(abi.Dirent, u64, u64, st.integers(0, 15), names)
FILE = Attributes(
    inode=0x0102030405060708,
    mode=0o100644,
    links=2,
    uid=1000,
    gid=1001,
    rdev=0,
    size=513,
    mtime_s=-1,
    mtime_ns=999_999_999,
)


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (abi.IN_HEADER, 40),
        (abi.OUT_HEADER, 16),
        (abi.INIT_OUT, 64),
        (abi.ATTR, 88),
        (abi.ENTRY_OUT, 128),
        (abi.ATTR_OUT, 104),
        (abi.OPEN_IN, 8),
        (abi.OPEN_OUT, 16),
        (abi.READ_IN, 40),
        (abi.RELEASE_IN, 24),
        (abi.DIRENT, 24),
        (abi.DIRENTPLUS, 152),
        (abi.GETXATTR_IN, 8),
        (abi.GETXATTR_OUT, 8),
        (abi.STATFS_OUT, 80),
        (abi.INTERRUPT_IN, 8),
        (abi.FORGET_IN, 8),
        (abi.FORGET_ONE, 16),
        (abi.BATCH_FORGET_IN, 8),
        (abi.NOTIFY_INVAL_INODE_OUT, 24),
        (abi.NOTIFY_INVAL_ENTRY_OUT, 16),
        (abi.NOTIFY_STORE_OUT, 24),
    ],
)
def test_sizes_are_the_kernels(layout: struct.Struct, size: int) -> None:
    assert layout.size == size


def test_a_lookup_request_in_bytes() -> None:
    message = bytes.fromhex(
        "2d000000 01000000 0600000000000000 0100000000000000 e8030000 e9030000 39300000 0000 0000" + "6e616d6500"
    )
    header = abi.parse_in_header(message)
    assert header == abi.InHeader(45, abi.Opcode.LOOKUP, 6, 1, 1000, 1001, 12345)
    assert abi.parse_name(message[40:]) == b"name"
    assert abi.format_request(header, b"name\0") == message


def test_an_attr_in_bytes() -> None:
    expected = (
        "0807060504030201 0102000000000000 0200000000000000 ffffffffffffffff ffffffffffffffff ffffffffffffffff"
        "ffc99a3b ffc99a3b ffc99a3b a4810000 02000000 e8030000 e9030000 00000000 00100000 00000000"
    )
    assert abi.ATTR.pack(*abi.attr_fields(FILE)) == bytes.fromhex(expected)


def test_an_absent_entry_has_node_0_and_a_validity() -> None:
    entry = abi.Entry(None, abi.Validity(5, 6), abi.Validity(7, 8))
    assert abi.format_entry_out(entry) == struct.pack("<QQQQII", 0, 0, 5, 7, 6, 8) + bytes(88)


def test_a_dirent_is_padded_to_8_bytes() -> None:
    assert abi.format_dirent(abi.Dirent(9, 3, 4, b"etc")) == struct.pack("<QQII", 9, 3, 3, 4) + b"etc" + bytes(5)


def test_failures_are_negative() -> None:
    assert abi.format_answer(7, error=2) == struct.pack("<IiQ", 16, -2, 7)


def test_notifications_in_bytes() -> None:
    assert abi.format_inval_inode(5, offset=-1) == struct.pack("<IiQQqq", 40, 2, 0, 5, -1, 0)
    assert abi.format_store(5, b"abc") == struct.pack("<IiQQQII", 43, 4, 0, 5, 0, 3, 0) + b"abc"
    assert abi.format_inval_entry(1, b"ab") == struct.pack("<IiQQII", 35, 3, 0, 1, 2, 0) + b"ab\0"
    assert abi.format_resend() == struct.pack("<IiQ", 16, 7, 0)


def test_the_upper_flags_count_only_with_the_extension() -> None:
    body = struct.pack("<IIIII", 7, 40, 1 << 17, abi.FUSE_ASYNC_READ, 0xFF) + bytes(44)
    assert abi.parse_init_in(body).flags == abi.FUSE_ASYNC_READ
    body = struct.pack("<IIIII", 7, 40, 1 << 17, abi.FUSE_INIT_EXT, 0x80) + bytes(44)
    assert abi.parse_init_in(body).flags == abi.FUSE_INIT_EXT | abi.FUSE_HAS_RESEND


def test_an_init_of_an_old_kernel_ends_after_the_flags() -> None:
    assert abi.parse_init_in(struct.pack("<IIII", 7, 31, 4096, 1)) == abi.InitIn(7, 31, 4096, 1)


@pytest.mark.parametrize("body", [b"", b"name", b"na\0me\0", b"\0\0"])
def test_names_end_with_their_only_nul(body: bytes) -> None:
    with pytest.raises(abi.MalformedMessageError):
        abi.parse_name(body)


def test_a_header_must_tell_the_length() -> None:
    message = abi.format_request(abi.InHeader(0, 1, 2, 1, 0, 0, 0), b"x\0")
    with pytest.raises(abi.MalformedMessageError, match="42 bytes says that it has 43"):
        abi.parse_in_header(struct.pack("<I", 43) + message[4:])


@given(u32, u64, u64, u32, u32, u32, st.binary(max_size=100))
def test_request_round_trip(
    opcode: int, unique: int, nodeid: int, uid: int, gid: int, pid: int, body: bytes
) -> None:  # fmt: skip
    header = abi.InHeader(40 + len(body), opcode, unique, nodeid, uid, gid, pid)
    assert abi.parse_in_header(abi.format_request(header, body)) == header


@given(u32, u32, u32, u64)
def test_init_in_round_trip(major: int, minor: int, max_readahead: int, flags: int) -> None:
    value = abi.InitIn(major, minor, max_readahead, flags | abi.FUSE_INIT_EXT)
    assert abi.parse_init_in(abi.format_init_in(value)) == value


@given(st.tuples(u32, u32, u32, u64, u16, u16, u32, u32, u16, u16, u32, u16))
def test_init_out_round_trip(values: tuple[int, ...]) -> None:
    assert abi.parse_init_out(abi.format_init_out(abi.InitOut._make(values))) == values


@given(entries)
def test_entry_round_trip(entry: abi.Entry) -> None:
    assert abi.parse_entry_out(abi.format_entry_out(entry)) == entry


@given(attribute_values, validities)
def test_attr_out_round_trip(attributes: Attributes, valid: abi.Validity) -> None:
    assert abi.parse_attr_out(abi.format_attr_out(attributes, valid)) == (attributes, valid)


@given(st.lists(dirents, max_size=8))
def test_dirents_round_trip(values: list[abi.Dirent]) -> None:
    body = b"".join(map(abi.format_dirent, values))
    assert abi.parse_dirents(body) == values
    assert len(body) == sum(abi.dirent_size(value.name) for value in values)


@given(st.lists(st.tuples(dirents, entries), max_size=8))
def test_direntpluses_round_trip(values: list[tuple[abi.Dirent, abi.Entry]]) -> None:
    body = b"".join(abi.format_direntplus(*value) for value in values)
    assert abi.parse_direntpluses(body) == values
    assert len(body) == sum(abi.direntplus_size(dirent.name) for dirent, _ in values)


@given(u64, u32, st.integers(-(1 << 31), (1 << 31) - 1))
def test_open_out_round_trip(fh: int, flags: int, backing_id: int) -> None:
    value = abi.OpenOut(fh, flags, backing_id)
    assert abi.parse_open_out(abi.format_open_out(value)) == value


@given(u64, u64, u32, u32, u64, u32)
def test_read_and_release_round_trip(
    fh: int, offset: int, size: int, read_flags: int, owner: int, flags: int
) -> None:  # fmt: skip
    read = abi.ReadIn(fh, offset, size, read_flags, owner, flags)
    assert abi.parse_read_in(abi.format_read_in(read)) == read
    release = abi.ReleaseIn(fh, flags, read_flags, owner)
    assert abi.parse_release_in(abi.format_release_in(release)) == release


@given(u32, names, st.lists(names))
def test_xattrs_round_trip(size: int, name: bytes, listed: list[bytes]) -> None:
    value = abi.GetxattrIn(size, name)
    assert abi.parse_getxattr_in(abi.format_getxattr_in(value)) == value
    assert abi.parse_listxattr_in(abi.format_listxattr_in(size)) == size
    assert abi.parse_getxattr_out(abi.format_getxattr_out(size)) == size
    assert abi.parse_xattr_names(abi.format_xattr_names(listed)) == listed


@given(st.tuples(u64, u64, u64, u64, u64, u32, u32, u32))
def test_statfs_round_trip(values: tuple[int, ...]) -> None:
    assert abi.parse_statfs_out(abi.format_statfs_out(abi.Statfs._make(values))) == values


@given(u64, u32, st.lists(st.builds(abi.Forget, u64, u64), max_size=20))
def test_forget_and_interrupt_round_trip(number: int, flags: int, forgets: list[abi.Forget]) -> None:
    assert abi.parse_forget_in(abi.format_forget_in(number)) == number
    assert abi.parse_interrupt_in(abi.format_interrupt_in(number)) == number
    assert abi.parse_batch_forget_in(abi.format_batch_forget_in(forgets)) == forgets
    assert abi.parse_open_flags(abi.format_open_flags(flags)) == flags


def test_seconds_become_a_validity() -> None:
    assert abi.validity(0) == (0, 0)
    assert abi.validity(1.5) == (1, 500_000_000)


SHORT: list[tuple[Callable[[bytes], Any], bytes]] = [
    (abi.parse_in_header, abi.format_request(abi.InHeader(0, 1, 2, 1, 0, 0, 0))),
    (abi.parse_init_out, abi.format_init_out(abi.InitOut())),
    (abi.parse_getxattr_in, abi.format_getxattr_in(abi.GetxattrIn(0, b"user.a"))),
    (abi.parse_listxattr_in, abi.format_listxattr_in(1)),
    (abi.parse_read_in, abi.format_read_in(abi.ReadIn(1, 2, 3))),
    (abi.parse_release_in, abi.format_release_in(abi.ReleaseIn(1))),
    (abi.parse_open_flags, abi.format_open_flags(0)),
    (abi.parse_interrupt_in, abi.format_interrupt_in(1)),
    (abi.parse_forget_in, abi.format_forget_in(1)),
    (abi.parse_batch_forget_in, abi.format_batch_forget_in([abi.Forget(1, 1)])),
    (abi.parse_entry_out, abi.format_entry_out(abi.Entry(FILE, abi.Validity(1, 0), abi.Validity(1, 0)))),
    (abi.parse_attr_out, abi.format_attr_out(FILE, abi.Validity(1, 0))),
    (abi.parse_open_out, abi.format_open_out(abi.OpenOut(1, 2))),
    (abi.parse_statfs_out, abi.format_statfs_out(abi.Statfs(1, 2, 3, 4, 5))),
    (abi.parse_getxattr_out, abi.format_getxattr_out(1)),
    (abi.parse_out_header, abi.format_answer(1)),
]


@pytest.mark.parametrize(("parse", "message"), SHORT, ids=[parse.__name__ for parse, _ in SHORT])
def test_messages_cut_short_are_refused(parse: Callable[[bytes], Any], message: bytes) -> None:
    parse(message)
    for length in range(len(message)):
        with pytest.raises(abi.MalformedMessageError):
            parse(message[:length])


@pytest.mark.parametrize("length", range(1, 24 + 3))
def test_a_listing_cut_short_is_refused(length: int) -> None:
    with pytest.raises(abi.MalformedMessageError):
        abi.parse_dirents(abi.format_dirent(abi.Dirent(9, 3, 4, b"etc"))[:length])
