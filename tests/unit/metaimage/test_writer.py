"""Writing images: what is refused, what is dropped, that the same tree gives the same bytes, and the shape of them."""

import hashlib
import io
import os
import stat
import tracemalloc
from collections.abc import Iterator

import pytest
from tests.support.imagetrees import (
    CHUNK_LISTS,
    DIRECTORY,
    LARGE,
    LINK,
    REGULAR,
    Entries,
    content,
    everything,
    file,
    in_tree_order,
    random_tree,
)

from mica.errors import UserError
from mica.metaimage.erofs_abi import SUPERBLOCK_OFFSET, UUID_OFFSET
from mica.metaimage.inode import Inode
from mica.metaimage.reader import read_chunk_lists, read_image, read_superblock
from mica.metaimage.writer import DroppedXattr, ImageLimits, ImageReport, write_image
from mica.repo.localname import chunked_name
from mica.repo.objects import Compression
from mica.unionsigns import METACOPY, OPAQUE, REDIRECT


def image_of(entries: Entries, **options: ImageLimits) -> tuple[bytes, ImageReport]:
    target = io.BytesIO()
    report = write_image(iter(entries), target, CHUNK_LISTS, **options)
    return target.getvalue(), report


def test_the_same_tree_gives_the_same_bytes() -> None:
    image, report = image_of(everything())
    assert image_of(everything())[0] == image
    assert report.file_bytes == len(image) > report.image_bytes
    assert report.image_bytes % 4096 == 0


def test_attributes_in_any_order_give_the_same_bytes() -> None:
    xattrs = {b"user.b": b"1", b"user.a": b"2", b"trusted.c": b"3"}
    images = [
        image_of(in_tree_order({b"/f": file(1, xattrs=each)}))[0] for each in (xattrs, dict(reversed(xattrs.items())))
    ]
    assert images[0] == images[1]


def test_the_uuid_is_made_of_all_the_rest() -> None:
    image = bytearray(image_of(everything())[0])
    uuid = bytes(image[UUID_OFFSET : UUID_OFFSET + 16])
    image[UUID_OFFSET : UUID_OFFSET + 16] = bytes(16)
    assert hashlib.sha256(image[4096:] + image[:4096]).digest()[:16] == uuid
    assert len({image_of(random_tree(seed))[0][UUID_OFFSET : UUID_OFFSET + 16] for seed in range(5)}) == 5


@pytest.mark.parametrize("count", [0, 1, 20, 100, 5000])
def test_a_file_has_no_head_until_all_of_it_is_written(count: int) -> None:
    """A writer that is stopped leaves nothing that looks like an image."""
    target = io.BytesIO()

    def entries() -> Iterator[tuple[bytes, Inode]]:
        yield b"", Inode(DIRECTORY)
        for number in range(count):
            yield b"/%06d" % number, file(number)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        write_image(entries(), target)
    assert not target.getvalue()[:4096].strip(b"\0")


def test_numbers_of_the_report_and_of_the_superblock() -> None:
    image, report = image_of(everything())
    superblock = read_superblock(io.BytesIO(image), "it")
    files = {inode.group or path for path, inode in everything()}
    assert superblock.inodes == report.inodes == len(files)
    assert superblock.blocks * 4096 == report.image_bytes
    assert (superblock.root_nid, report.dropped_total, report.dropped) == (37, 0, [])


def test_only_the_chunk_lists_of_the_tree_are_in_its_image() -> None:
    name = chunked_name(LARGE, Compression.ZLIB)
    image, _ = image_of(in_tree_order({b"/large": Inode(REGULAR, size=name.size, content=name)}))
    assert dict(read_chunk_lists(io.BytesIO(image), "it")) == {name.digest: CHUNK_LISTS[name.digest]}
    with pytest.raises(ValueError, match="without its chunk list"):
        write_image(in_tree_order({b"/large": Inode(REGULAR, size=name.size, content=name)}), io.BytesIO())


def test_what_steers_overlayfs_is_dropped_and_told() -> None:
    evil = {OPAQUE: b"y", METACOPY: b"", REDIRECT: b"/etc/shadow", b"trusted.overlay.origin": b"x", b"user.a": b"kept"}
    entries = in_tree_order({
        b"/d": Inode(DIRECTORY, xattrs=evil), b"/f": file(1, xattrs=evil), b"/z": Inode(stat.S_IFIFO, xattrs=evil)
    })  # fmt: skip
    image, report = image_of(entries)
    found = {path: inode.xattrs for path, inode in read_image(io.BytesIO(image), "it")}
    assert found == {
        b"": {}, b"/d": {OPAQUE: b"y", b"user.a": b"kept"}, b"/f": {b"user.a": b"kept"}, b"/z": {b"user.a": b"kept"}
    }  # fmt: skip
    assert report.dropped_total == len(report.dropped) == 3 + 4 + 4
    assert DroppedXattr(b"/f", REDIRECT, 11) in report.dropped
    assert image.count(b"shadow") == 0


def test_what_erofs_cannot_say_is_dropped_and_told() -> None:
    xattrs = {b"lustre.lov": b"1", b"system.nfs4_acl": b"22", b"user.": b"", b"user.large": b"l" * 0x10000}
    image, report = image_of(in_tree_order({b"/f": file(1, xattrs=xattrs)}))
    assert dict(read_image(io.BytesIO(image), "it"))[b"/f"].xattrs == {}
    assert {(dropped.name, dropped.size) for dropped in report.dropped} == {
        (name, len(value)) for name, value in xattrs.items()
    }


def test_told_attributes_are_bounded() -> None:
    entries = in_tree_order({b"/%d" % n: file(n, xattrs={b"os2.a": b"", b"os2.b": b""}) for n in range(600)})
    report = image_of(entries)[1]
    assert (report.dropped_total, len(report.dropped)) == (1200, 1000)


