"""Reading images: what was written comes back, and every way to break one is refused with a sentence."""

import io
import stat
import struct
from pathlib import Path

import pytest
from tests.support.imagetrees import (
    CHUNK_LISTS,
    DIRECTORY,
    LINK,
    Entries,
    content,
    everything,
    file,
    in_tree_order,
    random_tree,
)

from mica.errors import IntegrityError
from mica.metaimage import records
from mica.metaimage.chunktable import format_chunk_table
from mica.metaimage.inode import Inode
from mica.metaimage.reader import read_chunk_lists, read_image, read_superblock
from mica.metaimage.records import Records
from mica.metaimage.writer import write_image
from mica.unionsigns import OPAQUE, ORIGIN

FIFO = Inode(stat.S_IFIFO)
# Two directories, a file with two names, a link, a stub with an attribute of its own.
TREE = in_tree_order({
    b"/a": Inode(DIRECTORY), b"/a/deeper": Inode(DIRECTORY), b"/a/deeper/fifo": FIFO,
    b"/link": Inode(LINK, target=b"a/deeper"), b"/one": FIFO._replace(links=2, group=1),
    b"/stub": file(1, 5000, xattrs={b"user.a": b"1"}), b"/two": FIFO._replace(links=2, group=1),
})  # fmt: skip


def written(entries: Entries) -> bytes:
    target = io.BytesIO()
    write_image(entries, target, CHUNK_LISTS)
    return target.getvalue()


def read(image: bytes) -> Entries:
    return list(read_image(io.BytesIO(image), "The image"))


def comparable(entries: Entries) -> Entries:
    """Numbers of hard link groups mean nothing."""
    return [(path, inode._replace(group=bool(inode.group), xattrs=dict(inode.xattrs))) for path, inode in entries]


@pytest.mark.parametrize("entries", [TREE, everything(), *map(random_tree, range(100, 130))], ids=len)
def test_what_was_written_comes_back(entries: Entries) -> None:
    image = written(entries)
    found = read(image)
    assert comparable(found) == comparable(entries)
    again = io.BytesIO()
    write_image(found, again, dict(read_chunk_lists(io.BytesIO(image), "The image")))
    assert again.getvalue() == image


