"""A repository in a directory."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from tests.contracts.object_store import OBJECT, POINTER, ObjectStoreContract

from mica.errors import NotFoundError, UserError
from mica.store.base import read_limited
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


class LocalFaults:
    """What a broken file system answers, in place of the calls."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    @contextlib.contextmanager
    def gone(self) -> Iterator[None]:
        root = self._store.root
        root.rename(root.with_name("unmounted"))
        try:
            yield
        finally:
            root.with_name("unmounted").rename(root)

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        real = os.write

        def write(descriptor: int, data: bytes | memoryview) -> int:
            real(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", write)
            yield

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        real = os.open

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        def open_to_read(path: str, flags: int, mode: int = 0o777) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR):
                refuse()
            return real(path, flags, mode)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "open", open_to_read)
            for name in ("link", "unlink", "replace", "rename", "utime"):
                patch.setattr(os, name, refuse)
            yield


def age(store: LocalStore, path: str, by_s: float) -> None:
    status = (store.root / path).stat()
    os.utime(store.root / path, (status.st_atime, status.st_mtime - by_s))


class TestNameless(ObjectStoreContract):
    @pytest.fixture
    def store(self, nameless: LocalStore) -> LocalStore:
        return nameless

    @pytest.fixture
    def faults(self, store: LocalStore) -> LocalFaults:
        return LocalFaults(store)

    @pytest.fixture
    def aged(self, store: LocalStore) -> Callable[[str, float], None]:
        return partial(age, store)


class TestRenaming(ObjectStoreContract):
    @pytest.fixture
    def store(self, renaming: LocalStore) -> LocalStore:
        return renaming

    @pytest.fixture
    def faults(self, store: LocalStore) -> LocalFaults:
        return LocalFaults(store)

    @pytest.fixture
    def aged(self, store: LocalStore) -> Callable[[str, float], None]:
        return partial(age, store)


def files(store: LocalStore) -> set[str]:
    """All but the lock that stays."""
    found = {path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file()}
    return found - {"data/txn/pointers.lock"}


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


def test_an_object_that_is_refreshed_while_it_is_removed_stays(
    nameless: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    nameless.put(OBJECT, b"x")
    age(nameless, OBJECT, 1000)
    since = nameless.clock() - 10
    real = os.rename

    def refresh_and_rename(source: str, target: str) -> None:
        os.utime(source)
        real(source, target)

    monkeypatch.setattr(os, "rename", refresh_and_rename)
    assert nameless.delete_many([OBJECT], unless_changed_since=since) == 0
    assert files(nameless) == {OBJECT}


def test_an_object_that_is_put_while_it_is_removed_is_there(
    nameless: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    nameless.put(OBJECT, b"x")
    age(nameless, OBJECT, 1000)
    real = os.rename
    counted: list[int] = []

    def rename_and_put(source: str, target: str) -> None:
        real(source, target)
        nameless.put(OBJECT, b"x", count_new=counted.append)

    monkeypatch.setattr(os, "rename", rename_and_put)
    assert nameless.delete_many([OBJECT], unless_changed_since=nameless.clock() - 10) == 1
    assert counted == [1]
    assert files(nameless) == {OBJECT}


def test_what_a_killed_remover_left_aside_comes_back(nameless: LocalStore) -> None:
    nameless.put(OBJECT, b"x")
    os.rename(nameless.root / OBJECT, nameless.root / f"data/txn/removed-ab-{OBJECT.removeprefix('data/ab/')}")
    nameless.clear_unfinished()
    assert files(nameless) == {OBJECT}


def test_unfinished_objects_are_not_listed(nameless: LocalStore) -> None:
    (nameless.root / "data/txn/123-abc").write_bytes(b"half")
    assert list(nameless.entries("data/")) == []


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


def test_a_storage_that_is_gone_is_named_and_is_no_missing_path(tmp_path: Path) -> None:
    with LocalStore(tmp_path / "gone") as store:
        with pytest.raises(UserError, match=f"The storage directory {tmp_path}/gone is not there") as caught:
            read_limited(store, POINTER, 100)
        assert not isinstance(caught.value, NotFoundError)
        store.create()
        with pytest.raises(NotFoundError, match=f"{POINTER} is not in"):
            read_limited(store, POINTER, 100)


def test_other_errors_name_the_place(tmp_path: Path) -> None:
    with LocalStore(tmp_path / "missing") as store:
        with pytest.raises(UserError, match=r"The storage directory .* is not there"):
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


def test_a_directory_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    nameless: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: str) -> None:
        raise OSError(errno.EIO, "Input/output error", path)

    nameless.put(OBJECT, b"x")
    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(UserError, match=f"Cannot list {nameless.where}.*: Input/output error"):
        list(nameless.entries("data/"))


def test_cleaning_up_does_not_disturb_who_replaces_a_pointer(nameless: LocalStore) -> None:
    """Whoever cleans up holds the lock of a repository; other machines, and a collection of garbage, do not ask for it
    when they replace a pointer."""
    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(lambda: [nameless.replace(POINTER, b"%d" % number) for number in range(300)])
        while not replacing.done():
            nameless.clear_unfinished()
        replacing.result()
    assert read_limited(nameless, POINTER, 10) == b"299"
