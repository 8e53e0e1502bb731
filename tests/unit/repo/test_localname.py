"""Local names: all that is needed to fetch and to check, and nothing else passes for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mica.digest import Algorithm, Digest
from mica.repo.chunklist import format_chunk_list, parse_chunk_list
from mica.repo.entry import Chunk
from mica.repo.localname import LocalName, chunked_name
from mica.repo.objects import Compression

SHA1 = Digest(bytes(range(20)), Algorithm.SHA1)
digests = st.builds(Digest, st.binary(min_size=20, max_size=20), st.sampled_from(Algorithm))
names = st.builds(LocalName, digests, st.sampled_from(Compression), st.integers(0, 2**63 - 1), st.booleans())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (LocalName(SHA1, Compression.ZLIB, 0), "00/0102030405060708090a0b0c0d0e0f10111213.0"),
        (LocalName(SHA1, Compression.NONE, 12), "00/0102030405060708090a0b0c0d0e0f10111213.12.raw"),
        (LocalName(SHA1, Compression.ZLIB, 7, in_chunks=True), "00/0102030405060708090a0b0c0d0e0f10111213.7.parts"),
        (
            LocalName(Digest(SHA1.raw, Algorithm.SHAKE128), Compression.NONE, 7, in_chunks=True),
            "00/0102030405060708090a0b0c0d0e0f10111213-shake128.7.parts.raw",
        ),
    ],
)
def test_the_text_of_a_name(name: LocalName, text: str) -> None:
    assert str(name) == text
    assert LocalName.parse(text) == name


@given(names)
def test_every_name_is_read_back(name: LocalName) -> None:
    assert LocalName.parse(str(name)) == name
    assert LocalName.parse_flat(name.flat) == name
    assert LocalName.parse_redirect(name.redirect) == name


@pytest.mark.parametrize("path", [b"", b"/", b"//", b"00/00", b"/00/00", b"/\xff\xff/"])
def test_other_paths_are_no_redirects(path: bytes) -> None:
    with pytest.raises(ValueError, match=r"not the |can't decode"):
        LocalName.parse_redirect(path)


@pytest.mark.parametrize(
    "text",
    [
        "", "ab", "../etc/passwd", "00/0102030405060708090a0b0c0d0e0f10111213",
        "00/../0405060708090a0b0c0d0e0f10111213.1",
        "00/0102030405060708090a0b0c0d0e0f10111213.", "00/0102030405060708090a0b0c0d0e0f10111213.01",
        "00/0102030405060708090a0b0c0d0e0f10111213.1.raw.parts", "00/0102030405060708090A0b0c0d0e0f10111213.1",
        "00/0102030405060708090a0b0c0d0e0f10111213.1\n", "00/0102030405060708090a0b0c0d0e0f10111213-md5.1",
        "00/0102030405060708090a0b0c0d0e0f10111213.9223372036854775808", "00/0102030405060708090a0b0c0d0e0f10111213.٣",
    ],
)  # fmt: skip
def test_nothing_else_is_a_name(text: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        LocalName.parse(text)


@given(st.lists(st.tuples(st.integers(1, 2**32 - 1), st.binary(min_size=20, max_size=20)), min_size=1, max_size=9))
def test_chunk_lists_are_read_back(parts: list[tuple[int, bytes]]) -> None:
    chunks, offset = [], 0
    for size, raw in parts:
        chunks.append(Chunk(offset, size, Digest(raw, Algorithm.RIPEMD160)))
        offset += size
    assert parse_chunk_list(format_chunk_list(chunks), Algorithm.RIPEMD160) == chunks
    name = chunked_name(chunks, Compression.NONE)
    assert name.size == offset
    assert name.digest.algorithm is Algorithm.RIPEMD160
