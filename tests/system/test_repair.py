"""`mica repo repair` as a command, with a replica behind HTTP and in a directory."""

import json
import shutil
from pathlib import Path

import pytest
from tests.support.cli import mica
from tests.support.repositories import FQRN, Repository, ingest, make_repository
from tests.support.tars import END, member
from tests.support.webserver import serving

pytestmark = pytest.mark.system


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = make_repository(tmp_path / "publisher")
    ingest(repository, member(b"one", b"first") + member(b"two", b"second") + END, b"/d", nested=True)
    shutil.copytree(repository.storage, tmp_path / "replica")
    return repository


def lose_files(repository: Repository) -> list[str]:
    lost = [path for path in repository.storage.glob("data/??/*") if len(path.name) == 38]
    for path in lost:
        path.unlink()
    return sorted(str(path.relative_to(repository.storage)) for path in lost)


def test_nothing_to_repair(repository: Repository) -> None:
    done = mica(repository.state, "repo", "repair", FQRN)
    assert (done.code, done.stdout) == (0, f"{FQRN}: nothing to repair\n{FQRN}: no errors, 0 warnings\n")


def test_objects_from_a_replica(repository: Repository, tmp_path: Path) -> None:
    state, replica = repository.state, tmp_path / "replica"
    lost = lose_files(repository)
    done = mica(state, "repo", "repair", FQRN, "--from", replica, "--dry-run")
    lines = sorted(f"object: {path}: It is fetched from {replica}." for path in lost)
    assert sorted(done.stdout.splitlines()[:-1]) == lines
    assert (done.code, done.stdout.splitlines()[-1]) == (0, f"{FQRN}: nothing was changed")
    assert mica(state, "repo", "check", FQRN).code == 3
    with serving(replica) as server:
        done = mica(state, "repo", "repair", FQRN, "--from", server.url)
    assert (done.code, done.stdout.splitlines()[-1]) == (0, f"{FQRN}: no errors, 0 warnings")
    assert mica(state, "repo", "check", FQRN, "--hash").code == 0


def test_what_stays_lost(repository: Repository) -> None:
    lost = lose_files(repository)
    done = mica(repository.state, "repo", "repair", FQRN, "--json")
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.code, sorted(step["where"] for step in steps)) == (3, lost)
    assert {step["kind"] for step in steps} == {"lost"}
    done = mica(repository.state, "repo", "repair", FQRN)
    assert done.code == 3
    assert sum(line.startswith("error: /d/") for line in done.stdout.splitlines()) == 3


def test_a_replica_that_is_not_there(repository: Repository, tmp_path: Path) -> None:
    done = mica(repository.state, "repo", "repair", FQRN, "--from", str(tmp_path / "nothing"))
    assert (done.code, done.sentence) == (1, f"The storage directory {tmp_path}/nothing does not exist.")
