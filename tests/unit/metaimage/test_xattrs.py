"""Names of attributes, what may enter an image, and the hash of the filter."""

import stat

import pytest

from mica.metaimage.xattrs import (
    FilterBits,
    filter_bit,
    filter_bits,
    format_xattr,
    join_name,
    may_enter,
    split_name,
    xxh32,
)
from mica.unionsigns import METACOPY, OPAQUE, REDIRECT

FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


@pytest.mark.parametrize(
    ("name", "split"),
    [
        (b"user.a", (1, b"a")),
        (b"user.a.b", (1, b"a.b")),
        (b"trusted.overlay.redirect", (4, b"overlay.redirect")),
        (b"security.capability", (6, b"capability")),
        (b"system.posix_acl_access", (2, b"")),
        (b"system.posix_acl_default", (3, b"")),
        (b"user." + b"n" * 255, (1, b"n" * 255)),
    ],
)
def test_names(name: bytes, split: tuple[int, bytes]) -> None:
    assert split_name(name) == split
    assert join_name(*split) == name


@pytest.mark.parametrize(
    "name",
    [b"", b"user", b"user.", b"USER.a", b"system.nfs4_acl", b"system.posix_acl_access.x", b"lustre.lov", b"os2.x",
     b"user.a\0b", b"user." + b"n" * 256, b"nothing"],
)  # fmt: skip
def test_names_that_erofs_cannot_say(name: bytes) -> None:
    with pytest.raises(ValueError, match="EROFS"):
        split_name(name)
    assert not may_enter(name, b"", FILE)


@pytest.mark.parametrize(
    ("index", "rest"), [(0, b"x"), (5, b"lov"), (7, b""), (2, b"x"), (1, b""), (0x84, b"x"), (255, b"")]
)
def test_indexes_that_no_name_has(index: int, rest: bytes) -> None:
    with pytest.raises(ValueError, match="EROFS"):
        join_name(index, rest)


@pytest.mark.parametrize(
    ("name", "value", "mode", "enters"),
    [
        (OPAQUE, b"y", DIRECTORY, True),
        (OPAQUE, b"y", FILE, False),
        (OPAQUE, b"x", DIRECTORY, False),
        (OPAQUE, b"", DIRECTORY, False),
        (OPAQUE, b"yy", DIRECTORY, False),
        (METACOPY, b"", FILE, False),
        (REDIRECT, b"/etc/shadow", FILE, False),
        (b"trusted.overlay.origin", b"", FILE, False),
        (b"trusted.overlay.whiteout", b"", FILE, False),
        (b"trusted.overlay.overlay.opaque", b"y", DIRECTORY, False),
        (b"trusted.overlay.", b"y", DIRECTORY, False),
        (b"trusted.overlay", b"y", DIRECTORY, True),
        (b"trusted.overlayfs", b"y", FILE, True),
        (b"user.overlay.opaque", b"y", DIRECTORY, True),
        (b"user.a", b"v" * 0xFFFF, FILE, True),
        (b"user.a", b"v" * 0x10000, FILE, False),
    ],
)
def test_layers_do_not_steer_overlayfs(name: bytes, value: bytes, mode: int, *, enters: bool) -> None:
    assert may_enter(name, value, mode) is enters


def test_entries_are_padded() -> None:
    assert format_xattr(1, b"a", b"") == b"\1\1\0\0a\0\0\0"
    assert format_xattr(4, b"abcd", b"1234") == b"\4\4\4\0abcd1234"


@pytest.mark.parametrize(
    ("data", "seed", "digest"),
    [
        (b"", 0, 0x02CC5D05),
        (b"a", 0, 0x550D7456),
        (b"abc", 0, 0x32D153FF),
        (b"Nobody inspects the spammish repetition", 0, 0xE2293B2F),
        (b"", 1, 0x0B2CB792),
    ],
)
def test_xxh32(data: bytes, seed: int, digest: int) -> None:
    """Published values of the reference implementation."""
    assert xxh32(data, seed) == digest


def test_filter_bits_are_bounded() -> None:
    bits = FilterBits()
    assert bits.of(4, b"overlay.redirect") == filter_bit(4, b"overlay.redirect")
    known = [bits.of(1, b"%d" % number) for number in range(1023)]
    assert all(bit.bit_count() == 1 for bit in known)
    assert len(set(known)) == 32, "all bits are used"
    assert bits.of(1, b"one too many") == 0xFFFFFFFF
    assert bits.of(1, b"7") == known[7]
    assert filter_bits((b"user.7", b"user.8", b"user.7")) == known[7] | known[8]
