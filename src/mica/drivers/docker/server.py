"""The graph driver's end of HTTP: a unix socket, the standard library's parser, a thread for each connection.

Failures are replies with "Err", one sentence, which the engine shows as its own. Only the archive of a layer has no
place for one: a failure there is the status 500 before the first byte, and later a connection that ends early.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qs, urlsplit

from mica.daemon.nodeservers import ServerSpec
from mica.dataplane.sockets import listening
from mica.drivers.docker.bodies import ChunkedBody, SizedBody, drain, read_whole
from mica.drivers.docker.driver import DriverSettings, GraphDriver
from mica.drivers.docker.messages import CONTENT_TYPE, REQUEST_MAX_BYTES, format_reply, parse_request
from mica.errors import MicaError, UserError
from mica.httpbase import Handler
from mica.logs import logger
from mica.serverprocess import Parent
from mica.streams import Readable

_log = logger(__name__)
_CALL = "/GraphDriver."
_BLOCK_BYTES = 1 << 18


def graph_driver_of(settings: DriverSettings, path: Path) -> ServerSpec:
    """The driver as a server beside a node's own."""

    def serve(parent: Parent) -> None:
        with GraphDriver(settings) as driver:
            serve_graph_driver(driver, path, parent)

    return ServerSpec("graph driver", lambda _: serve)


def serve_graph_driver(driver: GraphDriver, path: Path, parent: Parent) -> None:
    """Take connections until the parent wants the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with listening(path, kind=socket.SOCK_STREAM) as listener:
        parent.ready()
        while parent.wait(listener):
            connection, _ = listener.accept()
            threading.Thread(target=_talk, args=(connection, driver), name="graphdriver", daemon=True).start()


def _talk(connection: socket.socket, driver: GraphDriver) -> None:
    # An engine that hangs up is normal.
    with connection, contextlib.suppress(ConnectionError):
        _Handler(connection, driver)


class _Handler(Handler):
    rbufsize = _BLOCK_BYTES

    def __init__(self, connection: socket.socket, driver: GraphDriver) -> None:
        self._driver = driver
        super().__init__(connection, ("", 0), cast("Any", None))

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        body = self._body()
        try:
            if url.path == _CALL + "Diff":
                self._diff(body)
            elif url.path == _CALL + "ApplyDiff":
                self._reply(self._answer(lambda: self._apply_diff(url.query, body), body))
            else:
                self._reply(self._answer(lambda: self._call(url.path, body), body))
        except UserError as error:  # the body ended early
            self.close_connection = True
            self._reply({"Err": str(error)})

    def _body(self) -> Readable:
        stream = cast("BinaryIO", self.rfile)
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return ChunkedBody(stream)
        length = self.headers.get("Content-Length", "0")
        return SizedBody(stream, int(length) if length.isdecimal() else 0)

    def _answer(self, call: Callable[[], dict[str, object]], body: Readable) -> dict[str, object]:
        """What a call returns, or the sentence of its failure. The body is read to its end either way."""
        try:
            return call()
        except Exception as error:
            failure = _sentence(error)
        drain(body)
        return {"Err": failure}

    def _call(self, path: str, body: Readable) -> dict[str, object]:
        if path == "/Plugin.Activate":
            drain(body)
            return {"Implements": ["GraphDriver"]}
        call = self._driver.calls.get(path.removeprefix(_CALL)) if path.startswith(_CALL) else None
        if call is None:
            raise UserError(f"mica knows no call {path[:80]!r}.")
        return call(parse_request(read_whole(body, REQUEST_MAX_BYTES)))

    def _apply_diff(self, query: str, body: Readable) -> dict[str, object]:
        values = parse_qs(query)
        archive = _Watched(body)
        size = self._driver.apply_diff(values.get("id", [""])[0], archive)
        drain(archive)
        return {"Size": size}

    def _diff(self, body: Readable) -> None:
        with contextlib.ExitStack() as stack:
            try:
                values = parse_request(read_whole(body, REQUEST_MAX_BYTES))
                blocks = _blocks(stack.enter_context(self._driver.diff(values)))
                first = next(blocks)
            except Exception as error:
                self._reply({"Err": _sentence(error)}, HTTPStatus.INTERNAL_SERVER_ERROR)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/x-tar")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                self._send_chunk(first)
                for block in blocks:
                    self._send_chunk(block)
            except Exception as error:
                self.close_connection = True
                if not isinstance(error, ConnectionError):
                    _log.error("an archive ends in the middle: %s", _sentence(error))
                return
            self._send_chunk(b"")

    def _send_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _reply(self, values: dict[str, object], status: HTTPStatus = HTTPStatus.OK) -> None:
        data = format_reply(values)
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Watched:
    """An archive that must not be empty: an empty one comes from a request that was sent again without its body."""

    def __init__(self, body: Readable) -> None:
        self._body = body
        self._has_begun = False

    def read(self, n: int, /) -> bytes:
        data = self._body.read(n)
        if not data and not self._has_begun:
            raise UserError("The request is empty, as it is when it is repeated after a lost connection.")
        self._has_begun = True
        return data


def _blocks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pieces put together, so that small files do not cost a call each."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _BLOCK_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if size:
        yield b"".join(waiting)


def _sentence(error: Exception) -> str:
    if isinstance(error, MicaError):
        _log.info("%s %s", error, error.hint)
        return str(error)
    _log.error("a call failed", exc_info=error)
    return f"mica failed: {type(error).__name__}."
