"""The table of chunk lists after the blocks of an image."""

import struct

import pytest

from mica.digest import Algorithm, Digest, digest_of
from mica.errors import IntegrityError, UserError
from mica.metaimage import chunktable
from mica.metaimage.chunktable import HEADER, RECORD, format_chunk_table, has_chunk_list, parse_chunk_table


def lists_of(*contents: bytes, algorithm: Algorithm = Algorithm.SHA1) -> dict[Digest, bytes]:
    return {digest_of(content, algorithm): content for content in contents}


LISTS = lists_of(b"a" * 24, b"b" * 48) | lists_of(b"a" * 24, algorithm=Algorithm.SHAKE128)
TABLE = b"".join(format_chunk_table(LISTS, 1))
FIRST = HEADER.size


def parsed(table: bytes) -> dict[Digest, bytes]:
    return dict(parse_chunk_table(b"before" + table, 6, "The image", most=1000))


@pytest.mark.parametrize("lists", [{}, LISTS, lists_of(*(b"%024d" % number for number in range(1000)))])
def test_tables_are_read_back(lists: dict[Digest, bytes]) -> None:
    assert parsed(b"".join(format_chunk_table(lists, 1))) == lists


def test_lists_are_found_by_their_digest() -> None:
    lists = lists_of(*(b"%024d" % number for number in range(1000)))
    image = b"before" + b"".join(format_chunk_table(lists, 1))
    assert all(has_chunk_list(image, 6, digest) for digest in lists)
    others = [digest._replace(algorithm=Algorithm.SHAKE128) for digest in lists]
    assert not any(has_chunk_list(image, 6, digest) for digest in (*others, Digest(bytes(20), Algorithm.SHA1)))
    assert not has_chunk_list(b"".join(format_chunk_table({}, 1)), 0, next(iter(lists)))


def test_more_lists_than_files_are_refused() -> None:
    assert len(dict(parse_chunk_table(TABLE, 0, "it", most=3))) == 3
    with pytest.raises(IntegrityError, match="3 chunk lists for 2 files"):
        dict(parse_chunk_table(TABLE, 0, "it", most=2))


def test_order_does_not_matter() -> None:
    assert b"".join(format_chunk_table(dict(reversed(LISTS.items())), 1)) == TABLE


def changed(offset: int, data: bytes) -> bytes:
    return TABLE[:offset] + data + TABLE[offset + len(data) :]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (b"", "cut short"),
        (TABLE[: HEADER.size - 1], "cut short"),
        (changed(0, b"M"), "no chunk table"),
        (changed(8, b"\3"), "version 3, this program reads 1 to 2"),
        (changed(12, b"\4"), "says it has"),
        (changed(16, b"\0"), "says it has"),
        (changed(24, b"\xff" * 8), "says it has"),
        (TABLE[:-1], "says it has"),
        (TABLE + b"\0", "says it has"),
        (changed(FIRST, b"\xff"), "another chunk list"),
        (changed(FIRST + RECORD.size, bytes(20)), "broken index"),
        (changed(FIRST + 20, b"\0"), "broken index"),
        (changed(FIRST + 20, b"\3"), "broken index|another chunk list"),
        (changed(FIRST + 21, b"\1"), "broken index"),
        (changed(FIRST + 24, struct.pack("<I", 0)), "broken index"),
        (changed(FIRST + 24, struct.pack("<I", 0xFFFFFFFF)), "another chunk list"),
        (changed(FIRST + 28, struct.pack("<Q", 1)), "broken index"),
        (changed(FIRST + RECORD.size + 28, struct.pack("<Q", 0)), "broken index"),
        (changed(len(TABLE) - 1, b"?"), "another chunk list"),
    ],
)
def test_broken_tables(table: bytes, sentence: str) -> None:
    with pytest.raises(IntegrityError, match=sentence):
        parsed(table)


def test_bytes_that_no_record_names_are_refused() -> None:
    header = HEADER.pack(b"micachnk", 1, 0, 0, 24)
    with pytest.raises(IntegrityError, match="24 bytes after"):
        parsed(header + bytes(24))


def test_lists_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunktable, "LISTS_BYTES_MAX", 95)
    with pytest.raises(IntegrityError, match="more than 95"):
        parsed(TABLE)
    with pytest.raises(UserError, match="more than 95"):
        list(format_chunk_table(LISTS, 1))
