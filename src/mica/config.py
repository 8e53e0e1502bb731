"""What a node is told in `/etc/mica/config.toml`; only `cli/` imports this.

[node]
cache = "/var/lib/mica/cache"                # verified content
proxies = "http://squid:3128;DIRECT"         # groups by `;`, members by `|`, as CVMFS_HTTP_PROXY
method = "auto"                              # how layers are mounted: auto, or what `mica doctor` lists
external = "/cvmfs"                          # where another client shows repositories, for method "external"
complete_mb_s = 0                            # fetch the rest of images in use at this rate, 10^6 bytes/s; 0: do not
deadline_s = 30                              # how long opens wait for a node that was killed, then they fail
quota = "20G"                                # the most that the cache may take; "none", or not given: no limit
keep_free = "5G"                             # what the cache leaves free on its file system; "none", not given: nothing

[repositories."images.example.org"]
urls = ["http://stratum1.example.org/cvmfs/images.example.org"]
keys = ["/etc/mica/keys/images.example.org.pub"]
proxies = "DIRECT"                           # optional, instead of the node's

[drivers.docker]                             # the node serves a Docker Engine (docs/design/drivers.md)
socket = "/run/docker/plugins/mica.sock"     # dockerd --experimental --storage-driver mica


[portal]                                     # thin images on demand, for `mica portal`
repository = "images.example.org"            # published here, gets the layers
allow = ["docker.io/library/*", "here/*"]    # names that may be asked for; nothing else is
listen = "127.0.0.1:5000"
platforms = ["linux/amd64"]                  # several make an index; default: this machine's
certificate = "/etc/mica/portal.pem"         # TLS; `key` if it is in another file
users = "/etc/mica/portal.users"             # lines user:password, mode 0600; without users and tokens everybody may
tokens = "/etc/mica/portal.tokens"           # lines of bearer tokens, mode 0600
max_image_gib = 50                           # compressed
max_layer_gib = 100                          # unpacked
recheck_s = 60                               # a tag is asked for upstream when it was last so long ago
patience_s = 900                             # how long a client is kept waiting for a conversion
conversions = 2                              # at a time

[portal.upstreams]
here = "registry.example.org:5000"           # short names of registries
"""

import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mica.errors import UserError
from mica.fetch.location import RepositoryLocation
from mica.files import mapped_os_errors
from mica.node.stack import Method
from mica.sizes import parse_size

_NUMBER_MAX = 86400
_NODE_KEYS = {
    "cache", "proxies", "method", "external", "complete_mb_s", "deadline_s", "quota", "keep_free",
}  # fmt: skip
_CONVERSIONS_MAX = 64
_GIB_MAX = 1 << 20
SYSTEM_CONFIG = Path("/etc/mica/config.toml")
DOCKER_SOCKET = Path("/run/docker/plugins/mica.sock")


@dataclass(frozen=True, slots=True)
class PortalConfig:
    """`platforms` empty: this machine's. Files are None where there are none."""

    repository: str
    allow: tuple[str, ...]
    listen: str = "127.0.0.1:5000"
    platforms: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    users: Path | None = None
    tokens: Path | None = None
    max_image_gib: float = 50.0
    max_layer_gib: float = 100.0
    recheck_s: float = 60.0
    patience_s: float = 900.0
    conversions: int = 2
    upstreams: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """`method` None: the best one. Bytes None: as it is, 0: no limit. `docker_socket` None: no graph driver."""

    cache: Path | None = None
    repositories: dict[str, RepositoryLocation] = field(default_factory=dict)
    method: Method | None = None
    external: Path = Path("/cvmfs")
    deadline_s: float = 30.0
    complete_mb_s: float = 0.0
    quota_bytes: int | None = None
    keep_free_bytes: int | None = None
    docker_socket: Path | None = None
    portal: PortalConfig | None = None


