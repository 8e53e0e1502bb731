"""What `mica repo check` prints."""

import json
from pathlib import Path

import pytest
from tests.support.repositories import FQRN, Repository, ingest, make_repository
from tests.support.tars import END, member

from mica.cli.checking import check_place, teller
from mica.cli.places import Places
from mica.publish.check import CheckProgress


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Without the objects of two files."""
    repository = make_repository(tmp_path / "repository")
    before = set(repository.storage.rglob("data/??/*"))
    ingest(repository, member(b"one", b"1") + member(b"two", b"2") + END)
    for path in set(repository.storage.rglob("data/??/*")) - before:
        if len(path.name) == 38:
            path.unlink()
    return repository


def checked(repository: Repository, *, as_json: bool) -> int:
    return check_place(Places(repository.state), FQRN, hash_objects=False, as_json=as_json)


def test_a_line_for_each_finding(repository: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(repository, as_json=False) == 3
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split(": ")[:2] for line in lines) == [["error", "/one"], ["error", "/two"]]


def test_one_document(repository: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(repository, as_json=True) == 3
    document = json.loads(capsys.readouterr().out)
    assert (document["repository"], document["errors"]) == (FQRN, 2)
    assert sorted(finding["where"] for finding in document["findings"]) == ["/one", "/two"]


@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    assert checked(make_repository(tmp_path), as_json=as_json) == 0
    shown = capsys.readouterr().out
    if as_json:
        assert json.loads(shown) == {"repository": FQRN, "errors": 0, "findings": []}
    else:
        assert shown == f"{FQRN}: no errors, 0 warnings\n"


def test_the_progress_in_words() -> None:
    told: list[tuple[int, int, str]] = []
    teller(lambda *values: told.append(values))(CheckProgress(3, 12345, 99, 20000))
    assert told == [(12345, 20000, "12,345 entries, 3 catalogs, 99 objects")]
