"""Which sheets layers get that have members below links of lower layers; on plain directories.

Whiteouts and opaque directories need root: tests/system/test_below_links.py.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from mica.errors import UserError
from mica.union.belowlinks import Sheet, lay_sheets, plan_sheets
from mica.union.directories import Tree
from mica.union.layerview import Steps, TreeLevel, Union

LIB = (b"/", b"/lib")


def tree(place: Path, files: Mapping[str, str], implied: tuple[bytes, ...] = ()) -> Tree:
    """Files with their content; `->` begins the target of a link, a name that ends in a slash is a directory."""
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        elif content.startswith("->"):
            path.symlink_to(content[2:])
        else:
            path.write_text(content)
    return Tree(place, implied)


def laid(*trees: Tree) -> list[dict[str, str]]:
    """The sheets on the trees that have one, top first: what each has, with a star where it is for others alone."""
    sheets = []

    def make(sheet: Sheet, _: Tree) -> Path:
        found = {os.fsdecode(path) + "*" * (path in sheet.implied): file.like for path, file in sheet.files.items()}
        sheets.insert(0, {path: os.path.relpath(os.fsdecode(like), root) for path, like in found.items()})
        return Path("/sheet")

    root = trees[0].path.parent
    layers = lay_sheets(trees, make)
    assert [layer for layer in layers if layer.path != Path("/sheet")] == list(trees)
    assert len(layers) == len(trees) + len(sheets)
    return sheets


@pytest.fixture
def lower(tmp_path: Path) -> Tree:
    return tree(tmp_path / "1", {"lib": "->usr/lib", "usr/lib/old": "1", "usr/lib/deep": "->/opt", "opt/": ""})


def test_members_below_a_link_get_a_sheet(tmp_path: Path, lower: Tree) -> None:
    upper = tree(tmp_path / "2", {"lib/new": "2"}, LIB)
    assert laid(upper, lower) == [
        {"/*": "2", "/lib": "1/lib", "/usr*": "1/usr", "/usr/lib*": "1/usr/lib", "/usr/lib/new": "2/lib/new"}
    ]


def test_layers_without_such_members_stay_as_they_are(tmp_path: Path, lower: Tree) -> None:
    assert laid(tree(tmp_path / "2", {"lib/new": "2"}), lower) == [], "a directory that was brought"
    assert laid(tree(tmp_path / "3", {"usr/lib/new": "2"}, (b"/", b"/usr", b"/usr/lib")), lower) == []
    assert laid(tree(tmp_path / "4", {"x": "2"}, (b"/", b"/lib", b"/lib/none")), lower) == [], "facts that lie"
    assert laid(lower, tree(tmp_path / "5", {"lib/new": "2"}, LIB)) == [], "the link is above"


def test_a_directory_between_replaced_the_link(tmp_path: Path, lower: Tree) -> None:
    upper = tree(tmp_path / "3", {"lib/new": "2"}, LIB)
    assert laid(upper, tree(tmp_path / "2", {"lib/": ""}), lower) == []
    assert len(laid(upper, tree(tmp_path / "4", {"lib/between": ""}, LIB), lower)) == 2


def test_a_directory_above_replaces_the_link_and_what_was_below_it_stays(tmp_path: Path, lower: Tree) -> None:
    between = tree(tmp_path / "2", {"lib/new": "2"}, LIB)
    (sheet,) = laid(tree(tmp_path / "3", {"lib/other": "3"}), between, lower)
    assert sheet["/usr/lib/new"] == "2/lib/new"


def test_links_on_the_way_are_followed_too(tmp_path: Path, lower: Tree) -> None:
    upper = tree(tmp_path / "2", {"lib/deep/x": "2", "lib/made/y": "2"}, (*LIB, b"/lib/deep", b"/lib/made"))
    (sheet,) = laid(upper, lower)
    assert sheet["/opt/x"] == "2/lib/deep/x"
    assert sheet["/usr/lib/made*"] == "2/lib/made"
    assert "/usr/lib/deep" not in sheet


def test_a_directory_that_was_brought_replaces_a_link_on_the_way(tmp_path: Path, lower: Tree) -> None:
    (sheet,) = laid(tree(tmp_path / "2", {"lib/deep/x": "2"}, LIB), lower)
    assert sheet["/usr/lib/deep"] == "2/lib/deep"
    assert sheet["/usr/lib/deep/x"] == "2/lib/deep/x"


def test_the_name_itself_counts_for_more(tmp_path: Path, lower: Tree) -> None:
    files = {"lib/x": "by link", "usr/lib/x": "by name", "lib/d/y": "by link", "usr/lib/d": "by name", "lib/z": "3"}
    (sheet,) = laid(tree(tmp_path / "2", files, LIB), lower)
    assert not sheet.keys() & {"/usr/lib/x", "/usr/lib/d", "/usr/lib/d/y"}
    assert sheet["/usr/lib/z"] == "2/lib/z"


def test_a_link_is_not_replaced_by_way_of_itself(tmp_path: Path) -> None:
    lower = tree(tmp_path / "1", {"lib/x": "->.", "lib/old": "1"})
    upper = tree(tmp_path / "2", {"lib/x/x": "2", "lib/x/y": "2"}, (*LIB, b"/lib/x"))
    (sheet,) = laid(upper, lower)
    assert sheet == {"/*": "2", "/lib*": "2/lib", "/lib/x": "1/lib/x", "/lib/y": "2/lib/x/y"}


def test_a_layer_sees_what_those_below_moved(tmp_path: Path, lower: Tree) -> None:
    second = tree(tmp_path / "2", {"lib/way": "->/srv"}, LIB)
    third = tree(tmp_path / "3", {"usr/lib/way/x": "3"}, (b"/", b"/usr", b"/usr/lib", b"/usr/lib/way"))
    above, below = laid(third, second, lower)
    assert below["/usr/lib/way"] == "2/lib/way"
    assert above["/usr/lib/way"] == "2/lib/way"
    assert above["/srv/x"] == "3/usr/lib/way/x"


def test_two_links_to_one_directory(tmp_path: Path) -> None:
    lower = tree(tmp_path / "1", {"a": "->c", "b": "->a", "c/": ""})
    upper = tree(tmp_path / "2", {"a/x": "2", "b/y": "2", "b/x": "3"}, (b"/", b"/a", b"/b"))
    (sheet,) = laid(upper, lower)
    assert (sheet["/c/x"], sheet["/c/y"]) == ("2/a/x", "2/b/y")


def test_depth_is_no_matter(tmp_path: Path) -> None:
    deep = "/d" * 300
    lower = tree(tmp_path / "1", {"lib": f"->{deep}"})
    upper = tree(tmp_path / "2", {"lib/": "", f"lib{deep}/": ""}, LIB)
    (sheet,) = laid(upper, lower)
    assert sheet[deep + deep] == f"2/lib{deep}"


def test_paths_have_a_length(tmp_path: Path) -> None:
    lower = tree(tmp_path / "1", {"lib": f"->{('d' * 250 + '/') * 16}"})
    upper = tree(tmp_path / "2", {"lib/" + "e" * 250: ""}, LIB)
    with pytest.raises(UserError, match="paths are too long"):
        laid(upper, lower)


def test_it_has_an_end(tmp_path: Path, lower: Tree) -> None:
    upper = tree(tmp_path / "2", {f"lib/{number}": "" for number in range(100)}, LIB)
    below = Union([TreeLevel(os.fsencode(lower.path), Steps(100))])
    level = TreeLevel(os.fsencode(upper.path), Steps(1000))
    with pytest.raises(UserError, match="takes too long"):
        plan_sheets(level, upper.implied, below, Steps(100))
