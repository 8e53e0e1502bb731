"""Hostile and odd archives, unpacked. Devices and trusted attributes need root; the rest has AUFS's signs."""

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.tars import END, header, member, pax
from tests.support.tools import need_root
from tests.support.uppers import signs

from mica.engine.tarwriter import format_member, padding
from mica.engine.unpack import Unpacked, unpack_layer
from mica.engine.whiteouts import AufsWhiteouts, OverlayWhiteouts, Whiteouts
from mica.errors import UserError
from mica.tarstream import Kind, TarEntry, TarLimits

__all__ = ["signs"]

ME, MY_GROUP = os.geteuid(), os.getegid()


def entry(name: bytes, kind: Kind = Kind.REGULAR, data: bytes = b"", **fields: object) -> bytes:
    """A member that belongs to who runs the test, so that anybody can unpack it."""
    mode = 0o755 if kind is Kind.DIRECTORY else 0o644
    attributes = {"mode": mode, "uid": ME, "gid": MY_GROUP, "size": len(data), **fields}
    return format_member(TarEntry(name, kind, **attributes)) + data + padding(len(data))  # type: ignore[arg-type]


def directory(name: bytes, **fields: object) -> bytes:
    return entry(name, Kind.DIRECTORY, **fields)


def symlink(name: bytes, target: bytes) -> bytes:
    return entry(name, Kind.SYMLINK, link=target)


def hard_link(name: bytes, target: bytes) -> bytes:
    return entry(name, Kind.HARDLINK, link=target)


def unpack(place: Path, *members: bytes, whiteouts: Whiteouts | None = None, **limits: int) -> Unpacked:
    """Into `place`/layer, beside which nothing may appear."""
    target = place / "layer"
    target.mkdir()
    stream = io.BytesIO(b"".join(members) + END)
    try:
        return unpack_layer(stream, target, whiteouts or AufsWhiteouts(), limits=TarLimits(**limits))
    finally:
        assert os.listdir(place) == ["layer"]


def shown(place: Path) -> dict[str, bytes]:
    """Files and their content."""
    layer = place / "layer"
    return {str(path.relative_to(layer)): path.read_bytes() for path in layer.rglob("*") if path.is_file()}


def names(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place / "layer")) for path in (place / "layer").rglob("*"))


# Where members go


@pytest.mark.parametrize("name", [b"../x", b"a/../x", b"a/..", b"..", b"/..", b"./../x", b"a/b/../../../x"])
def test_two_dots_are_refused(tmp_path: Path, name: bytes) -> None:
    with pytest.raises(UserError, match=r"has '\.\.' in its path"):
        unpack(tmp_path, entry(name))
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", [b"..x", b"...", b"x..", b". .", b".wh", b"wh.x"])
def test_names_that_only_look_like_something_else(tmp_path: Path, name: bytes) -> None:
    unpack(tmp_path, entry(name, data=b"x"), entry(b"d/" + name, data=b"y"))
    assert shown(tmp_path) == {os.fsdecode(name): b"x", f"d/{os.fsdecode(name)}": b"y"}


@pytest.mark.parametrize("name", [b"/a/b", b"//a//b", b"./a/./b", b"a/b"])
def test_the_same_path_in_other_words(tmp_path: Path, name: bytes) -> None:
    unpack(tmp_path, entry(name, data=b"x"))
    assert shown(tmp_path) == {"a/b": b"x"}


@pytest.mark.parametrize("link", [b"/", b"..", b"../..", b"/..", b"../layer/..", b"/proc/self/root"])
def test_a_link_leads_nowhere_outside(tmp_path: Path, link: bytes) -> None:
    # Where it would come out, were the layer not the root: beside the layer.
    place = b"out" + (os.fsencode(tmp_path) if link.startswith(b"/") else b"")
    unpack(tmp_path, symlink(b"out", link), entry(place + b"/mine", data=b"x"), directory(place + b"/new"))
    assert list(shown(tmp_path).values()) == [b"x"]


