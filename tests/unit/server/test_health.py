"""What is said of a repository that is well, and of one in which a thing is wrong."""

import datetime
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.repositories import Repository, ingest, make_repository
from tests.support.tars import END, member
from tests.support.webserver import WebServer, closed_port, serving
from tests.unit.publish.test_manager import renew_key

from mica.publish.resigning import resign
from mica.repo.statusfile import NAME as STATUS
from mica.repo.statusfile import updated_status
from mica.server.health import DAY_S, Finding, Health, Level, Thresholds, examine

ROOMY = Thresholds(free_bytes=0, free_warn_bytes=0)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


@pytest.fixture
def replica(repository: Repository, tmp_path: Path) -> Iterator[WebServer]:
    """A copy that is served."""
    shutil.copytree(repository.storage, tmp_path / "replica")
    with serving(tmp_path / "replica") as server:
        yield server


def health(repository: Repository, thresholds: Thresholds = ROOMY, *urls: str, days_later: float = 0.0) -> Health:
    with repository.manager() as manager:
        return examine(manager, thresholds, urls, now=time.time() + days_later * DAY_S)


def only(found: Health) -> Finding:
    (finding,) = found.findings
    return finding


def test_a_new_repository_is_well(repository: Repository, replica: WebServer) -> None:
    found = health(repository, ROOMY, replica.url)
    assert (found.level, found.findings) == (Level.OK, ())
    assert found.facts["revision"] == 1
    assert found.facts["whitelist_days"] == 30.0
    assert found.facts["certificate_days"] == 365.0
    assert found.facts["collected"] is None
    assert found.facts["replicas"] == [{"url": replica.url, "revision": 1, "lag_s": 0.0, "trouble": ""}]


@pytest.mark.parametrize(
    ("days", "level", "word"),
    [
        (22, Level.OK, ""),
        (23.5, Level.WARNING, "expires in 6.5 days"),
        (27.5, Level.UNHEALTHY, "expires in 2.5 days"),
        (31, Level.UNHEALTHY, "has expired"),
    ],
)
def test_a_whitelist_is_missed_before_it_expires(repository: Repository, days: float, level: Level, word: str) -> None:
    found = health(repository, days_later=days)
    assert found.level is level
    assert [(finding.check, word in finding.sentence) for finding in found.findings] == [("whitelist", True)] * (
        level is not Level.OK
    )


@pytest.mark.parametrize(("days", "word"), [(340, "expires in 25.0 days"), (400, "has expired")])
def test_an_old_certificate_is_only_a_warning(repository: Repository, days: float, word: str) -> None:
    with repository.manager() as manager:
        resign(manager, days=3000)
    finding = only(health(repository, days_later=days))
    assert (finding.level, finding.check) == (Level.WARNING, "certificate")
    assert word in finding.sentence


def test_what_clients_would_not_believe_is_unhealthy(repository: Repository) -> None:
    with repository.manager() as manager:
        other = renew_key(repository)
        manager.publish_again(manager.head(), manager.keys.signer(), replaces=manager.read_manifest())
    finding = only(health(repository))
    assert (finding.level, finding.check) == (Level.UNHEALTHY, "revision")
    assert "is not on its whitelist" in finding.sentence
    assert other


def test_a_storage_that_is_gone_is_said_by_each_check(repository: Repository) -> None:
    repository.storage.rename(repository.storage.with_name("away"))
    found = health(repository)
    assert found.level is Level.UNHEALTHY
    assert {finding.check for finding in found.findings} >= {"revision", "whitelist", "space", "replicas"}
    assert all(f"{repository.storage} is not there" in finding.sentence for finding in found.findings)


def test_a_replica_lags_since_the_first_revision_that_it_lacks(repository: Repository, replica: WebServer) -> None:
    """And not since the newest: a replica that never comes along would look as if it had just begun to lag."""
    for name in (b"one", b"two"):
        time.sleep(1.1)  # manifests count in seconds
        ingest(repository, member(name, b"x") + END)
    thresholds = replace(ROOMY, lag_warn_s=3600.0, lag_s=7200.0)
    assert health(repository, thresholds, replica.url).findings == ()
    finding = only(health(repository, thresholds, replica.url, days_later=1.5 / 24))
    assert (finding.level, finding.check) == (Level.WARNING, "replicas")
    assert finding.sentence == f"{replica.url} is at revision 1: it lacks what came 1.5 hours ago and since."
    finding = only(health(repository, thresholds, replica.url, days_later=2.5 / 24))
    assert finding.level is Level.UNHEALTHY


def test_a_replica_with_an_old_whitelist_is_unhealthy(repository: Repository, replica: WebServer) -> None:
    with repository.manager() as manager:
        resign(manager, days=100)
    finding = only(health(repository, ROOMY, replica.url, days_later=40))
    assert (finding.level, finding.check, "expired at" in finding.sentence) == (Level.UNHEALTHY, "replicas", True)


def test_a_replica_that_does_not_answer_is_unhealthy_and_the_others_are_asked(
    repository: Repository, replica: WebServer
) -> None:
    away = f"http://user:secret@{closed_port()}/x"
    found = health(repository, ROOMY, away, replica.url)
    finding = only(found)
    assert (finding.level, finding.check) == (Level.UNHEALTHY, "replicas")
    assert "secret" not in str(found)
    replicas = found.facts["replicas"]
    assert isinstance(replicas, list)
    assert [one["revision"] for one in replicas] == [None, 1]


def test_space_garbage_and_silence(repository: Repository) -> None:
    huge = 1 << 62
    assert only(health(repository, replace(ROOMY, free_warn_bytes=huge))).level is Level.WARNING
    found = health(repository, replace(ROOMY, free_warn_bytes=huge, free_bytes=huge))
    assert (only(found).level, only(found).check) == (Level.UNHEALTHY, "space")
    wanted = replace(ROOMY, collected_warn_s=DAY_S, published_warn_s=2 * DAY_S)
    assert only(health(repository, wanted)).sentence == "Garbage was never collected."
    now = datetime.datetime.now(datetime.UTC)
    (repository.storage / STATUS).write_bytes(updated_status(None, "it", last_gc=now))
    assert health(repository, wanted).findings == ()
    found = health(repository, wanted, days_later=3)
    assert [finding.sentence for finding in found.findings] == [
        "Nothing was published for 3.0 days.", "Garbage was not collected for 3.0 days.",
    ]  # fmt: skip
    assert found.level is Level.WARNING


def test_a_clock_that_went_back_is_said(repository: Repository) -> None:
    finding = only(health(repository, days_later=-1))
    assert (finding.level, finding.check) == (Level.WARNING, "revision")
    assert "the clock of this machine went back" in finding.sentence


def test_a_damaged_status_file_is_said(repository: Repository) -> None:
    (repository.storage / STATUS).write_bytes(b"x")
    finding = only(health(repository))
    assert (finding.check, "is damaged" in finding.sentence) == ("collection", True)


def test_work_in_the_queue_is_told(repository: Repository) -> None:
    with repository.manager() as manager:
        found = examine(manager, ROOMY, (), queue=lambda: {"wanted": 3, "published": 5})
        assert (found.level, found.facts["queue"]) == (Level.OK, {"wanted": 3, "published": 5})
        assert examine(manager, ROOMY, ()).facts["queue"] is None
        failed = examine(manager, ROOMY, (), queue=lambda: {"failed": 2})
    assert (failed.level, only(failed).check) == (Level.WARNING, "queue")
    assert only(failed).sentence.startswith("2 layers could not be made: mica layers ")
