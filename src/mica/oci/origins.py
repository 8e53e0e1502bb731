r"""Which server a URL means: what secrets are for. Pure; any thread.

URLs are taken apart by the library that sends the requests: where two parsers read `http://a\@b/` differently, one of
them would watch over the wrong server.
"""

import ipaddress
from typing import NamedTuple

from urllib3.util import Url, parse_url

from mica.errors import UserError

_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """The server that a header with a secret is for."""

    scheme: str
    host: str
    port: int


def parse_origin(url: str, *, what: str) -> Origin:
    """Raises UserError for a text that is not a web address. `what` is the thing to fetch from it or to send to it."""
    parts = _parse(url)
    if parts is None or parts.scheme not in _PORTS or not parts.host:
        raise UserError(f"A registry names no web address for {what}.")
    return Origin(parts.scheme, parts.host, parts.port or _PORTS[parts.scheme])


def host_of(url: str) -> str:
    """Host and port, without the user and password that a URL may carry."""
    parts = _parse(url)
    return "" if parts is None or parts.host is None else parts.netloc or ""


def is_local(registry: str) -> bool:
    """Whether a registry is on this machine, where plain HTTP is no risk: localhost, 127.0.0.0/8, ::1."""
    host = registry.rpartition("]")[0].removeprefix("[") or registry.partition(":")[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parse(url: str) -> Url | None:
    try:
        return parse_url(url)
    except ValueError:
        return None