def test_a_link_that_is_made_a_directory_is_left_alone_where_it_leads(tmp_path: Path) -> None:
    unpack(
        tmp_path, directory(b"to"), entry(b"to/kept", data=b"k"), symlink(b"link", b"to"), directory(b"link"),
        entry(b"link/file", data=b"f"),
    )  # fmt: skip
    assert shown(tmp_path) == {"to/kept": b"k", "link/file": b"f"}


def test_a_file_that_replaces_a_link_is_not_written_through_it(tmp_path: Path) -> None:
    unpack(tmp_path, entry(b"victim", data=b"old"), symlink(b"link", b"victim"), entry(b"link", data=b"new"))
    assert shown(tmp_path) == {"victim": b"old", "link": b"new"}
    assert not (tmp_path / "layer/link").is_symlink()


def test_a_file_that_replaces_one_of_two_names_leaves_the_other(tmp_path: Path) -> None:
    unpack(tmp_path, entry(b"a", data=b"old"), hard_link(b"b", b"a"), entry(b"a", data=b"new"))
    assert shown(tmp_path) == {"a": b"new", "b": b"old"}


def test_a_directory_that_was_replaced_between_two_of_its_files(tmp_path: Path) -> None:
    unpack(
        tmp_path, entry(b"d/one", data=b"1"), symlink(b"d", b"other"), entry(b"d/two", data=b"2"),
        entry(b"d/three", data=b"3"),
    )  # fmt: skip
    assert shown(tmp_path) == {"other/two": b"2", "other/three": b"3"}


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too many links"):
        unpack(tmp_path, symlink(b"a", b"b"), symlink(b"b", b"a"), entry(b"a/x"))


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot unpack 'file/x'"):
        unpack(tmp_path, entry(b"file"), entry(b"file/x"))


