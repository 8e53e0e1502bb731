"""How registries are reached from here: Docker's logins, directories of certificates and mirrors, what options say."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from mica.errors import UserError
from mica.files import mapped_os_errors
from mica.oci.auth import Credential
from mica.oci.credentials import DockerCredentials
from mica.oci.endpoints import NO_CONFIG, HostConfig, parse_certificate_directory, parse_hosts_toml
from mica.oci.session import RegistryOptions
from mica.oci.source import SourceOptions
from mica.oci.transport import TransportOptions

CERTIFICATE_ROOTS = tuple(
    Path(path) for path in ("/etc/containerd/certs.d", "/etc/containers/certs.d", "/etc/docker/certs.d")
)
_CONFIG_LIMIT_BYTES = 1 << 20
_DEFAULT_DIRECTORY = "_default"


class Access(NamedTuple):
    """What options say about registries; None for what they do not say, which the environment may."""

    insecure: bool = False
    authfile: Path | None = None
    certs: Path | None = None

    def options(self, environment: Mapping[str, str] = os.environ) -> RegistryOptions:
        certs = self.certs or environment.get("MICA_CERTS")
        authfile = self.authfile or environment.get("MICA_AUTHFILE")
        roots = (Path(certs),) if certs else CERTIFICATE_ROOTS
        return RegistryOptions(
            find_credential=_credential_finder(Path(authfile) if authfile else None, environment),
            find_hosts=_host_finder(roots),
            transport=TransportOptions(insecure=self.insecure),
        )

    def source_options(self) -> SourceOptions:
        return SourceOptions(registry=self.options())


def _credential_finder(authfile: Path | None, environment: Mapping[str, str]) -> Callable[[str], Credential | None]:
    """Looks into the files when the first registry asks: most commands never do."""
    found: list[DockerCredentials] = []
    stated = _stated_logins(environment)

    def find(registry: str) -> Credential | None:
        if registry in stated:
            return stated[registry]
        if not found:
            found.extend(_read_logins(path) for path in _login_files(authfile, environment))
        return next((credential for one in found if (credential := one.find(registry)) is not None), None)

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
    """The file asked for; else those that Docker, Podman and Skopeo write, as far as they are there."""
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
        # Not chained: the exception of a decoder carries the text.
        raise UserError(f"{path} is not a file of logins in JSON.") from None
    return DockerCredentials(config)


def _host_finder(roots: tuple[Path, ...]) -> Callable[[str], HostConfig]:
    known: dict[str, HostConfig] = {}

    def find(registry: str) -> HostConfig:
        if registry not in known:
            known[registry] = _find_host(roots, registry)
        return known[registry]

    return find


def _find_host(roots: tuple[Path, ...], registry: str) -> HostConfig:
    """The first directory for a registry that says anything; containerd's way of writing a port counts too."""
    host, colon, port = registry.rpartition(":")
    names = (registry, f"{host}_{port}_", host) if colon else (registry,)
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
