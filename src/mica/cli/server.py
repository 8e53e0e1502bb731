"""`mica server …`: set up the server side of repositories, and watch it."""

import os
import pwd
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mica.cli.commands import Commands
from mica.cli.options import (
    ConfigOption,
    FqrnArgument,
    JsonOption,
    S3AddressingOption,
    S3CredentialsOption,
    S3EndpointOption,
    S3RegionOption,
    StateOption,
    s3_options,
)
from mica.cli.printing import print_facts, print_json
from mica.errors import NotFoundError, UsageError, UserError

if TYPE_CHECKING:
    from mica.publish.settings import RepositorySettings
    from mica.server.bundle import ClientLines
    from mica.server.setup import WebServer
    from mica.store.s3access import S3Options

app = typer.Typer(cls=Commands, help="Set up and watch the servers of repositories.", no_args_is_help=True)
UrlsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        help="Where clients find the repository: first this server, then its replicas. Default: what was given before, "
        "else http://HOST/cvmfs/FQRN with this machine's name.",
    ),
]
DirectoryOption = Annotated[
    Path | None, typer.Option("--directory", help="Where all files go; default: `server` below the state directory.")
]


@app.command(epilog="Example: mica server init images.example.org --storage /srv/cvmfs/images.example.org")
def init(
    fqrn: FqrnArgument,
    state: StateOption,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where the published files go: a directory, or s3://BUCKET/PREFIX; needed for a new repository."
        ),
    ] = None,
    s3_endpoint: S3EndpointOption = "",
    s3_region: S3RegionOption = "",
    s3_addressing: S3AddressingOption = "path",
    s3_credentials: S3CredentialsOption = None,
    urls: UrlsOption = None,
    directory: DirectoryOption = None,
    install: Annotated[
        str | None,
        typer.Option("--install", metavar="nginx|apache", help="Also put the site and the timers below /etc."),
    ] = None,
    system: Annotated[Path, typer.Option("--etc", help="A directory in place of /etc, as of an image.")] = Path("/etc"),
    replace_different: Annotated[
        bool, typer.Option("--replace", help="Replace files that have other content; the old ones get .old.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a repository with its keys, and all that its server and its clients need: files for nginx and Apache, timers
    for systemd, a bundle for clients. Nothing outside of one directory changes without --install, and no file is
    replaced unasked. Repeat it at any time.
    """
    from mica.server import setup
    from mica.server.filesets import plan_files, write_files
    from mica.server.webfiles import parse_address

    server = _web_server(install)
    directory = (directory or state / "server").absolute()
    urls = [url.rstrip("/").replace("@fqrn@", fqrn) for url in urls or []]
    for url in urls:
        parse_address(url)
    s3 = s3_options(s3_endpoint, s3_region, s3_addressing, s3_credentials)
    settings = _repository(state, fqrn, storage, s3, urls)
    address = parse_address(settings.urls[0])
    files = setup.web_files(directory, fqrn, address, setup.source_of(settings))
    files |= setup.unit_files(directory, *_call(state))
    bundle = setup.client_bundle(settings)
    if server is not None:
        files |= setup.installed(system.absolute(), directory, server, address, files)
    plan = plan_files(files | setup.bundle_files(directory, bundle))
    written = write_files(plan, replace_different=replace_different)
    kept = [] if replace_different else plan.different
    after = setup.lines_after_install(fqrn, server) if server is not None else []
    facts: dict[str, object] = {
        "repository": fqrn, "storage": settings.storage, "urls": list(settings.urls), "directory": str(directory),
        "public_key": str(settings.key_path("pub")), "master_key": str(settings.key_path("masterkey")),
        "bundle": str(directory / "clients" / f"{fqrn}.tar"),
    }  # fmt: skip
    if as_json:
        lists = {"written": list(map(str, written)), "kept": list(map(str, kept)), "run_here": after}
        print_json(facts | lists | {"run_on_a_node": bundle.lines._asdict()})
        return
    print_facts(facts | {"urls": " ".join(settings.urls), "files": f"{len(written)} written, {len(plan.same)} there"})
    for path in kept:
        sys.stderr.write(f"mica: {path} has other content and was kept; --replace replaces it\n")
    sites = [str(setup.site_file(directory, kind, address)) for kind in setup.WebServer]
    here = after or [f"# include {sites[0]} in nginx, or {sites[1]} in Apache; --install does it"]
    _print_lines("Run here", here)
    _print_client_lines(bundle.lines)


@app.command(epilog="Example: mica server bundle images.example.org")
def bundle(
    fqrn: FqrnArgument,
    state: StateOption,
    urls: UrlsOption = None,
    directory: DirectoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the bundle for clients again, as after a change of the master key or of the URLs. Former files are
    replaced."""
    from mica.publish.settings import read_settings, write_settings
    from mica.server import setup
    from mica.server.filesets import plan_files, write_files

    directory = (directory or state / "server").absolute()
    settings = read_settings(state, fqrn)
    if urls:
        settings = replace(settings, urls=tuple(url.rstrip("/").replace("@fqrn@", fqrn) for url in urls))
    made = setup.client_bundle(settings)
    write_settings(state, settings)
    written = write_files(plan_files(setup.bundle_files(directory, made)), replace_different=True)
    setup.remove_former_keys(directory, made)
    facts: dict[str, object] = {
        "repository": fqrn, "urls": list(settings.urls), "bundle": str(directory / "clients" / f"{fqrn}.tar"),
        "public_keys": [name for name in made.files if name.endswith(".pub")],
    }  # fmt: skip
    if as_json:
        print_json(facts | {"written": list(map(str, written)), "run_on_a_node": made.lines._asdict()})
        return
    texts = {name: " ".join(value) for name, value in facts.items() if isinstance(value, list)}
    print_facts(facts | texts | {"files": f"{len(written)} written"})
    _print_client_lines(made.lines)


@app.command(epilog="Example: mica server status --json")
def status(
    state: StateOption,
    fqrn: Annotated[list[str] | None, typer.Argument(help="Repositories published here; default: all.")] = None,
    replicas: Annotated[
        list[str] | None,
        typer.Option(
            "--replica",
            metavar="URL",
            help="Ask this server too, besides those of the client bundle and the configuration;"
            " @fqrn@ stands for the name.",
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show whether repositories are well: signatures, days left of whitelist and certificate, the last publication and
    garbage collection, space, and how far replicas are behind.

    The exit code is 1 if one of them is unhealthy; warnings are shown and leave it 0. The section [server] of the
    configuration says from when on something is a warning, or unhealthy.
    """
    from mica.cli.serverstatus import show_status

    raise typer.Exit(show_status(state, fqrn or [], replicas or [], config, as_json=as_json))


def _repository(state: Path, fqrn: str, storage: str | None, s3: "S3Options", urls: list[str]) -> "RepositorySettings":
    """The settings of the one that exists, else of a new one, with its URLs."""
    from mica.publish.manager import create_repository
    from mica.publish.settings import RepositorySettings, read_settings, state_directory, write_settings
    from mica.store.opening import parse_storage

    try:
        settings = read_settings(state, fqrn)
    except NotFoundError:
        if storage is None:
            raise UsageError(f"Give the storage of {fqrn}: --storage DIR.") from None
        keys = (state_directory(state, fqrn) / "keys").absolute()
        found = tuple(urls) or (f"http://{socket.getfqdn()}/cvmfs/{fqrn}",)
        settings = RepositorySettings(fqrn, parse_storage(storage), keys, urls=found, s3=s3)
        create_repository(state, settings, {"description": fqrn})
        return read_settings(state, fqrn)
    if storage is not None and parse_storage(storage) != settings.storage:
        raise UserError(
            f"Repository {fqrn} exists and has another storage, {settings.storage}.",
            hint="Leave --storage out to set up its server.",
        )
    found = tuple(urls) or settings.urls or (f"http://{socket.getfqdn()}/cvmfs/{fqrn}",)
    if found != settings.urls:
        settings = replace(settings, urls=found)
        write_settings(state, settings)
    return settings


def _web_server(name: str | None) -> "WebServer | None":
    from mica.server.setup import WebServer

    try:
        return None if name is None else WebServer(name)
    except ValueError:
        raise UsageError(f"--install: {name!r} is not one of {', '.join(WebServer)}.") from None


def _call(state: Path) -> tuple[list[str], dict[str, str], str | None]:
    """How the timers call mica: command, environment, user."""
    user = None if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    return [sys.executable, "-m", "mica"], {"MICA_STATE": str(state.absolute())}, user


def _print_client_lines(lines: "ClientLines") -> None:
    _print_lines("On a node, at once", lines.at_once)
    _print_lines("On a node, by its configuration", lines.configured)
    _print_lines("On a node with a stock CernVM-FS client", lines.stock)


def _print_lines(title: str, lines: Sequence[str]) -> None:
    sys.stdout.write(f"\n{title}:\n" + "".join(f"    {line}\n" for line in lines))
