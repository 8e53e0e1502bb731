"""`mica mount` and `mica umount`: a whole repository as a file system."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mica.cli.options import (
    CacheOption,
    ConfigOption,
    ExternalProxyOption,
    ExternalUrlOption,
    FqrnArgument,
    KeyOption,
    ProxyOption,
    QuotaOption,
    StateOption,
    UrlOption,
    mount_path,
)
from mica.cli.printing import writable
from mica.errors import UsageError, UserError
from mica.files import explained_os_error, mapped_os_errors

if TYPE_CHECKING:
    from mica.fetch.client import RepositoryClient
    from mica.repo.history import Tag

_READY = b"ready\n"
StatsOption = Annotated[
    Path | None, typer.Option("--stats", help="Write requests, bytes and files as JSON to this file at the end.")
]


def mount(
    fqrn: FqrnArgument,
    directory: Annotated[Path, typer.Argument(parser=mount_path, help="An existing directory.")],
    state: StateOption,
    urls: UrlOption = None,
    keys: KeyOption = None,
    proxies: ProxyOption = None,
    external_urls: ExternalUrlOption = None,
    external_proxies: ExternalProxyOption = None,
    cache: CacheOption = None,
    quota: QuotaOption = None,
    config: ConfigOption = None,
    stats: StatsOption = None,
    follow: Annotated[bool, typer.Option(help="Show new revisions when they are published.")] = True,
    tag: Annotated[str | None, typer.Option("--tag", help="Show the revision of this name, and no newer.")] = None,
    revision: Annotated[
        int | None, typer.Option("--revision", min=0, help="Show the revision of this number, and no newer.")
    ] = None,
    passthrough: Annotated[
        bool,
        typer.Option(help="Let the kernel read large cached files itself (Linux 6.9 and newer); see `mica status`."),
    ] = True,
    listed: Annotated[
        str,
        typer.Option(
            "--magic",
            envvar="CVMFS_MAGIC_XATTRS_VISIBILITY",
            metavar="rootonly|always|never",
            help="Which listings of extended attributes show the magic attributes: rootonly, always or never.",
        ),
    ] = "rootonly",
    foreground: Annotated[
        bool, typer.Option("--foreground", "-f", help="Serve in this process until it is stopped.")
    ] = False,
    ready_fd: Annotated[int, typer.Option(hidden=True, help="Descriptor that is told when the mount is there.")] = -1,
) -> None:
    """Mount a repository read-only; each file is fetched when it is opened."""
    _check_directory(directory)
    stats = writable(stats) if stats is not None else None
    if listed not in {"rootonly", "always", "never"}:
        raise UsageError(f"{listed!r} is not one of rootonly, always, never.")
    if tag is not None and revision is not None:
        raise UsageError("--tag and --revision name one revision each: give only one.")
    if not foreground:
        _mount_in_background()
        return
    from mica.cli.places import Places
    from mica.fetch.location import open_repository
    from mica.mount.magicattributes import Visibility
    from mica.mount.repomount import mounted, wait_for_end, write_statistics
    from mica.signals import EndSignals

    end = EndSignals()
    places = Places(
        state, config=config, urls=urls, keys=keys, proxies=proxies, cache=cache, quota=quota,
        external_urls=external_urls, external_proxies=external_proxies,
    )  # fmt: skip
    with open_repository(places.locate(fqrn), places.cache) as client, contextlib.ExitStack() as stack:
        if stats is not None:
            stack.callback(write_statistics, client, stats)
        session = stack.enter_context(
            mounted(
                client,
                directory,
                end,
                follow=follow,
                revision=_wanted(client, tag, revision),
                variables=os.environ,
                passthrough=passthrough,
                visibility=Visibility(listed),
            )
        )
        if ready_fd >= 0:
            _leave_caller(ready_fd, state / "log" / f"mount-{fqrn}.log")
        wait_for_end(session, end)


def _wanted(client: "RepositoryClient", tag: str | None, number: int | None) -> "Tag | None":
    """The revision that was asked for, None for the newest one. Raises NotFoundError."""
    from mica.cli.repohistory import look
    from mica.fetch.revisions import find_number

    if tag is None and number is None:
        return None
    manifest = client.update().manifest
    history = client.history(manifest)
    if number is None:
        return history.tag(tag or "")
    return find_number(number, manifest, history, lambda reference: look(client, reference))


def umount(
    directory: Annotated[Path, typer.Argument(parser=mount_path, help="Where the repository is mounted.")],
    lazy: Annotated[bool, typer.Option("--lazy", "-l", help="Detach it even while it is in use.")] = False,
) -> None:
    """Unmount a repository."""
    from mica import linux
    from mica.fuse.identity import FUSE_TYPE
    from mica.mountinfo import find_mount

    found = find_mount(directory)
    if found is None or found.fstype != FUSE_TYPE.encode():
        raise UserError(f"No repository is mounted on {directory}.")
    try:
        linux.umount2(directory, linux.MNT_DETACH if lazy else 0)
    except OSError as error:
        hint = "End the programs that use it, or detach it with --lazy." if error.errno == 16 else ""
        raise UserError(f"Cannot unmount {directory}: {error.strerror}.", hint=hint) from error


def _check_directory(directory: Path) -> None:
    try:
        _refuse_served(directory)
        is_directory = directory.is_dir()
    except OSError as error:
        raise explained_os_error(error, f"mount on {directory}") from error
    if not is_directory:
        raise UserError(f"{directory} is not a directory.", hint="Make it first: the mount covers what is in it.")


def _refuse_served(directory: Path) -> None:
    """Refuse a directory on which a FUSE file system is mounted: a second one would cover it, and it would go on
    unseen. Other mounts, such as a volume made for this purpose, may be covered. Raises UserError, OSError."""
    from mica.fuse.identity import FUSE_TYPE, REPOSITORY_PREFIX
    from mica.mount.statusreport import State, report_mounts
    from mica.mountinfo import find_mount

    found = find_mount(directory)
    if found is None or not found.fstype.startswith(b"fuse"):
        return
    hint = f"Unmount it first: mica umount {directory}"
    (report,) = report_mounts([found])
    if report.state is State.GONE:
        raise UserError(f"{directory} is a mount whose server is gone.", hint=hint)
    if found.fstype == FUSE_TYPE.encode("ascii"):
        what = f"The repository {os.fsdecode(found.source).removeprefix(REPOSITORY_PREFIX)}"
    else:
        what, hint = f"{os.fsdecode(found.source)} ({os.fsdecode(found.fstype)})", "Choose another directory."
    raise UserError(f"{what} is mounted on {directory} already.", hint=hint)


def _leave_caller(ready_fd: int, log: Path) -> None:
    """Tell the caller that the mount is there, and close the caller's standard error, because its reader waits for the
    end of it."""
    with mapped_os_errors(f"write the log {log}"):
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.write(ready_fd, _READY)
    os.close(ready_fd)


def _mount_in_background() -> None:
    """Run the same command again in the foreground of a process of its own, and wait until the mount is there."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as pipe:
        given = sys.argv[1:]
        end = given.index("--") if "--" in given else len(given)
        command = [sys.executable, "-m", "mica", *given[:end], "--foreground", "--ready-fd", str(writer), *given[end:]]
        try:
            server = subprocess.Popen(
                command, pass_fds=(writer,), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        finally:
            os.close(writer)
        if pipe.read(len(_READY)) == _READY:
            # The server outlives us on purpose; it ends when the file system is unmounted.
            server.returncode = 0
            return
    raise typer.Exit(server.wait() or 1)
