"""`mica worker`, `mica layers` and `--jobs 0`: what is refused, and what is shown."""

import json
import re
from pathlib import Path

import pytest
from tests.support.cli import mica
from tests.support.queues import sqlite_url

from mica.errors import UserError
from mica.jobs.queue import JobQueue
from mica.jobs.wishes import Wish

FQRN = "layers.example.org"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(f'[workers]\nqueue = "{sqlite_url(tmp_path)}"\n')
    return path


def test_without_a_queue_there_is_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    for command in (["worker"], ["layers"]):
        done = mica(tmp_path, *command, "--config", tmp_path / "config.toml")
        assert (done.code, done.sentence) == (1, "The configuration names no queue.")
    done = mica(tmp_path, "worker", "--jobs", "0", "--config", tmp_path / "config.toml")
    assert done.code == 2


def test_layers_are_shown_with_their_errors(tmp_path: Path, config: Path) -> None:
    with JobQueue(sqlite_url(tmp_path)) as queue:
        wishes = [Wish(FQRN, f"sha256:{number:064x}", "sha256:0", "docker://a/b@sha256:1") for number in range(2)]
        queue.ask(wishes, seen_revision=1)
        job_id = queue.layers.job_ids(FQRN, [wishes[0].digest])[0]
        assert queue.layers.begin(FQRN, wishes[0].digest, job_id=job_id, worker="here:1")
        queue.layers.fail(FQRN, wishes[0].digest, worker="here:1", error=UserError("It is broken."))
    done = mica(tmp_path, "layers", "--config", config, "--json")
    assert done.code == 0, done.stderr
    shown = {row["digest"]: row for row in json.loads(done.stdout)}
    failed = shown[wishes[0].digest]
    assert (failed["state"], failed["worker"], failed["tries"]) == ("failed", "here:1", 1)
    assert failed["error"] == "It is broken."
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", failed["since"])
    assert shown[wishes[1].digest]["state"] == "wanted"
    table = mica(tmp_path, "layers", FQRN, "--only", "failed", "--config", config).stdout
    assert "It is broken." in table
    assert "wanted" not in table
    wrong = mica(tmp_path, "layers", "--only", "lost", "--config", config)
    assert (wrong.code, "'lost' is no state of a layer" in wrong.sentence) == (2, True)


def test_a_worker_of_an_unknown_repository_is_refused(tmp_path: Path, config: Path) -> None:
    done = mica(tmp_path, "worker", "other.example.org", "--config", config)
    assert (done.code, "There is no repository other.example.org" in done.sentence) == (1, True)
