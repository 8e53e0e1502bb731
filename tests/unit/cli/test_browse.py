"""Looking into a repository whose catalog names what this version cannot read."""

from pathlib import Path

import pytest
from tests.support.repositories import Repository, ingest, make_repository, opened_client
from tests.support.tars import END, member

from mica.cli.browse import Browser
from mica.errors import MicaError
from mica.repo.entry import Entry


def change(repository: Repository, path: bytes, **changes: object) -> None:
    with repository.manager() as manager, manager.transaction() as transaction:
        entry = transaction.catalogs.find(path)
        assert entry is not None
        transaction.catalogs.put(path, entry._replace(**changes))  # type: ignore[arg-type]


def entry_of(repository: Repository, path: bytes) -> Entry:
    with repository.manager() as manager, manager.snapshot() as catalogs:
        entry = catalogs.find(path)
        assert entry is not None
        return entry


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [(0x1000, "/file cannot be read: unknown compression 2."), (0x40, "has chunks of 0 bytes for 'file' of 7.")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, flag: int, sentence: str) -> None:
    repository = make_repository(tmp_path / "repository")
    ingest(repository, member(b"file", b"content") + member(b"other", b"x") + END)
    changes = {"digest": None} if flag == 0x40 else {}
    change(repository, b"/file", flags=entry_of(repository, b"/file").flags | flag, **changes)
    with opened_client(repository, tmp_path / "cache") as client:
        browser = Browser(client, client.update().manifest)
        with pytest.raises(MicaError, match=sentence):
            browser.stat(b"/file")
        with pytest.raises(MicaError, match=sentence):
            list(browser.read(b"/file"))
        assert [name for name, _ in browser.entries(b"")] == [b"file", b"other"]
        assert browser.stat(b"/other")["compression"] == "zlib"
