"""The portal on a socket: HTTP/1.1, kept alive, TLS if there is a certificate. A thread for each connection, because
most of them wait for a conversion (docs/adr/0006-portal.md).
"""

import socket
import ssl
from pathlib import Path
from typing import NamedTuple

from mica.errors import UserError
from mica.httpbase import TcpHandler, TcpServer
from mica.portal.answers import Answer, Portal, unsupported

_IDLE_S = 90
"""How long a connection may be silent between requests and within one."""
_KEEPALIVE_IDLE_S = 30


class Certificate(NamedTuple):
    """Files in PEM form; the key may be in the certificate's."""

    chain: Path
    key: Path | None


class PortalServer(TcpServer):
    def __init__(self, address: tuple[str, int], portal: Portal, certificate: Certificate | None) -> None:
        self.portal = portal
        self._tls = None if certificate is None else _tls_context(certificate)
        self.scheme = "http" if certificate is None else "https"
        super().__init__(address, _Handler)

    def begin(self, connection: socket.socket) -> socket.socket:
        """TLS begins here and not where connections are accepted, so that a slow client does not delay others."""
        connection.settimeout(_IDLE_S)
        _keep_alive(connection)
        return connection if self._tls is None else self._tls.wrap_socket(connection, server_side=True)


class _Handler(TcpHandler):
    timeout = _IDLE_S
    server: PortalServer

    def do_GET(self) -> None:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            # A body that is not read would be taken for the next request.
            self.close_connection = True
        self._send(self.server.portal.answer(self.path, self.headers.get("Authorization", "")))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        # Their bodies are not read, so nothing can follow on the connection.
        self.close_connection = True
        self._send(unsupported())

    do_PUT = do_PATCH = do_DELETE = do_POST

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
    """TCP keeps the connection alive while a client waits, so that firewalls in between do not forget it."""
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
