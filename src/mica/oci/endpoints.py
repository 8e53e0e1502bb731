"""Endpoints of a registry: itself and mirrors in front of it, and the certificates to trust there. Pure; any thread.

Two forms of configuration are read, both by the name of the registry as it stands in a reference:

    <certs>/<host[:port]>/hosts.toml                        containerd: mirrors, own CAs, client certificates
    <certs>/<host[:port]>/{*.crt, *.cert + *.key}           Docker and containers: CAs; client certificate and key

A key that containerd knows and this module does not is refused by its name, never ignored.
"""

import enum
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mica.errors import UserError, explain_parse_error
from mica.oci.origins import is_local
from mica.oci.reference import HUB_HOSTS, Reference
from mica.oci.transport import USUAL_TRUST, Trust

_SERVER_KEYS = {"capabilities", "ca", "client", "skip_verify", "header", "override_path"}


class Use(enum.StrEnum):
    """What an endpoint can do: turn a tag into a digest, give content by digest, take content."""

    RESOLVE = "resolve"
    PULL = "pull"
    PUSH = "push"


ALL_USES = frozenset(Use)
PULL_USES = frozenset({Use.RESOLVE, Use.PULL})
_HUB_SERVER = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`api` is the URL that `/<repository>/manifests/…` follows; `host` is what credentials are filed under: those of
    a registry are never shown to a mirror, which has its own. `headers` may hold secrets too. `repository` is what to
    ask for there, where that is not the name in the reference. `is_insecure`: whichever of HTTPS and HTTP answers."""

    api: str
    host: str
    trust: Trust = USUAL_TRUST
    uses: frozenset[Use] = ALL_USES
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    repository: str = ""
    is_insecure: bool = False

    @property
    def is_plain_http(self) -> bool:
        return self.api.startswith("http:")


@dataclass(frozen=True, slots=True)
class HostConfig:
    """`mirrors` are asked in their order before the registry itself, which is `server` if that is given."""

    mirrors: tuple[Endpoint, ...] = ()
    server: Endpoint | None = None
    trust: Trust | None = None
    is_insecure: bool = False


NO_CONFIG = HostConfig()


def no_hosts(reference: Reference) -> HostConfig:  # noqa: ARG001 - the finder's signature
    return NO_CONFIG


def endpoint_of(
    registry: str,
    repository: str = "",
    *,
    trust: Trust | None = None,
    uses: frozenset[Use] = ALL_USES,
    is_insecure: bool = False,
) -> Endpoint:
    """A registry by its name in references. One on this machine without a configuration is insecure, as with Docker."""
    is_insecure = is_insecure or (trust is None and is_local(registry))
    server = _HUB_SERVER if registry in HUB_HOSTS else registry
    return Endpoint(
        f"https://{server}/v2", registry, trust or USUAL_TRUST, uses, repository=repository, is_insecure=is_insecure
    )


def plain_http_config(registry: str) -> HostConfig:
    """For a name that was given with `http://`."""
    return HostConfig(server=Endpoint(f"http://{registry}/v2", registry))


def parse_hosts_toml(data: bytes, *, directory: Path, what: str) -> HostConfig:
    """Read containerd's hosts.toml, whose files are relative to its directory. Raises UserError naming `what`."""
    try:
        document = tomllib.loads(data.decode("utf-8"))
        return _host_config(document, directory)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is wrong: {explain_parse_error(error)}.") from error


def parse_certificate_directory(names: Iterable[str], *, directory: Path) -> HostConfig:
    """Files of a directory in Docker's way: each `.crt` is a CA, a `.cert` with its `.key` the client certificate."""
    present = sorted(names)
    authorities = tuple(directory / name for name in present if name.endswith(".crt"))
    certificate = next((name for name in present if name.endswith(".cert")), None)
    key = None if certificate is None else f"{certificate.removesuffix('.cert')}.key"
    if key is not None and key not in present:
        raise UserError(f"{directory} has a client certificate {certificate} and no {key}.")
    if not authorities and certificate is None:
        return NO_CONFIG
    client = None if certificate is None else directory / certificate
    return HostConfig(trust=Trust(authorities, client, None if key is None else directory / key))


def _host_config(document: dict[str, Any], directory: Path) -> HostConfig:
    _refuse_unknown(document, {"server", "host", *_SERVER_KEYS}, "at the top")
    hosts = document.get("host", {})
    if not isinstance(hosts, dict):
        raise ValueError("'host' is not a table")
    mirrors = tuple(_mirror(url, table, directory) for url, table in hosts.items())
    own = _trust(document, directory)
    url = document.get("server")
    if url is None:
        return HostConfig(mirrors, trust=own)
    server = _endpoint(url, document, own or USUAL_TRUST, ALL_USES)
    return HostConfig(mirrors, server, own)


def _mirror(url: str, table: Any, directory: Path) -> Endpoint:
    if not isinstance(table, dict):
        raise ValueError(f"'host' has no table for {url!r}")
    _refuse_unknown(table, _SERVER_KEYS, f"for {url!r}")
    return _endpoint(url, table, _trust(table, directory) or USUAL_TRUST, PULL_USES)


def _endpoint(url: Any, table: dict[str, Any], trust: Trust, uses: frozenset[Use]) -> Endpoint:
    text = url if "://" in str(url) else f"https://{url}"
    parts = urlsplit(text)
    if not isinstance(url, str) or parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
        raise ValueError(f"{str(url)[:200]!r} is not the address of a registry")
    if "capabilities" in table:
        uses = frozenset(Use(name) for name in _texts(table, "capabilities"))
    headers = table.get("header", {})
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise ValueError("'header' is not a table of texts")
    server = _HUB_SERVER if parts.netloc in HUB_HOSTS else parts.netloc
    path = parts.path.rstrip("/")
    if not table.get("override_path", False) and not path.endswith("/v2"):
        path += "/v2"
    return Endpoint(f"{parts.scheme}://{server}{path}", parts.netloc, trust, uses, headers)


def _trust(table: dict[str, Any], directory: Path) -> Trust | None:
    """None where nothing is said."""
    if not {"ca", "client", "skip_verify"} & table.keys():
        return None
    authorities = tuple(directory / name for name in _texts(table, "ca"))
    client = table.get("client")
    if isinstance(client, list) and client and isinstance(client[0], list):
        client = client[0]
    if isinstance(client, str):
        client = [client]
    if client is not None and not (isinstance(client, list) and all(isinstance(one, str) for one in client)):
        raise ValueError("'client' is not a file or a pair of files")
    paths = [directory / name for name in client or []]
    skip = table.get("skip_verify", False)
    if not isinstance(skip, bool):
        raise ValueError("'skip_verify' is not true or false")
    return Trust(authorities, paths[0] if paths else None, paths[1] if len(paths) > 1 else None, is_verified=not skip)


def _texts(table: dict[str, Any], name: str) -> list[str]:
    value = table.get(name, [])
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise ValueError(f"{name!r} is not a text or a list of texts")
    return values


def _refuse_unknown(table: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r} {where}; known are {', '.join(sorted(known))}")
