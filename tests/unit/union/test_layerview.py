"""What a union shows before it is mounted, and where links in it lead; on plain directories."""

import os
import stat
from pathlib import Path

import pytest

from mica.errors import UserError
from mica.union.layerview import WHITEOUT, File, Look, SheetLevel, Steps, TreeLevel, Union, resolve, topmost


def tree(place: Path, *names: str, **links: str) -> TreeLevel:
    """A name that ends in a slash is a directory; `_` stands for a slash in the names of links."""
    for name in names:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(parents=True, exist_ok=True) if name.endswith("/") else path.touch()
    for name, target in links.items():
        path = place / name.replace("_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    return TreeLevel(os.fsencode(place), Steps(10_000))


def kind(look: Look) -> str:
    return "" if look.file is None else stat.filemode(look.file.mode)[0]


def test_a_tree_is_looked_at_without_following_links(tmp_path: Path) -> None:
    level = tree(tmp_path, "d/file", "d/inner/", link="d")
    assert [kind(level.look(path)) for path in (b"/", b"/d/file", b"/d/inner", b"/link")] == ["d", "-", "d", "l"]
    assert level.look(b"/none/deeper") == (None, False)
    assert level.look(b"/link/file") == level.look(b"/d/file/x") == (None, True)
    assert level.look(b"/" + b"n" * 300) == (None, False)


def test_a_sheet_hides_what_its_files_hide(tmp_path: Path) -> None:
    directory = File(os.fsencode(tmp_path), stat.S_IFDIR | 0o755)
    files = {b"/": directory, b"/gone": WHITEOUT, b"/o": directory._replace(is_opaque=True), b"/o/d": directory}
    sheet = SheetLevel(files, Steps(1000))
    assert sheet.look(b"/o").is_cut is False
    assert sheet.look(b"/o/d") == (directory, True)
    assert sheet.look(b"/gone/x") == (None, True)
    assert sheet.look(b"/d") == (None, False)
    below = tree(tmp_path / "tree", "gone", "o/old", "d")
    union = Union((sheet, below))
    assert topmost((sheet, below), b"/gone") == WHITEOUT
    assert [kind(union.look(path)) for path in (b"/gone", b"/o/old", b"/o/d", b"/d")] == ["", "", "d", "-"]


def test_a_file_between_ends_a_directory(tmp_path: Path) -> None:
    levels = (tree(tmp_path / "3", "d/"), tree(tmp_path / "2", "d"), tree(tmp_path / "1", "d/x"))
    assert topmost(levels, b"/d/x") is None
    assert Union(levels).look(b"/d/x").file is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/lib", b"/usr/lib"),
        (b"/absolute/new", b"/usr/lib/new"),
        (b"/chain", b"/usr/lib/deep"),
        (b"/outside", b"/etc"),
        (b"/dangling", b"/made/for/this"),
        (b"/root", b"/"),
        (b"/usr/lib/nothing/../lib", b"/usr/lib/lib"),
    ],
)
def test_links_lead_nowhere_but_inside(tmp_path: Path, path: bytes, expected: bytes) -> None:
    links = {
        "lib": "usr/lib", "absolute": "/usr/lib", "chain": "absolute/.././/lib/hop", "outside": "../../../../etc",
        "dangling": "made/for/./x/../this", "root": "/..",
    }  # fmt: skip
    lower = tree(tmp_path / "1", "usr/lib/", **links)
    upper = tree(tmp_path / "2", "usr/lib/deep/", usr_lib_hop="deep")
    assert resolve((upper, lower), path) == expected


@pytest.mark.parametrize(
    ("target", "what"),
    [("loop", "no end of other links"), ("file", "'/file', which is no directory"), ("n" * 256, "a name that is too")],
)
def test_links_that_lead_to_no_directory(tmp_path: Path, target: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        resolve((tree(tmp_path, "file", loop="loop", link=target),), b"/link")


def test_looking_has_an_end(tmp_path: Path) -> None:
    tree(tmp_path, "d/d/")
    assert kind(TreeLevel(os.fsencode(tmp_path), Steps(3)).look(b"/d/d")) == "d"
    with pytest.raises(UserError, match="takes too long"):
        TreeLevel(os.fsencode(tmp_path), Steps(2)).look(b"/d/d")
