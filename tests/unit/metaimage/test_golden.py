"""Images of each version stay what they were, byte for byte (tests/golden/README.md)."""

import hashlib
import io
import os
import stat
from pathlib import Path

import pytest
from tests.support.imagetrees import CHUNK_LISTS, DIRECTORY, LARGE, LINK, REGULAR, Entries, everything, file
from tests.support.imagetrees import in_tree_order as ordered

from mica.metaimage.inode import Inode
from mica.metaimage.reader import read_chunk_lists, read_image
from mica.metaimage.writer import write_image
from mica.repo.localname import chunked_name
from mica.repo.objects import Compression
from mica.unionsigns import OPAQUE, ORIGIN

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
PARTS = chunked_name(LARGE, Compression.ZLIB)
LINKED = file(b"linked", links=2, group=1)
TREE = ordered({
    b"": Inode(DIRECTORY, 1, 2, 3, 4, xattrs={b"user.root": b"r"}),
    b"/bin/sh": file(b"sh", 125_688, mode=stat.S_IFREG | 0o4755, xattrs={b"security.capability": bytes(20)}),
    b"/bin/dash": file(b"dash", 1, uid=1000, gid=1 << 31, mtime_s=-1, mtime_ns=999_999_999),
    b"/bin/large": Inode(REGULAR, size=PARTS.size, content=PARTS),
    b"/etc/empty": file(b"", 0), b"/etc/one": LINKED, b"/etc/two": LINKED, b"/etc/link": Inode(LINK, target=b"../bin"),
    b"/etc/long": Inode(LINK, target=b"l" * 4095), b"/dev/null": Inode(stat.S_IFCHR | 0o666, device=os.makedev(1, 3)),
    b"/dev/fifo": Inode(stat.S_IFIFO | 0o600), b"/gone": Inode(stat.S_IFCHR),
    b"/opaque": Inode(DIRECTORY, xattrs={OPAQUE: b"y"}),
    **{b"/many/%03d" % number: Inode(stat.S_IFSOCK) for number in range(300)},
})  # fmt: skip


WITH_WHITEOUTS = ordered({
    **dict(TREE), b"": Inode(DIRECTORY, 1, 2, 3, 4, xattrs={b"user.root": b"r", ORIGIN: b""}),
    b"/only": Inode(DIRECTORY, xattrs={ORIGIN: b"", b"user.large": b"v" * 300}),
    b"/only/gone": Inode(stat.S_IFCHR), b"/only/x": file(b"x", 1),
})  # fmt: skip
VERSIONS = {1: TREE, 2: WITH_WHITEOUTS}


def written(entries: Entries) -> bytes:
    target = io.BytesIO()
    write_image(entries, target, CHUNK_LISTS)
    return target.getvalue()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_writer_still_makes_the_same_bytes(version: int) -> None:
    assert written(VERSIONS[version]) == (GOLDEN / f"metadata-image-{version}.erofs").read_bytes()


def test_the_writer_still_makes_the_same_large_image() -> None:
    assert hashlib.sha256(written(everything())).hexdigest() == (GOLDEN / "metadata-image-1.sha256").read_text().strip()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_reader_still_reads_them(version: int) -> None:
    with (GOLDEN / f"metadata-image-{version}.erofs").open("rb") as image:
        found = dict(read_image(image, "the image"))
        lists = dict(read_chunk_lists(image, "the image"))
    assert lists == {PARTS.digest: CHUNK_LISTS[PARTS.digest]}
    assert {path: inode._replace(group=bool(inode.group)) for path, inode in found.items()} == {
        path: inode._replace(xattrs=dict(inode.xattrs)) for path, inode in VERSIONS[version]
    }
