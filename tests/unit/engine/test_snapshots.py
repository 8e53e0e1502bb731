"""Records of snapshots: chains, what they refuse, what survives."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mica.engine.snapshots import READ_ONLY, READ_WRITE, SnapshotStore, check_id
from mica.errors import NotFoundError, UserError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SnapshotStore]:
    with SnapshotStore(tmp_path / "db") as store:
        yield store


def test_a_chain_is_told_top_first(store: SnapshotStore) -> None:
    for number in range(300):
        store.add(f"l{number}", f"l{number - 1}" if number else None, READ_ONLY, "")
    assert [one.id for one in store.chain("l299")] == [f"l{number}" for number in range(299, -1, -1)]
    assert [one.is_rooted for one in store.chain("l1")] == [False, True]


def test_what_is_refused(store: SnapshotStore) -> None:
    store.add("base", None, READ_ONLY, "")
    store.add("top", "base", READ_WRITE, "label")
    with pytest.raises(UserError, match="There is a layer base already"):
        store.add("base", None, READ_ONLY, "")
    with pytest.raises(NotFoundError, match="There is no layer gone"):
        store.add("new", "gone", READ_ONLY, "")
    with pytest.raises(UserError, match="is the parent of others"):
        store.remove("base")
    with pytest.raises(NotFoundError, match="There is no layer gone"):
        store.chain("gone")
    assert store.find("new") is None
    assert store.get("top").label == "label"


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "a\0", "-x", "x" * 101, "é", None, 7, ".new-1"])
def test_ids_that_are_none(text: object) -> None:
    with pytest.raises(UserError, match="is not the id of a layer"):
        check_id(text)


@pytest.mark.parametrize("text", ["0" * 64, "f" * 64 + "-init", "6v1r3wq9a0b8c7d6e5f4g3h2i", "A_b-9"])
def test_ids_of_engines(text: str) -> None:
    assert check_id(text) == text


def test_mounts_are_counted_and_never_below_none(store: SnapshotStore) -> None:
    store.add("one", None, READ_WRITE, "")
    assert [store.count_mount("one", change) for change in (1, 1, -1, -1, -1, 1)] == [1, 2, 1, 0, 0, 1]
    store.forget_mounts("one")
    assert store.get("one").mounts == 0


def test_what_was_said_is_there_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom mica.engine.snapshots import SnapshotStore\n"
        "store = SnapshotStore(Path(sys.argv[1]))\nstore.add('one', None, 'rw', '')\nstore.count_mount('one', 1)\n"
        "store.set_size('one', 7)\nprint('done', flush=True)\nsys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        os.kill(process.pid, signal.SIGKILL)
    with SnapshotStore(tmp_path / "db") as store:
        one = store.get("one")
        assert (one.mounts, one.size_bytes, one.kind) == (1, 7, READ_WRITE)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"nonsense" * 1000)
    with pytest.raises(UserError, match="is not a database of layers"):
        SnapshotStore(tmp_path / "db")


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    import contextlib
    import sqlite3

    with SnapshotStore(tmp_path / "db"):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "db")) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(UserError, match="has version 9"):
        SnapshotStore(tmp_path / "db")
