"""Kept-alive HTTP connections to hosts and proxies, for GET requests; on `http.client`, which has no pool.

A connection is taken out for one request and comes back when its answer was read to the end, so it never belongs to two
threads; the most recently used one goes first and the others close when their server is tired of them. Any thread.

`http.client` and not urllib3, which the registry client uses (docs/adr/0003-registry-client.md): of thousands of small
objects the library is a good part of the cost, and importing it a part of every start.
"""

import http.client
import select
import ssl
import threading
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from mica.errors import UserError

_PORTS = {"http": 80, "https": 443}


class TransferError(Exception):
    """A request had no answer, or only a part of one; the text is the reason, in words that end a sentence."""


class _Way(NamedTuple):
    """Where to connect to; `tunnel` is the host and port that a proxy is to connect to for us."""

    scheme: str
    host: str
    port: int
    tunnel: tuple[str, int] | None


class _Place(NamedTuple):
    """A base URL as seen through a proxy: how to get there, and what a request line begins with there."""

    way: _Way
    prefix: str


class ConnectionPool:
    """`timeout_direct_s` and `timeout_proxy_s` limit connecting and every wait for more bytes."""

    def __init__(self, *, timeout_direct_s: float, timeout_proxy_s: float, most_idle: int) -> None:
        self._timeouts = {False: timeout_direct_s, True: timeout_proxy_s}
        self._most_idle = most_idle
        self._lock = threading.Lock()
        self._places: dict[tuple[str, str | None], _Place] = {}
        self._idle: dict[_Way, list[http.client.HTTPConnection]] = {}

    def close(self) -> None:
        """Close what is idle; what is in use closes when it comes back."""
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
        target = f"{place.prefix}/{path}"
        while True:
            idle = self._take(place.way)
            connection = idle or _connect(place.way, self._timeouts[proxy is not None])
            try:
                connection.request("GET", target, headers=headers)
                return Answer(self, place.way, connection, connection.getresponse())
            except (http.client.HTTPException, OSError) as error:
                connection.close()
                # A server may close an idle connection at any moment: no failure, the next one or a new one does.
                if idle is None or not isinstance(error, ConnectionError):
                    raise TransferError(_reason(error)) from error

    def _take(self, way: _Way) -> http.client.HTTPConnection | None:
        while True:
            with self._lock:
                waiting = self._idle.get(way)
                connection = waiting.pop() if waiting else None
            if connection is None or not _has_ended(connection):
                return connection
            connection.close()

    def give_back(self, way: _Way, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            waiting = self._idle.setdefault(way, [])
            if len(waiting) < self._most_idle:
                waiting.append(connection)
                return
        connection.close()


class Answer:
    """Status, headers and body. A connection whose answer was read to its end is kept and free at once; `close` closes
    any other."""

    def __init__(
        self,
        pool: ConnectionPool,
        way: _Way,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
    ) -> None:
        self._pool = pool
        self._way = way
        self._connection = connection
        self._response = response
        self._is_free = False
        self._free_if_whole()

    @property
    def status(self) -> int:
        return self._response.status

    def header(self, name: str) -> str:
        """Empty if there is none."""
        return self._response.headers.get(name, "")

    def read(self, size: int, /) -> bytes:
        """Raises TransferError also for a body that ends before its announced length."""
        try:
            data = self._response.read(size)
        except (http.client.HTTPException, OSError) as error:
            raise TransferError(_reason(error)) from error
        if not data and size and self._response.length:  # http.client tells this only of a body read at once
            raise TransferError(_HALF_WAY)
        self._free_if_whole()
        return data

    def close(self) -> None:
        if not self._is_free:
            self._response.close()
            self._connection.close()

    def _free_if_whole(self) -> None:
        if not self._is_free and self._response.isclosed() and not self._response.will_close:
            self._is_free = True
            self._pool.give_back(self._way, self._connection)


def _find(base: str, proxy: str | None) -> _Place:
    host = urlsplit(base)
    own = _Way(host.scheme, host.hostname or "", host.port or _PORTS[host.scheme], None)
    path = host.path.rstrip("/")
    if proxy is None:
        return _Place(own, path)
    through = urlsplit(proxy)
    way = _Way(through.scheme, through.hostname or "", through.port or _PORTS[through.scheme], None)
    if own.scheme == "http":
        return _Place(way, f"http://{host.netloc.rpartition('@')[2]}{path}")
    if through.scheme == "https":
        raise UserError(f"An https proxy cannot carry https: {own.host} through {way.host}.", hint="Use an http proxy.")
    return _Place(way._replace(scheme="https", tunnel=(own.host, own.port)), path)


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


def _has_ended(connection: http.client.HTTPConnection) -> bool:
    """An idle connection has nothing to say: what can be read is its end."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


_HALF_WAY = "the connection was lost half-way"


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.HTTPException | ConnectionError):
        return _HALF_WAY
    return type(error).__name__
