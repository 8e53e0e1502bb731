"""`mica repo move` from a directory into a bucket and back, also when it is killed."""

import json
import os
import signal
import tempfile
from pathlib import Path

import pytest
from tests.support.cli import mica
from tests.support.noise import noise
from tests.support.repositories import FQRN, Repository, findings, ingest, make_repository
from tests.support.s3proxy import run_until_request, s3_proxy
from tests.support.s3repositories import S3Repository
from tests.support.seaweed import S3Server, s3_server
from tests.support.tars import END, member
from tests.support.webserver import serving
from tests.support.webservers import WEB_SERVERS, free_port
from tests.support.zygote import Zygote, zygote

from mica.publish.settings import read_settings

__all__ = ["s3_server", "zygote"]

pytestmark = pytest.mark.engines


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = make_repository(tmp_path / "repository")
    archive = b"".join(member(b"%d" % number, b"content %d" % number) for number in range(8))
    ingest(repository, archive + member(b"large", noise(60_000)) + END, b"/data", nested=True)
    return repository


def s3_arguments(server: S3Server, endpoint: str) -> list[str]:
    return ["--s3-endpoint", endpoint, "--s3-credentials", str(server.options().credentials)]


def on_s3(repository: Repository, storage: str, server: S3Server) -> S3Repository:
    return S3Repository(FQRN, repository.state, storage, repository.keys, server.options())


def test_into_a_bucket_and_back(repository: Repository, s3_server: S3Server, tmp_path: Path) -> None:
    storage = s3_server.new_storage()
    arguments = ["repo", "move", FQRN, storage, *s3_arguments(s3_server, s3_server.endpoint), "--json"]
    outcome = mica(repository.state, *arguments, timeout_s=120)
    assert outcome.code == 0, outcome.stderr
    facts = json.loads(outcome.stdout)
    assert (facts["storage"], facts["old_storage"], facts["revision"]) == (storage, str(repository.storage), 2)
    assert facts["copied_objects"] > 10
    moved = on_s3(repository, storage, s3_server)
    assert moved.errors(tmp_path) == []
    assert mica(repository.state, "repo", "check", FQRN).code == 0
    assert ingest(repository, member(b"more", b"more") + END, b"/more").revision == 3

    back = mica(repository.state, "repo", "move", FQRN, str(repository.storage))
    assert back.code == 0, back.stderr
    assert f"{storage} stays as it was" in back.stderr
    assert read_settings(repository.state, FQRN).storage == str(repository.storage)
    assert findings(repository, tmp_path) == []
    assert moved.head().revision == 3


def test_a_replica_in_a_bucket(repository: Repository, s3_server: S3Server, tmp_path: Path) -> None:
    storage = s3_server.new_storage(FQRN)
    arguments = ["--key", str(repository.keys / f"{FQRN}.pub"), *s3_arguments(s3_server, s3_server.endpoint)]
    with serving(repository.storage) as web:
        for _ in range(2):
            done = mica(tmp_path / "elsewhere", "repo", "replicate", web.url, storage, "--name", FQRN, *arguments)
            assert done.code == 0, done.stderr
            assert on_s3(repository, storage, s3_server).errors(tmp_path) == []
            ingest(repository, member(b"more", b"more") + END, b"/more")


@pytest.mark.parametrize("server", sorted(WEB_SERVERS))
def test_a_web_server_is_set_up_for_a_bucket(s3_server: S3Server, server: str) -> None:
    """The check reads every object through it."""
    with tempfile.TemporaryDirectory(prefix="mica-test-") as place:
        os.chmod(place, 0o755)  # a server that gave up its rights reads its configuration there
        state, port = Path(place) / "state", free_port()
        url = f"http://127.0.0.1:{port}/cvmfs/{FQRN}"
        arguments = ["--storage", s3_server.new_storage(FQRN), *s3_arguments(s3_server, s3_server.endpoint)]
        done = mica(state, "server", "init", FQRN, *arguments, "--url", url, timeout_s=120)
        assert done.code == 0, done.stderr
        ingest(Repository(FQRN, state, Path("/none"), Path("/none")), member(b"file", noise(90_000)) + END, b"/data")
        key = state / "repositories" / FQRN / "keys" / f"{FQRN}.pub"
        config = state / "server" / server / f"mica-127.0.0.1-{port}.conf"
        with WEB_SERVERS[server](Path(place) / "server", config, port):
            checked = mica(Path(place) / "client", "repo", "check", url, "--hash", "--key", key)
        assert checked.code == 0, checked.stdout + checked.stderr


def test_killed_at_any_request_it_goes_on(
    repository: Repository, s3_server: S3Server, zygote: Zygote, tmp_path: Path
) -> None:
    """The present storage works until the settings name the other one, which then is complete."""
    directory = tmp_path / "directory"
    killed = 0
    with s3_proxy(s3_server.endpoint) as proxy:

        def run(target: str, number: int) -> int:
            arguments = ["repo", "move", FQRN, target, *s3_arguments(s3_server, proxy.endpoint)]
            arguments += ["--state", str(repository.state)]
            return run_until_request(proxy, zygote, arguments, number, tmp_path / "output")

        def assert_whole() -> None:
            storage = read_settings(repository.state, FQRN).storage
            if storage.startswith("s3://"):
                assert on_s3(repository, storage, s3_server).errors(tmp_path) == []
            else:
                assert findings(repository._replace(storage=Path(storage)), tmp_path) == []

        for way in ("into a bucket", "into a directory"):
            source = read_settings(repository.state, FQRN).storage
            target = s3_server.new_storage() if way == "into a bucket" else str(directory)
            number = 1
            while run(target, number) == -signal.SIGKILL:
                killed += 1
                assert_whole()
                number += 37
            assert read_settings(repository.state, FQRN).storage == target != source
            assert_whole()
    assert killed >= 30
