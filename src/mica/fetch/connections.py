"""Kept-alive HTTP connections to hosts and proxies, for GET requests.

A connection is taken out for one request and comes back when its answer was read to the end, so it never belongs to two
threads. The most recently used one is taken first; servers close the others when they have been idle for long. Any
thread.

`http.client` makes connections (TLS, tunnels), `http1.py` reads answers. Not urllib3, which the registry client uses
(docs/adr/0002-registry-client.md): it would be a good part of the cost of thousands of small objects, and importing it
a part of every start.
"""

import http.client
import re
import select
import ssl
import threading
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from mica.errors import UserError
from mica.fetch.http1 import ReceivingError, Response

_PORTS = {"http": 80, "https": 443}
_UNFIT = re.compile(r"[^!-~]")
"""Bytes that a request line must not have in its target."""


class TransferError(Exception):
    """A request had no answer, or only a part of one; the text is the reason, in words that end a sentence."""


class _Way(NamedTuple):
    """Where to connect to; `tunnel` is the host and port to which the proxy connects for us."""

    scheme: str
    host: str
    port: int
    tunnel: tuple[str, int] | None


class _Place(NamedTuple):
    """A base URL as seen through a proxy: how to get there, what a request line begins with there, and the headers that
    all requests have."""

    way: _Way
    prefix: str
    headers: str


class ConnectionPool:
    """`timeout_direct_s` and `timeout_proxy_s` limit connecting and every wait for more bytes."""

    def __init__(self, *, timeout_direct_s: float, timeout_proxy_s: float, most_idle: int) -> None:
        self._timeouts = {False: timeout_direct_s, True: timeout_proxy_s}
        self._most_idle = most_idle
        self._lock = threading.Lock()
        self._places: dict[tuple[str, str | None], _Place] = {}
        self._idle: dict[_Way, list[_Connection]] = {}

    def close(self) -> None:
        """Close idle connections; one in use closes when it comes back."""
        with self._lock:
            idle = [connection for waiting in self._idle.values() for connection in waiting]
            self._idle, self._most_idle = {}, 0
        for connection in idle:
            connection.close()

    def get(self, base: str, path: str, *, proxy: str | None, headers: Mapping[str, str]) -> "Answer":
        """The answer to a request for `path`, escaped and without a leading slash, below a base URL.

        Raises TransferError if there is none.
        """
        place = self._places.get((base, proxy))
        if place is None:
            place = self._places[base, proxy] = _find(base, proxy)
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        target = f"{place.prefix}/{path}"
        if _UNFIT.search(target) is not None:
            raise TransferError("its URL is malformed")
        request = f"GET {target} HTTP/1.1\r\n{place.headers}{lines}\r\n".encode("latin-1")
        while True:
            idle = self._take(place.way)
            connection = idle or _Connection(place.way, self._timeouts[proxy is not None])
            try:
                return Answer(self, place.way, connection, connection.ask(request))
            except (ReceivingError, OSError) as error:
                connection.close()
                # A server may close an idle connection at any moment. That is no failure: take the next, or a new one.
                if idle is None or not isinstance(error, ConnectionError):
                    raise TransferError(_reason(error)) from error

    def _take(self, way: _Way) -> "_Connection | None":
        while True:
            with self._lock:
                waiting = self._idle.get(way)
                connection = waiting.pop() if waiting else None
            if connection is None or not connection.has_ended:
                return connection
            connection.close()

    def give_back(self, way: _Way, connection: "_Connection") -> None:
        with self._lock:
            waiting = self._idle.setdefault(way, [])
            if len(waiting) < self._most_idle:
                waiting.append(connection)
                return
        connection.close()


class Answer:
    """Status, headers and body. A connection whose answer was read to its end is kept, and free at once; `close` closes
    a connection whose answer was not."""

    __slots__ = ("_connection", "_is_free", "_pool", "_response", "_way")

    def __init__(self, pool: ConnectionPool, way: _Way, connection: "_Connection", response: Response) -> None:
        self._pool = pool
        self._way = way
        self._connection = connection
        self._response = response
        self._is_free = False
        self._free_if_whole()

    @property
    def status(self) -> int:
        return self._response.head.status

    def header(self, name: str) -> str:
        """Empty if there is none."""
        return self._response.head.headers.get(name.lower(), "")

    def read(self, size: int, /) -> bytes:
        """Raises TransferError also for a body that ends before its announced length."""
        try:
            data = self._response.read(size)
        except (ReceivingError, OSError) as error:
            raise TransferError(_reason(error)) from error
        self._free_if_whole()
        return data

    def close(self) -> None:
        if not self._is_free:
            self._connection.close()

    def _free_if_whole(self) -> None:
        if not self._is_free and self._response.leaves_clean:
            self._is_free = True
            self._pool.give_back(self._way, self._connection)


class _Connection:
    """Raises TransferError if it cannot be made."""

    __slots__ = ("_connection", "_poll", "_socket")

    def __init__(self, way: _Way, timeout_s: float) -> None:
        self._connection = _connect(way, timeout_s)
        self._socket = self._connection.sock
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def ask(self, request: bytes) -> Response:
        self._socket.sendall(request)
        return Response(self._socket)

    @property
    def has_ended(self) -> bool:
        """An idle connection sends nothing: if it can be read, it has ended."""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        self._connection.close()


def _find(base: str, proxy: str | None) -> _Place:
    host = urlsplit(base)
    own = _Way(host.scheme, host.hostname or "", host.port or _PORTS[host.scheme], None)
    path = host.path.rstrip("/")
    netloc = host.netloc.rpartition("@")[2]
    headers = f"Host: {_ascii(netloc)}\r\nAccept-Encoding: identity\r\n"
    if proxy is None:
        return _Place(own, path, headers)
    through = urlsplit(proxy)
    way = _Way(through.scheme, through.hostname or "", through.port or _PORTS[through.scheme], None)
    if own.scheme == "http":
        return _Place(way, f"http://{_ascii(netloc)}{path}", headers)
    if through.scheme == "https":
        raise UserError(f"An https proxy cannot carry https: {own.host} through {way.host}.", hint="Use an http proxy.")
    return _Place(way._replace(scheme="https", tunnel=(own.host, own.port)), path, headers)


def _ascii(netloc: str) -> str:
    return netloc if netloc.isascii() else netloc.encode("idna").decode("ascii")


def _connect(way: _Way, timeout_s: float) -> http.client.HTTPConnection:
    """Raises TransferError."""
    kind = http.client.HTTPSConnection if way.scheme == "https" else http.client.HTTPConnection
    connection = kind(way.host, way.port, timeout=timeout_s)
    if way.tunnel is not None:
        connection.set_tunnel(*way.tunnel)
    try:
        connection.connect()
    except (http.client.HTTPException, OSError) as error:
        connection.close()
        raise TransferError(_reason_without(error)) from error
    return connection


def _reason_without(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not trusted"
    return "no connection in time" if isinstance(error, TimeoutError) else "no connection"


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ReceivingError):
        return str(error)
    return "the connection was lost half-way" if isinstance(error, ConnectionError) else type(error).__name__
