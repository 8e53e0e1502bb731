"""Getting one path of a repository from somewhere, again and elsewhere if need be.

`Fetcher.fetch` hands the body to a consumer that checks it; one that finds wrong bytes raises IntegrityError, and then
the same host is asked once more past all caches, and then the next one. What comes back was accepted by a consumer
or is an exception that names the object and the host. Any thread.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import quote

import urllib3

from mica.errors import IntegrityError, MicaError, NotFoundError, TemporaryError
from mica.fetch.counters import TrafficCounter
from mica.fetch.routes import Route, Routes, without_password
from mica.store.base import ObjectSource, Readable

Result = TypeVar("Result")
Consumer = Callable[[Readable], Result]

_UNESCAPED = "/:.@+-_~[],"
_HTTP_OK = 200
_HTTP_NOT_FOUND = 404


class Connection(NamedTuple):
    """How the next object would be fetched. `host` is the URL of the repository or its directory, `proxy` None without
    one, both without passwords; times in seconds, 0 where there is no network."""

    host: str
    proxy: str | None
    timeout_direct_s: float = 0.0
    timeout_proxy_s: float = 0.0


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


class LocalFetcher:
    """A repository whose storage is at hand."""

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
    """One attempt failed; which part of the route is to blame, and whether asking again may help."""

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
        self._pools: dict[str | None, urllib3.PoolManager] = {}

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
        )

    def close(self) -> None:
        for pool in self._pools.values():
            pool.clear()

    def fetch(self, path: str, consume: Consumer[Result], *, fresh: bool = False) -> Result:
        tried: set[Route] = set()
        failure: MicaError | None = None
        while (route := self._routes.current()) not in tried:
            tried.add(route)
            try:
                return self._try_route(route, path, consume, fresh=fresh)
            except _RouteFailed as failed:
                failure = _worse(failure, failed.error)
                leave = self._routes.leave_proxy if failed.proxy else self._routes.leave_host
                leave(route)
        assert failure is not None
        raise failure

    def _try_route(self, route: Route, path: str, consume: Consumer[Result], *, fresh: bool) -> Result:
        attempts_left = self._limits.retries
        while True:
            try:
                return self._request(route, path, consume, fresh=fresh)
            except IntegrityError as error:
                if fresh:
                    sentence = IntegrityError(f"{error} It came from {route}.", hint=error.hint)
                    raise _RouteFailed(sentence, proxy=False, again=False) from error
                fresh = True
            except _RouteFailed as failed:
                if not failed.again or not attempts_left:
                    raise
                attempts_left -= 1
                time.sleep(random.uniform(0, self._limits.backoff_s))  # noqa: S311 - spreads clients, no secret

    def _request(self, route: Route, path: str, consume: Consumer[Result], *, fresh: bool) -> Result:
        headers = {"Cache-Control": "no-cache", "Pragma": "no-cache"} if fresh else {}
        url = f"{route.host}/{quote(path, safe=_UNESCAPED)}"
        self._counter.add(requests=1)
        try:
            response = self._pool(route).request(
                "GET", url, headers=headers, preload_content=False, decode_content=False, redirect=False
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _transfer_failed(route, path, error) from error
        body = _Body(response, route, path, self._counter)
        try:
            if response.status != _HTTP_OK:
                raise _status_failed(route, path, response)
            result = consume(body)
            body.finish()
            return result
        finally:
            body.close()

    def _pool(self, route: Route) -> urllib3.PoolManager:
        pool = self._pools.get(route.proxy)
        if pool is None:
            seconds = self._limits.timeout_direct_s if route.proxy is None else self._limits.timeout_proxy_s
            options = {
                "maxsize": self._limits.connections,
                "retries": False,
                "timeout": urllib3.Timeout(connect=seconds, read=seconds),
                "headers": {"User-Agent": "mica"},
            }
            if route.proxy is None:
                pool = urllib3.PoolManager(**options)  # type: ignore[arg-type]
            else:
                pool = urllib3.ProxyManager(route.proxy, **options)  # type: ignore[arg-type]
            pool = self._pools.setdefault(route.proxy, pool)
        return pool


class _Body:
    """The body of an answer; counts bytes, maps errors, and gives the connection back only when read to its end."""

    def __init__(self, response: urllib3.BaseHTTPResponse, route: Route, path: str, counter: TrafficCounter) -> None:
        self._response = response
        self._route = route
        self._path = path
        self._counter = counter
        self._ended = False

    def read(self, size: int, /) -> bytes:
        try:
            data = self._response.read(size)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _transfer_failed(self._route, self._path, error) from error
        if data:
            self._counter.add(transferred_bytes=len(data))
        elif size:
            self._ended = True
        return data

    def finish(self) -> None:
        """After a satisfied consumer nothing may follow."""
        self._ended = self._ended or not self.read(1)

    def close(self) -> None:
        if self._ended:
            self._response.release_conn()
        else:
            self._response.close()


def _transfer_failed(route: Route, path: str, error: Exception) -> _RouteFailed:
    reason = _reason(error)
    sentence = TemporaryError(
        f"{path} could not be fetched from {route}: {reason}.", hint="Check the network, the proxy and the server."
    )
    return _RouteFailed(sentence, proxy=route.proxy is not None, again=True)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib3.exceptions.ProxyError):
        return _reason(error.original_error)
    if isinstance(error, urllib3.exceptions.NewConnectionError):  # a ConnectTimeoutError too
        return "no connection"
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return "no connection in time"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "no answer in time"
    if isinstance(error, urllib3.exceptions.IncompleteRead | urllib3.exceptions.ProtocolError):
        return "the connection was lost half-way"
    return type(error).__name__


def _status_failed(route: Route, path: str, response: urllib3.BaseHTTPResponse) -> _RouteFailed:
    """Who is to blame for a status (docs/format/client.md): a proxy that says so itself, otherwise the host."""
    status = response.status
    by_proxy = "X-Squid-Error" in response.headers or "error=" in response.headers.get("Proxy-Status", "")
    other_client_error = 400 < status < 500 and status not in {_HTTP_NOT_FOUND, 429}
    blame_proxy = route.proxy is not None and (by_proxy or other_client_error)
    if status == _HTTP_NOT_FOUND and not by_proxy:
        error: MicaError = NotFoundError(f"{path} is not at {route}.")
    else:
        error = TemporaryError(f"{path} could not be fetched: {route} answered {status}.")
    return _RouteFailed(error, proxy=blame_proxy, again=False)


def _worse(first: MicaError | None, second: MicaError) -> MicaError:
    """Of several routes' failures the one to tell: wrong bytes before no bytes, no bytes before not there."""
    rank = {IntegrityError: 2, TemporaryError: 1}
    if first is None or rank.get(type(second), 0) >= rank.get(type(first), 0):
        return second
    return first
