"""The request for a run: the image's config, the user's options, and how the two combine into a process.

Pure: no file, no environment (the command line hands over what it read). The config comes from a hostile image, so
every value is checked for its type before it is used. Combination rules are those of `docker run`. Any thread.
"""

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from mica.errors import UsageError, UserError
from mica.layers.stack import LayerStack
from mica.run.runrecords import NO_RECORD, RunRecord

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Network = Literal["host", "none"]
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_HOSTNAME: Final = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62}[a-zA-Z0-9])?")
_VOLUME_OPTIONS: Final = {"": False, "rw": False, "ro": True}


@dataclass(frozen=True, slots=True)
class Volume:
    """A host path shown in the container; `read_only` includes the mounts below it."""

    source: Path
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of `mica run` beside the image.

    command: replaces the image's Cmd; empty means Cmd.
    entrypoint: replaces the image's Entrypoint and drops its Cmd; "" means none.
    env: `K=V`, later ones win; the command line has resolved `K` alone with `resolve_env`.
    tty: a terminal of its own; implies interactive, so that keys typed at the terminal can stop the program.
    interactive: pass standard input on, which is empty otherwise.
    network: `host` shares the host's network, `none` has a loopback interface only.
    keep: a directory for the writable layer (`upper`), which otherwise lies in the runtime root and is removed at
        the end: there is no engine that could start the container again. A later run with the same image and
        directory goes on where this one ended.
    """

    command: tuple[str, ...] = ()
    entrypoint: str | None = None
    env: tuple[str, ...] = ()
    user: str | None = None
    workdir: str | None = None
    hostname: str | None = None
    name: str | None = None
    volumes: tuple[Volume, ...] = ()
    network: Network = "host"
    tty: bool = False
    interactive: bool = False
    read_only: bool = False
    keep: Path | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """A program with its environment, as image and options together define it; `user` is not resolved yet."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: str
    tty: bool


@dataclass(frozen=True, slots=True)
class RunRequest:
    """Mounted layers, and what to do with them. `config` is the `config` object of the OCI image config, unchecked.
    `opened` is called with the container's root directory before the program starts; `record` is for `mica status`."""

    layers: LayerStack
    config: Mapping[str, Any] = field(default_factory=dict)
    options: RunOptions = RunOptions()
    opened: Callable[[Path, Process], None] | None = None
    record: RunRecord = NO_RECORD


def plan_process(config: Mapping[str, Any], options: RunOptions, *, hostname: str) -> Process:
    """Combine config and options. Raises UserError if there is nothing to run or a value has the wrong type."""
    return Process(
        args=_args(config, options),
        env=_env(config, options, hostname),
        cwd=_cwd(config, options),
        user=options.user if options.user is not None else _string(config, "User"),
        tty=options.tty,
    )


def _args(config: Mapping[str, Any], options: RunOptions) -> tuple[str, ...]:
    if options.entrypoint is None:
        entrypoint = _words(config, "Entrypoint")
        command = options.command or _words(config, "Cmd")
    else:
        entrypoint = (options.entrypoint,) if options.entrypoint else ()
        command = options.command
    args = (*entrypoint, *command)
    if not args or not args[0]:
        raise UserError("There is no command: the image names none.", hint="Give one after the image's name.")
    return _without_nul(args, "An argument")


def _env(config: Mapping[str, Any], options: RunOptions, hostname: str) -> tuple[str, ...]:
    defaults = [f"PATH={PATH}", f"HOSTNAME={hostname}", *(["TERM=xterm"] if options.tty else [])]
    items = [item for item in _strings(config, "Env") if item.partition("=")[0]]
    merged = {item.partition("=")[0]: item.partition("=")[2] for item in (*defaults, *items, *options.env)}
    return _without_nul([f"{key}={value}" for key, value in merged.items()], "An environment variable")


def _cwd(config: Mapping[str, Any], options: RunOptions) -> str:
    if options.workdir is not None:
        return _absolute(options.workdir, "working directory")
    # Builders leave relative ones in configs; engines take them from the root.
    return _without_nul([_normal("/" + _string(config, "WorkingDir"))], "The working directory")[0]


def _string(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"The image's config is broken: its {key} is not a string.")
    return value


def _strings(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = config.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"The image's config is broken: its {key} is not a list of strings.")
    return tuple(value)


def _words(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A command. Old builders wrote one text; like Docker we take it as a single word."""
    value = config.get(key)
    if isinstance(value, str):
        return (value,) if value else ()
    return _strings(config, key)


def _without_nul(items: Sequence[str], what: str) -> tuple[str, ...]:
    if any("\0" in item for item in items):
        raise UserError(f"{what} has a zero byte in it.")
    return tuple(items)


def _normal(path: str) -> str:
    return posixpath.normpath("/" + path.lstrip("/"))


def _absolute(path: str, what: str) -> str:
    """A normalised path in the container, without `..`, whose meaning depends on whether links are followed first."""
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise UsageError(f"The {what} {path!r} must be an absolute path in the container without '..'.")
    return _normal(path)


def parse_volume(text: str) -> Volume:
    """`SOURCE:TARGET[:ro|rw]`. Raises UsageError."""
    parts = text.split(":")
    if len(parts) not in {2, 3}:
        raise UsageError(f"The volume {text!r} is not SOURCE:TARGET or SOURCE:TARGET:ro.")
    source, target, mode = (*parts, "")[:3]
    if mode not in _VOLUME_OPTIONS:
        raise UsageError(f"The volume {text!r} has the option {mode!r}; there are 'ro' and 'rw'.")
    if not source.startswith("/") or ".." in source.split("/") or "\0" in source:
        raise UsageError(f"The volume {text!r} must name its source by an absolute path without '..'.")
    inside = _absolute(target, "target of a volume")
    if inside == "/":
        raise UsageError(f"The volume {text!r} would hide the whole container.")
    return Volume(Path(source), inside, _VOLUME_OPTIONS[mode])


def resolve_env(items: Iterable[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """`K=V` as it is, `K` with its value in the environment, or not at all if it has none there. Raises UsageError."""
    resolved = []
    for item in items:
        key, equals, _ = item.partition("=")
        if not key:
            raise UsageError(f"The environment variable {item!r} has no name.")
        if equals:
            resolved.append(item)
        elif key in environment:
            resolved.append(f"{key}={environment[key]}")
    return tuple(resolved)


def parse_env_file(text: str) -> tuple[str, ...]:
    """Lines `K=V` or `K` for `resolve_env`, without empty ones and those that begin with #. No quotes, as Docker."""
    lines = (line.lstrip().removesuffix("\r") for line in text.split("\n"))
    return tuple(line for line in lines if line and not line.startswith("#"))


def check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"The name {name!r} is not possible for a container.",
            hint="Up to 63 letters, digits, '_', '.' and '-', the first a letter or digit.",
        )
    return name


def check_hostname(name: str) -> str:
    if not _HOSTNAME.fullmatch(name):
        raise UsageError(f"The host name {name!r} is not possible: up to 64 letters, digits, '.' and '-'.")
    return name
