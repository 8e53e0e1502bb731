"""Contents of directories in blocks."""

import pytest

from mica.metaimage.dirents import Dirent, format_dirents, parse_dirents


def split(data: bytes) -> list[bytes]:
    return [data[at : at + 4096] for at in range(0, len(data), 4096)]


@pytest.mark.parametrize("length", [1, 12, 100, 255])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 400])
def test_blocks_are_read_back(count: int, length: int) -> None:
    names = sorted((b"%03d" % number).ljust(length, b"n")[-max(length, 3) :] for number in range(count))
    nids = [number * 7 for number in range(count)]
    data, places = format_dirents(names, nids, bytes([5] * count))
    found = [entry for block in split(bytes(data)) for entry in parse_dirents(block)]
    assert found == [Dirent(*each, 5) for each in zip(names, nids, strict=True)]
    assert [int.from_bytes(data[place : place + 8], "little") for place in places] == nids


def test_a_full_block_has_no_room_left() -> None:
    names = [b"%04d" % number for number in range(256)]
    data, _ = format_dirents(names, range(256), bytes([1] * 256))
    assert len(data) == 4096
    data, _ = format_dirents([*names, b"more"], range(257), bytes([1] * 257))
    assert len(data) == 4096 + 16


BLOCK = bytes(format_dirents([b".", b"..", b"name"], [1, 2, 3], b"\2\2\1")[0])


@pytest.mark.parametrize(
    "block",
    [
        b"",
        BLOCK[:11],
        bytes(4096),
        BLOCK[:8] + (12).to_bytes(2, "little") + BLOCK[10:],
        BLOCK[:8] + (37).to_bytes(2, "little") + BLOCK[10:],
        BLOCK[:8] + (0).to_bytes(2, "little") + BLOCK[10:],
        BLOCK[:8] + (48000).to_bytes(2, "little") + BLOCK[10:],
        BLOCK[:20] + (36).to_bytes(2, "little") + BLOCK[22:],
        BLOCK[:20] + (5000).to_bytes(2, "little") + BLOCK[22:],
        BLOCK[:32] + (30).to_bytes(2, "little") + BLOCK[34:],
        BLOCK[:36],
        BLOCK[:-1] + b"/",
        BLOCK[:-2] + b"\0x",
        BLOCK + b"n" * 252,
    ],
)
def test_broken_blocks(block: bytes) -> None:
    with pytest.raises(ValueError, match="has a"):
        parse_dirents(block)
