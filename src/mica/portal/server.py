"""The portal on a socket: HTTP/1.1, kept alive, TLS if there is a certificate. A thread for each connection, because
most of them wait: for a conversion, for as long as its client does (docs/adr/0007-portal.md).
"""

import contextlib
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mica.errors import UserError
from mica.portal.answers import Answer, Portal, unsupported

_CONNECTIONS = 512
_IDLE_S = 90
"""How long a connection may be silent between requests, and a client slow within one."""
_KEEPALIVE_IDLE_S = 30


class Certificate(NamedTuple):
    """Files in PEM form; the key may be in the certificate's."""

    chain: Path
    key: Path | None


class PortalServer(http.server.ThreadingHTTPServer):
    """Serves until `shutdown`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], portal: Portal, certificate: Certificate | None) -> None:
        self.portal = portal
        self._tls = None if certificate is None else _tls_context(certificate)
        self._slots = threading.BoundedSemaphore(_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"{'http' if self._tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}"

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """TLS begins here and not where connections are accepted: who is slow at it keeps nobody else waiting."""
        assert isinstance(request, socket.socket)
        with self._slots:
            request.settimeout(_IDLE_S)
            _keep_alive(request)
            if self._tls is not None:
                try:
                    request = self._tls.wrap_socket(request, server_side=True)
                except OSError:
                    self.shutdown_request(request)
                    return
            super().process_request_thread(request, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no event."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "mica"
    sys_version = ""
    timeout = _IDLE_S
    disable_nagle_algorithm = True
    wbufsize = 16384
    server: PortalServer

    def do_GET(self) -> None:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            # A body that nobody reads would be taken for the next request.
            self.close_connection = True
        self._send(self.server.portal.answer(self.path, self.headers.get("Authorization", "")))

    do_HEAD = do_GET  # noqa: N815 - the library's naming

    def do_POST(self) -> None:
        # Their bodies are not read, so nothing can follow on the connection.
        self.close_connection = True
        self._send(unsupported())

    do_PUT = do_PATCH = do_DELETE = do_POST  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """What is converted is logged, not what is asked for."""

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)


def _keep_alive(connection: socket.socket) -> None:
    """Nothing is sent while a client waits: firewalls and addresses in between must not forget the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_IDLE_S)


def _tls_context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate.chain, certificate.key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"The certificate {certificate.chain} and its key cannot be used: {error.strerror}.") from error
    return context


@contextlib.contextmanager
def serving(server: PortalServer) -> Iterator[None]:
    """Serve in a thread for the length of a block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="portal-server")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
