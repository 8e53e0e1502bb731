"""What an upper directory says, by itself and through the view of its union. A directory stands for the union here:
a mounted one is in tests/system/test_engine_layers.py."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.tools import need_root
from tests.support.uppers import signs, upper

from mica.engine.uppertree import Difference, UpperTree
from mica.engine.whiteouts import AufsWhiteouts, OverlayWhiteouts, Whiteouts
from mica.files import owned_fd

__all__ = ["signs", "upper"]


def put(place: Path, *names: str) -> None:
    """Files with the directories above them; those that end in a slash are directories."""
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (place / name).mkdir()
        else:
            (place / name).write_bytes(name.encode())


def marked(directory: Path, act: Callable[[int], object]) -> None:
    with owned_fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        act(fd)


def remove(signs: Whiteouts, directory: Path, name: bytes) -> None:
    marked(directory, lambda fd: signs.remove(fd, name))


def told(differences: list[Difference]) -> list[str]:
    """Paths, with a minus in front of those that are gone and an exclamation mark behind those that hide."""
    return [
        f"{'-' if one.status is None else ''}{os.fsdecode(one.path)}{'/' if one.is_directory else ''}"
        f"{'!' if one.hides_below else ''}"
        for one in differences
    ]


def listed(upper: Path, signs: Whiteouts, view: Path | None = None) -> list[str]:
    with UpperTree(upper, view or upper, signs) as tree:
        return told(list(tree.differences()))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing(upper: Path, signs: Whiteouts) -> None:
    assert listed(upper, signs) == []


def test_directories_come_first_and_names_by_their_bytes(upper: Path, signs: Whiteouts) -> None:
    put(upper, "b/z", "b/a/x", "b-", "a", "Z", "c/")
    (upper / os.fsdecode(b"\xff")).touch()
    assert listed(upper, signs) == ["Z", "a", "b/", "b/a/", "b/a/x", "b/z", "b-", "c/", os.fsdecode(b"\xff")]


def test_what_is_gone_stands_where_its_name_would(upper: Path, signs: Whiteouts) -> None:
    put(upper, "d/a", "d/c", "x")
    remove(signs, upper / "d", b"b")
    remove(signs, upper, b"w")
    remove(signs, upper, b"\xff\n")
    assert listed(upper, signs) == ["d/", "d/a", "-d/b", "d/c", "-w", "x", "-" + os.fsdecode(b"\xff\n")]


def test_a_directory_that_hides(upper: Path, signs: Whiteouts) -> None:
    put(upper, "d/x", "e/x")
    marked(upper / "d", signs.hide_below)
    assert listed(upper, signs) == ["d/!", "d/x", "e/", "e/x"]
    with UpperTree(upper, upper, signs) as tree:
        assert not tree.hides_all
    marked(upper, signs.hide_below)
    with UpperTree(upper, upper, signs) as tree:
        assert tree.hides_all
        assert tree.names(b".") == {b"d", b"e"}


def test_names_are_those_that_the_union_shows(upper: Path, signs: Whiteouts) -> None:
    put(upper, "d/x", "d/y")
    remove(signs, upper / "d", b"gone")
    marked(upper / "d", signs.hide_below)
    with UpperTree(upper, upper, signs) as tree:
        assert tree.names(b"d") == {b"x", b"y"}


def test_what_aufs_keeps_for_itself_is_left_out(upper: Path) -> None:
    put(upper, ".wh..wh.aufs", ".wh..wh.plnk/1.2", "x")
    assert listed(upper, AufsWhiteouts()) == ["x"]


def test_a_name_that_is_a_sign_of_the_other_union_is_a_name(upper: Path) -> None:
    put(upper, ".wh.x", ".wh..wh.plnk")
    assert listed(upper, OverlayWhiteouts()) == [".wh..wh.plnk", ".wh.x"]


# Through the view


def test_attributes_and_content_are_those_of_the_view(tmp_path: Path, upper: Path) -> None:
    """As overlayfs has a file whose owner alone was changed: nothing in it above, the content below."""
    put(upper, "d/file")
    shutil.copytree(upper, tmp_path / "view")
    (upper / "d/file").write_bytes(b"")
    (tmp_path / "view/d/lower").touch()
    with UpperTree(upper, tmp_path / "view", AufsWhiteouts()) as tree:
        found = list(tree.differences())
        assert told(found) == ["d/", "d/file"]
        assert found[1].status is not None
        assert found[1].status.st_size == len(b"d/file")
        with owned_fd(tree.open(b"d/file")) as fd:
            assert os.read(fd, 100) == b"d/file"
        assert tree.names(b"d") == {b"file", b"lower"}


def test_a_directory_that_was_renamed_is_told_with_all_that_it_shows(tmp_path: Path, upper: Path) -> None:
    need_root()
    put(upper, "moved/own")
    os.setxattr(upper / "moved", "trusted.overlay.redirect", b"/old")
    put(tmp_path / "view", "moved/own", "moved/below/deep")
    assert listed(upper, OverlayWhiteouts(), tmp_path / "view") == [
        "moved/!", "moved/below/", "moved/below/deep", "moved/own",
    ]  # fmt: skip


def test_what_the_view_does_not_have_any_more_is_left_out(tmp_path: Path, upper: Path) -> None:
    put(upper, "a", "b", "d/x")
    put(tmp_path / "view", "b")
    assert listed(upper, AufsWhiteouts(), tmp_path / "view") == ["b"]


@pytest.mark.parametrize("replacement", ["nothing", "file", "link"])
def test_a_directory_that_changes_while_it_is_told(upper: Path, replacement: str) -> None:
    """It is told as it was; what is in its place is not entered."""
    put(upper, "d/x", "elsewhere/secret", "z")
    with UpperTree(upper, upper, AufsWhiteouts()) as tree:
        found = []
        for difference in tree.differences():
            found.append(difference)
            if difference.path == b"d":
                shutil.rmtree(upper / "d")
                if replacement == "file":
                    (upper / "d").touch()
                elif replacement == "link":
                    (upper / "d").symlink_to("elsewhere")
    assert told(found) == ["d/", "elsewhere/", "elsewhere/secret", "z"]


# Reading


@pytest.mark.parametrize("target", ["/etc", "..", "d"])
def test_no_link_is_followed(tmp_path: Path, upper: Path, target: str) -> None:
    put(upper, "d/file")
    put(tmp_path, "passwd", "file")
    (upper / "link").symlink_to(target)
    with UpperTree(upper, upper, AufsWhiteouts()) as tree:
        assert tree.link(b"link") == target.encode()
        reads: list[Callable[[], object]] = [
            lambda: tree.open(b"link/passwd"), lambda: tree.open(b"link/file"), lambda: tree.open(b"link"),
            lambda: tree.names(b"link"), lambda: tree.xattrs(b"link/file"), lambda: tree.link(b"link/file"),
        ]  # fmt: skip
        for read in reads:
            with pytest.raises(OSError, match="Too many levels of symbolic links"):
                read()
        with pytest.raises(OSError, match="Invalid cross-device link"):
            tree.open(b"../file")


def test_a_pipe_does_not_keep_the_reader_waiting(upper: Path) -> None:
    os.mkfifo(upper / "pipe")
    with UpperTree(upper, upper, AufsWhiteouts()) as tree, owned_fd(tree.open(b"pipe")) as fd:
        assert os.read(fd, 1) == b""


def test_attributes_that_belong_to_the_layer(upper: Path) -> None:
    need_root()
    put(upper, "file", "d/")
    for name in ("file", "d"):
        for key in ("user.mine", "trusted.mine", "trusted.overlay.origin", "user.overlay.opaque"):
            os.setxattr(upper / name, key, key.encode())
    (upper / "link").symlink_to("file")
    with UpperTree(upper, upper, OverlayWhiteouts()) as tree:
        for path in (b"file", b"d"):
            assert tree.xattrs(path) == {b"user.mine": b"user.mine", b"trusted.mine": b"trusted.mine"}
        assert tree.xattrs(b"link") == {}


def test_no_descriptor_stays_open(tmp_path: Path, upper: Path, signs: Whiteouts) -> None:
    put(upper, "a/b/c/d", "e/f")
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        UpperTree(upper, tmp_path / "nowhere", signs)
    with UpperTree(upper, upper, signs) as tree:
        differences = tree.differences()
        for _ in range(4):
            next(differences)
        del differences
    assert open_descriptors() == before


def test_a_deep_tree(upper: Path, signs: Whiteouts) -> None:
    put(upper, "/".join(["d" * 200] * 15) + "/leaf")
    assert len(listed(upper, signs)) == 16
