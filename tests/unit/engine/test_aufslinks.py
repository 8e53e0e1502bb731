"""Which names are brought up, in directories that stand for a union and its writable branch."""

import os
from pathlib import Path

import pytest

from mica.engine.aufslinks import bring_up_names, forget_pseudo_links


@pytest.fixture
def union(tmp_path: Path) -> Path:
    path = tmp_path / "union"
    (path / "d/deep").mkdir(parents=True)
    for name in ("one", "d/other", "d/deep/file"):
        (path / name).write_text(name)
        os.utime(path / name, (1, 2))
    (path / "d/deep/file").chmod(0o4755)
    os.link(path / "d/deep/file", path / "d/second")
    return path


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "branch/.wh..wh.plnk"
    path.mkdir(parents=True)
    return path


def changed(union: Path, branch: Path) -> set[str]:
    """Names whose attributes were set."""
    paths = [path for path in union.rglob("*") if not path.is_dir()]
    before = {path: path.lstat().st_ctime_ns for path in paths}
    tick(union, max(before.values()))
    bring_up_names(union, branch)
    return {os.fspath(path.relative_to(union)) for path in paths if path.lstat().st_ctime_ns != before[path]}


def tick(directory: Path, until_after: int) -> None:
    """Until the file system's clock has moved on."""
    clock = directory.parent / "clock"
    while True:
        clock.touch()
        if clock.lstat().st_ctime_ns > until_after:
            return


def test_files_that_aufs_keeps_names_of_are_brought_up_by_all_names(union: Path, kept: Path) -> None:
    (kept / f"{(union / 'd/second').stat().st_ino}.77").touch()
    assert changed(union, kept.parent) == {"d/second", "d/deep/file"}
    status = (union / "d/second").stat()
    assert (status.st_atime, status.st_mtime, status.st_mode & 0o7777) == (1, 2, 0o4755)


@pytest.mark.parametrize("name", ["{}", "x{}.1", "{}.1.2", "{}.x", ".{}"])
def test_other_names_mean_nothing(union: Path, kept: Path, name: str) -> None:
    path = kept / name.format((union / "one").stat().st_ino)
    path.touch()
    assert changed(union, kept.parent) == set()
    forget_pseudo_links(kept.parent)
    assert path.exists()


def test_a_branch_without_them(union: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert changed(union, tmp_path / "empty") == set()
    forget_pseudo_links(tmp_path / "empty")


def test_a_link_in_place_of_the_directory_leads_nowhere(union: Path, tmp_path: Path) -> None:
    """A program can fill the directory of a lowest layer, which is no union."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / f"{(union / 'one').stat().st_ino}.1").touch()
    (tmp_path / "branch").mkdir()
    (tmp_path / "branch/.wh..wh.plnk").symlink_to(outside)
    assert changed(union, tmp_path / "branch") == set()
    forget_pseudo_links(tmp_path / "branch")
    assert len(list(outside.iterdir())) == 1


def test_links_of_the_union_are_not_followed(union: Path, kept: Path, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host/file").touch()
    (union / "d/out").symlink_to(tmp_path / "host")
    (union / "d/out-file").symlink_to(tmp_path / "host/file")
    (kept / f"{(tmp_path / 'host/file').stat().st_ino}.1").touch()
    before = (tmp_path / "host/file").stat().st_ctime_ns
    assert changed(union, kept.parent) == set()
    assert (tmp_path / "host/file").stat().st_ctime_ns == before


def test_what_an_earlier_mount_left_is_forgotten(kept: Path) -> None:
    (kept / "12.34").touch()
    (kept / "12.35").mkdir()
    forget_pseudo_links(kept.parent)
    assert os.listdir(kept) == ["12.35"]
