"""A repository in a directory."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contracts.object_store import OBJECT, POINTER, ObjectStoreContract

from mica.errors import UserError
from mica.store.local import LocalStore


@pytest.fixture
def nameless(tmp_path: Path) -> Iterator[LocalStore]:
    with LocalStore(tmp_path / "storage") as store:
        store.create()
        yield store


@pytest.fixture
def renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalStore]:
    """A store on a file system without nameless files."""
    real = os.open

    def without_tmpfile(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", without_tmpfile)
    with LocalStore(tmp_path / "storage") as store:
        store.create()
        yield store


class TestNameless(ObjectStoreContract):
    @pytest.fixture
    def store(self, nameless: LocalStore) -> LocalStore:
        return nameless


class TestRenaming(ObjectStoreContract):
    @pytest.fixture
    def store(self, renaming: LocalStore) -> LocalStore:
        return renaming


def files(store: LocalStore) -> set[str]:
    return {path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file()}


def test_the_layout(nameless: LocalStore) -> None:
    nameless.put(OBJECT, b"x")
    nameless.replace(POINTER, b"x")
    assert files(nameless) == {OBJECT, POINTER}
    assert {path.name for path in (nameless.root / "data").iterdir()} == {f"{n:02x}" for n in range(256)} | {"txn"}


def test_a_web_server_can_read_everything_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o077)
    try:
        with LocalStore(tmp_path / "storage") as store:
            store.create()
            store.put(OBJECT, b"x")
            store.replace(POINTER, b"x")
            modes = {path: (store.root / path).stat().st_mode & 0o777 for path in (OBJECT, POINTER)}
            directories = {(store.root / place).stat().st_mode & 0o777 for place in (".", "data", "data/ab")}
    finally:
        os.umask(previous)
    assert modes == {OBJECT: 0o644, POINTER: 0o644}
    assert directories == {0o755}


def test_creating_again_changes_nothing(nameless: LocalStore) -> None:
    nameless.put(OBJECT, b"x")
    nameless.create()
    assert nameless.has(OBJECT)


def test_what_a_killed_publisher_left_is_removed(nameless: LocalStore) -> None:
    nameless.put(OBJECT, b"x")
    nameless.replace(POINTER, b"x")
    for name in ("data/txn/123-abc", "..cvmfspublished.123.tmp"):
        (nameless.root / name).write_bytes(b"half")
    nameless.clear_unfinished()
    assert files(nameless) == {OBJECT, POINTER}


def test_unfinished_objects_are_not_listed(nameless: LocalStore) -> None:
    (nameless.root / "data/txn/123-abc").write_bytes(b"half")
    assert list(nameless.paths("data/")) == []


@pytest.mark.parametrize("kind", ["nameless", "renaming"])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: LocalStore = request.getfixturevalue(kind)

    def full(descriptor: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(UserError, match=f"Cannot store object {OBJECT} in .*: No space left") as caught:
            store.put(OBJECT, b"x")
        with pytest.raises(UserError, match="No space left"):
            store.replace(POINTER, b"x")
    assert "nothing was published" in caught.value.hint
    assert files(store) == set()


def test_short_writes_are_continued(nameless: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data[:1000])))
    nameless.put(OBJECT, b"0123456789" * 500)
    assert (nameless.root / OBJECT).read_bytes() == b"0123456789" * 500


def test_other_errors_name_the_place(tmp_path: Path) -> None:
    with LocalStore(tmp_path / "missing") as store:
        with pytest.raises(UserError, match=r"Cannot store object .*: No such file or directory"):
            store.put(OBJECT, b"x")
        (tmp_path / "missing").write_bytes(b"")
        with pytest.raises(UserError, match="Cannot create the storage directory"):
            store.create()
        with pytest.raises(UserError, match=f"Cannot read {OBJECT}"), store.open(OBJECT):
            pass


def test_deleting_and_syncing_name_the_place(nameless: LocalStore) -> None:
    (nameless.root / "data/ab/directory").mkdir()
    with pytest.raises(UserError, match="Cannot delete data/ab/directory"):
        nameless.delete("data/ab/directory")
