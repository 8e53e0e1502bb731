"""What directories are like that a layer only implies, and which layers show; on plain directories.

The sign of an opaque directory needs root: tests/system/test_implied_directories.py.
"""

import os
import stat
from pathlib import Path

from mica.union.directories import Tree, make_directories, plan_directories, visible_trees


def tree(place: Path, implied: tuple[bytes, ...] = (), **modes: int) -> Tree:
    """Directories with their modes; `_` stands for a slash."""
    place.mkdir()
    for name, mode in modes.items():
        directory = place / name.replace("_", "/")
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(mode)
    return Tree(place, implied)


def planned(*trees: Tree) -> dict[bytes, int]:
    """Path to mode; the root's is not told."""
    found = {one.path: stat.S_IMODE(one.attributes().mode) for one in plan_directories(trees)}
    if found:
        assert next(iter(found)) == b"/", "parents first"
    return {path: mode for path, mode in found.items() if path != b"/"}


def test_a_directory_nobody_brought_is_like_the_one_below(tmp_path: Path) -> None:
    upper = tree(tmp_path / "2", (b"/tmp",), tmp=0o755)
    lower = tree(tmp_path / "1", tmp=0o1777)
    assert planned(upper, lower) == {b"/tmp": 0o1777}
    assert planned(lower, upper) == {}
    assert planned(tree(tmp_path / "3", tmp=0o755), lower) == {}


def test_the_topmost_that_was_brought_counts(tmp_path: Path) -> None:
    trees = (
        tree(tmp_path / "4", (b"/d",), d=0o755),
        tree(tmp_path / "3", (b"/d",), d=0o755),
        tree(tmp_path / "2", d=0o700),
        tree(tmp_path / "1", d=0o711),
    )
    assert planned(*trees) == {b"/d": 0o700}


def test_parents_are_as_the_union_shows_them(tmp_path: Path) -> None:
    upper = tree(tmp_path / "2", (b"/var/tmp",), var=0o711, var_tmp=0o755)
    lower = tree(tmp_path / "1", var=0o755, var_tmp=0o1777)
    assert planned(upper, lower) == {b"/var": 0o711, b"/var/tmp": 0o1777}


def test_what_does_not_show_does_not_count(tmp_path: Path) -> None:
    upper = tree(tmp_path / "3", (b"/a/b",), a_b=0o755)
    between = tree(tmp_path / "2")
    (between.path / "a").touch()
    lower = tree(tmp_path / "1", a_b=0o700)
    assert planned(upper, between, lower) == {}
    linked = tree(tmp_path / "4")
    (linked.path / "a").symlink_to(lower.path / "a")
    assert planned(upper, linked, lower) == {}


def test_the_root_and_what_no_layer_brought(tmp_path: Path) -> None:
    upper = tree(tmp_path / "2", (b"/", b"/new", b"/gone"), new=0o755)
    lower = tree(tmp_path / "1")
    lower.path.chmod(0o700)
    upper.path.chmod(0o755)
    (root,) = plan_directories((upper, lower))
    assert root.path == b"/"
    assert stat.S_IMODE(root.attributes().mode) == 0o700
    assert plan_directories((upper,)) == []


def test_another_time_alone_needs_nothing(tmp_path: Path) -> None:
    upper, lower = tree(tmp_path / "2", (b"/d",), d=0o755), tree(tmp_path / "1", d=0o755)
    os.utime(upper.path / "d", (0, 0))
    assert plan_directories((upper, lower)) == []


def test_directories_are_made_as_planned(tmp_path: Path) -> None:
    upper = tree(tmp_path / "2", (b"/var/tmp",), var_tmp=0o755)
    lower = tree(tmp_path / "1", var=0o511, var_tmp=0o1777)
    os.utime(lower.path / "var/tmp", (1000, 1000))
    (target := tmp_path / "target").mkdir()
    make_directories(target, plan_directories((upper, lower)))
    assert [path.relative_to(target).as_posix() for path in sorted(target.rglob("*"))] == ["var", "var/tmp"]
    status = (target / "var/tmp").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o1777, 1000)


def test_without_opaque_roots_all_layers_show(tmp_path: Path) -> None:
    trees = [tree(tmp_path / "2"), tree(tmp_path / "1")]
    assert visible_trees(trees) == trees
