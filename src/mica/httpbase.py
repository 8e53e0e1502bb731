"""The common base of mica's HTTP servers, on top of the standard library's: how connections begin, wait and end. It
gives no answers.

Each connection has a thread and is kept alive. Requests are not logged, nor are clients that go away.
"""

import contextlib
import errno
import http.server
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from typing import TypeVar

from mica.logs import logger

_log = logger(__name__)
_CONNECTIONS = 512
_UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN}


class Handler(http.server.BaseHTTPRequestHandler):
    """Handles one connection over any kind of socket."""

    protocol_version = "HTTP/1.1"
    server_version = "mica"
    sys_version = ""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """No log: the start of a container makes hundreds of requests."""


class TcpHandler(Handler):
    """`timeout`: how long a connection may be silent between requests, and a client slow within one."""

    timeout = 60
    disable_nagle_algorithm = True
    wbufsize = 16384


class TcpServer(http.server.ThreadingHTTPServer):
    """Serves until `shutdown`; `server_close` then ends the connections that are open."""

    scheme = "http"
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[TcpHandler]) -> None:
        self._slots = threading.BoundedSemaphore(_CONNECTIONS)
        self._open: set[socket.socket] = set()
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    @property
    def url(self) -> str:
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def begin(self, connection: socket.socket) -> socket.socket:
        """Work before the first request, in the connection's own thread. OSError ends the connection."""
        return connection

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """A connection beyond the limit waits in its thread, where it costs little, and ends by its time-out."""
        assert isinstance(request, socket.socket)
        with self._slots:
            try:
                connection = self.begin(request)
            except OSError:
                self.shutdown_request(request)
                return
            self._open.discard(request)
            self._open.add(connection)
            super().process_request_thread(connection, client_address)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Called by the thread that `shutdown` waits for, so that `server_close` misses no connection."""
        assert isinstance(request, socket.socket)
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        assert isinstance(request, socket.socket)
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in self._open.copy():
            with contextlib.suppress(OSError):  # it ended by itself, or TLS has its own object for it
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - the base class names them
        """A client that goes away is not logged; every other error is a fault of mica."""
        error = sys.exception()
        if error is not None and not _is_gone(error):
            _log.error("a request failed", exc_info=error)


Server = TypeVar("Server", bound=TcpServer)


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve in a thread for the length of the block."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="serve", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _is_gone(error: BaseException) -> bool:
    """Whether reading or writing failed in this way because the other side has gone away."""
    if isinstance(error, ConnectionError | TimeoutError | ssl.SSLError):
        return True
    return isinstance(error, OSError) and error.errno in _UNREACHABLE
