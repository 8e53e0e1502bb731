"""The configuration `/etc/mica/config.toml` (docs/man/mica-config.5.md) as values. Only `cli/` imports this.

A wrong file is refused with a sentence that names the key. Pure, except that it reads the file.
"""

import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mica.errors import UserError, explain_parse_error
from mica.fetch.location import RepositoryLocation
from mica.fetch.routes import DIRECT, parse_proxies
from mica.files import mapped_os_errors
from mica.layers.stack import Method
from mica.repo.manifest import is_fqrn
from mica.sizes import format_size, parse_age, parse_size

QUOTA_MIN_BYTES = 32 << 20
"""The smallest quota. Publishers, mica and the stock server alike, cut large files into chunks of up to 16 MiB
(`ChunkRule`). One that is read and one that is being downloaded have to fit."""
_NUMBER_MAX = 86400
_NODE_KEYS = {
    "cache", "proxies", "method", "external", "complete_mb_s", "deadline_s", "quota", "keep_free",
    "blacklists",
}  # fmt: skip
_CONVERSIONS_MAX = 64
_GIB_MAX = 1 << 20
_LEASE_MIN_S = 1
SYSTEM_CONFIG = Path("/etc/mica/config.toml")
BLACKLISTS = (Path("/etc/mica/blacklist"), Path("/etc/cvmfs/blacklist"))
DOCKER_SOCKET = Path("/run/docker/plugins/mica.sock")


@dataclass(frozen=True, slots=True)
class PortalConfig:
    """If `platforms` is empty, it is this machine's. A file that is not configured is None."""

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
class WorkersConfig:
    """`queue`: URL of the database that hands out layers; it may hold a password."""

    queue: str = field(repr=False)
    lease_s: float = 60.0


@dataclass(frozen=True, slots=True)
class RegistriesConfig:
    """None means: as the environment says."""

    proxy: str | None = field(default=None, repr=False)
    no_proxy: str | None = None


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """When `mica server status` warns and when it fails: seconds and bytes; 0: never. `replicas` by repository."""

    whitelist_s: int = 3 * 86400
    whitelist_warn_s: int = 7 * 86400
    certificate_warn_s: int = 30 * 86400
    lag_s: int = 86400
    lag_warn_s: int = 7200
    free_bytes: int = 1 << 30
    free_warn_bytes: int = 10 << 30
    published_warn_s: int = 0
    collected_warn_s: int = 0
    replicas: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """`method` is None for the best one. A number of bytes is None to leave the limit as it is, and 0 for no limit.
    `blacklists` is None for those of `BLACKLISTS` that exist. `docker_socket` is None for no graph driver."""

    cache: Path | None = None
    repositories: dict[str, RepositoryLocation] = field(default_factory=dict)
    method: Method | None = None
    external: Path = Path("/cvmfs")
    deadline_s: float = 30.0
    complete_mb_s: float = 0.0
    quota_bytes: int | None = None
    keep_free_bytes: int | None = None
    blacklists: tuple[Path, ...] | None = None
    docker_socket: Path | None = None
    portal: PortalConfig | None = None
    registries: RegistriesConfig = RegistriesConfig()
    server: ServerConfig = field(default_factory=ServerConfig)
    workers: WorkersConfig | None = None


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
    except (ValueError, RecursionError) as error:
        raise UserError(f"The configuration {path} is wrong: {explain_parse_error(error)}.") from error


def _config_from(document: dict[str, Any]) -> NodeConfig:
    _refuse_unknown(
        document, {"node", "portal", "registries", "repositories", "drivers", "server", "workers"}, "at the top"
    )
    node = _table(document, "node")
    _refuse_unknown(node, _NODE_KEYS, "in [node]")
    proxies = _proxies(node, "proxies", DIRECT, "in [node]")
    repositories = {}
    for fqrn in _table(document, "repositories"):
        table = _table(document["repositories"], fqrn)
        where = f'in [repositories."{fqrn}"]'
        if not is_fqrn(fqrn):
            raise ValueError(f"{fqrn!r} in [repositories] cannot be the name of a repository")
        _refuse_unknown(table, {"urls", "keys", "proxies", "external_urls", "external_proxies"}, where)
        urls, keys = (_texts(table, name, where) for name in ("urls", "keys"))
        own = _proxies(table, "proxies", proxies, where)
        repositories[fqrn] = RepositoryLocation(
            fqrn,
            urls,
            tuple(map(Path, keys)),
            own,
            external_urls=_texts(table, "external_urls", where) if "external_urls" in table else (),
            external_proxies=_proxies(table, "external_proxies", DIRECT, where),
        )
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
        _limit(node, "quota", parse_quota),
        _limit(node, "keep_free", parse_limit),
        _blacklists(node),
        Path(_text(docker, "socket", os.fspath(DOCKER_SOCKET))) if "docker" in drivers else None,
        _portal_from(_table(document, "portal")) if "portal" in document else None,
        _registries_from(_table(document, "registries")),
        _server_from(_table(document, "server")),
        _workers_from(_table(document, "workers")) if "workers" in document else None,
    )


