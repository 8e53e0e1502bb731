"""Moving a repository: everything arrives, nothing is lost, and what was interrupted goes on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.noise import noise
from tests.support.repositories import FQRN, Repository, findings, ingest, make_repository, read_back
from tests.support.tars import END, member

from mica.errors import IntegrityError, LostRaceError, UserError
from mica.publish import moving
from mica.publish.moving import Move, move_repository
from mica.publish.settings import read_settings, write_settings
from mica.repo.manifest import NAME as MANIFEST
from mica.store.base import ANYTHING, Anything
from mica.store.local import LocalStore


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = make_repository(tmp_path / "repository")
    ingest(repository, member(b"file", b"content") + member(b"large", noise(60_000)) + END, b"/data", nested=True)
    return repository


def move(repository: Repository, target: Path) -> Move:
    return move_repository(repository.state, repository.fqrn, str(target))


def files(storage: Path) -> dict[str, bytes]:
    found = {path.relative_to(storage).as_posix(): path.read_bytes() for path in storage.rglob("*") if path.is_file()}
    return {path: content for path, content in found.items() if not path.startswith("data/txn/")}


def use(repository: Repository, storage: Path) -> Repository:
    write_settings(repository.state, replace(read_settings(repository.state, FQRN), storage=str(storage)))
    return repository._replace(storage=storage)


def an_object(storage: Path) -> Path:
    return max((path for path in (storage / "data").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def assert_moved(repository: Repository, target: Path, work: Path) -> Repository:
    assert read_settings(repository.state, FQRN).storage == str(target)
    moved = repository._replace(storage=target)
    assert findings(moved, work) == []
    return moved


def test_everything_is_moved_and_the_old_storage_stays(repository: Repository, tmp_path: Path) -> None:
    before, seen = files(repository.storage), read_back(repository, tmp_path / "cache-1")
    done = move(repository, tmp_path / "new")
    assert files(tmp_path / "new") == before == files(repository.storage)
    assert (done.old_storage, done.new_storage) == (str(repository.storage), str(tmp_path / "new"))
    assert done.copied_objects == sum(path.startswith("data/") for path in before)
    assert done.present_objects == 0
    moved = assert_moved(repository, tmp_path / "new", tmp_path)
    assert read_back(moved, tmp_path / "cache-2") == seen
    ingest(moved, member(b"more", b"more") + END, b"/data")
    assert findings(moved, tmp_path) == []
    assert files(repository.storage) == before


def test_back_again_copies_only_what_is_new(repository: Repository, tmp_path: Path) -> None:
    move(repository, tmp_path / "new")
    ingest(repository._replace(storage=tmp_path / "new"), member(b"more", b"more") + END, b"/data")
    done = move(repository, repository.storage)
    assert 0 < done.copied_objects < 8
    assert done.present_objects > done.copied_objects
    assert_moved(repository, repository.storage, tmp_path)


def test_a_storage_that_is_in_use_is_told(repository: Repository) -> None:
    with pytest.raises(UserError, match=f"{FQRN} is in {repository.storage} already"):
        move(repository, repository.storage)


def test_a_storage_of_another_repository_is_left_alone(repository: Repository, tmp_path: Path) -> None:
    other = make_repository(tmp_path / "other", fqrn="other.example.org")
    before = files(other.storage)
    with pytest.raises(UserError, match=r"holds another repository, other\.example\.org"):
        move(repository, other.storage)
    assert files(other.storage) == before


def test_a_newer_revision_is_not_overwritten(repository: Repository, tmp_path: Path) -> None:
    move(repository, tmp_path / "new")
    ingest(repository._replace(storage=tmp_path / "new"), member(b"more", b"more") + END, b"/data")
    before = files(tmp_path / "new")
    use(repository, repository.storage)
    with pytest.raises(UserError, match=r"holds revision 3 of .*, which is newer than 2"):
        move(repository, tmp_path / "new")
    assert files(tmp_path / "new") == before


def test_a_damaged_object_is_named_and_nothing_changes(repository: Repository, tmp_path: Path) -> None:
    an_object(repository.storage).write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match=f"in {repository.storage} has other content"):
        move(repository, tmp_path / "new")
    assert read_settings(repository.state, FQRN).storage == str(repository.storage)
    assert not (tmp_path / "new" / MANIFEST).exists()


def test_half_an_object_at_the_new_place_is_replaced(repository: Repository, tmp_path: Path) -> None:
    move(repository, tmp_path / "new")
    use(repository, repository.storage)
    half = an_object(tmp_path / "new")
    half.write_bytes(half.read_bytes()[:-1])
    assert move(repository, tmp_path / "new").copied_objects == 1
    assert_moved(repository, tmp_path / "new", tmp_path)


def test_large_objects_go_by_a_file(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "_WHOLE_BYTES", 100)
    move(repository, tmp_path / "new")
    assert files(tmp_path / "new") == files(repository.storage)
    an_object(repository.storage).write_bytes(noise(5000))
    use(repository, repository.storage)
    with pytest.raises(IntegrityError, match="has other content"):
        move(repository, tmp_path / "other")


class WatchedStore(LocalStore):
    """Calls a function right before a pointer is replaced."""

    before: Callable[[LocalStore, str], None]

    def replace(self, path: str, data: bytes, *, expected: bytes | Anything | None = ANYTHING) -> None:
        self.before(self, path)
        super().replace(path, data, expected=expected)


def test_a_revision_of_the_last_moment_is_not_forgotten(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is published by a release manager of another machine, which does not know of the move."""

    def publish(store: LocalStore, path: str) -> None:
        if path == MANIFEST and store.root == tmp_path / "new":
            manifest = repository.storage / MANIFEST
            manifest.write_bytes(manifest.read_bytes() + b"of another revision")

    def open_watched(storage: str, *_: object) -> LocalStore:
        store = WatchedStore(Path(storage))
        store.before = publish
        return store

    monkeypatch.setattr(moving, "open_store", open_watched)
    with pytest.raises(LostRaceError, match=f"{MANIFEST} in {repository.storage}"):
        move(repository, tmp_path / "new")
    assert read_settings(repository.state, FQRN).storage == str(repository.storage)


@pytest.mark.parametrize("number", [*range(1, 20, 3), *range(20, 25)])
def test_a_move_that_fails_anywhere_goes_on(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = files(repository.storage)
    changes = 0

    class FailingStore(LocalStore):
        def put(self, path: str, data: bytes, **options: object) -> None:
            count()
            super().put(path, data)

        def replace(self, path: str, data: bytes, *, expected: bytes | Anything | None = ANYTHING) -> None:
            count()
            super().replace(path, data, expected=expected)

        def sync(self) -> None:
            count()

    def count() -> None:
        nonlocal changes
        changes += 1
        if changes == number:
            raise UserError("A test wants it.")

    monkeypatch.setattr(moving, "open_store", lambda storage, *_: FailingStore(Path(storage)))
    with pytest.raises(UserError, match="A test wants it"):
        move(repository, tmp_path / "new")
    assert read_settings(repository.state, FQRN).storage == str(repository.storage)
    assert findings(repository, tmp_path) == []
    move(repository, tmp_path / "new")
    assert files(tmp_path / "new") == before
    assert_moved(repository, tmp_path / "new", tmp_path)
