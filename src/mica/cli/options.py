"""Options that several commands share, in one place, with the values they become."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mica.errors import UsageError, UserError

if TYPE_CHECKING:
    from mica.store.s3access import S3Options


def default_state() -> Path:
    """For root the system's directory, for other users one in the home directory."""
    if os.geteuid() == 0:
        return Path("/var/lib/mica")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "mica"


def s3_options(endpoint: str, region: str, addressing: str, credentials: Path | None) -> "S3Options":
    """The values of the four options. Raises UsageError."""
    from mica.store.s3access import ADDRESSING, S3Options

    if addressing not in ADDRESSING:
        raise UsageError(f"--s3-addressing: {addressing!r} is not one of {', '.join(ADDRESSING)}.")
    return S3Options(endpoint, region, addressing, None if credentials is None else credentials.absolute())


def run_root(state: Path) -> Path:
    """Where containers have their directories."""
    return state / "run"


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
    list[Path] | None,
    typer.Option(
        "--key",
        help="File with a public master key (.pub) that the repository must have, or a directory of them; they are "
        "read again at each update.",
    ),
]
ProxyOption = Annotated[
    str | None, typer.Option("--proxy", help="Proxies: groups divided by ';', members by '|'; DIRECT: no proxy.")
]
ExternalUrlOption = Annotated[
    list[str] | None,
    typer.Option(
        "--external-url",
        help="URL of the server of external files, whose content is not in the repository; several are tried in order. "
        "Default: CVMFS_EXTERNAL_URL, or the configuration.",
    ),
]
ExternalProxyOption = Annotated[
    str | None,
    typer.Option(
        "--external-proxy",
        help="Proxies for external files, as --proxy. Default: CVMFS_EXTERNAL_HTTP_PROXY, or the configuration.",
    ),
]
S3EndpointOption = Annotated[
    str, typer.Option("--s3-endpoint", help="URL of the S3 server. Default: AWS_ENDPOINT_URL, else AWS itself.")
]
S3RegionOption = Annotated[
    str, typer.Option("--s3-region", help="Region of the bucket. Default: AWS_REGION, else us-east-1.")
]
S3AddressingOption = Annotated[
    str,
    typer.Option("--s3-addressing", help="path: the bucket is in the path of URLs; virtual: in the host's name."),
]
S3CredentialsOption = Annotated[
    Path | None,
    typer.Option(
        "--s3-credentials",
        help="A file as ~/.aws/credentials. Default: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, else that file.",
    ),
]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Directory for verified content; default: below the state directory.")
]
QuotaOption = Annotated[
    str | None,
    typer.Option("--quota", help="Limit of the cache for all commands that use it, such as 20G; none: no limit."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", envvar="MICA_CONFIG", help="Configuration file; default: /etc/mica/config.toml."),
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        help="How layers are mounted: auto, kernel, loop, ordinary, ordinary-loop, repository, external; "
        "`mica doctor` tells which of them work here."
    ),
]
InsecureOption = Annotated[
    bool,
    typer.Option("--insecure", help="Allow plain HTTP, and certificates that no CA signed, for every registry."),
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
        help="Directory with HOST[:PORT]/hosts.toml or HOST[:PORT]/*.crt; default: the directories certs.d of "
        "containerd, containers and Docker below /etc.",
    ),
]
JobsOption = Annotated[
    int,
    typer.Option(min=0, max=16, help="Layers that this command makes at the same time; 0 leaves all to workers."),
]
WaitOption = Annotated[
    float,
    typer.Option("--wait", min=0, help="Seconds to wait while another process publishes into the repository."),
]
FqrnArgument = Annotated[str, typer.Argument(help="Name of the repository, such as images.example.org.")]


def mount_path(text: str) -> Path:
    """A path as it is given. The parser's own type would look at the file, and wait for ever if a mount's server
    hangs."""
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
