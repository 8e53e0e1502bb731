"""`mica mount` and `mica umount`: a whole repository as a file system."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from mica.cli.options import (
    CacheOption,
    ConfigOption,
    FqrnArgument,
    KeyOption,
    ProxyOption,
    QuotaOption,
    StateOption,
    UrlOption,
    mount_path,
)
from mica.cli.output import writable
from mica.errors import UserError
from mica.files import explained_os_error, mapped_os_errors

_READY = b"ready\n"
StatsOption = Annotated[
    Path | None, typer.Option("--stats", help="Write requests, bytes and files as JSON to this file at the end.")
]


def mount(
    fqrn: FqrnArgument,
    directory: Annotated[Path, typer.Argument(help="An existing directory.")],
    state: StateOption,
    urls: UrlOption = None,
    keys: KeyOption = None,
    proxies: ProxyOption = None,
    cache: CacheOption = None,
    quota: QuotaOption = None,
    config: ConfigOption = None,
    stats: StatsOption = None,
    follow: Annotated[bool, typer.Option(help="Show new revisions when they are published.")] = True,
    passthrough: Annotated[
        bool,
        typer.Option(help="Have the kernel read large cached files itself, where it can (Linux 6.9); see mica status."),
    ] = True,
    foreground: Annotated[
        bool, typer.Option("--foreground", "-f", help="Serve in this process until stopped.")
    ] = False,
    ready_fd: Annotated[int, typer.Option(hidden=True, help="Descriptor that is told when the mount is there.")] = -1,
) -> None:
    """Mount a repository read-only; files are fetched when they are opened."""
    _check_directory(directory)
    stats = writable(stats) if stats is not None else None
    if not foreground:
        _mount_in_background()
        return
    from mica.cli.places import Places
    from mica.fetch.location import open_repository
    from mica.mount.repomount import mounted, wait_for_end, write_statistics

    def stop(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    places = Places(state, config=config, urls=urls, keys=keys, proxies=proxies, cache=cache, quota=quota)
    with open_repository(places.locate(fqrn), places.cache) as client, contextlib.ExitStack() as stack:
        if stats is not None:
            stack.callback(write_statistics, client, stats)
        with contextlib.suppress(KeyboardInterrupt):
            signal.signal(signal.SIGTERM, stop)
            session = stack.enter_context(
                mounted(client, directory, follow=follow, variables=os.environ, passthrough=passthrough)
            )
            if ready_fd >= 0:
                _leave_caller(ready_fd, state / "log" / f"mount-{fqrn}.log")
            wait_for_end(session, lambda: None)


def umount(
    directory: Annotated[Path, typer.Argument(parser=mount_path, help="Where the repository is mounted.")],
    lazy: Annotated[bool, typer.Option("--lazy", "-l", help="Detach it even while it is in use.")] = False,
) -> None:
    """Unmount a repository."""
    from mica import linux
    from mica.mount.mountinfo import FUSE_TYPE, find_mount

    found = find_mount(directory)
    if found is None or found.fstype != FUSE_TYPE:
        raise UserError(f"No repository is mounted on {directory}.")
    try:
        linux.umount2(directory, linux.MNT_DETACH if lazy else 0)
    except OSError as error:
        hint = "End the programs that use it, or detach it with --lazy." if error.errno == 16 else ""
        raise UserError(f"Cannot unmount {directory}: {error.strerror}.", hint=hint) from error


def _check_directory(directory: Path) -> None:
    from mica.mount.mountinfo import SERVER_GONE

    try:
        is_directory = directory.is_dir()
        if is_directory:  # which the kernel believes for a day; this it asks the server
            os.statvfs(directory)
    except OSError as error:
        if error.errno in SERVER_GONE:
            hint = f"Unmount it first: mica umount {directory}"
            raise UserError(f"{directory} is a mount whose server is gone.", hint=hint) from error
        raise explained_os_error(error, f"mount on {directory}") from error
    if not is_directory:
        raise UserError(f"{directory} is not a directory.", hint="Make it first: the mount covers what is in it.")


def _leave_caller(ready_fd: int, log: Path) -> None:
    """Tell that the mount is there, and let go of the caller's standard error: whoever reads it waits for its end."""
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
