"""What lies between trees whose signs are another union's: planned, found, kept, refused."""

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.support.tools import need_root

from mica.engine import signsheets as sheets
from mica.engine.signsheets import Sheet, TreeSigns, find_signs, plan_sheets, readable_layers
from mica.engine.whiteouts import AufsWhiteouts, OverlayWhiteouts, Whiteouts
from mica.errors import UserError

FOR_OVERLAY = OverlayWhiteouts()


def signs(removed: Iterable[bytes] = (), opaque: Iterable[bytes] = ()) -> TreeSigns:
    return TreeSigns(frozenset(removed), frozenset(opaque))


def sheet(removed: Iterable[bytes] = (), opaque: Iterable[bytes] = ()) -> Sheet:
    return Sheet(frozenset(removed), frozenset(opaque))


@pytest.mark.parametrize(
    ("found", "planned"),
    [
        ([], []),
        ([signs(), signs()], [sheet(), sheet()]),
        # A whiteout lies on its own tree, an opaque directory on the next.
        ([signs([b"d/x"], [b"o"]), signs([b"y"])], [sheet([b"d/x"]), sheet([b"y"], [b"o"])]),
        # Below the last there is nothing to hide.
        ([signs([], [b"o"])], [sheet()]),
        # What is hidden from above needs no whiteout.
        ([signs([], [b"o"]), signs([b"o/x", b"o/deep/y", b"ox"])], [sheet(), sheet([b"ox"], [b"o"])]),
        ([signs([], [b"o"]), signs([b"o"])], [sheet(), sheet([], [b"o"])]),
        # One name cannot be gone and have something in it.
        ([signs([], [b"a/b/o"]), signs([b"a", b"b"])], [sheet(), sheet([b"b"], [b"a", b"a/b/o"])]),
        # A root that hides ends the list.
        ([signs([b"x"], [b"", b"o"]), signs([b"y"])], [sheet([b"x"])]),
        ([signs(), signs([], [b""]), signs()], [sheet(), sheet()]),
    ],
)
def test_where_signs_go(found: list[TreeSigns], planned: list[Sheet]) -> None:
    assert plan_sheets(found) == planned


def tree_at(path: Path, *names: str) -> Path:
    """Files, and directories where a name ends with a slash."""
    path.mkdir(parents=True)
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (path / name).mkdir(exist_ok=True)
        else:
            (path / name).write_bytes(name.encode())
    return path


def test_signs_of_aufs_are_found_for_overlayfs(tmp_path: Path) -> None:
    tree = tree_at(
        tmp_path / "tree", "d/.wh.gone", "d/.wh.there", "d/there", "d/.wh.dir", "d/dir/", "o/.wh..wh..opq", "o/new",
        ".wh..wh.aufs", ".wh..wh.plnk/1.2", ".wh.",
    )  # fmt: skip
    (tree / "link").symlink_to("o")
    assert find_signs(tree, FOR_OVERLAY) == signs(
        [
            b".wh.", b".wh..wh.aufs", b".wh..wh.plnk", b"d/.wh.dir", b"d/.wh.gone", b"d/.wh.there", b"d/gone",
            b"o/.wh..wh..opq",
        ],
        [b"d/dir", b"o"],
    )  # fmt: skip


def test_a_root_that_hides(tmp_path: Path) -> None:
    assert find_signs(tree_at(tmp_path / "tree", ".wh..wh..opq", "x"), FOR_OVERLAY) == signs([b".wh..wh..opq"], [b""])
    assert find_signs(tree_at(tmp_path / "other", ".wh..wh..opq", "x"), AufsWhiteouts()) == signs([], [b""])


def test_signs_of_overlayfs_are_found_for_aufs(tmp_path: Path) -> None:
    need_root()
    tree = tree_at(tmp_path / "tree", "d/there", "o/new", "d/.wh.native")
    for name in ("gone", "d/gone"):
        os.mknod(tree / name, stat.S_IFCHR)
    os.setxattr(tree / "o", "trusted.overlay.opaque", b"y")
    assert find_signs(tree, AufsWhiteouts()) == signs([b"gone", b"d/gone"], [b"o"])
    assert find_signs(tree, OverlayWhiteouts()).opaque == frozenset()


@pytest.mark.parametrize("names", [("d/.wh.x", "d/x"), (".wh.x", "x/")])
def test_a_tree_whose_whiteouts_hide_its_own_files_is_not_for_aufs(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"AUFS cannot use layer .*\.wh\.x' and the file"):
        find_signs(tree_at(tmp_path / "tree", *names), AufsWhiteouts())


def test_a_directory_named_as_a_whiteout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"directory '\.wh\.d', which is the name of a whiteout"):
        find_signs(tree_at(tmp_path / "tree", ".wh.d/x"), FOR_OVERLAY)


