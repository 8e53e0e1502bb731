"""The command `mica`: the tree of commands, and the one border where expected failures become exit codes.

Exit codes: 0 done, 1 failed, 2 usage, 3 integrity (wrong bytes, never used), 4 temporary (may succeed later).
"""

import io
import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from mica import __version__
from mica.cli.commands import Place, PlacedCommands
from mica.cli.printing import show_error
from mica.errors import MicaError

if TYPE_CHECKING:
    from mica.daemon.earlyservice import EarlyService


class _Commands(PlacedCommands):
    places: ClassVar = {
        "convert": Place("convert", "convert", "mica convert docker://debian:12 images.example.org -o oci:thin:debian"),
        "inspect": Place("convert", "inspect", "mica inspect oci:thin:debian"),
        "push": Place("push", "push", "mica push oci:thin:debian registry.example.org/thin/debian:12"),
        "sync": Place("sync", "sync", "mica sync --loop --interval 600 recipe.yaml"),
        "worker": Place("worker", "worker", "mica worker --commit --jobs 4"),
        "layers": Place("worker", "layers", "mica layers images.example.org --only failed"),
        "mount": Place(
            "mount", "mount", "mica mount images.example.org /mnt --url http://host/cvmfs/images.example.org"
        ),
        "umount": Place("mount", "umount", "mica umount /mnt"),
        "status": Place("status", "status", "mica status --json"),
        "run": Place(
            "run", "run", "mica run -v /data:/data:ro docker.io/library/r-base:4.3 Rscript -e 'cat(1)'",
            {"allow_interspersed_args": False},
        ),
        "portal": Place("portal", "portal", "mica portal --config /etc/mica/config.toml"),
        "node": Place("node", "node", "mica node --config /etc/mica/config.toml"),
        "doctor": Place("doctor", "doctor", "mica doctor --json"),
        "repo": Place("repo", "app"),
        "server": Place("server", "app"),
        "cache": Place("cache", "app"),
        "key": Place("key", "app"),
        "plugin": Place("plugin", "app"),
    }  # fmt: skip


app = typer.Typer(
    name="mica",
    cls=_Commands,
    help="Run container images without downloading them.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 integrity, 4 temporary.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"mica {__version__}\n")
        raise typer.Exit


@app.callback()
def _common(
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "warning",
    log_json: Annotated[bool, typer.Option("--log-json", help="Log as JSON lines.")] = False,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    from mica.logs import LogSettings, configure

    if log_level not in {"debug", "info", "warning", "error"}:
        raise typer.BadParameter(f"{log_level!r} is not debug, info, warning or error")
    configure(LogSettings(log_level, log_json))


def run_command(arguments: list[str], early: "EarlyService | None" = None) -> int:
    """Run one command of this program and return its exit code. `early` is a process from which it may make its
    servers."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that the terminal's encoding lacks are shown escaped
            stream.reconfigure(errors="backslashreplace")
    return run_app(arguments, early=early)


def run_app(arguments: list[str], commands: typer.Typer = app, *, early: "EarlyService | None" = None) -> int:
    """Run one command and return its exit code."""
    # Before and after the command Ctrl-C ends the program at once. During it an exception lets the command clean up.
    ends_at_once = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    try:
        if ends_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        result = commands(arguments, standalone_mode=False, obj=early)
    except MicaError as error:
        show_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return _end_without_reader()
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):  # which Click makes an end with code 1
            raise
        return _end_without_reader()
    except Exception as error:
        code = _usage_error_code(error)
        if code is None:
            raise
        return code
    finally:
        if ends_at_once:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    return result if isinstance(result, int) else 0


def _end_without_reader() -> int:
    """The reader of the output has gone away. Nothing more is written, not even when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 128 + signal.SIGPIPE


def _usage_error_code(error: Exception) -> int | None:
    """Exit code of typer's own errors, which know how to show themselves; None for anything else."""
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if show is None or not isinstance(code, int):
        return None
    show()
    return code
