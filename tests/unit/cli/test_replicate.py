"""`mica repo replicate`, as it is called."""

import json
from pathlib import Path

import pytest
from tests.support.cli import Outcome, mica
from tests.support.repositories import FQRN, Repository, ingest, make_repository
from tests.support.tars import END, member
from tests.support.webserver import serving

from mica.replicate.record import ReplicaHome


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = make_repository(tmp_path / "source")
    ingest(made, member(b"file", b"content") + END)
    return made


def replicate(repository: Repository, url: str | Path, destination: Path, state: Path, *more: str) -> Outcome:
    key = repository.keys / f"{FQRN}.pub"
    return mica(state, "repo", "replicate", url, destination, "--name", FQRN, "--key", key, *more)


def test_facts_for_people_and_for_programs(repository: Repository, tmp_path: Path) -> None:
    state, place = tmp_path / "state", tmp_path / "replica"
    with serving(repository.storage) as server:
        first = replicate(repository, server.url, place, state)
        again = replicate(repository, server.url, place, state, "--json")
    assert (first.code, again.code) == (0, 0), first.stderr + again.stderr
    assert dict(line.split(maxsplit=1) for line in first.stdout.splitlines())["revision"] == "2"
    facts = json.loads(again.stdout)
    assert facts.pop("source").startswith("http://127.0.0.1:")
    assert facts == {
        "repository": FQRN, "destination": str(place), "revision": 2, "former_revision": 2, "new_objects": 0,
        "new_catalogs": 0, "stored_bytes": 0, "present_objects": 2, "tags": 2, "missing_tags": [], "repaired": 0,
    }  # fmt: skip
    read = mica(state, "repo", "cat", FQRN, "/file", "--url", place, "--key", repository.keys / f"{FQRN}.pub")
    assert read.stdout == "content", read.stderr


def test_another_storage_of_this_host_may_be_the_source(repository: Repository, tmp_path: Path) -> None:
    outcome = replicate(repository, repository.storage, tmp_path / "replica", tmp_path / "state")
    assert outcome.code == 0, outcome.stderr


def test_the_storage_of_a_release_manager_here_is_refused(repository: Repository) -> None:
    before = sorted(repository.storage.rglob("*"))
    outcome = replicate(repository, repository.storage, repository.storage, repository.state)
    assert outcome.code == 1
    assert outcome.sentence == f"{repository.storage} is the storage of {FQRN}, which is published here."
    assert sorted(repository.storage.rglob("*")) == before


def test_one_at_a_time(repository: Repository, tmp_path: Path) -> None:
    state, place = tmp_path / "state", tmp_path / "replica"
    with ReplicaHome(state, FQRN, str(place)).locked():
        outcome = replicate(repository, repository.storage, place, state)
    assert outcome.code == 4
    assert outcome.sentence.startswith(f"The replica {place} is in use by ")


def test_failures_are_sentences_with_exit_codes(repository: Repository, tmp_path: Path) -> None:
    state, place = tmp_path / "state", tmp_path / "replica"
    no_key = mica(state, "repo", "replicate", "http://127.0.0.1:1/cvmfs/a.example.org", place)
    assert no_key.code == 1
    assert no_key.sentence == "There is no public key for a.example.org."
    other_name = mica(
        state, "repo", "replicate", repository.storage, place, "--name", "b.example.org",
        "--key", repository.keys / f"{FQRN}.pub",
    )  # fmt: skip
    assert other_name.code == 3
    assert f"belongs to another repository, {FQRN}" in other_name.sentence
    (repository.storage / ".cvmfs_master_replica").unlink()
    refused = replicate(repository, repository.storage, place, state)
    assert refused.code == 1
    assert "does not permit to replicate" in refused.sentence
