"""Rows of catalogs as inodes."""

import os
import stat

import pytest
from tests.support.catalogs import a_file, a_link
from tests.support.imagetrees import LARGE, chunks_of

from mica.digest import Algorithm
from mica.errors import UserError
from mica.metaimage import fromcatalog
from mica.metaimage.fromcatalog import InodeMaker
from mica.metaimage.inode import Inode
from mica.publish.catalogtree import directory_entry
from mica.repo.chunklist import format_chunk_list
from mica.repo.entry import Entry, Flag, content_flags, format_xattrs
from mica.repo.localname import LocalName, chunked_name
from mica.repo.objects import Compression

CHUNKED = int(Flag.FILE) | content_flags(Algorithm.SHA1, Compression.NONE, chunked=True)


def made(entry: Entry, *, group: int = 0, links: int = 1) -> Inode:
    return InodeMaker().make(entry, (), group=group, links=links)


def test_files_are_named_by_their_objects() -> None:
    row = a_file(b"f", xattrs=format_xattrs({b"user.a": b"1"}))
    assert row.digest is not None
    name = LocalName(row.digest, Compression.ZLIB, 5)
    assert made(row, group=3, links=2) == Inode(
        0o100644, 1, 2, 1_600_000_000, 123, 5, name, 0, b"", {b"user.a": b"1"}, 2, 3
    )


def test_files_in_chunks_are_named_by_their_lists() -> None:
    size = 5_000_000
    maker = InodeMaker()
    inode = maker.make(a_file(b"f", size=size, digest=None, flags=CHUNKED), LARGE, group=0, links=1)
    assert inode.content == chunked_name(LARGE, Compression.NONE)
    assert maker.chunk_lists == {inode.content.digest: format_chunk_list(LARGE)}
    with pytest.raises(ValueError, match="5000000 bytes and says 5000001"):
        maker.make(a_file(b"f", size=size + 1, flags=CHUNKED), LARGE, group=0, links=1)
    with pytest.raises(ValueError, match="has none"):
        maker.make(a_file(b"f", size=size, flags=CHUNKED), [], group=0, links=1)


def test_chunk_lists_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fromcatalog, "LISTS_BYTES_MAX", 24 * 10)
    maker = InodeMaker()
    row = a_file(b"f", size=5_000_000, digest=None, flags=CHUNKED)
    for _ in range(3):
        maker.make(row, LARGE, group=0, links=1)
    maker.make(row, chunks_of(5_000_000, 1_000_000), group=0, links=1)
    with pytest.raises(UserError, match="more than 240 bytes"):
        maker.make(row, chunks_of(5_000_000, 900_000), group=0, links=1)


@pytest.mark.parametrize(
    ("row", "inode"),
    [
        (a_file(b"f", size=0), Inode(0o100644, 1, 2, 1_600_000_000, 123)),
        (a_file(b"f", size=0, flags=CHUNKED, digest=None, mtime_ns=None), Inode(0o100644, 1, 2, 1_600_000_000)),
        (a_link(b"l", b"$(X)/y"), Inode(stat.S_IFLNK | 0o777, target=b"$(X)/y")),
        (directory_entry(b"d", 0o1777, uid=7, mtime_s=-5), Inode(0o41777, 7, 0, -5)),
        (Entry(b"d", 0o20600, os.makedev(5, 1), 0, 0, 0, 0, 20), Inode(0o20600, device=os.makedev(5, 1))),
        (Entry(b"p", 0o10600, 9, 0, 0, 0, 0, 20), Inode(0o10600)),
    ],
)
def test_other_rows(row: Entry, inode: Inode) -> None:
    assert made(row) == inode


def test_rows_without_content() -> None:
    with pytest.raises(ValueError, match="neither an object nor chunks"):
        made(a_file(b"f", digest=None))
    with pytest.raises(ValueError, match="has an unknown compression 7"):
        made(a_file(b"f", flags=int(Flag.FILE) | 7 << 11))
