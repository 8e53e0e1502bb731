"""Connections are kept as long as they are good for something, and TLS ends at the host that was meant."""

import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.certificates import write_certificate
from tests.support.webserver import Answer, WebServer, serving

from mica.errors import UserError
from mica.fetch.connections import ConnectionPool, TransferError

CONTENT = b"content" * 10_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "object").write_bytes(CONTENT)
    return tmp_path / "root"


@pytest.fixture
def server(root: Path) -> Iterator[WebServer]:
    with serving(root) as server:
        yield server


@pytest.fixture
def pool() -> Iterator[ConnectionPool]:
    with closing(ConnectionPool(timeout_direct_s=5, timeout_proxy_s=5, most_idle=2)) as pool:
        yield pool


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's context whose certificate this process believes."""
    certificate = write_certificate(tmp_path / "tls.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def get(pool: ConnectionPool, base: str, path: str = "object", *, proxy: str | None = None) -> bytes:
    answer = pool.get(base, path, proxy=proxy, headers={})
    with closing(answer):
        data = b""
        while block := answer.read(1 << 16):
            data += block
        assert answer.status == 200
        return data


def test_one_connection_serves_one_request_after_the_other(server: WebServer, pool: ConnectionPool) -> None:
    for _ in range(4):
        assert get(pool, server.url) == CONTENT
    assert server.connections == 1


def test_a_connection_is_free_as_soon_as_its_answer_was_read(server: WebServer, pool: ConnectionPool) -> None:
    with closing(pool.get(server.url, "object", proxy=None, headers={})) as answer:
        assert b"".join(iter(lambda: answer.read(1 << 16), b"")) == CONTENT
        assert get(pool, server.url) == CONTENT
    assert get(pool, server.url) == CONTENT
    assert server.connections == 1


def test_requests_at_once_have_connections_of_their_own_and_few_are_kept(
    server: WebServer, pool: ConnectionPool
) -> None:
    answers = [pool.get(server.url, "object", proxy=None, headers={}) for _ in range(4)]
    assert server.connections == 4
    for answer in answers:
        assert b"".join(iter(lambda answer=answer: answer.read(1 << 16), b"")) == CONTENT
        answer.close()
    answers = [pool.get(server.url, "object", proxy=None, headers={}) for _ in range(3)]
    assert server.connections == 5
    for answer in answers:
        answer.close()


def test_a_connection_that_the_server_closed_meanwhile_is_no_failure(server: WebServer, pool: ConnectionPool) -> None:
    server.answers["/object"] = Answer(body=CONTENT, hangs_up=True)
    for _ in range(3):
        assert get(pool, server.url) == CONTENT
    assert server.connections == 3


def test_an_answer_left_half_read_ends_its_connection(server: WebServer, pool: ConnectionPool) -> None:
    answer = pool.get(server.url, "object", proxy=None, headers={})
    assert answer.read(7) == b"content"
    answer.close()
    assert get(pool, server.url) == CONTENT
    assert server.connections == 2


def test_a_body_that_ends_early_is_told_however_it_is_read(server: WebServer, pool: ConnectionPool) -> None:
    server.answers["/object"] = Answer(body=b"abc", cut=1)
    for size in (1, 3, 100):
        answer = pool.get(server.url, "object", proxy=None, headers={})
        with closing(answer), pytest.raises(TransferError, match="half-way"):
            list(iter(lambda answer=answer, size=size: answer.read(size), b""))


def test_tls_to_a_host_that_is_trusted(root: Path, trusted: ssl.SSLContext, pool: ConnectionPool) -> None:
    with serving(root, trusted) as server:
        assert get(pool, f"https://{server.host}") == CONTENT
        assert get(pool, f"https://{server.host}") == CONTENT
        assert server.connections == 1
        with pytest.raises(TransferError, match="certificate is not trusted"):  # it is for 127.0.0.1
            get(pool, f"https://localhost:{server.server_address[1]}")


def test_tls_through_a_proxy_ends_at_the_host(
    root: Path, trusted: ssl.SSLContext, server: WebServer, pool: ConnectionPool
) -> None:
    with serving(root, trusted) as host:
        assert get(pool, f"https://{host.host}", proxy=server.url) == CONTENT
        assert server.tunnels == [host.host]
        assert server.requests == []
        pool.close()


def test_tls_in_tls_is_refused(pool: ConnectionPool) -> None:
    with pytest.raises(UserError, match="cannot carry https"):
        get(pool, "https://host.invalid", proxy="https://proxy.invalid:3129")
