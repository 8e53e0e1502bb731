"""How registries are reached from here: options, Docker's logins, directories of certificates and mirrors,
registries.conf, proxies."""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mica.config import RegistriesConfig, load_config
from mica.errors import UserError
from mica.files import mapped_os_errors
from mica.oci.auth import Credential
from mica.oci.credentials import DockerCredentials, places_around
from mica.oci.endpoints import NO_CONFIG, HostConfig, parse_certificate_directory, parse_hosts_toml
from mica.oci.proxies import Proxies, parse_proxies
from mica.oci.reference import Reference
from mica.oci.registriesconf import NO_REGISTRIES_CONF, RegistriesConf, parse_registries_conf
from mica.oci.session import RegistryOptions
from mica.oci.source import SourceOptions
from mica.oci.transport import TransportOptions

CERTIFICATE_ROOTS = tuple(
    Path(path) for path in ("/etc/containerd/certs.d", "/etc/containers/certs.d", "/etc/docker/certs.d")
)
_SYSTEM_REGISTRIES_CONF = Path("/etc/containers/registries.conf")
_CONFIG_LIMIT_BYTES = 1 << 20
_CERTS_HINT = "--certs and MICA_CERTS name a directory with one for each registry, such as registry.example.org:5000."
_DEFAULT_DIRECTORY = "_default"


class Access(NamedTuple):
    """Options about registries. None if an option was not given; then the environment counts."""

    insecure: bool = False
    authfile: Path | None = None
    certs: Path | None = None
    config: Path | None = None

    def options(self, environment: Mapping[str, str] = os.environ) -> RegistryOptions:
        certs = self.certs or environment.get("MICA_CERTS")
        authfile = self.authfile or environment.get("MICA_AUTHFILE")
        if certs and not Path(certs).is_dir():
            raise UserError(f"{certs} is not a directory of certificates.", hint=_CERTS_HINT)
        roots = (Path(certs),) if certs else CERTIFICATE_ROOTS
        hosts = _Hosts(roots, environment)
        return RegistryOptions(
            find_credential=_credential_finder(Path(authfile) if authfile else None, environment),
            find_hosts=hosts.find,
            find_names=hosts.names,
            transport=TransportOptions(
                insecure=self.insecure, proxies=_proxies(self._config(environment), environment)
            ),
            logins=str(authfile or environment.get("REGISTRY_AUTH_FILE", "")),
        )

    def _config(self, environment: Mapping[str, str]) -> RegistriesConfig:
        named = self.config or environment.get("MICA_CONFIG")
        return load_config(Path(named) if named else None).registries

    def source_options(self) -> SourceOptions:
        return SourceOptions(registry=self.options())


def _proxies(config: RegistriesConfig, environment: Mapping[str, str]) -> Proxies:
    """The proxies of the configuration, else of the environment. There names in capital letters come first, as with
    Go's programs."""

    def stated(name: str) -> str:
        return environment.get(name) or environment.get(name.lower()) or ""

    no_proxy = stated("NO_PROXY") if config.no_proxy is None else config.no_proxy
    if config.proxy is not None:
        name = "'proxy' in [registries]"
        return parse_proxies(config.proxy, config.proxy, no_proxy, names=(name, name))
    names = ("HTTP_PROXY", "HTTPS_PROXY")
    return parse_proxies(stated(names[0]), stated(names[1]), no_proxy, names=names)


def _credential_finder(authfile: Path | None, environment: Mapping[str, str]) -> Callable[[str], Credential | None]:
    """The files are read when the first registry asks for a login; with most commands none does."""
    found: list[DockerCredentials] = []
    stated = _stated_logins(environment)

    def find(place: str) -> Credential | None:
        for name in places_around(place):
            if name in stated:
                return stated[name]
        if not found:
            found.extend(_read_logins(path) for path in _login_files(authfile, environment))
        return next((credential for one in found if (credential := one.find(place)) is not None), None)

    return find


def _stated_logins(environment: Mapping[str, str]) -> dict[str, Credential]:
    """`DUCC_AUTH_REGISTRIES=A,B` with `DUCC_A_IDENT` (the registry's host), `DUCC_A_USER` and `DUCC_A_PASS`."""
    logins = {}
    for name in filter(None, environment.get("DUCC_AUTH_REGISTRIES", "").split(",")):
        host, user, word = (environment.get(f"DUCC_{name.strip()}_{part}", "") for part in ("IDENT", "USER", "PASS"))
        if not host or not user:
            raise UserError(
                f"DUCC_AUTH_REGISTRIES names {name[:60]!r}, whose registry or user is not in DUCC_{name}_*."
            )
        logins[host] = Credential(user, word)
    return logins