def with_facts(path: Path, facts: object, *names: str) -> Path:
    """A tree as mica lays it out, with its facts beside."""
    tree = tree_at(path / "layerfs", *names)
    path.with_name(f"{path.name}.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
    return tree


def test_trees_of_mica_are_not_walked_where_their_facts_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "_DIRECTORIES_MAX", 0)
    none, some = {"total": 0, "items": []}, {"total": 1, "items": ["x"]}
    bare = with_facts(tmp_path / "a", {"format_version": 2, "whiteouts": none, "opaque": none}, "x")
    full = with_facts(tmp_path / "b", {"format_version": 2, "whiteouts": some, "opaque": none}, "x")
    assert find_signs(bare, AufsWhiteouts()) == find_signs(bare, FOR_OVERLAY) == find_signs(full, FOR_OVERLAY)
    with pytest.raises(UserError, match="more or deeper directories"):
        find_signs(full, AufsWhiteouts())


@pytest.mark.parametrize("facts", ["", "no JSON", "[]", "{}", '{"format_version": 2}', "[" * 100_000])
def test_facts_that_tell_nothing(tmp_path: Path, facts: str) -> None:
    with_facts(tmp_path / "a", facts, ".wh.x", "x")
    with pytest.raises(UserError, match="AUFS cannot use layer"):
        find_signs(tmp_path / "a/layerfs", AufsWhiteouts())


def test_more_signs_than_can_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tree_at(tmp_path / "tree", *(f".wh.{number}" for number in range(4)))
    monkeypatch.setattr(sheets, "_SIGNS_MAX", 7)
    with pytest.raises(UserError, match="removes more than 7 names"):
        find_signs(tree, FOR_OVERLAY)
    monkeypatch.setattr(sheets, "_SIGNS_MAX", 8)
    assert len(find_signs(tree, FOR_OVERLAY).removed) == 8
    monkeypatch.setattr(sheets, "_SIGN_BYTES_MAX", 20)
    with pytest.raises(UserError, match="removes more"):
        find_signs(tree, FOR_OVERLAY)


@pytest.mark.parametrize("union", [FOR_OVERLAY, AufsWhiteouts()], ids=["overlay", "aufs"])
def test_a_layer_with_members_below_a_link_of_a_lower_one(tmp_path: Path, union: Whiteouts) -> None:
    none = {"total": 0, "items": []}
    implied = {"total": 2, "items": ["/", "/lib"]}
    facts = {"format_version": 4, "whiteouts": none, "opaque": none, "implied_directories": implied}
    top, low = with_facts(tmp_path / "top", facts, "lib/new"), tree_at(tmp_path / "low", "usr/lib/old")
    assert readable_layers([top, low], union, tmp_path / "sheets") == (top, low)
    (low / "lib").symlink_to("usr/lib")
    with pytest.raises(UserError, match="files below a symbolic link of a lower layer"):
        readable_layers([top, low], union, tmp_path / "others")


def test_of_a_tree_that_is_there_twice_the_topmost_counts(tmp_path: Path) -> None:
    one, two = tree_at(tmp_path / "one", "x"), tree_at(tmp_path / "two", "y")
    assert readable_layers([one, two, one, two], FOR_OVERLAY, tmp_path / "sheets") == (one, two)


def test_sheets_are_made_once_and_again_after_a_crash(tmp_path: Path) -> None:
    need_root()
    trees = [tree_at(tmp_path / "top", "d/.wh.x", "d/y"), tree_at(tmp_path / "low", "d/x")]
    place = tmp_path / "sheets"
    layers = readable_layers(trees, FOR_OVERLAY, place)
    (made,) = place.iterdir()
    assert layers == (made / "0", *trees)
    inode = (made / "0/d/x").lstat().st_ino
    assert readable_layers(trees, FOR_OVERLAY, place) == layers
    assert (made / "0/d/x").lstat().st_ino == inode
    # Killed before the plan was written.
    (made / "plan.json").unlink()
    (made / "1").mkdir()
    assert readable_layers(trees, FOR_OVERLAY, place) == layers
    assert sorted(path.name for path in made.iterdir()) == ["0", "plan.json"]


def test_a_sheet_has_the_attributes_of_what_it_lies_on(tmp_path: Path) -> None:
    need_root()
    tree = tree_at(tmp_path / "top", "a/b/.wh.x", "a/b/y")
    os.setxattr(tree / "a", "user.name", b"value")
    for number, path in enumerate((tree / "a/b", tree / "a", tree)):
        os.chown(path, number + 1, number + 2)
        path.chmod(0o1750 + number)
        os.utime(path, ns=(0, 1_234_567_890 + number))
    top, _ = readable_layers([tree], FOR_OVERLAY, tmp_path / "sheets")
    for name in ("a/b", "a", "."):
        kept, own = (top / name).stat(), (tree / name).stat()
        assert (kept.st_mode, kept.st_uid, kept.st_gid) == (own.st_mode, own.st_uid, own.st_gid)
        assert kept.st_mtime_ns == own.st_mtime_ns
    assert os.getxattr(top / "a", "user.name") == b"value"
