"""A repository is made as a whole or not at all."""

import threading
from pathlib import Path

import pytest

from mica.errors import MicaError, TemporaryError, UserError
from mica.files import locked
from mica.publish.manager import ReleaseManager, create_repository
from mica.publish.settings import RepositorySettings

FQRN = "new.example.org"


def settings_in(base: Path, storage: Path) -> RepositorySettings:
    return RepositorySettings(FQRN, str(storage), base / "state/repositories" / FQRN / "keys")


def everything_in(base: Path) -> set[str]:
    return {str(path.relative_to(base)) for path in base.rglob("*")}


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of somebody")
    before = everything_in(tmp_path)
    with pytest.raises(UserError, match="storage directory"):
        create_repository(tmp_path / "state", settings_in(tmp_path, tmp_path / "file/storage"), {})
    assert everything_in(tmp_path) - before <= {"state", "state/repositories"}
    with pytest.raises(UserError, match="storage directory"):
        create_repository(tmp_path / "state", settings_in(tmp_path, tmp_path / "file"), {})
    assert everything_in(tmp_path) - before <= {"state", "state/repositories"}


def test_what_was_there_before_a_failure_stays(tmp_path: Path) -> None:
    keys, storage = tmp_path / "keys", tmp_path / "www/storage"
    keys.mkdir()
    (keys / "note").write_text("mine")
    storage.mkdir(parents=True)
    (storage / "data").write_text("not a directory")
    with pytest.raises(MicaError):
        create_repository(tmp_path / "state", RepositorySettings(FQRN, str(storage), keys), {})
    assert everything_in(tmp_path) <= {
        "keys", "keys/note", "www", "www/storage", "www/storage/data", "state", "state/repositories",
    }  # fmt: skip
    assert (storage / "data").read_text() == "not a directory"
    (storage / "data").unlink()
    create_repository(tmp_path / "state", RepositorySettings(FQRN, str(storage), keys), {})
    with ReleaseManager.open(tmp_path / "state", FQRN) as manager:
        assert manager.head().revision == 1


def test_two_at_once(tmp_path: Path) -> None:
    """The second takes nothing away from the first."""
    settings = settings_in(tmp_path, tmp_path / "storage")
    lock = tmp_path / f"state/repositories/.{FQRN}.lock"
    with locked(lock, what="It", transient=True), pytest.raises(TemporaryError, match=f"Repository {FQRN} is in use"):
        create_repository(tmp_path / "state", settings, {})
    results: list[Exception | None] = []

    def create() -> None:
        try:
            create_repository(tmp_path / "state", settings, {})
            results.append(None)
        except MicaError as error:
            results.append(error)

    threads = [threading.Thread(target=create) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(None) == 1
    with ReleaseManager.open(tmp_path / "state", FQRN) as manager:
        assert manager.head().revision == 1
    assert not lock.exists()