def _workers_from(table: dict[str, Any]) -> WorkersConfig:
    _refuse_unknown(table, {"queue", "lease_s"}, "in [workers]")
    queue, lease_s = _text(table, "queue", ""), _number(table, "lease_s", 60.0)
    if not queue:
        raise ValueError("'queue' is missing in [workers]")
    if lease_s < _LEASE_MIN_S:
        raise ValueError(f"'lease_s' in [workers] has to be at least {_LEASE_MIN_S}")
    return WorkersConfig(queue, lease_s)


def _registries_from(table: dict[str, Any]) -> RegistriesConfig:
    _refuse_unknown(table, {"proxy", "no_proxy"}, "in [registries]")
    proxy, no_proxy = (_text(table, name, "") if name in table else None for name in ("proxy", "no_proxy"))
    return RegistriesConfig("" if proxy == DIRECT else proxy, no_proxy)


def _server_from(table: dict[str, Any]) -> ServerConfig:
    ages = ("whitelist", "whitelist_warn", "certificate_warn", "lag", "lag_warn", "published_warn", "collected_warn")
    sizes = ("free", "free_warn")
    _refuse_unknown(table, {*ages, *sizes, "replicas"}, "in [server]")
    replicas = _table(table, "replicas")
    values: dict[str, Any] = {f"{name}_s": _limit(table, name, _parse_age_limit) for name in ages}
    values |= {f"{name}_bytes": _limit(table, name, parse_limit) for name in sizes}
    return ServerConfig(
        replicas={name: _texts(replicas, name, "in [server.replicas]") for name in replicas},
        **{name: value for name, value in values.items() if value is not None},
    )


def _parse_age_limit(text: str) -> int:
    return 0 if text == "none" else parse_age(text)


def _portal_from(table: dict[str, Any]) -> PortalConfig:
    names = {one.name for one in fields(PortalConfig)}
    _refuse_unknown(table, names, "in [portal]")
    repository = _text(table, "repository", "")
    if not repository:
        raise ValueError("'repository' is missing in [portal]")
    if not is_fqrn(repository):
        raise ValueError(f"'repository' in [portal]: {repository!r} cannot be the name of a repository")
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


def _blacklists(node: dict[str, Any]) -> tuple[Path, ...] | None:
    if "blacklists" not in node:
        return None
    return tuple(map(Path, _texts(node, "blacklists", "in [node]"))) if node["blacklists"] != [] else ()


def _proxies(table: dict[str, Any], name: str, default: str, where: str) -> str:
    text = _text(table, name, default)
    try:
        parse_proxies(text)
    except UserError as error:
        raise ValueError(f"{name!r} {where}: {str(error).rstrip('.')}") from error
    return text


def _path(table: dict[str, Any], name: str) -> Path | None:
    text = _text(table, name, "")
    return Path(text) if text else None


def _gib(table: dict[str, Any], name: str, default: float) -> float:
    value = table.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= _GIB_MAX:
        raise ValueError(f"{name!r} has to be a number above 0")
    return float(value)


def parse_method(text: str) -> Method | None:
    """None for the best one. Raises ValueError for any other name."""
    if text == "auto":
        return None
    try:
        return Method(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a method; known are auto, {', '.join(Method)}") from error


def parse_limit(text: str) -> int:
    """Bytes, 0 for no limit. Raises ValueError."""
    if text == "none":
        return 0
    size = parse_size(text)
    if not size:
        raise ValueError(f"{text!r} is not a limit; 'none' removes the limit")
    return size


def parse_quota(text: str) -> int:
    """Like `parse_limit`, but a limit that is too small to read files is refused too. Raises ValueError."""
    size = parse_limit(text)
    if 0 < size < QUOTA_MIN_BYTES:
        raise ValueError(
            f"{text!r} is too small for a cache: it needs at least {format_size(QUOTA_MIN_BYTES)}, "
            f"for two chunks of a large file"
        )
    return size


def _limit(table: dict[str, Any], name: str, parse: Callable[[str], int]) -> int | None:
    text = _text(table, name, "")
    try:
        return parse(text) if name in table else None
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
