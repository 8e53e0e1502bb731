"""Options that several commands share, in one place, with the values they become."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mica.errors import UsageError, UserError


def default_state() -> Path:
    """Root has the system's directory, everybody else one at home."""
    if os.geteuid() == 0:
        return Path("/var/lib/mica")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "mica"


StateOption = Annotated[
    Path,
    typer.Option(
        "--state", envvar="MICA_STATE", default_factory=default_state, show_default="/var/lib/mica",
        help="Directory with the settings, keys and work files of the repositories published here.",
    ),
]  # fmt: skip
JsonOption = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
UrlOption = Annotated[
    list[str] | None,
    typer.Option("--url", help="URL of the repository, or its storage directory; several are tried in order."),
]
KeyOption = Annotated[
    list[Path] | None, typer.Option("--key", help="File with a public master key (.pub) that the repository must have.")
]
ProxyOption = Annotated[
    str | None, typer.Option("--proxy", help="Proxies: groups divided by ';', members by '|', DIRECT for none.")
]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Directory for verified content; default: below the state directory.")
]
QuotaOption = Annotated[
    str | None,
    typer.Option("--quota", help="The most that the cache may take, such as 20G, for all who use it; none: no limit."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", envvar="MICA_CONFIG", help="Configuration file; default: /etc/mica/config.toml."),
]
MethodOption = Annotated[
    str | None,
    typer.Option(help="How layers are mounted: auto, kernel, loop, ordinary, repository or external (mica doctor)."),
]
InsecureOption = Annotated[
    bool,
    typer.Option("--insecure", help="Plain HTTP and certificates that nobody vouches for, for every registry."),
]
AuthfileOption = Annotated[
    Path | None,
    typer.Option(
        envvar="MICA_AUTHFILE", help="File of logins; default: those that docker, podman and skopeo login write."
    ),
]
CertsOption = Annotated[
    Path | None,
    typer.Option(
        envvar="MICA_CERTS",
        help="Directory of HOST[:PORT]/hosts.toml or HOST[:PORT]/*.crt; default: certs.d of containerd, containers, "
        "Docker below /etc.",
    ),
]
WaitOption = Annotated[
    float,
    typer.Option("--wait", min=0, help="Seconds to wait while somebody else publishes into the repository."),
]
FqrnArgument = Annotated[str, typer.Argument(help="Name of the repository, such as images.example.org.")]


def mount_path(text: str) -> Path:
    """A path as it is given. The parser's own type looks at it, and a mount's server that hangs does not answer."""
    return Path(text)


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT, an IPv6 address in brackets; without a host all addresses. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 0xFFFF:
        raise UsageError(f"{text!r} is not HOST:PORT.")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - an empty host is asked for


def repository_path(text: str) -> bytes:
    """A path inside a repository as the format has it: absolute, no trailing slash, the root empty."""
    parts = [part for part in os.fsencode(text).split(b"/") if part not in {b"", b"."}]
    if b".." in parts:
        raise UserError(f"{text!r} has '..' in it.", hint="Give the path from the root of the repository.")
    return b"".join(b"/" + part for part in parts)