def test_attributes_are_shared_as_far_as_that_is_bounded() -> None:
    label = {b"security.selinux": b"system_u:object_r:usr_t:s0\0"}
    image, _ = image_of(in_tree_order({b"/%d" % n: file(n, xattrs=label) for n in range(100)}))
    assert image.count(label[b"security.selinux"]) == 1
    own = in_tree_order({b"/%d" % n: file(n, xattrs={b"user.own": b"%060d" % n}) for n in range(6000)})
    image, _ = image_of(own)
    assert dict(read_image(io.BytesIO(image), "it"))[b"/5999"].xattrs == {b"user.own": b"%060d" % 5999}


FIFO = Inode(stat.S_IFIFO)
ROOT = (b"", Inode(DIRECTORY))


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [(b"/a", FIFO)],
        [(b"", FIFO)],
        [ROOT, ROOT],
        [ROOT, (b"/b", FIFO), (b"/a", FIFO)],
        [ROOT, (b"/a", FIFO), (b"/a", FIFO)],
        [ROOT, (b"/a/b", FIFO)],
        [ROOT, (b"/a", FIFO), (b"/a/b", FIFO)],
        [ROOT, (b"/a", Inode(DIRECTORY)), (b"/b", FIFO), (b"/a/b", FIFO)],
        [ROOT, (b"a", FIFO)],
        [ROOT, (b"/a", FIFO), (b"", Inode(DIRECTORY))],
        [ROOT, (b"/a", Inode(0o170000))],
        [ROOT, (b"/a", Inode(0o644))],
        [ROOT, (b"/a", Inode(REGULAR, size=5))],
        [ROOT, (b"/a", Inode(REGULAR, size=5, content=content(1, 6)))],
        [ROOT, (b"/a", FIFO._replace(group=1, links=2))],
        [ROOT, (b"/a", FIFO._replace(xattrs={b"user.%d" % n: b"v" * 60_000 for n in range(5)}))],
    ],
)
def test_entries_that_make_no_tree(entries: Entries) -> None:
    with pytest.raises(ValueError, match=r"comes|root|mode|content|whole|attributes"):
        image_of(entries)


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ((b"/" + b"n" * 256, FIFO), "name"),
        ((b"/a\0b", FIFO), "name"),
        ((b"/", FIFO), "name"),
        ((b"/.", FIFO), "name"),
        ((b"/..", FIFO), "name"),
        ((b"/a", Inode(LINK)), "target of 0 bytes"),
        ((b"/a", Inode(LINK, target=b"t" * 4096)), "target of 4096 bytes"),
        ((b"/a", Inode(LINK, target=b"t\0t")), "target"),
        ((b"/a", Inode(stat.S_IFBLK, device=os.makedev(4096, 0))), "device 4096:0"),
        ((b"/a", file(1, (8 << 40) + 1)), "8796093022209 bytes"),
    ],
)
def test_files_that_no_image_can_hold(entry: tuple[bytes, Inode], word: str) -> None:
    with pytest.raises(UserError, match=word):
        image_of([ROOT, entry])


def test_paths_are_bounded() -> None:
    deep = b""
    entries = [ROOT]
    while len(deep) < 4000:
        deep += b"/" + b"d" * 99
        entries.append((deep, Inode(DIRECTORY)))
    image_of([*entries, (deep + b"/" + b"n" * (4095 - len(deep)), FIFO)])
    with pytest.raises(UserError, match="path"):
        image_of([*entries, (deep + b"/" + b"n" * (4096 - len(deep)), FIFO)])


def test_entries_and_directories_are_bounded() -> None:
    entries = in_tree_order({b"/%d" % number: FIFO for number in range(99)})
    image_of(entries, limits=ImageLimits(max_entries=100))
    with pytest.raises(UserError, match="more than the 99 entries"):
        image_of(entries, limits=ImageLimits(max_entries=99))
    with pytest.raises(UserError, match="more than the 5000 bytes"):
        image_of(entries, limits=ImageLimits(max_bytes=5000))
    directories = in_tree_order({b"/%d" % number: Inode(DIRECTORY) for number in range(99)})
    with pytest.raises(UserError, match="too large directories"):
        image_of(directories, limits=ImageLimits(max_directory_bytes=50_000))


def test_names_of_one_file_count_as_entries() -> None:
    entries = in_tree_order({b"/%d" % number: FIFO._replace(group=1, links=99) for number in range(99)})
    with pytest.raises(UserError, match="more than the 99 entries"):
        image_of(entries, limits=ImageLimits(max_entries=99))


def test_memory_grows_with_names_alone() -> None:
    """About 12 bytes and its name for an entry, and the buffer of a megabyte."""

    class Nowhere(io.RawIOBase):
        def write(self, data: object) -> int:
            return len(data)  # type: ignore[arg-type]

        def seek(self, offset: int, whence: int = 0) -> int:
            return offset

    def entries() -> Iterator[tuple[bytes, Inode]]:
        yield ROOT
        for outer in range(300):
            yield b"/%06d" % outer, Inode(DIRECTORY)
            for inner in range(100):
                yield b"/%06d/some-name-%06d" % (outer, inner), file(inner, inner + 1)

    tracemalloc.start()
    try:
        write_image(entries(), Nowhere())  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20, "30,000 entries of some 30 bytes, 300 directories"


def test_an_image_has_its_place_in_the_superblock() -> None:
    image, _ = image_of([ROOT])
    assert image[:SUPERBLOCK_OFFSET] == bytes(SUPERBLOCK_OFFSET)
    assert len(image) == 2 * 4096 + 32
