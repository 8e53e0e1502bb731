"""Images of a Docker daemon, from a server that speaks the one request."""

import socketserver
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.httpservers import answering
from tests.unit.oci.samples import docker_archive_files, make_sample, make_tar, read_all

from mica.errors import MicaError, NotFoundError, TemporaryError, UserError
from mica.oci.source import SourceOptions, open_image

SAMPLE = make_sample()
ARCHIVE = make_tar(docker_archive_files(SAMPLE, tags=["example/a:1"]))


@contextmanager
def daemon(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Answers every connection with the same bytes; yields the first lines of the requests."""
    asked: list[bytes] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked.append(self.rfile.readline())
            while self.rfile.readline().strip():
                pass
            self.wfile.write(answer)

    with socketserver.UnixStreamServer(str(path), Handler) as server, answering(server):
        yield asked


def answer(status: str, body: bytes, *, length: int | None = None) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def read_layers(directory: Path) -> list[bytes]:
    options = SourceOptions(docker_socket=directory / "docker.sock", spool_path=directory)
    with open_image("docker-daemon:example/a:1", options=options) as image:
        tars = []
        for layer in image.layers:
            with image.open_layer(layer, 1 << 30) as stream:
                tars.append(read_all(stream))
        assert str(image.reference) == "docker.io/example/a:1"
        return tars


def test_image_is_spooled_and_read(tmp_path: Path) -> None:
    with daemon(tmp_path / "docker.sock", answer("200 OK", ARCHIVE)) as asked:
        assert read_layers(tmp_path) == SAMPLE.tars
    assert asked == [b"GET /images/docker.io%2Fexample%2Fa%3A1/get HTTP/1.1\r\n"]
    assert [path.name for path in tmp_path.iterdir()] == ["docker.sock"]


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (answer("404 Not Found", b"{}"), NotFoundError, "has no image docker.io/example/a:1"),
        (answer("500 Oops", b"{}"), UserError, "refuses to send docker.io/example/a:1: 500 Oops"),
        (answer("200 OK", ARCHIVE[:-2000], length=len(ARCHIVE)), TemporaryError, "broke off"),
        (b"nonsense\r\n\r\n", TemporaryError, "broke off"),
        (b"", TemporaryError, "broke off"),
        (answer("200 OK", b"no tar at all" * 100), UserError, "not a readable tar"),
    ],
)
def test_bad_answers_are_told(tmp_path: Path, reply: bytes, error: type[MicaError], words: str) -> None:
    with daemon(tmp_path / "docker.sock", reply), pytest.raises(error, match=words):
        read_layers(tmp_path)


def test_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(TemporaryError, match="No Docker daemon"):
        read_layers(tmp_path)
