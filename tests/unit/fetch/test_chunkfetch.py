"""Large files by chunk: what a read needs, what comes along, and what happens when it does not come."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.repositories import Repository, ingest, make_repository, opened_client
from tests.support.tars import END, member
from tests.support.waiting import eventually
from tests.support.webserver import Answer, WebServer, serving

from mica.cache.cache import Cache
from mica.cache.partfiles import PartFile
from mica.digest import Suffix
from mica.errors import NotFoundError
from mica.fetch.client import RepositoryClient
from mica.fetch.download import Connection, LocalFetcher
from mica.publish.rules import ObjectRules
from mica.repo.catalog import NestedCatalog
from mica.repo.cutting import ChunkRule
from mica.repo.objects import Compression
from mica.store.local import LocalStore

PIECE = 16 << 10
CONTENT = b"\x7fELF" + random.Random(1).randbytes(20 * PIECE)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    rules = ObjectRules(chunking=ChunkRule(PIECE, PIECE, PIECE, program=PIECE))
    repository = make_repository(tmp_path / "repository", rules=rules)
    ingest(repository, member(b"program", CONTENT) + END)
    return repository


@pytest.fixture
def server(repository: Repository) -> Iterator[WebServer]:
    with serving(repository.storage) as server:
        yield server


@pytest.fixture
def client(
    repository: Repository, server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RepositoryClient]:
    # A busy machine answers as late as a far one, and would fetch neighbours.
    monkeypatch.setattr(RepositoryClient, "latency_s", 0.0)
    with opened_client(repository, tmp_path / "cache", url=server.url) as client:
        yield client


def open_program(client: RepositoryClient) -> PartFile:
    manifest = client.update().manifest
    catalog = client.catalog(NestedCatalog(b"", manifest.root_catalog, manifest.root_catalog_size))
    row = catalog.find(b"/program")
    assert row is not None
    return client.open_part(catalog.chunks(row), Compression.ZLIB)


def request_of(part: PartFile, number: int) -> str:
    return "/" + part.chunks[number].digest.object_path(Suffix.CHUNK)


def asked_for(server: WebServer, part: PartFile) -> list[int]:
    """Numbers of the chunks that were requested so far, ascending."""
    return [number for number in range(len(part.chunks)) if request_of(part, number) in server.requests]


def wait_until(holds: Callable[[], bool]) -> None:
    assert eventually(holds)


def read(client: RepositoryClient, part: PartFile, offset: int, size: int) -> bytes:
    client.fetch_range(part, offset, size)
    return os.pread(part.fd, size, offset)


def test_reads_here_and_there_fetch_what_they_need(server: WebServer, client: RepositoryClient) -> None:
    part = open_program(client)
    for offset, size in ((5 * PIECE + 7, 100), (9 * PIECE - 1, 2), (5 * PIECE, PIECE), (0, 1)):
        assert read(client, part, offset, size) == CONTENT[offset : offset + size]
    assert asked_for(server, part) == [0, 5, 8, 9]


def test_reading_on_fetches_ahead(server: WebServer, client: RepositoryClient) -> None:
    part = open_program(client)
    for number in (2, 3, 4):
        assert read(client, part, number * PIECE, 1) == CONTENT[number * PIECE :][:1]
    wait_until(lambda: part.has(5) and part.has(6) and part.has(7))
    assert asked_for(server, part) == [2, 3, 4, 5, 6, 7]
    assert read(client, part, 5 * PIECE, 3 * PIECE) == CONTENT[5 * PIECE : 8 * PIECE]
    assert len(server.requests) == len(set(server.requests))


def test_what_fails_ahead_is_told_to_who_asks_for_it(server: WebServer, client: RepositoryClient) -> None:
    part = open_program(client)
    server.answers[request_of(part, 4)] = Answer(status=404)
    for number in (1, 2, 3):
        read(client, part, number * PIECE, 1)
    wait_until(lambda: 4 in asked_for(server, part) and part.has(5) and part.has(6))
    with pytest.raises(NotFoundError):
        read(client, part, 4 * PIECE, 1)


def test_a_whole_file_comes_over_several_connections(server: WebServer, client: RepositoryClient) -> None:
    with open_program(client) as part:
        server.answers[request_of(part, 0)] = Answer(hang_s=0.2)
        client.fetch_chunks(part, part.missing(0, len(CONTENT)))
        assert part.is_whole
        assert os.pread(part.fd, len(CONTENT), 0) == CONTENT
    assert server.connections > 1
    assert len(server.requests) == len(set(server.requests))


def test_after_a_failure_nothing_is_on_its_way_any_more(server: WebServer, client: RepositoryClient) -> None:
    with open_program(client) as part:
        server.answers[request_of(part, 0)] = Answer(status=404)
        server.answers[request_of(part, 1)] = Answer(body=b"wrong")
        with pytest.raises(NotFoundError):
            client.fetch_chunks(part, part.missing(0, len(CONTENT)))
        before = list(server.requests)
        here = [part.has(number) for number in range(len(part.chunks))]
    with open_program(client) as part:
        assert [part.has(number) for number in range(len(part.chunks))] == here
    assert asked_for(server, part) == [
        number for number in range(len(part.chunks)) if request_of(part, number) in before
    ]


def test_a_closed_client_fetches_what_it_is_still_asked_for(server: WebServer, client: RepositoryClient) -> None:
    part = open_program(client)
    client.close()
    assert read(client, part, 0, 3 * PIECE) == CONTENT[: 3 * PIECE]


class Far(LocalFetcher):
    """A storage that is said to be forty milliseconds away."""

    @property
    def connection(self) -> Connection:
        return Connection(self.where, None, latency_s=0.04)


def test_over_a_long_way_neighbours_come_along(repository: Repository, tmp_path: Path) -> None:
    with ExitStack() as stack:
        fetcher = Far(stack.enter_context(LocalStore(repository.storage)))
        cache = stack.enter_context(Cache(tmp_path / "cache"))
        client = stack.enter_context(RepositoryClient(repository.fqrn, fetcher, cache, [repository.master_key]))
        part = open_program(client)
        assert read(client, part, 3 * PIECE, 1) == CONTENT[3 * PIECE :][:1]
        wait_until(lambda: part.is_whole)


def test_how_far_a_server_is(server: WebServer, client: RepositoryClient) -> None:
    assert client.connection.latency_s == 0.0
    client.update()
    assert 0.0 < client.connection.latency_s < 60.0