def _login_files(authfile: Path | None, environment: Mapping[str, str]) -> list[Path]:
    """The file that was given, else those of Docker, Podman and Skopeo that exist."""
    if authfile is not None:
        return [authfile]
    if named := environment.get("REGISTRY_AUTH_FILE"):
        return [Path(named)]
    home = Path(environment.get("HOME") or Path.home())
    runtime = Path(environment.get("XDG_RUNTIME_DIR") or f"/run/containers/{os.getuid()}")
    config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    docker = Path(environment.get("DOCKER_CONFIG") or home / ".docker")
    places = (runtime / "containers/auth.json", runtime / "auth.json", config / "containers/auth.json")
    return [path for path in (*places, docker / "config.json") if path.is_file()]


def _read_logins(path: Path) -> DockerCredentials:
    with mapped_os_errors(f"read the logins in {path}"):
        data = _read_limited(path)
    try:
        config = json.loads(data or b"{}")
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError):
        # Not chained: the exception of a decoder carries the text, with the passwords in it.
        raise UserError(f"{path} is not a file of logins in JSON.") from None
    return DockerCredentials(config)


class _Hosts:
    """Finds where an image is asked for: what directories of certificates and hosts.toml say of its registry, and
    otherwise registries.conf, which may also forbid it. Files are read when the first image asks."""

    def __init__(self, roots: tuple[Path, ...], environment: Mapping[str, str]) -> None:
        self._roots = roots
        self._environment = environment
        self._known: dict[str, HostConfig] = {}

    @functools.cached_property
    def conf(self) -> RegistriesConf:
        found = NO_REGISTRIES_CONF
        for path in _registries_conf_files(self._environment):
            with mapped_os_errors(f"read {path}"):
                data = _read_limited(path)
            found = found.followed_by(parse_registries_conf(data, what=str(path)))
        return found

    def find(self, reference: Reference) -> HostConfig:
        own = self._of(reference.registry)
        stated = self.conf.hosts_of(reference, lambda registry: self._of(registry).trust)
        return own if stated is None or own.mirrors or own.server is not None else stated

    def names(self, text: str) -> Sequence[str]:
        return self.conf.names(text)

    def _of(self, registry: str) -> HostConfig:
        if registry not in self._known:
            self._known[registry] = _find_host(self._roots, registry)
        return self._known[registry]


def _registries_conf_files(environment: Mapping[str, str]) -> list[Path]:
    """The file that is named, else the user's, else the system's; then the drop-in directories that belong to it."""
    home = Path(environment.get("HOME") or Path.home())
    user = Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "containers" / "registries.conf"
    named = environment.get("CONTAINERS_REGISTRIES_CONF")
    if named:
        main, directories = Path(named), [_SYSTEM_REGISTRIES_CONF, user]
    elif user.is_file():
        main, directories = user, [user]
    else:
        main, directories = _SYSTEM_REGISTRIES_CONF, [_SYSTEM_REGISTRIES_CONF, user]
    drop_ins = [path for one in directories for path in sorted(Path(f"{one}.d").glob("*.conf")) if path.is_file()]
    return [*([main] if named or main.is_file() else []), *drop_ins]


def _find_host(roots: tuple[Path, ...], registry: str) -> HostConfig:
    """The settings in the first directory of a registry that has any; a port may be written as containerd writes it. A
    directory without a port belongs to another registry, and so does our certificate in it."""
    host, colon, port = registry.rpartition(":")
    names = (registry, f"{host}_{port}_") if colon else (registry,)
    for root in roots:
        for name in (*names, _DEFAULT_DIRECTORY):
            config = _read_host(root / name)
            if config != NO_CONFIG:
                return config
    return NO_CONFIG


def _read_host(directory: Path) -> HostConfig:
    if not directory.is_dir():
        return NO_CONFIG
    with mapped_os_errors(f"read {directory}"):
        toml = directory / "hosts.toml"
        if toml.is_file():
            return parse_hosts_toml(_read_limited(toml), directory=directory, what=str(toml))
        return parse_certificate_directory([path.name for path in directory.iterdir()], directory=directory)


def _read_limited(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_CONFIG_LIMIT_BYTES + 1)
    if len(data) > _CONFIG_LIMIT_BYTES:
        raise UserError(f"{path} is larger than {_CONFIG_LIMIT_BYTES >> 20} MiB.")
    return data
