"""Fetching one path of a repository, with repetition and fail-over to other hosts and proxies.

`Fetcher.fetch` hands the body to a consumer, which checks it and raises IntegrityError for wrong bytes. Then the same
host is asked once more past all caches, and then the next one. The result is one that a consumer accepted, or an
exception that names the object and the host. Any thread.
"""

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import quote

from mica.errors import IntegrityError, MicaError, NotFoundError, TemporaryError
from mica.fetch.connections import Answer, ConnectionPool, TransferError
from mica.fetch.counters import TrafficCounter
from mica.fetch.routes import Route, Routes, without_password
from mica.store.base import ObjectSource
from mica.streams import Readable

Result = TypeVar("Result")
Consumer = Callable[[Readable], Result]

_UNESCAPED = "/:.@+-_~[],"
_HEADERS = {"User-Agent": "mica"}
_FRESH = {**_HEADERS, "Cache-Control": "no-cache", "Pragma": "no-cache"}
_LATENCIES_KEPT = 16
_HTTP_OK = 200
_HTTP_PARTIAL = 206
_HTTP_NOT_FOUND = 404


class Connection(NamedTuple):
    """How the next object would be fetched. `host` is the URL of the repository or its directory, `proxy` None without
    one, both without passwords; times in seconds, 0 where there is no network. `latency_s` is the fastest of the last
    answers, from the request to the first byte of the answer."""

    host: str
    proxy: str | None
    timeout_direct_s: float = 0.0
    timeout_proxy_s: float = 0.0
    latency_s: float = 0.0


class Fetcher(Protocol):
    @property
    def where(self) -> str:
        """Where bytes come from, for messages."""
        ...

    @property
    def connection(self) -> Connection: ...

    def fetch(self, path: str, consume: Consumer[Result], *, fresh: bool = False) -> Result:
        """Raises NotFoundError, IntegrityError or TemporaryError."""
        ...


class PieceFetcher(Fetcher, Protocol):
    """A fetcher that can also fetch a piece of the file at a path."""

    def fetch(
        self, path: str, consume: Consumer[Result], *, fresh: bool = False, piece: range | None = None
    ) -> Result: ...


