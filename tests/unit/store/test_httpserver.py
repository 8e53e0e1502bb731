"""The static server: what it serves and how, what it refuses, and bodies larger than any socket buffer."""

import http.client
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.noise import noise

from mica.httpbase import serving
from mica.store.httpserver import RepositoryServer

FQRN = "a.example.org"
OBJECT = "data/ab/" + "c" * 38


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RepositoryServer]:
    (tmp_path / "data/ab").mkdir(parents=True)
    (tmp_path / OBJECT).write_bytes(b"0123456789")
    (tmp_path / ".cvmfspublished").write_bytes(b"manifest")
    (tmp_path / "secret").write_bytes(b"secret")
    os.symlink(tmp_path / "secret", tmp_path / ".cvmfslink")
    with serving(RepositoryServer(("127.0.0.1", 0), {FQRN: tmp_path})) as running:
        yield running


def get(
    server: RepositoryServer, path: str, *, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "kind", "age", "body"),
    [
        (OBJECT, "application/octet-stream", "max-age=259200", b"0123456789"),
        (".cvmfspublished", "application/x-cvmfs", "max-age=61", b"manifest"),
    ],
)
def test_headers_are_those_of_the_reference_server(
    server: RepositoryServer, path: str, kind: str, age: str, body: bytes
) -> None:
    status, headers, found = get(server, f"/cvmfs/{FQRN}/{path}")
    assert (status, found) == (200, body)
    assert (headers["Content-Type"], headers["Cache-Control"]) == (kind, age)
    assert "ETag" not in headers
    assert "Content-Encoding" not in headers
    status, headers, found = get(server, f"/cvmfs/{FQRN}/{path}", method="HEAD")
    assert (status, found, headers["Content-Length"]) == (200, b"", str(len(body)))


@pytest.mark.parametrize(
    "path",
    [
        f"/cvmfs/{FQRN}/secret",
        f"/cvmfs/{FQRN}/../secret",
        f"/cvmfs/{FQRN}/data/ab/../../secret",
        f"/cvmfs/{FQRN}/%2e%2e/secret",
        f"/cvmfs/{FQRN}/.cvmfslink",
        f"/cvmfs/{FQRN}/data/ab/" + "d" * 38,
        f"/cvmfs/{FQRN}/data",
        f"/cvmfs/other.example.org/{OBJECT}",
        "/etc/passwd",
        "/",
    ],
)
def test_everything_else_is_not_found(server: RepositoryServer, path: str) -> None:
    status, _, body = get(server, path)
    assert (status, body) == (404, b"")


@pytest.mark.parametrize(
    ("wanted", "status", "body"),
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=8-100", 206, b"89"),
        ("bytes=10-", 416, b""),
        ("bytes=5-2", 416, b""),
        ("bytes=-", 416, b""),
        ("bytes=0-1,4-5", 416, b""),
    ],
)
def test_ranges(server: RepositoryServer, wanted: str, status: int, body: bytes) -> None:
    found, headers, content = get(server, f"/cvmfs/{FQRN}/{OBJECT}", headers={"Range": wanted})
    assert (found, content) == (status, body)
    assert headers["Content-Range"].endswith("/10" if status == 206 else "*/10")


def test_connections_are_kept(server: RepositoryServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    try:
        for _ in range(3):
            connection.request("GET", f"/cvmfs/{FQRN}/{OBJECT}")
            assert connection.getresponse().read() == b"0123456789"
            assert connection.sock is not None
    finally:
        connection.close()


def test_a_body_larger_than_the_socket_takes_at_once_arrives_whole(server: RepositoryServer, tmp_path: Path) -> None:
    content = noise(1 << 20) * 32
    (tmp_path / OBJECT).write_bytes(content)
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    try:
        connection.request("GET", f"/cvmfs/{FQRN}/{OBJECT}")
        assert connection.getresponse().read() == content
    finally:
        connection.close()


def test_an_empty_file_is_served(server: RepositoryServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".cvmfspublished").write_bytes(b"")
    status, headers, found = get(server, f"/cvmfs/{FQRN}/.cvmfspublished")
    assert (status, headers["Content-Length"], found) == (200, "0", b"")
    assert get(server, f"/cvmfs/{FQRN}/{OBJECT}")[0] == 200
    assert capsys.readouterr().err == ""