@pytest.mark.parametrize("kind", [Kind.REGULAR, Kind.SYMLINK, Kind.FIFO, Kind.HARDLINK])
def test_the_root_stays_a_directory(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(UserError, match="would replace the root directory"):
        unpack(tmp_path, entry(b"x"), entry(b".", kind, link=b"x"))


# Hard links


@pytest.mark.parametrize("target", [b"nothing", b"d", b"d/nothing", b"nothing/x", b"/", b".", b".wh.gone"])
def test_a_hard_link_needs_an_earlier_file(tmp_path: Path, target: bytes) -> None:
    with pytest.raises(UserError, match="is no earlier file of"):
        unpack(tmp_path, directory(b"d"), entry(b".wh.gone"), hard_link(b"x", target))


def test_a_hard_link_to_itself_keeps_the_file(tmp_path: Path) -> None:
    unpack(tmp_path, entry(b"a", data=b"a"), hard_link(b"a", b"a"), hard_link(b"b", b"/a"), hard_link(b"b", b"./a"))
    assert shown(tmp_path) == {"a": b"a", "b": b"a"}
    assert (tmp_path / "layer/a").stat().st_nlink == 2


def test_a_hard_link_to_a_symbolic_one_is_another_name_of_it(tmp_path: Path) -> None:
    unpack(tmp_path, entry(b"a", data=b"a"), symlink(b"link", b"a"), hard_link(b"b", b"link"))
    assert os.readlink(tmp_path / "layer/b") == "a"


def test_a_hard_link_by_way_of_a_link_that_leads_out_stays_inside(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no earlier file of"):
        unpack(tmp_path, symlink(b"out", b"/etc"), hard_link(b"x", b"out/passwd"))


def test_a_hard_link_in_place_of_the_directory_of_its_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot unpack 'd'"):
        unpack(tmp_path, entry(b"d/file"), hard_link(b"d", b"d/file"))


def test_files_of_several_names_count_once(tmp_path: Path) -> None:
    assert unpack(tmp_path, entry(b"a", data=b"12345"), hard_link(b"b", b"a"), entry(b"c", data=b"6")).size_bytes == 6


# Names


def test_odd_names(tmp_path: Path) -> None:
    odd = [b"new\nline", b"\xff\xfe", b" ", b"-rf", b"*", b"\\", "ü".encode(), b"n" * 242]
    unpack(tmp_path, *(entry(name, data=name) for name in odd))
    assert {os.fsencode(name): data for name, data in shown(tmp_path).items()} == {name: name for name in odd}


def test_a_path_as_deep_as_an_archive_can_say(tmp_path: Path) -> None:
    parts = [b"d%02d" % (number % 100) for number in range(900)]
    unpack(tmp_path, entry(b"/".join([*parts, b"file"]), data=b"deep"))
    place = os.open(tmp_path / "layer", os.O_PATH | os.O_DIRECTORY)
    for part in parts:
        inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place)
        os.close(place)
        place = inner
    assert os.stat(b"file", dir_fd=place).st_size == 4
    os.close(place)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        (pax([(b"path", b"d/" * 3000)]) + member(), "path|longer"),
        (pax([(b"path", b"n" * 256)]) + member(), "255 bytes"),
        (pax([(b"linkpath", b"l" * 5000)]) + header(b"link", type_flag=b"2"), "link"),
        (pax([(b"comment", b"c" * (2 << 20))]) + member(), "extended headers"),
        (pax([(b"path", b"a\0b")]) + member(), "NUL|null|zero"),
        (pax([(b"SCHILY.xattr.user.x", b"x" * (1 << 17))]) + member(), "Cannot unpack 'file'"),
        (pax([(b"size", b"9" * 30)]) + member(), "size"),
        (pax([(b"uid", b"9" * 30)]) + member(), "uid"),
        (header(b"short", size=5000) + b"too little", "truncated"),
        (header(b"kind", type_flag=b"Z"), "unknown type"),
    ],
    ids=["path", "name", "link", "records", "nul", "attribute", "size", "uid", "data", "kind"],
)
def test_what_is_too_much_is_refused(tmp_path: Path, members: bytes, sentence: str) -> None:
    target = tmp_path / "layer"
    target.mkdir()
    with pytest.raises(UserError, match=sentence):
        unpack_layer(io.BytesIO(members), target, AufsWhiteouts())
    assert os.listdir(tmp_path) == ["layer"]


def test_limits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unpacks to more than 10 bytes"):
        unpack(tmp_path, entry(b"a", data=b"123456"), entry(b"b", data=b"123456"), max_bytes=10)
    assert names(tmp_path) == ["a"]


# Attributes


def test_modes_times_and_attributes(tmp_path: Path) -> None:
    done = unpack(
        tmp_path, directory(b".", mode=0o711, mtime_s=7), directory(b"d", mode=0o1700, mtime_s=8),
        entry(b"d/x", data=b"x", mode=0o4751, mtime_s=9, xattrs={b"user.a": b"1", b"user.overlay.opaque": b"y"}),
        directory(b"e", mode=0o755, mtime_s=10), directory(b"e", mode=0o700, mtime_s=11),
        entry(b"far", mtime_s=2**60), entry(b"fifo", Kind.FIFO, mode=0o620, mtime_s=12),
    )  # fmt: skip
    layer = tmp_path / "layer"
    found = {name: (stat.S_IMODE(os.lstat(layer / name).st_mode), int(os.lstat(layer / name).st_mtime))
             for name in (".", "d", "d/x", "e", "far", "fifo")}  # fmt: skip
    assert found == {
        ".": (0o711, 7), "d": (0o1700, 8), "d/x": (0o4751, 9), "e": (0o700, 11), "far": (0o644, 0), "fifo": (0o620, 12),
    }  # fmt: skip
    assert os.listxattr(layer / "d/x") == ["user.a"]
    assert done.has_root


