"""Which host and which proxy to ask next: a state machine without I/O (docs/design/fetching.md).

Hosts are in order of preference. Proxies form groups in order of preference; inside a group one is chosen at random. A
proxy that fails is left for the next of its group, then for the next group; when all groups are used up the first group
comes again with the next host. After `PROXY_RESET_S` and `HOST_RESET_S` the preferred ones are tried again. Any thread.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from mica.errors import UserError

PROXY_RESET_S = 300.0
HOST_RESET_S = 1800.0
DIRECT = "DIRECT"


class Route(NamedTuple):
    """Base URL of a repository, without a trailing slash, and a proxy URL or None for a direct connection."""

    host: str
    proxy: str | None

    def __str__(self) -> str:
        name = _place(self.host)
        return name if self.proxy is None else f"{name} through {_place(self.proxy)}"


def _place(url: str) -> str:
    """Host and port, without the user and password that a URL may carry."""
    return urlsplit(url).netloc.rpartition("@")[2]


def without_password(url: str) -> str:
    """The same URL without the user and password that it may carry."""
    return urlsplit(url)._replace(netloc=_place(url)).geturl()


def parse_proxies(text: str) -> list[list[str]]:
    """Groups divided by `;`, members by `|`; `DIRECT` for none; a missing scheme means http. Raises UserError."""
    groups = [
        [_proxy_url(member.strip()) for member in group.split("|") if member.strip()] for group in text.split(";")
    ]
    groups = [group for group in groups if group]
    if not groups:
        raise UserError("The list of proxies is empty.", hint="Give DIRECT to use no proxy.")
    return groups


def is_http_url(url: str) -> bool:
    # The standard library accepts white space and control characters here, and fails when it sends them.
    if not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets, or a port that is not a number
        return False


def _proxy_url(text: str) -> str:
    if text.upper() == DIRECT:
        return DIRECT
    url = text if "://" in text else f"http://{text}"
    if not is_http_url(url):
        raise UserError(f"{text!r} is not a proxy URL.")
    return url


class Routes:
    def __init__(
        self,
        hosts: Sequence[str],
        proxies: Sequence[Sequence[str]] = ((DIRECT,),),
        *,
        clock: Callable[[], float] = time.monotonic,
        choose: Callable[[Sequence[str]], str] = random.choice,
    ) -> None:
        assert hosts
        self._hosts = list(hosts)
        self._groups = [list(group) for group in proxies]
        self._clock = clock
        self._choose = choose
        self._lock = threading.Lock()
        self._host = 0
        self._group = 0
        self._burned: set[str] = set()
        self._proxy = choose(self._groups[0])
        self._host_left_at = self._group_left_at = clock()

    def current(self) -> Route:
        with self._lock:
            self._return_to_preferred()
            return self._route()

    def leave_host(self, route: Route) -> None:
        """The host of a route failed. Does nothing if another thread has left it already."""
        with self._lock:
            if route == self._route():
                self._next_host()

    def leave_proxy(self, route: Route) -> None:
        """The proxy of a route failed. A direct connection has no proxy, so there the host failed."""
        with self._lock:
            if route != self._route():
                return
            self._burned.add(self._proxy)
            left = [proxy for proxy in self._groups[self._group] if proxy not in self._burned]
            if left:
                self._proxy = self._choose(left)
                return
            if self._group + 1 < len(self._groups):
                self._enter_group(self._group + 1)
            else:
                self._enter_group(0)
                self._next_host()

    def _route(self) -> Route:
        return Route(self._hosts[self._host], None if self._proxy == DIRECT else self._proxy)

    def _next_host(self) -> None:
        self._host = (self._host + 1) % len(self._hosts)
        self._host_left_at = self._clock()

    def _enter_group(self, number: int) -> None:
        self._group = number
        self._burned.clear()
        self._proxy = self._choose(self._groups[number])
        self._group_left_at = self._clock()

    def _return_to_preferred(self) -> None:
        now = self._clock()
        if (self._group or self._burned) and now - self._group_left_at > PROXY_RESET_S:
            self._enter_group(0)
        if self._host and now - self._host_left_at > HOST_RESET_S:
            self._host = 0
