"""A small real HTTP server on loopback that serves a directory and misbehaves on request.

    with serving(directory) as server:
        server.answers["/data/ab/cd"] = Answer(status=500)

It also does as a proxy: a request with a whole URL is answered from the same directory, a tunnel leads where it is
asked to.
"""

import contextlib
import http.server
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.support.httpservers import HttpServer, answering
from tests.support.waiting import PATIENCE_S


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say instead of the file. `cut` announces this many bytes more than are sent; `hang_s` waits first,
    `until` for an event; `hangs_up` closes the connection afterwards without having said so."""

    body: bytes | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    hang_s: float = 0
    until: threading.Event | None = None
    hangs_up: bool = False
    times: int = 1 << 30


class WebServer(HttpServer):
    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.answers: dict[str, Answer] = {}
        self.default: Answer | None = None
        self.requests: list[str] = []
        self.fresh: list[str] = []
        self.tunnels: list[str] = []
        self.connections = 0
        self.stopping = threading.Event()
        self.gives_pieces = True
        self.pieces: list[tuple[str, int, int]] = []

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def answer_to(self, path: str) -> Answer | None:
        answer = self.answers.get(path, self.default)
        if answer is None:
            return None
        if answer.times <= 0:
            return None
        if path in self.answers:
            self.answers[path] = replace(answer, times=answer.times - 1)
        return answer

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: WebServer

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path, errors="surrogateescape")
        self.server.requests.append(path)
        if self.headers.get("Cache-Control") == "no-cache":
            self.server.fresh.append(path)
        answer = self.server.answer_to(path) or Answer()
        if answer.hang_s:
            self.server.stopping.wait(answer.hang_s)
        if answer.until is not None:
            answer.until.wait(PATIENCE_S)
        file = self.server.root / path.lstrip("/")
        body, status = answer.body, answer.status
        if body is None and status == 200:
            if file.is_file():
                body = file.read_bytes()
            else:
                status = 404
        body = body or b""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and status == 200 and self.server.gives_pieces:
            first, last = int(wanted[1]), int(wanted[2])
            self.server.pieces.append((path, first, last + 1 - first))
            body, status = body[first : last + 1], 206
        self.send_response(status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + answer.cut))
        self.end_headers()
        self.wfile.write(body)
        if answer.cut or answer.hangs_up:
            self.close_connection = True

    def do_CONNECT(self) -> None:
        self.server.tunnels.append(self.path)
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as far:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_copy, args=(far, self.connection))
            back.start()
            _copy(self.connection, far)
            back.join()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def serving(root: Path, tls: ssl.SSLContext | None = None) -> Iterator[WebServer]:
    with WebServer(root) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        with answering(server):
            try:
                yield server
            finally:
                server.stopping.set()


def closed_port() -> str:
    """host:port where nobody listens."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    port = server.server_address[1]
    server.server_close()
    return f"127.0.0.1:{port}"