def test_directories_that_the_archive_implies(tmp_path: Path) -> None:
    done = unpack(tmp_path, entry(b"a/b/file"), directory(b"a"), entry(b"c/file"), entry(b".wh.g"), entry(b"g/file"))
    assert done.implied == {b"/a/b", b"/c"}
    assert not done.has_root


def test_what_replaced_an_implied_directory_is_not_implied(tmp_path: Path) -> None:
    done = unpack(
        tmp_path, entry(b"a/b/file"), entry(b"a", data=b"a file"), entry(b"c/b/file"), symlink(b"c", b"d"),
        entry(b"e/file"),
    )  # fmt: skip
    assert done.implied == {b"/e"}


def test_a_directory_of_aufs_is_not_implied(tmp_path: Path) -> None:
    done = unpack(tmp_path, entry(b".wh..wh.plnk/1.2", data=b"x"), hard_link(b"x", b".wh..wh.plnk/1.2"))
    assert names(tmp_path) == ["x"]
    assert done.implied == set()


# Whiteouts


def hides(signs: Whiteouts, path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return signs.hides_below(fd)
    finally:
        os.close(fd)


def removed(signs: Whiteouts, directory: Path) -> set[bytes]:
    found = (signs.removed_name(os.fsencode(path.name), path.lstat()) for path in directory.iterdir())
    return {name for name in found if name is not None}


ENTRIES: dict[str, Callable[[], bytes]] = {
    "file": lambda: entry(b"x", data=b"x"),
    "symlink": lambda: symlink(b"x", b"other"),
    "hard link": lambda: hard_link(b"x", b"other"),
    "fifo": lambda: entry(b"x", Kind.FIFO),
}


@pytest.mark.parametrize("make", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("order", ["WE", "EW", "WEW", "EWE"])
def test_an_entry_beats_whiteouts_before_and_after_it(
    tmp_path: Path, signs: Whiteouts, make: Callable[[], bytes], order: str
) -> None:
    members = [entry(b".wh.x") if letter == "W" else make() for letter in order]
    unpack(tmp_path, entry(b"other"), *members, whiteouts=signs)
    assert names(tmp_path) == ["other", "x"]
    assert removed(signs, tmp_path / "layer") == set()


@pytest.mark.parametrize("order", ["WE", "EW", "WEW", "EWE"])
def test_a_directory_with_a_whiteout_hides_what_is_below(tmp_path: Path, signs: Whiteouts, order: str) -> None:
    members = [entry(b".wh.x") if letter == "W" else directory(b"x") + entry(b"x/file") for letter in order]
    unpack(tmp_path, *members, whiteouts=signs)
    assert shown(tmp_path).keys() >= {"x/file"}
    assert hides(signs, tmp_path / "layer/x")
    assert removed(signs, tmp_path / "layer") == set()


@pytest.mark.parametrize("kind", [Kind.REGULAR, Kind.DIRECTORY, Kind.SYMLINK, Kind.FIFO])
def test_a_whiteout_is_one_whatever_it_is_made_of(tmp_path: Path, signs: Whiteouts, kind: Kind) -> None:
    unpack(tmp_path, entry(b"d/.wh.gone", kind, link=b"/etc/passwd"), whiteouts=signs)
    assert removed(signs, tmp_path / "layer/d") == {b"gone"}
    assert len(list((tmp_path / "layer/d").iterdir())) == 1


@pytest.mark.parametrize("order", ["mark first", "mark last", "mark twice"])
def test_an_opaque_mark_wherever_it_stands(tmp_path: Path, signs: Whiteouts, order: str) -> None:
    mark, files = entry(b"d/.wh..wh..opq"), directory(b"d") + entry(b"d/file", data=b"x")
    members = {"mark first": [mark, files], "mark last": [files, mark], "mark twice": [mark, files, mark]}[order]
    unpack(tmp_path, *members, whiteouts=signs)
    assert hides(signs, tmp_path / "layer/d")
    assert (tmp_path / "layer/d/file").read_bytes() == b"x"


def test_an_opaque_mark_of_the_root(tmp_path: Path, signs: Whiteouts) -> None:
    unpack(tmp_path, entry(b".wh..wh..opq"), whiteouts=signs)
    assert hides(signs, tmp_path / "layer")


def test_a_file_in_place_of_a_directory_that_hid_hides_no_more(tmp_path: Path, signs: Whiteouts) -> None:
    unpack(tmp_path, entry(b"d/.wh..wh..opq"), entry(b"d", data=b"file"), whiteouts=signs)
    assert shown(tmp_path) == {"d": b"file"}


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"d/.wh."])
def test_whiteouts_of_nothing_are_refused(tmp_path: Path, signs: Whiteouts, name: bytes) -> None:
    with pytest.raises(UserError, match="is a whiteout that names no file"):
        unpack(tmp_path, entry(name), whiteouts=signs)