def load_config(path: Path | None) -> NodeConfig:
    """Read a configuration; without a path the system's, if there is one. Raises UserError naming the wrong key."""
    if path is None:
        if not SYSTEM_CONFIG.exists():
            return NodeConfig()
        path = SYSTEM_CONFIG
    with mapped_os_errors(f"read the configuration {path}"):
        data = path.read_bytes()
    try:
        return _config_from(tomllib.loads(data.decode("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"The configuration {path} is wrong: {error}.") from error


def _config_from(document: dict[str, Any]) -> NodeConfig:
    _refuse_unknown(document, {"node", "portal", "repositories", "drivers"}, "at the top")
    node = _table(document, "node")
    _refuse_unknown(node, _NODE_KEYS, "in [node]")
    proxies = _text(node, "proxies", "DIRECT")
    repositories = {}
    for fqrn in _table(document, "repositories"):
        table = _table(document["repositories"], fqrn)
        where = f'in [repositories."{fqrn}"]'
        _refuse_unknown(table, {"urls", "keys", "proxies"}, where)
        urls, keys = (_texts(table, name, where) for name in ("urls", "keys"))
        own = _text(table, "proxies", proxies)
        repositories[fqrn] = RepositoryLocation(fqrn, urls, tuple(map(Path, keys)), own)
    cache = _text(node, "cache", "")
    drivers = _table(document, "drivers")
    _refuse_unknown(drivers, {"docker"}, "in [drivers]")
    docker = _table(drivers, "docker")
    _refuse_unknown(docker, {"socket"}, "in [drivers.docker]")
    return NodeConfig(
        Path(cache) if cache else None,
        repositories,
        parse_method(_text(node, "method", "auto")),
        Path(_text(node, "external", "/cvmfs")),
        _number(node, "deadline_s", 30.0),
        _number(node, "complete_mb_s", 0.0),
        _limit(node, "quota"),
        _limit(node, "keep_free"),
        Path(_text(docker, "socket", os.fspath(DOCKER_SOCKET))) if "docker" in drivers else None,
        _portal_from(_table(document, "portal")) if "portal" in document else None,
    )


def _portal_from(table: dict[str, Any]) -> PortalConfig:
    names = {one.name for one in fields(PortalConfig)}
    _refuse_unknown(table, names, "in [portal]")
    repository = _text(table, "repository", "")
    if not repository:
        raise ValueError("'repository' is missing in [portal]")
    conversions = table.get("conversions", 2)
    if not isinstance(conversions, int) or isinstance(conversions, bool) or not 1 <= conversions <= _CONVERSIONS_MAX:
        raise ValueError(f"'conversions' has to be a number from 1 to {_CONVERSIONS_MAX}")
    upstreams = _table(table, "upstreams")
    return PortalConfig(
        repository,
        _texts(table, "allow", "in [portal]"),
        listen=_text(table, "listen", "127.0.0.1:5000"),
        platforms=_texts(table, "platforms", "in [portal]") if "platforms" in table else (),
        certificate=_path(table, "certificate"),
        key=_path(table, "key"),
        users=_path(table, "users"),
        tokens=_path(table, "tokens"),
        max_image_gib=_gib(table, "max_image_gib", 50.0),
        max_layer_gib=_gib(table, "max_layer_gib", 100.0),
        recheck_s=_number(table, "recheck_s", 60.0),
        patience_s=_number(table, "patience_s", 900.0),
        conversions=conversions,
        upstreams={name: _text(upstreams, name, "") for name in upstreams},
    )


def _path(table: dict[str, Any], name: str) -> Path | None:
    text = _text(table, name, "")
    return Path(text) if text else None


def _gib(table: dict[str, Any], name: str, default: float) -> float:
    value = table.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= _GIB_MAX:
        raise ValueError(f"{name!r} has to be a number above 0")
    return float(value)


def parse_method(text: str) -> Method | None:
    """None for the best one. Raises ValueError for a name that is none."""
    if text == "auto":
        return None
    try:
        return Method(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a method; known are auto, {', '.join(Method)}") from error


def parse_limit(text: str) -> int:
    """Bytes, 0 for none. Raises ValueError."""
    if text == "none":
        return 0
    size = parse_size(text)
    if not size:
        raise ValueError(f"{text!r} is no limit; 'none' takes one away")
    return size


def _limit(table: dict[str, Any], name: str) -> int | None:
    text = _text(table, name, "")
    try:
        return parse_limit(text) if name in table else None
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from error


def _number(table: dict[str, Any], name: str, default: float) -> float:
    value = table.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _NUMBER_MAX:
        raise ValueError(f"{name!r} has to be a number from 0 to {_NUMBER_MAX}")
    return float(value)


def _refuse_unknown(table: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r} {where}; known are {', '.join(sorted(known))}")


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"{name!r} has to be a table")
    return value


def _text(table: dict[str, Any], name: str, default: str) -> str:
    value = table.get(name, default)
    if not isinstance(value, str):
        raise ValueError(f"{name!r} has to be a text")
    return value


def _texts(table: dict[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = table.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name!r} {where} has to be a list of texts")
    return tuple(value)
