"""What all our HTTP servers do with connections: clients go away in silence, faults of ours are told."""

import contextlib
import http.client
import logging
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from mica.httpbase import TcpHandler, TcpServer, serving


class _Handler(TcpHandler):
    def do_GET(self) -> None:
        if self.path == "/fault":
            raise ValueError("a fault")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        while self.rfile.read(1 << 16):
            pass


class _RefusingServer(TcpServer):
    def begin(self, connection: socket.socket) -> socket.socket:
        raise OSError("no")


@pytest.fixture
def server() -> Iterator[TcpServer]:
    with serving(TcpServer(("127.0.0.1", 0), _Handler)) as running:
        yield running


def ask(server: TcpServer, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_url_leads_there(server: TcpServer) -> None:
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}"
    assert ask(server, "/") == 200


def test_fault_in_a_request_is_logged_and_others_are_served(
    server: TcpServer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server, "/fault")
    assert ask(server, "/") == 200
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.ERROR, "mica.httpbase")
    assert record.exc_info
    assert "a fault" in str(record.exc_info[1])


def test_client_that_goes_away_is_no_event(
    server: TcpServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(server, "shutdown_request", lambda request: (request.close(), over.set()))
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=20) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
    assert over.wait(20)
    assert not caplog.records


def test_connection_that_cannot_begin_is_closed() -> None:
    with (
        serving(_RefusingServer(("127.0.0.1", 0), _Handler)) as refusing,
        socket.create_connection(("127.0.0.1", refusing.server_address[1]), timeout=20) as client,
    ):
        assert client.recv(1) == b""


def test_a_closed_server_ends_the_connections_that_clients_keep() -> None:
    with (
        serving(TcpServer(("127.0.0.1", 0), _Handler)) as server,
        contextlib.closing(http.client.HTTPConnection(*server.server_address[:2], timeout=20)) as connection,
    ):
        connection.request("GET", "/")
        connection.getresponse().read()
        kept = connection.sock
        assert kept is not None
        server.shutdown()
        server.server_close()
        assert kept.recv(1) == b""
