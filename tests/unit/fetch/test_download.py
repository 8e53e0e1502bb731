"""Fail-over with real servers that misbehave."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from tests.support.webserver import Answer, WebServer, closed_port, serving

from mica.errors import IntegrityError, MicaError, NotFoundError, TemporaryError
from mica.fetch.counters import TrafficCounter
from mica.fetch.documents import read_whole
from mica.fetch.download import HttpFetcher, HttpLimits, LocalFetcher
from mica.fetch.routes import DIRECT, Routes
from mica.store.local import LocalStore
from mica.streams import Readable

PATH = "data/ab/cdef"
CONTENT = b"the content of the object " * 1000
LIMITS = HttpLimits(timeout_direct_s=0.3, timeout_proxy_s=0.3, retries=1, backoff_s=0)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[WebServer]]:
    (tmp_path / "data/ab").mkdir(parents=True)
    (tmp_path / PATH).write_bytes(CONTENT)
    with serving(tmp_path) as first, serving(tmp_path) as second, serving(tmp_path) as third:
        yield [first, second, third]


def checked(stream: Readable) -> bytes:
    data = read_whole(stream, 1 << 20)
    if hashlib.sha1(data).digest() != hashlib.sha1(CONTENT).digest():
        raise IntegrityError("Object cdef has other content.")
    return data


class Fetching:
    """A fetcher over some servers, closed at the end."""

    def __init__(
        self, hosts: list[str], *, proxies: list[list[str]] | None = None, limits: HttpLimits = LIMITS
    ) -> None:
        self.counter = TrafficCounter()
        self.routes = Routes(hosts, proxies or [[DIRECT]])
        self.fetcher = HttpFetcher(self.routes, counter=self.counter, limits=limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.fetcher.close()

    def __call__(
        self, path: str = PATH, consume: Callable[[Readable], bytes] = checked, *, fresh: bool = False
    ) -> bytes:
        return self.fetcher.fetch(path, consume, fresh=fresh)


def failure(fetching: Fetching, kind: type[MicaError], path: str = PATH) -> str:
    with pytest.raises(kind) as caught:
        fetching(path)
    return str(caught.value)


def test_bodies_are_counted_and_connections_kept(servers: list[WebServer]) -> None:
    with Fetching([servers[0].url]) as fetching:
        for _ in range(5):
            assert fetching() == CONTENT
        traffic = fetching.counter.read()
    assert (traffic.requests, traffic.transferred_bytes) == (5, 5 * len(CONTENT))
    assert servers[0].connections == 1


@pytest.mark.parametrize(
    ("answer", "requests"),
    [
        (Answer(status=404), 1),
        (Answer(status=400), 1),
        (Answer(status=403), 1),
        (Answer(status=429), 1),
        (Answer(status=500), 1),
        (Answer(status=503), 1),
        (Answer(status=206), 1),
        (Answer(status=302, headers={"Location": "http://127.0.0.1:1/elsewhere"}), 1),
        (Answer(body=b"wrong bytes"), 2),
        (Answer(body=CONTENT + b"more"), 2),
        (Answer(body=CONTENT[:-1], cut=1), 2),
        (Answer(body=b"", cut=100), 2),
        (Answer(hang_s=5), 2),
    ],
)
def test_a_host_that_fails_is_left_for_the_next(servers: list[WebServer], answer: Answer, requests: int) -> None:
    """Wrong bytes are asked for once more past the caches, broken transfers once more; a status is final."""
    bad, good, _ = servers
    bad.answers["/" + PATH] = answer
    with Fetching([bad.url, good.url]) as fetching:
        assert fetching() == CONTENT
        assert fetching() == CONTENT
        assert fetching.fetcher.where == good.host
    assert len(bad.requests) == requests
    assert len(good.requests) == 2


def test_a_host_without_a_server_is_left_for_the_next(servers: list[WebServer]) -> None:
    with Fetching([f"http://{closed_port()}", servers[0].url]) as fetching:
        assert fetching() == CONTENT


def test_wrong_bytes_are_asked_for_past_the_caches(servers: list[WebServer]) -> None:
    """A cache on the way had them: the same host is right when asked again."""
    servers[0].answers["/" + PATH] = Answer(body=b"wrong bytes", times=1)
    with Fetching([servers[0].url, servers[1].url]) as fetching:
        assert fetching() == CONTENT
        assert fetching.fetcher.where == servers[0].host
    assert servers[0].fresh == ["/" + PATH]
    assert servers[1].requests == []


def test_a_lost_connection_is_tried_again(servers: list[WebServer]) -> None:
    servers[0].answers["/" + PATH] = Answer(body=CONTENT[:100], cut=100, times=1)
    with Fetching([servers[0].url]) as fetching:
        assert fetching() == CONTENT


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        (Answer(status=404), NotFoundError, f"{PATH} is not at HOST."),
        (Answer(status=500), TemporaryError, f"{PATH} could not be fetched: HOST answered 500."),
        (Answer(status=429), TemporaryError, f"{PATH} could not be fetched: HOST answered 429."),
        (Answer(body=b"wrong"), IntegrityError, "Object cdef has other content. It came from HOST."),
        (
            Answer(body=b"", cut=9),
            TemporaryError,
            f"{PATH} could not be fetched from HOST: the connection was lost half-way.",
        ),
        (Answer(hang_s=5), TemporaryError, f"{PATH} could not be fetched from HOST: no answer in time."),
    ],
)
def test_what_is_said_in_the_end(
    servers: list[WebServer], answer: Answer, kind: type[MicaError], sentence: str
) -> None:
    servers[0].answers["/" + PATH] = answer
    with Fetching([servers[0].url]) as fetching:
        assert failure(fetching, kind) == sentence.replace("HOST", servers[0].host)


def test_nobody_listens() -> None:
    port = closed_port()
    with Fetching([f"http://{port}"]) as fetching:
        assert failure(fetching, TemporaryError) == f"{PATH} could not be fetched from {port}: no connection."


def test_no_proxy_listens(servers: list[WebServer]) -> None:
    port = closed_port()
    with Fetching([servers[0].url], proxies=[[f"http://{port}"]]) as fetching:
        expected = f"{PATH} could not be fetched from {servers[0].host} through {port}: no connection."
        assert failure(fetching, TemporaryError) == expected


def test_of_several_failures_the_worst_is_told(servers: list[WebServer]) -> None:
    answers = [Answer(status=404), Answer(body=b"wrong"), Answer(status=500)]
    for server, answer in zip(servers, answers, strict=True):
        server.answers["/" + PATH] = answer
    with Fetching([server.url for server in servers]) as fetching:
        assert f"It came from {servers[1].host}" in failure(fetching, IntegrityError)
    servers[1].answers["/" + PATH] = Answer(status=404)
    with Fetching([server.url for server in servers]) as fetching:
        assert f"{servers[2].host} answered 500" in failure(fetching, TemporaryError)
    servers[2].answers["/" + PATH] = Answer(status=404)
    with Fetching([server.url for server in servers]) as fetching:
        failure(fetching, NotFoundError)


def test_proxies_are_asked_with_whole_urls(servers: list[WebServer]) -> None:
    proxy, host, _ = servers
    with Fetching([host.url], proxies=[[proxy.url]]) as fetching:
        assert fetching() == CONTENT
        assert fetching.fetcher.where == f"{host.host} through {proxy.host}"
    assert host.requests == []
    assert proxy.requests == ["/" + PATH]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=407),
        Answer(status=403),
        Answer(status=404, headers={"X-Squid-Error": "ERR_DNS_FAIL 0"}),
        Answer(status=502, headers={"Proxy-Status": "squid; error=dns_error"}),
        Answer(hang_s=5),
        Answer(body=CONTENT[:10], cut=10),
    ],
)
def test_a_proxy_that_fails_is_left_and_the_host_kept(servers: list[WebServer], answer: Answer) -> None:
    bad, good, _ = servers
    bad.default = answer
    with Fetching(["http://host.invalid"], proxies=[[bad.url], [good.url]]) as fetching:
        assert fetching() == CONTENT
        assert fetching.fetcher.where == f"host.invalid through {good.host}"


@pytest.mark.parametrize("answer", [Answer(status=404), Answer(status=503), Answer(body=b"wrong bytes")])
def test_a_host_that_fails_behind_a_proxy_is_left_and_the_proxy_kept(servers: list[WebServer], answer: Answer) -> None:
    proxy, _, _ = servers
    proxy.answers["/cvmfs/one/" + PATH] = answer
    place = proxy.root / "cvmfs" / "two" / PATH
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    with Fetching(["http://a.invalid/cvmfs/one", "http://b.invalid/cvmfs/two"], proxies=[[proxy.url]]) as fetching:
        assert fetching() == CONTENT
        assert fetching.fetcher.where == f"b.invalid through {proxy.host}"


def test_a_proxy_without_a_server_is_left(servers: list[WebServer]) -> None:
    with Fetching([servers[0].url], proxies=[[f"http://{closed_port()}"], [DIRECT]]) as fetching:
        assert fetching() == CONTENT


def test_failures_of_the_consumer_pass_through(servers: list[WebServer]) -> None:
    def full_disk(stream: Readable) -> bytes:
        raise OSError("no space")

    with Fetching([server.url for server in servers]) as fetching:
        with pytest.raises(OSError, match="no space"):
            fetching(consume=full_disk)
        assert fetching() == CONTENT
    assert servers[1].requests == []


def test_a_consumer_that_stops_early_costs_the_connection_only(servers: list[WebServer]) -> None:
    with Fetching([servers[0].url]) as fetching:
        assert fetching(consume=lambda stream: stream.read(10)) == CONTENT[:10]
        assert fetching() == CONTENT


def test_odd_names_are_escaped(servers: list[WebServer]) -> None:
    (servers[0].root / "a b?#%41").write_bytes(CONTENT)
    with Fetching([servers[0].url]) as fetching:
        assert fetching("a b?#%41") == CONTENT


def test_fresh_is_passed_on(servers: list[WebServer]) -> None:
    with Fetching([servers[0].url]) as fetching:
        fetching(fresh=True)
    assert servers[0].fresh == ["/" + PATH]


def test_a_storage_at_hand(tmp_path: Path) -> None:
    with LocalStore(tmp_path / "storage") as store:
        store.create()
        store.put("data/ab/cdef", CONTENT)
        fetcher = LocalFetcher(store)
        assert fetcher.fetch(PATH, checked) == CONTENT
        with pytest.raises(NotFoundError, match=f"data/00/11 is not in {fetcher.where}"):
            fetcher.fetch("data/00/11", checked)
        (store.root / PATH).write_bytes(b"wrong")
        with pytest.raises(IntegrityError, match=f"It was read from {fetcher.where}"):
            fetcher.fetch(PATH, checked)
