"""The base of the HTTP servers that tests start: when one is closed, so are its connections, and their threads end.

A client keeps connections for its next request, and a test that forks may have no thread left from an earlier one.
"""

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args: Any, **options: Any) -> None:
        self._handling: dict[threading.Thread, socket.socket] = {}
        self._handling_lock = threading.Lock()
        super().__init__(*args, **options)

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(target=self._handle, args=(request, client_address), name="connection", daemon=True)
        with self._handling_lock:
            self._handling[thread] = request
        thread.start()

    def _handle(self, request: Any, client_address: Any) -> None:
        try:
            self.process_request_thread(request, client_address)
        finally:
            with self._handling_lock:
                del self._handling[threading.current_thread()]

    def server_close(self) -> None:
        super().server_close()
        self.hang_up()

    def hang_up(self) -> None:
        """End all connections and wait for their threads."""
        with self._handling_lock:
            left = dict(self._handling)
        for thread, connection in left.items():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextlib.contextmanager
def answering(server: socketserver.BaseServer) -> Iterator[None]:
    """A server of any kind answers in a thread for the length of the block. Whoever made it closes it."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="answering")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
