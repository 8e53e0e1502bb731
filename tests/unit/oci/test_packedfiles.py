"""Packed files: what standard tools write is read, whatever is damaged or absurd is named."""

import bz2
import gzip
import io
import lzma
import random
from collections.abc import Callable

import pytest
import zstandard
from tests.support.noise import noise

from mica.errors import IntegrityError
from mica.oci.packedfiles import PackedFile, packing_of, unpacked

KINDS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "xz": lzma.compress, "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}  # fmt: skip
CONTENT = noise(200_000) + bytes(500_000) + noise(200_000)


def opened(data: bytes, kind: str) -> PackedFile:
    return PackedFile(io.BytesIO(data), kind, "the file")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_any_place_can_be_read(kind: str) -> None:
    dice = random.Random(kind)
    file = opened(KINDS[kind](CONTENT), kind)
    for _ in range(40):
        offset, size = dice.randrange(len(CONTENT)), dice.randrange(100_000)
        assert file.seek(offset) == offset == file.tell()
        assert file.read(size) == CONTENT[offset : offset + size]
    assert file.seek(len(CONTENT) + 5) == len(CONTENT)
    assert file.read(1) == b""


@pytest.mark.parametrize("kind", KINDS)
def test_frames_behind_each_other_are_one_file(kind: str) -> None:
    pack = KINDS[kind]
    assert opened(pack(b"one") + pack(b"") + pack(b"two"), kind).read(100) == b"onetwo"


@pytest.mark.parametrize("kind", ["gzip", "xz", "bzip2"])
def test_zeros_behind_the_last_frame_are_padding(kind: str) -> None:
    assert opened(KINDS[kind](b"one") + bytes(1 << 20), kind).read(100) == b"one"


@pytest.mark.parametrize("kind", ["gzip", "xz", "bzip2"])
def test_cut_files_are_damaged(kind: str) -> None:
    data = KINDS[kind](CONTENT)
    for size in (len(data) - 1, len(data) // 2, 7):
        with pytest.raises(IntegrityError, match=f"the file is a damaged {kind} file"):
            opened(data[:size], kind).read(len(CONTENT) + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_are_damaged(kind: str) -> None:
    data = bytearray(KINDS[kind](CONTENT))
    for place in range(len(data) // 3, len(data) // 3 + 32):
        data[place] ^= 0xFF
    # To the end, where the checksum stands: what is damaged may be longer than it was.
    with pytest.raises(IntegrityError, match=f"the file is a damaged {kind} file"):
        opened(bytes(data), kind).read(1 << 30)


def test_xz_file_that_wants_gigabytes_of_memory_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    # The size of the dictionary stands in the header alone: an encoder need not have one as large.
    data = bytearray(lzma.compress(b"x" * 100, filters=[{**filters[0], "dict_size": 1 << 20}]))
    assert opened(bytes(data), "xz").read(200) == b"x" * 100
    header = bytes(data[12:24])
    small, large = header[4], 36  # 2^(n / 2 + 12) bytes: 36 is 1 GiB
    assert small < large
    block = bytearray(header)
    block[4] = large
    import zlib

    block[8:12] = zlib.crc32(block[:8]).to_bytes(4, "little")
    data[12:24] = block
    with pytest.raises(IntegrityError, match="damaged xz"):
        opened(bytes(data), "xz").read(200)


@pytest.mark.parametrize("kind", ["", *KINDS])
def test_stream_is_unpacked_by_its_first_bytes(kind: str) -> None:
    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 1, 3))

    data = KINDS[kind](b"content") if kind else b"content"
    assert packing_of(data) == kind
    stream = unpacked(Trickle(data), "the file")
    assert b"".join(iter(lambda: stream.read(100), b"")) == b"content"


@pytest.mark.parametrize("data", [b"", b"a", b"\x1f", b"BZ"])
def test_short_streams_are_not_packed(data: bytes) -> None:
    stream = unpacked(io.BytesIO(data), "the file")
    assert b"".join(iter(lambda: stream.read(1), b"")) == data
