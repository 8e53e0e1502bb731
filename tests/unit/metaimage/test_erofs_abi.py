"""Structures of EROFS: sizes, limits, and superblocks that are not ours."""

import os

import pytest

from mica.errors import IntegrityError
from mica.metaimage.erofs_abi import (
    SUPERBLOCK_BYTES,
    Superblock,
    chunk_format,
    decode_device,
    encode_device,
    format_superblock,
    pad_to,
    parse_superblock,
)

SUPERBLOCK = Superblock(root_nid=37, inodes=5, blocks=3, uuid=bytes(range(16)))


def test_superblock_is_read_back() -> None:
    data = format_superblock(SUPERBLOCK)
    assert len(data) == SUPERBLOCK_BYTES
    assert parse_superblock(data, "it") == SUPERBLOCK


@pytest.mark.parametrize("position", [4, 8, 12, 13, 24, 32, 40, 44, 64, 80, 84, 86, 90, 91, 92, 96, 104, 127])
def test_what_our_superblocks_do_not_have_is_refused(position: int) -> None:
    data = bytearray(format_superblock(SUPERBLOCK))
    data[position] ^= 0x40
    with pytest.raises(IntegrityError, match="features or places"):
        parse_superblock(bytes(data), "it")


def test_other_files_are_refused() -> None:
    with pytest.raises(IntegrityError, match="no EROFS image"):
        parse_superblock(b"\1" + format_superblock(SUPERBLOCK)[1:], "it")
    with pytest.raises(IntegrityError, match="cut short"):
        parse_superblock(format_superblock(SUPERBLOCK)[:-1], "it")


@pytest.mark.parametrize(
    ("size", "bits"), [(1, 0), (4096, 0), (4097, 1), (8192, 1), (8193, 2), (1 << 42, 30), (1 << 43, 31)]
)
def test_one_chunk_covers_a_file(size: int, bits: int) -> None:
    assert chunk_format(size) == bits
    assert size <= 4096 << bits


@pytest.mark.parametrize(
    ("major", "minor", "number"),
    [(0, 0, 0), (1, 3, 0x103), (7, 255, 0x7FF), (8, 256, 0x100800), (4095, 1048575, 0xFFFFFFFF)],
)
def test_device_numbers(major: int, minor: int, number: int) -> None:
    """As new_encode_dev() has it; the numbers were worked out by hand from include/linux/kdev_t.h."""
    device = os.makedev(major, minor)
    assert encode_device(device) == number
    assert decode_device(number) == device


@pytest.mark.parametrize(("major", "minor"), [(4096, 0), (0, 1 << 20), (1 << 20, 1 << 25)])
def test_device_numbers_that_linux_does_not_have(major: int, minor: int) -> None:
    with pytest.raises(ValueError, match=f"device {major}:{minor}"):
        encode_device(os.makedev(major, minor))


def test_padding() -> None:
    assert [pad_to(size, 32) for size in (0, 1, 31, 32, 33)] == [0, 31, 1, 0, 31]
