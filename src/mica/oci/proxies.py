"""The proxy for a URL, from HTTP_PROXY, HTTPS_PROXY and NO_PROXY as Docker, Podman and Skopeo read them. Pure.

The rules for exceptions are those of Go's `httpproxy` package, which all three use: a list divided by commas of

    *                           everything
    10.1.2.3, 10.0.0.0/8        an address, a network; names are not looked up for it
    example.org                 the name and all below it
    .example.org, *.example.org all below the name, and not the name itself
    example.org:5000            any of them with a port: that port alone

A server on this machine is never asked through a proxy.
"""

import ipaddress
from dataclasses import dataclass, field

from urllib3.util import parse_url

from mica.errors import UserError
from mica.oci.origins import host_of, is_local, parse_origin

_SCHEMES = frozenset({"http", "https"})
_HINT = "For example http://proxy.example.org:3128; mica speaks to HTTP proxies."


@dataclass(frozen=True, slots=True)
class ProxyException:
    """`name` begins with a dot; `is_exact` where it counts without it too. Port 0: any."""

    name: str = ""
    is_exact: bool = False
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    port: int = 0

    def matches(self, host: str, port: int) -> bool:
        if self.port not in {0, port}:
            return False
        if self.network is not None:
            address = _address(host)
            return address is not None and address in self.network
        return host.endswith(self.name) or (self.is_exact and host == self.name[1:])


@dataclass(frozen=True, slots=True)
class Proxies:
    """URLs of proxies for plain HTTP and for TLS; empty: no proxy. They may have a password."""

    http: str = field(default="", repr=False)
    https: str = field(default="", repr=False)
    exceptions: tuple[ProxyException, ...] = ()

    def proxy_of(self, url: str) -> str:
        """The proxy for a URL; empty for none."""
        origin = parse_origin(url, what="a registry")
        proxy = self.https if origin.scheme == "https" else self.http
        host = origin.host.strip("[]").rstrip(".")
        if not proxy or is_local(host_of(url)) or any(one.matches(host, origin.port) for one in self.exceptions):
            return ""
        return proxy


NO_PROXIES = Proxies()


def parse_proxies(http: str, https: str, no_proxy: str, *, names: tuple[str, str]) -> Proxies:
    """Raises UserError for a malformed proxy; the message has its name, and never its password."""
    return Proxies(_proxy_url(http, names[0]), _proxy_url(https, names[1]), parse_no_proxy(no_proxy))


def parse_no_proxy(text: str) -> tuple[ProxyException, ...]:
    """A text that has none of the forms above matches nothing, as with the other tools."""
    found = []
    for part in text.split(","):
        entry = part.strip().lower()
        if entry == "*":
            return (ProxyException(name=""),)
        if entry:
            found += _parse_exception(entry)
    return tuple(found)


def _parse_exception(entry: str) -> list[ProxyException]:
    if "/" in entry:
        try:
            return [ProxyException(network=ipaddress.ip_network(entry, strict=False))]
        except ValueError:
            return []
    host, port = _split_port(entry)
    address = _address(host)
    if address is not None:
        return [ProxyException(network=ipaddress.ip_network(address), port=port)]
    host = host.removeprefix("*") if host.startswith("*.") else host
    if not host:
        return []
    is_exact = not host.startswith(".")
    return [ProxyException(f".{host}" if is_exact else host, is_exact, port=port)]


def _split_port(entry: str) -> tuple[str, int]:
    if entry.startswith("[") and "]" in entry:
        host, _, rest = entry[1:].partition("]")
        port = rest.removeprefix(":")
    elif entry.count(":") == 1:
        host, _, port = entry.partition(":")
    else:
        return entry, 0
    is_number = port.isascii() and port.isdecimal() and len(port) <= 5
    return host, int(port) if is_number else 0


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _proxy_url(text: str, name: str) -> str:
    """The URL; one without a scheme is an HTTP proxy's."""
    if not text:
        return ""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = parse_url(url)
    except ValueError:
        # Not chained: the exception carries the password.
        raise UserError(f"{name} is not the address of a proxy.", hint=_HINT) from None
    if parts.scheme not in _SCHEMES or not parts.host or parts.port == 0:
        raise UserError(f"{name} is not the address of a proxy: {parts._replace(auth=None).url[:200]!r}.", hint=_HINT)
    return url
