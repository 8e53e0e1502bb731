"""Run directories: locks, sweeping, removal of hostile trees."""

import os
from pathlib import Path

import pytest

from mica.errors import TemporaryError
from mica.run.scratch import open_run_directory, sweep


def test_a_directory_lives_as_long_as_its_run(tmp_path: Path) -> None:
    root = tmp_path / "deep/root"
    with open_run_directory(root, "one") as one, open_run_directory(root, None) as two:
        assert one.path == root / "one"
        assert two.path == root / two.token
        assert one.cgroup != two.cgroup
        with pytest.raises(TemporaryError, match="'one' is running already"), open_run_directory(root, "one"):
            pass
        assert sweep(root) == []
        assert one.path.is_dir()
    assert os.listdir(root) == [".lock"]


def test_dead_ones_are_swept(tmp_path: Path) -> None:
    for name in ("a", ".dead-0123", "b"):
        (tmp_path / name / "upper").mkdir(parents=True)
    (tmp_path / "a/cgroup").write_text("../../etc")  # not a name of ours: nothing happens
    (tmp_path / "b/cgroup").write_bytes(b"\xff")
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "file").touch()
    assert sorted(sweep(tmp_path)) == [".dead-0123", "a", "b"]
    assert sorted(os.listdir(tmp_path)) == [".lock", "file", "link"]
    assert sweep(tmp_path / "missing") == []


def test_a_failing_run_is_removed_too(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_run_directory(tmp_path, "one") as directory:
        (directory.path / "missing").rmdir()
    assert os.listdir(tmp_path) == [".lock"]
