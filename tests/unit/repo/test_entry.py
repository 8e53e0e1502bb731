"""Flags and extended attributes of entries."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mica.digest import Algorithm
from mica.repo.entry import Entry, Flag, content_flags, flags_for, format_xattrs, parse_xattrs
from mica.repo.objects import Compression

VALID = st.dictionaries(
    st.binary(min_size=1, max_size=255).filter(lambda key: b"\0" not in key), st.binary(max_size=255), max_size=20
)
LONG = st.dictionaries(
    st.sampled_from([b"user.a", b"user.b", b"k" * 255]),
    st.integers(0, 65535).map(lambda size: b"v" * size) | st.binary(max_size=300),
)


def test_the_vector_of_the_format() -> None:
    blob = format_xattrs({b"user.foo": b"bar"})
    assert blob is not None
    assert blob.hex() == "01010803757365722e666f6f626172"
    assert parse_xattrs(blob) == {b"user.foo": b"bar"}


@given(VALID | LONG)
def test_attributes_come_back(xattrs: dict[bytes, bytes]) -> None:
    assert parse_xattrs(format_xattrs(xattrs)) == xattrs


def test_none_is_null_and_keys_are_in_order() -> None:
    assert format_xattrs({}) is None
    assert format_xattrs({b"b": b"", b"a": b""}) == b"\x01\x02\x01\x00a\x01\x00b"


def test_values_over_255_bytes_make_version_2() -> None:
    assert format_xattrs({b"b": b"v" * 255, b"a": b""}) == b"\x01\x02\x01\x00a\x01\xffb" + b"v" * 255
    blob = format_xattrs({b"b": b"v" * 256, b"a": b"1"})
    assert blob == b"\x02\x02\x01\x01\x00a1\x01\x00\x01b" + b"v" * 256
    assert parse_xattrs(blob) == {b"a": b"1", b"b": b"v" * 256}


@pytest.mark.parametrize(
    "xattrs",
    [
        {b"": b"value"},
        {b"user.a\0b": b""},
        {b"k" * 256: b""},
        {b"key": b"v" * 65536},
        {b"%d" % number: b"" for number in range(256)},
    ],
)
def test_what_does_not_fit_is_refused(xattrs: dict[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="extended attribute"):
        format_xattrs(xattrs)


@pytest.mark.parametrize(
    "blob",
    [
        None,
        b"",
        b"\x01",
        b"\x00\x01\x01\x00a",
        b"\x03\x01\x01\x00a",
        b"\x02",
        b"\x02\x01\x01\x00",
        b"\x02\x01\x01\x00\x00",
        b"\x02\x01\x01\x00\x01a" + b"v" * 255,
        b"\x01\x01",
        b"\x01\x01\x01",
        b"\x01\x01\x05\x00a",
        b"\x01\x01\x01\x05a",
        b"\x01\x01\x00\x00",
        b"\x01\x01\x00\x01v",
        b"\x01\x01\x01\x00\x00",
        b"\x01\x02\x01\x00a",
    ],
)
def test_broken_blobs_mean_no_attributes(blob: bytes | None) -> None:
    assert parse_xattrs(blob) == {}


def test_trailing_bytes_are_ignored() -> None:
    assert parse_xattrs(b"\x01\x01\x01\x01kv and more") == {b"k": b"v"}


@given(st.binary(max_size=600))
def test_any_blob_is_read_without_a_failure(blob: bytes) -> None:
    parse_xattrs(blob)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        (stat.S_IFREG, 4),
        (stat.S_IFDIR, 1),
        (stat.S_IFLNK, 12),
        (stat.S_IFIFO, 20),
        (stat.S_IFSOCK, 20),
        (stat.S_IFCHR, 20),
        (stat.S_IFBLK, 20),
    ],
)
def test_flags_of_kinds(kind: int, flags: int) -> None:
    assert flags_for(kind | 0o7777) == flags


def test_flags_of_content() -> None:
    assert Flag.FILE | content_flags(Algorithm.SHA1, Compression.NONE) == 2052
    assert Flag.FILE | content_flags(Algorithm.SHA1, Compression.ZLIB, chunked=True) == 68
    chunked = Flag.FILE | content_flags(Algorithm.SHAKE128, Compression.NONE, chunked=True)
    assert chunked == 2628
    entry = Entry(b"name", 0o100644, 1, 0, None, 0, 0, int(chunked))
    assert (entry.algorithm, entry.compression) == (Algorithm.SHAKE128, Compression.NONE)
    assert entry.is_regular
    assert not entry.is_directory


def test_unknown_numbers_are_refused() -> None:
    entry = Entry(b"name", 0o100644, 1, 0, None, 0, 0, 4 | 5 << 8 | 6 << 11)
    with pytest.raises(ValueError, match="6"):
        _ = entry.algorithm
    with pytest.raises(ValueError, match="6"):
        _ = entry.compression