def test_files_of_the_system_are_read_in_place(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(written(TREE))
    with (tmp_path / "image").open("rb") as image:
        assert comparable(list(read_image(image, "it"))) == comparable(TREE)
        assert read_superblock(image, "it").inodes == 7
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as image, pytest.raises(IntegrityError, match="cut short"):
        read_superblock(image, "it")


# Offsets of the fields of an inode, and in its attributes.
FORMAT, COUNT, MODE, HIGH, SIZE, UNION, NUMBER, NS, LINKS, BODY = 0, 2, 4, 6, 8, 16, 20, 40, 44, 64
FILTER, SHARED_COUNT, ID, SECOND_ID, ENTRY = BODY, BODY + 4, BODY + 12, BODY + 16, BODY + 20
REDIRECT = f"/{content(1, 5000)}".encode()


class Draft:
    """The image of TREE, to be damaged at places with a name."""

    def __init__(self) -> None:
        self.image = bytearray(written(TREE))
        self.end = read_superblock(io.BytesIO(self.image), "it").blocks * 4096
        self._nids: dict[bytes, int] = {}
        self._dirents: dict[bytes, int] = {}
        self._look(b"", 37, 37, Records(bytes(self.image), self.end, 1152))

    def _look(self, path: bytes, nid: int, parent: int, records: Records) -> None:
        _, directory = records.read(nid)
        self._nids[path] = nid
        if directory is None:
            return
        start = directory.tail if directory.is_inline else directory.block * 4096
        children = list(records.children(directory, parent))
        names = sorted([b".", b"..", *(child.name for child in children)])
        for number, name in enumerate(names):
            self._dirents[path + b"/" + name] = start + 12 * number
        for child in children:
            if path + b"/" + child.name != b"/two":
                self._look(path + b"/" + child.name, child.nid, nid, records)

    def inode(self, path: bytes, field: int, layout: str, value: int) -> None:
        """Set a field of the inode of a path."""
        struct.pack_into(layout, self.image, self._nids[path] * 32 + field, value)

    def dirent(self, path: bytes, field: int, layout: str, value: int) -> None:
        """Set a field of the entry that a directory has for a path."""
        struct.pack_into(layout, self.image, self._dirents[path] + field, value)

    def superblock(self, field: int, layout: str, value: int) -> None:
        struct.pack_into(layout, self.image, 1024 + field, value)

    def point(self, path: bytes, target: bytes, beyond: int = 0) -> None:
        """Let an entry name the file of another path, or so many slots after it."""
        self.dirent(path, 0, "<Q", self._nids[target] + beyond)

    def root(self, path: bytes) -> None:
        self.superblock(14, "<H", self._nids[path])

    def share(self, path: bytes) -> None:
        """Let the stub share an attribute that lies where the inode of a path is."""
        self.inode(b"/stub", ID, "<I", self._nids[path] * 8)

    def replace(self, old: bytes, new: bytes, *, filtered: bool = True) -> None:
        """Other bytes for some that are there once; without a filter of the stub's attributes if that is wanted."""
        assert (self.image.count(old), len(old)) == (1, len(new))
        at = self.image.index(old)
        self.image[at : at + len(old)] = new
        if not filtered:
            self.inode(b"/stub", FILTER, "<I", 0)

    def move(self, path: bytes, place: int) -> None:
        """A file to another place, in two blocks that are added."""
        old, new = self._nids[path], (self.end + place) // 32
        self.image[self.end : self.end] = bytes(8192)
        self.image[new * 32 : new * 32 + 128] = self.image[old * 32 : old * 32 + 128]
        self.superblock(36, "<I", self.end // 4096 + 2)
        self.dirent(path, 0, "<Q", new)
        self._nids[path] = new
        self.inode(path, NUMBER, "<I", new)
        if path + b"/." in self._dirents:
            struct.pack_into("<Q", self.image, self._dirents[path + b"/."] + (new - old) * 32, new)

    def cut(self, size: int) -> None:
        del self.image[self.end - size :]


def redirect(new: bytes) -> tuple[bytes, bytes]:
    return REDIRECT, new.ljust(len(REDIRECT), b"x")[: len(REDIRECT)]


DAMAGES = {
    "cut short": ("cut", (1,), "says it has"),
    "no chunk table": ("cut", (0,), "cut short"),
    "no blocks": ("superblock", (36, "<I", 0), "says it has 0 blocks"),
    "a block fewer": ("superblock", (36, "<I", 1), "no chunk table"),
    "more inodes": ("superblock", (16, "<Q", 8), "7 inodes and says 8"),
    "more files than a layer can have": ("superblock", (16, "<Q", 4_000_001), "4000001 files, more than"),
    "root after the end": ("superblock", (14, "<H", 0xFFFF), "no inode 65535"),
    "root in the superblock": ("superblock", (14, "<H", 32), "impossible"),
    "root is a file": ("root", (b"/one",), "root is no directory"),
    "a directory in itself": ("point", (b"/a/deeper", b"/a"), "overlap"),
    "the root in a directory": ("point", (b"/a/deeper", b""), "overlap"),
    "two names of a directory": ("point", (b"/a/deeper/fifo", b"/a"), "overlap"),
    "two names, one link": ("point", (b"/stub", b"/link"), "overlap"),
    "fewer names than links": ("inode", (b"/one", LINKS, "<I", 3), "1 files have fewer names"),
    "more names than links": ("inode", (b"/one", LINKS, "<I", 1), "overlap"),
    "no link": ("inode", (b"/link", LINKS, "<I", 0), "impossible values"),
    "a wrong number of links": ("inode", (b"/a", LINKS, "<I", 2), "2 links and 3 directories"),
    "an entry to nowhere": ("dirent", (b"/link", 0, "<Q", 1 << 63), "has no inode"),
    "an entry to just after the end": ("dirent", (b"/link", 0, "<Q", 384), "has no inode"),
    "an entry into another inode": ("point", (b"/link", b"/stub", 1), "impossible"),
    "a wrong self": ("point", (b"/a/.", b""), r"wrong \."),
    "a wrong parent": ("point", (b"/a/deeper/..", b""), r"wrong \.\."),
    "a self that is a file": ("dirent", (b"/a/.", 10, "B", 1), r"wrong \."),
    "another type in the entry": ("dirent", (b"/link", 10, "B", 5), "another type"),
    "a type that none has": ("dirent", (b"/link", 10, "B", 9), "another type"),
    "a name at the directory's end": ("dirent", (b"/two", 8, "<H", 4095), "name"),
    "a name before the names": ("dirent", (b"/link", 8, "<H", 3), "name"),
    "names that are not sorted": ("replace", (b"onestubtwo", b"onezzzztwo"), "not sorted"),
    "a slash in a name": ("replace", (b"stubtwo", b"st/btwo"), "name"),
    "no self": ("replace", (b"...deeper", b"!..deeper"), "overlap"),
    "a directory of no bytes": ("inode", (b"/a", SIZE, "<Q", 0), "layout"),
    "a huge directory": ("inode", (b"", SIZE, "<Q", 1 << 62), "after the last block"),
    "a directory's block elsewhere": ("inode", (b"", UNION, "<I", 0), "overlap"),
    "a directory's block after the end": ("inode", (b"", UNION, "<I", 1 << 31), "after the last block"),
    "a small directory with a block": ("inode", (b"/a", UNION, "<I", 1), "block too many"),
    "a compact inode": ("inode", (b"/link", FORMAT, "<H", 4), "layout"),
    "a compressed inode": ("inode", (b"/stub", FORMAT, "<H", 3), "layout"),
    "an unknown type": ("inode", (b"/link", MODE, "<H", 0o170777), "layout"),
    "blocks of 48 bits": ("inode", (b"/link", HIGH, "<H", 1), "impossible"),
    "another number": ("inode", (b"/link", NUMBER, "<I", 1), "impossible"),
    "too many nanoseconds": ("inode", (b"/link", NS, "<I", 10**9), "impossible"),
    "a fifo with bytes": ("inode", (b"/one", SIZE, "<Q", 1), "layout"),
    "a fifo with a block": ("inode", (b"/one", UNION, "<I", 1), "empty and has a block"),
    "a stub with data": ("replace", (b"\xff" * 4, b"\1\0\0\0"), "data in the image"),
    "a stub with small chunks": ("inode", (b"/stub", UNION, "<I", 0), "data in the image"),
    "a stub with chunk indexes": ("inode", (b"/stub", UNION, "<I", 0x21), "data in the image"),
    "a stub of another size": ("inode", (b"/stub", SIZE, "<Q", 5001), "5001 bytes and its content 5000"),
    "a stub of no bytes": ("inode", (b"/stub", SIZE, "<Q", 0), "layout"),
    "an absurd stub": ("inode", (b"/stub", SIZE, "<Q", (1 << 64) - 1), "layout"),
    "a stub without attributes": ("inode", (b"/stub", COUNT, "<H", 0), "data in the image"),
    "a redirect to elsewhere": ("replace", redirect(b"/../../../etc/shadow"), "names no content"),
    "a relative redirect": ("replace", redirect(REDIRECT[1:]), "where its content is"),
    "a redirect that is no text": ("replace", redirect(b"/\xff" + REDIRECT[2:]), "names no content"),
    "a redirect that is filtered away": ("replace", (b"overlay.redirect", b"overlay.redirecT"), "filter"),
    "another sign": ("replace", (b"overlay.metacopy", b"overlay.whiteout"), "where its content is"),
    "more room than attributes": ("inode", (b"/stub", COUNT, "<H", 0xFFFF), "after the last block"),
    "more shared than room": ("inode", (b"/stub", SHARED_COUNT, "B", 255), "more shared attributes"),
    "a shared attribute after the end": ("inode", (b"/stub", ID, "<I", 0xFFFFFFF8), "cut short"),
    "a shared attribute between slots": ("inode", (b"/stub", ID, "<I", 289), "shared attribute lies"),
    "a shared attribute in an inode": ("share", (b"/link",), "impossible name|overlap|where its content is"),
    "a shared attribute twice": ("inode", (b"/stub", SECOND_ID, "<I", 288), "twice"),
    "a value after its room": ("inode", (b"/stub", ENTRY + 2, "<H", 0xFFFF), "cut short"),
    "a name after its room": ("inode", (b"/stub", ENTRY, "B", 255), "cut short"),
    "an unknown prefix": ("inode", (b"/stub", ENTRY + 1, "B", 0x84), "impossible name"),
    "a filter that hides": ("inode", (b"/stub", FILTER, "<I", 0xFFFFFFFF), "filter"),
    "a link of no bytes": ("inode", (b"/link", SIZE, "<Q", 0), "layout"),
    "a link over two blocks": ("move", (b"/link", 4096 - 64), "two blocks"),
    "a directory's end in two blocks": ("move", (b"/a/deeper", 4096 - 96), "lies in two blocks"),
    "no damage: an inode in two blocks": ("move", (b"/a/deeper", 4096 - 32), ""),
    "a link of a page": ("inode", (b"/link", SIZE, "<Q", 4097), "link of 4097 bytes"),
    "a zero in a link": ("replace", (b"a/deeper", b"a/d\0eper"), "zero in its target"),
    "a link's block elsewhere": ("inode", (b"/link", FORMAT, "<H", 1), "overlap"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused(name: str) -> None:
    damage, arguments, sentence = DAMAGES[name]
    draft = Draft()
    unharmed = bytes(draft.image)
    getattr(draft, damage)(*arguments, **({"filtered": False} if name == "another sign" else {}))
    assert draft.image != unharmed
    if not sentence:
        assert len(read(bytes(draft.image))) == len(TREE)
        return
    with pytest.raises(IntegrityError, match=sentence) as raised:
        read(bytes(draft.image))
    assert str(raised.value).startswith("The image ")


def test_shared_attributes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = in_tree_order({b"/%d" % n: file(n, xattrs={b"user.a": b"%d" % n}) for n in range(20)})
    image = written(entries)
    assert len(read(image)) == 21
    monkeypatch.setattr(records, "SHARED_ENTRIES_MAX", 20)
    with pytest.raises(IntegrityError, match="shares too many"):
        read(image)
    monkeypatch.undo()
    monkeypatch.setattr(records, "SHARED_BYTES_MAX", 19)
    with pytest.raises(IntegrityError, match="shares too many or too large"):
        read(image)


def test_chunk_lists_have_to_be_there() -> None:
    image = written(everything())
    end = read_superblock(io.BytesIO(image), "it").blocks * 4096
    with pytest.raises(IntegrityError, match="'/content/huge' has no chunk list"):
        read(image[:end] + b"".join(format_chunk_table({}, 1)))


@pytest.mark.parametrize("xattrs", [{ORIGIN: b"handle"}, {OPAQUE: b"x"}])
def test_signs_of_directories_have_one_value(xattrs: dict[bytes, bytes]) -> None:
    report = write_image(in_tree_order({b"/d": Inode(DIRECTORY, xattrs=xattrs)}), io.BytesIO())
    assert (report.dropped_total, report.version) == (1, 1)


def test_a_file_says_nothing_about_whiteouts() -> None:
    report = write_image(in_tree_order({b"/f": file(b"f", xattrs={ORIGIN: b""})}), io.BytesIO())
    assert (report.dropped_total, report.version) == (1, 1)


def test_signs_of_whiteouts_are_of_version_2() -> None:
    target = io.BytesIO()
    assert write_image(in_tree_order({b"/d": Inode(DIRECTORY, xattrs={ORIGIN: b""})}), target).version == 2
    image = bytearray(target.getvalue())
    assert dict(read_image(io.BytesIO(bytes(image)), "it"))[b"/d"].xattrs == {ORIGIN: b""}
    image[image.rindex(b"micachnk") + 8] = 1
    with pytest.raises(IntegrityError, match="has an attribute that images have since version 2"):
        dict(read_image(io.BytesIO(bytes(image)), "it"))
