"""Replicas in a bucket of a real S3 server: killed at its requests, and through a network that fails."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli import mica
from tests.support.noise import noise
from tests.support.replicas import broken_catalogs, errors_in, shown_revision
from tests.support.repositories import FQRN, Repository, ingest, make_repository
from tests.support.s3proxy import Fault, HangUp, LoseAnswer, Refuse, S3Proxy, S3Request, run_until_request, s3_proxy
from tests.support.seaweed import S3Server, s3_server
from tests.support.tars import END, member
from tests.support.webserver import WebServer, serving
from tests.support.zygote import Zygote, zygote

from mica.store.opening import open_store

__all__ = ["s3_server", "zygote"]

pytestmark = pytest.mark.engines
KILLS = 30


def archive(label: str) -> bytes:
    files = {f"{label}/{number}": f"{label} {number}".encode() * 40 for number in range(24)}
    files |= {f"{label}/large": noise(40_000), "common": b"the same in every revision"}
    return b"".join(member(name.encode(), data) for name, data in files.items()) + END


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = make_repository(tmp_path / "source")
    ingest(made, archive("old"), b"/old", nested=True)
    return made


@pytest.fixture
def web(repository: Repository) -> Iterator[WebServer]:
    with serving(repository.storage) as server:
        yield server


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[S3Proxy]:
    with s3_proxy(s3_server.endpoint) as between:
        yield between


def arguments(repository: Repository, web: WebServer, storage: str, server: S3Server, endpoint: str) -> list[str]:
    return [
        "repo", "replicate", web.url, storage, "--name", FQRN, "--key", str(repository.keys / f"{FQRN}.pub"),
        "--s3-endpoint", endpoint, "--s3-credentials", str(server.options().credentials), "--threads", "3",
    ]  # fmt: skip


def check(repository: Repository, storage: str, server: S3Server, tmp_path: Path) -> int:
    """What readers find is whole; returns the revision that they find."""
    with open_store(storage, server.options()) as store:
        assert broken_catalogs(store) == []
        revision = shown_revision(store)
        if revision:
            assert errors_in(store, [repository.master_key], tmp_path) == []
        return revision


def test_killed_at_any_request_it_goes_on(
    repository: Repository, web: WebServer, s3_server: S3Server, proxy: S3Proxy, zygote: Zygote, tmp_path: Path
) -> None:
    storage, state = s3_server.new_storage(FQRN), tmp_path / "state"
    command = arguments(repository, web, storage, s3_server, proxy.endpoint)

    def run(number: int) -> int:
        """Kill it at its request of this number, which sometimes arrives."""
        return run_until_request(proxy, zygote, [*command, "--state", str(state)], number, tmp_path / "output")

    killed, shown = 0, set()
    for revision in (2, 3):
        number = 2
        while run(number) == -signal.SIGKILL:
            killed += 1
            shown.add(check(repository, storage, s3_server, tmp_path))
            number += 3
        assert check(repository, storage, s3_server, tmp_path) == revision
        ingest(repository, archive(f"new-{revision}"), b"/new-%d" % revision, nested=True)
    assert killed >= KILLS
    assert {0, 2} <= shown <= {0, 2, 3}


def test_a_network_that_fails_is_outlived(
    repository: Repository, web: WebServer, s3_server: S3Server, proxy: S3Proxy, tmp_path: Path
) -> None:
    """Every few requests the server is busy, the connection breaks, or the answer is lost."""
    storage, state = s3_server.new_storage(FQRN), tmp_path / "state"

    def fail(request: S3Request) -> Fault:
        faults = {3: Refuse(503, "SlowDown"), 7: HangUp(), 11: LoseAnswer()}
        return faults.get(request.number % 13)

    for revision in (2, 3):
        proxy.fault = fail
        done = mica(state, *arguments(repository, web, storage, s3_server, proxy.endpoint), timeout_s=300)
        assert done.code == 0, done.stderr
        assert check(repository, storage, s3_server, tmp_path) == revision
        ingest(repository, archive(f"new-{revision}"), b"/new-%d" % revision, nested=True)


def test_a_bucket_that_may_only_be_read_is_a_sentence(
    repository: Repository, web: WebServer, s3_server: S3Server, tmp_path: Path
) -> None:
    from tests.support.seaweed import READER

    storage = s3_server.new_storage(FQRN)
    command = arguments(repository, web, storage, s3_server, s3_server.endpoint)
    command[command.index("--s3-credentials") + 1] = str(s3_server.options(READER).credentials)
    refused = mica(tmp_path / "state", *command)
    assert refused.code == 1
    assert storage.split("/")[2] in refused.sentence
    assert check(repository, storage, s3_server, tmp_path) == 0
