"""An HTTP proxy for tests: forwards plain HTTP, makes tunnels, finds one server behind every name. Loopback only."""

import contextlib
import http.client
import select
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from tests.support.httpservers import HttpServer, answering

_DEADLINE_S = 10


class RecordingProxy(HttpServer):
    """`asked` are `METHOD host:port` as they came; `authorizations` what was sent for the proxy. `status` refuses."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.asked: list[str] = []
        self.authorizations: list[str] = []
        self.status = 0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: RecordingProxy
    timeout = _DEADLINE_S

    def do_CONNECT(self) -> None:
        if self._is_refused(self.path):
            return
        host, _, port = self.server.target.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=_DEADLINE_S) as target:
            self.send_response(200)
            self.end_headers()
            ways = {self.connection: target, target: self.connection}
            while ready := select.select(list(ways), [], [], _DEADLINE_S)[0]:
                for one in ready:
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    ways[one].sendall(data)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if self._is_refused(parts.netloc):
            return
        connection = http.client.HTTPConnection(self.server.target, timeout=_DEADLINE_S)
        with contextlib.closing(connection):
            headers = {name: value for name, value in self.headers.items() if not name.startswith("Proxy-")}
            connection.request(self.command, parts._replace(scheme="", netloc="").geturl(), headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def _is_refused(self, place: str) -> bool:
        self.server.asked.append(f"{self.command} {place}")
        self.server.authorizations.append(self.headers.get("Proxy-Authorization", ""))
        if self.server.status:
            self.send_error(self.server.status)
        return bool(self.server.status)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Tests are quiet."""


@contextlib.contextmanager
def recording_proxy(target: str) -> Iterator[RecordingProxy]:
    """A proxy that finds HOST:PORT behind every name, for the length of a block."""
    with RecordingProxy(target) as proxy, answering(proxy):
        yield proxy