class LocalFetcher:
    """Reads from the storage of a repository on this host."""

    def __init__(self, source: ObjectSource) -> None:
        self._source = source

    @property
    def where(self) -> str:
        return self._source.where

    @property
    def connection(self) -> Connection:
        return Connection(self.where, None)

    def fetch(self, path: str, consume: Consumer[Result], *, fresh: bool = False) -> Result:
        with self._source.open(path, fresh=fresh) as stream:
            try:
                return consume(stream)
            except IntegrityError as error:
                raise IntegrityError(f"{error} It was read from {self.where}.", hint=error.hint) from error


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Times in seconds. `retries` is how often the same URL is asked again after a transfer failed."""

    timeout_direct_s: float = 10.0
    timeout_proxy_s: float = 5.0
    retries: int = 1
    backoff_s: float = 0.5
    connections: int = 64


class _RouteFailed(Exception):
    """One attempt failed: which part of the route failed, and whether to ask again."""

    def __init__(self, error: MicaError, *, proxy: bool, again: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.proxy = proxy
        self.again = again


class HttpFetcher:
    """Plain HTTP(S) with kept-alive connections, proxies and fail-over."""

    def __init__(self, routes: Routes, *, counter: TrafficCounter, limits: HttpLimits = HttpLimits()) -> None:
        self._routes = routes
        self._counter = counter
        self._limits = limits
        self._pool = ConnectionPool(
            timeout_direct_s=limits.timeout_direct_s,
            timeout_proxy_s=limits.timeout_proxy_s,
            most_idle=limits.connections,
        )
        self._latencies_s: deque[float] = deque(maxlen=_LATENCIES_KEPT)

    @property
    def where(self) -> str:
        return str(self._routes.current())

    @property
    def connection(self) -> Connection:
        host, proxy = self._routes.current()
        return Connection(
            without_password(host),
            None if proxy is None else without_password(proxy),
            self._limits.timeout_direct_s,
            self._limits.timeout_proxy_s,
            min(list(self._latencies_s), default=0.0),
        )

    def close(self) -> None:
        self._pool.close()

    def fetch(self, path: str, consume: Consumer[Result], *, fresh: bool = False, piece: range | None = None) -> Result:
        """As the protocol says. With `piece` only these bytes are asked for; if a host sends all, the next is asked."""
        asked = _Asked(path, fresh=fresh, piece=piece)
        tried: set[Route] = set()
        failure: MicaError | None = None
        while (route := self._routes.current()) not in tried:
            tried.add(route)
            try:
                return self._try_route(route, asked, consume)
            except _RouteFailed as failed:
                failure = _worse(failure, failed.error)
                leave = self._routes.leave_proxy if failed.proxy else self._routes.leave_host
                leave(route)
        assert failure is not None
        raise failure

    def _try_route(self, route: Route, asked: "_Asked", consume: Consumer[Result]) -> Result:
        attempts_left = self._limits.retries
        while True:
            try:
                return self._request(route, asked, consume)
            except IntegrityError as error:
                if asked.fresh:
                    sentence = IntegrityError(f"{error} It came from {route}.", hint=error.hint)
                    raise _RouteFailed(sentence, proxy=False, again=False) from error
                asked = asked._replace(fresh=True)
            except _RouteFailed as failed:
                if not failed.again or not attempts_left:
                    raise
                attempts_left -= 1
                time.sleep(random.uniform(0, self._limits.backoff_s))  # noqa: S311 - spreads clients, no secret

    def _request(self, route: Route, asked: "_Asked", consume: Consumer[Result]) -> Result:
        self._counter.add(requests=1)
        began = time.monotonic()
        try:
            answer = self._pool.get(route.host, asked.target, proxy=route.proxy, headers=asked.headers)
        except TransferError as error:
            raise _transfer_failed(route, asked.path, error) from error
        self._latencies_s.append(time.monotonic() - began)
        body = _Body(answer, route, asked.path, self._counter)
        try:
            if answer.status != (_HTTP_OK if asked.piece is None else _HTTP_PARTIAL):
                raise _status_failed(route, asked.path, answer)
            result = consume(body)
            body.finish()
            return result
        finally:
            answer.close()


class _Asked(NamedTuple):
    """What a host is asked for: a path, past all caches or not, all of it or a piece."""

    path: str
    fresh: bool
    piece: range | None

    @property
    def target(self) -> str:
        """The path as a URL has it; names of files may be no UTF-8."""
        return quote(self.path, safe=_UNESCAPED, errors="surrogateescape")

    @property
    def headers(self) -> dict[str, str]:
        headers = _FRESH if self.fresh else _HEADERS
        if self.piece is None:
            return headers
        return {**headers, "Range": f"bytes={self.piece.start}-{self.piece.stop - 1}"}


class _Body:
    """The body of an answer; counts bytes and maps errors."""

    def __init__(self, answer: Answer, route: Route, path: str, counter: TrafficCounter) -> None:
        self._answer = answer
        self._route = route
        self._path = path
        self._counter = counter

    def read(self, size: int, /) -> bytes:
        try:
            data = self._answer.read(size)
        except TransferError as error:
            raise _transfer_failed(self._route, self._path, error) from error
        if data:
            self._counter.add(transferred_bytes=len(data))
        return data

    def finish(self) -> None:
        """Called when the consumer has accepted the body. A connection whose answer goes on is not used again."""
        self.read(1)


def _transfer_failed(route: Route, path: str, error: TransferError) -> _RouteFailed:
    sentence = TemporaryError(
        f"{path} could not be fetched from {route}: {error}.", hint="Check the network, the proxy and the server."
    )
    return _RouteFailed(sentence, proxy=route.proxy is not None, again=True)


def _status_failed(route: Route, path: str, answer: Answer) -> _RouteFailed:
    """The failed part of the route for a status (docs/format/client.md): the proxy if it says so, else the host."""
    status = answer.status
    by_proxy = bool(answer.header("X-Squid-Error")) or "error=" in answer.header("Proxy-Status")
    other_client_error = 400 < status < 500 and status not in {_HTTP_NOT_FOUND, 429}
    blame_proxy = route.proxy is not None and (by_proxy or other_client_error)
    if status == _HTTP_OK:
        error: MicaError = TemporaryError(f"{path} could not be fetched: {route} does not send parts of files.")
    elif status == _HTTP_NOT_FOUND and not by_proxy:
        error = NotFoundError(f"{path} is not at {route}.")
    else:
        error = TemporaryError(f"{path} could not be fetched: {route} answered {status}.")
    return _RouteFailed(error, proxy=blame_proxy, again=False)


def _worse(first: MicaError | None, second: MicaError) -> MicaError:
    """Which failure of several routes to report: wrong bytes first, then no answer, then a missing object."""
    rank = {IntegrityError: 2, TemporaryError: 1}
    if first is None or rank.get(type(second), 0) >= rank.get(type(first), 0):
        return second
    return first
