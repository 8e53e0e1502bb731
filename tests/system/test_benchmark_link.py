"""The network that benchmarks measure over: it carries and counts what it should, and nothing of it stays."""

import contextlib
import os
import socket
import socketserver
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.link import Shape, open_link, served_over
from benchmarks.support import FQRN, nginx_command
from tests.support.httpservers import answering
from tests.support.noise import noise
from tests.support.tools import need, need_root
from tests.support.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.system
SHAPES = (Shape(1000), Shape(1000, rtt_ms=2))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_program_at_the_near_end_reads_what_the_far_end_serves(shape: Shape, tmp_path: Path) -> None:
    need_root()
    need("nginx", "nginx")
    content = noise(3_000_000)
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "object").write_bytes(content)
    with served_over(shape, nginx_command(tmp_path, 8080), 8080) as (link, url):
        before = link.received_bytes()
        fetch = "import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(sys.argv[1]).read())"
        command = link.at("client", "python3", "-c", fetch, f"{url}/cvmfs/{FQRN}/object")
        done = subprocess.run(command, capture_output=True, check=True)
        received = link.received_bytes() - before
    assert done.stdout == content
    # Headers of frames of 1500 bytes and less, answers to ARP; never twice the same bytes.
    assert len(content) < received < len(content) * 1.1


def test_nothing_of_a_link_stays() -> None:
    need_root()
    with open_link(Shape(100)) as link:
        inside = subprocess.run(link.at("server", "readlink", "/proc/self/ns/net"), capture_output=True, check=True)
        assert inside.stdout.decode().strip() in _namespaces()
    # Eventually: the kernel gives the number to the next namespace, which may be another test's.
    assert eventually(lambda: inside.stdout.decode().strip() not in _namespaces())


SPOILED = """
import gc
gc.set_threshold(100, 3, 3)  # what nobody refers to is gone soon
from benchmarks.delay import main
main()
"""


def test_a_connection_that_breaks_off_harms_no_other(tmp_path: Path) -> None:
    """Each second one is reset by one side or the other while bytes are on their way."""
    content = noise(300_000)
    with _resetting_server(content) as port, socket.create_server(("127.0.0.1", 0)) as free:
        near = free.getsockname()[1]
        free.close()
        command = [sys.executable, "-c", SPOILED, str(near), f"127.0.0.1:{port}", "4"]
        with (tmp_path / "said").open("w") as said, subprocess.Popen(command, stderr=said) as proxy:
            try:
                assert eventually(lambda: _exchange(near, b"whole") == content)
                for turn in range(12):
                    _exchange(near, b"reset" if turn % 2 else b"whole", resets=not turn % 2)
                    assert _exchange(near, b"whole") == content
            finally:
                proxy.terminate()
    assert (tmp_path / "said").read_text() == ""


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _exchange(port: int, question: bytes, *, resets: bool = False) -> bytes:
    """What comes until the end; with `resets` only the beginning of it."""
    found = b""
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        connection.sendall(question)
        while data := connection.recv(1 << 16):
            found += data
            if resets:
                _reset(connection)
                break
    return found


@contextlib.contextmanager
def _resetting_server(content: bytes) -> Iterator[int]:
    """A port where some text is answered by the content, and b"reset" by a part of it."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):
                if self.request.recv(100) == b"reset":
                    self.request.sendall(content[:1000])
                    _reset(self.request)
                else:
                    self.request.sendall(content)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        with answering(server):
            yield server.server_address[1]


def _namespaces() -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(os.readlink(path))
        except OSError:
            continue
    return found