@pytest.mark.parametrize("name", [b".wh.x/y", b"d/.wh.x/y/z", b".wh..wh..opq/y"])
def test_nothing_lies_below_a_whiteout(tmp_path: Path, signs: Whiteouts, name: bytes) -> None:
    with pytest.raises(UserError, match="lies below a whiteout"):
        unpack(tmp_path, entry(name), whiteouts=signs)


def test_a_whiteout_by_way_of_a_link(tmp_path: Path, signs: Whiteouts) -> None:
    unpack(tmp_path, directory(b"to"), symlink(b"link", b"/to"), entry(b"link/.wh.gone"), whiteouts=signs)
    assert removed(signs, tmp_path / "layer/to") == {b"gone"}


# Devices


@pytest.mark.parametrize("name", [b"x", b"d/x", b"d/sub/x"])
def test_a_device_that_overlayfs_takes_for_a_deletion_is_refused(tmp_path: Path, name: bytes) -> None:
    with pytest.raises(UserError, match="character device 0:0"):
        unpack(tmp_path, entry(name, Kind.CHARACTER), whiteouts=OverlayWhiteouts())


def test_other_devices_are_made(tmp_path: Path) -> None:
    need_root()
    unpack(
        tmp_path, entry(b"null", Kind.CHARACTER, device_major=1, device_minor=3), entry(b"zero", Kind.BLOCK),
        entry(b"minor", Kind.CHARACTER, device_minor=1), whiteouts=OverlayWhiteouts(),
    )  # fmt: skip
    found = {path.name: (stat.S_IFMT(path.lstat().st_mode), path.lstat().st_rdev)
             for path in (tmp_path / "layer").iterdir()}  # fmt: skip
    assert found == {
        "null": (stat.S_IFCHR, os.makedev(1, 3)), "zero": (stat.S_IFBLK, 0), "minor": (stat.S_IFCHR, os.makedev(0, 1)),
    }  # fmt: skip


@pytest.mark.parametrize("key", [b"opaque", b"redirect", b"metacopy", b"origin", b"whiteout"])
def test_attributes_that_steer_overlayfs_stay_out(tmp_path: Path, key: bytes) -> None:
    need_root()
    steering = {b"trusted.overlay." + key: b"y", b"trusted.mine": b"m"}
    unpack(tmp_path, directory(b"d", xattrs=steering), entry(b"d/f", xattrs=steering), whiteouts=OverlayWhiteouts())
    for place in ("d", "d/f"):
        assert os.listxattr(tmp_path / "layer" / place) == ["trusted.mine"]


def test_owners(tmp_path: Path) -> None:
    need_root()
    unpack(tmp_path, entry(b"f", mode=0o6755, uid=5, gid=6), entry(b"l", Kind.SYMLINK, link=b"f", uid=7, gid=8))
    status, link = (tmp_path / "layer/f").lstat(), (tmp_path / "layer/l").lstat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (5, 6, 0o6755)
    assert (link.st_uid, link.st_gid) == (7, 8)
