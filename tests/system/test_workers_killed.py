"""Workers, the committer and conversions, killed at random: every layer that is reported is there, and made once."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.support.hosts import own_host
from tests.support.queues import postgres_server, sqlite_url
from tests.support.registry import scripted_registry
from tests.support.repositories import SMALL_CHUNKS, make_repository
from tests.support.s3repositories import S3Repository, make_s3_repository
from tests.support.seaweed import S3Server, s3_server
from tests.support.workersites import (
    Machine,
    Site,
    add_images,
    converted_one_by_one,
    machine,
    make_images,
    one_machine,
)
from tests.support.zygote import Zygote

from mica.publish.rules import ObjectRules
from mica.publish.settings import read_settings, write_settings

__all__ = ["s3_server"]
pytestmark = pytest.mark.system
IN_FULL = "MICA_TEST_IN_FULL" in os.environ
"""60 layers, 8 workers and 100 kills instead of a few: some minutes."""
LAYERS, IMAGES, WORKERS, KILLS = (60, 20, 8, 100) if IN_FULL else (10, 4, 3, 8)
_LEASE_S = 4.0
_PATIENCE_S = 1500 if IN_FULL else 240


def test_layers_are_made_once_whatever_is_killed(tmp_path: Path) -> None:
    samples = make_images(LAYERS, IMAGES, size=200_000)
    with scripted_registry() as registry:
        add_images(registry, samples)
        expected = converted_one_by_one(registry, IMAGES, tmp_path / "sequential", ObjectRules())
        assert len(expected) == LAYERS
        repository = make_repository(tmp_path / "site", rules=ObjectRules())
        with one_machine(repository.state, sqlite_url(tmp_path), lease_s=_LEASE_S) as here:
            site = Site(repository, registry, samples, [here], tmp_path, registry.host)
            site.run(workers=WORKERS, kills=KILLS, patience_s=_PATIENCE_S)
            site.check(expected)


def test_two_machines_that_share_only_queue_and_storage(
    tmp_path: Path,
    s3_server: S3Server,
) -> None:
    """Each is a network namespace with a state directory of its own, and only the first one has keys. Between them are
    PostgreSQL and S3."""
    samples = make_images(LAYERS, IMAGES, size=60_000)
    with scripted_registry() as registry, postgres_server() as queue, contextlib.ExitStack() as stack:
        add_images(registry, samples)
        expected = converted_one_by_one(registry, IMAGES, tmp_path / "sequential", ObjectRules(chunking=SMALL_CHUNKS))
        repository = make_s3_repository(tmp_path / "site", s3_server)
        machines: list[Machine] = []
        hosts = [stack.enter_context(own_host(number)) for number in (1, 2)]
        registry_host = hosts[0].lend(int(registry.host.rpartition(":")[2]))
        for number, host in enumerate(hosts, 1):
            state = tmp_path / f"state-{number}"
            endpoint = f"http://{host.lend(int(urlsplit(s3_server.endpoint).port or 0))}"
            keys = repository.keys if number == 1 else tmp_path / "no keys"
            lend_repository(repository, state, keys, endpoint)
            url = urlsplit(queue)
            lent = url._replace(netloc=f"mica@{host.lend(int(url.port or 0))}").geturl()
            zygote = stack.enter_context(Zygote(*host.enter))
            machines.append(machine(zygote, state, lent, lease_s=_LEASE_S))
        site = Site(repository, registry, samples, machines, tmp_path, registry_host)
        site.run(workers=WORKERS, kills=KILLS, patience_s=_PATIENCE_S)
        site.check(expected)


def lend_repository(repository: S3Repository, state: Path, keys: Path, endpoint: str) -> None:
    """The settings of a repository on another machine."""
    settings = read_settings(repository.state, repository.fqrn)
    (state / "repositories" / repository.fqrn).mkdir(parents=True)
    write_settings(state, replace(settings, keys=keys, s3=replace(settings.s3, endpoint=endpoint)))
