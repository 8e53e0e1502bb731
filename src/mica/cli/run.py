"""`mica run`: a container from a thin image, with runc and without an engine."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mica.cli.mount import StatsOption
from mica.cli.node import NODE_DIRECTORY, NodeOption
from mica.cli.options import (
    CacheOption,
    ConfigOption,
    KeyOption,
    MethodOption,
    ProxyOption,
    QuotaOption,
    StateOption,
    UrlOption,
)
from mica.cli.output import writable
from mica.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mica.cli.places import Places
    from mica.node.earlyservice import EarlyService
    from mica.node.stack import LayerStack, Method
    from mica.run.request import Process, RunOptions
    from mica.thin.image import ThinImage


def run(
    context: typer.Context,
    image: Annotated[
        str, typer.Argument(help="A thin image (oci:DIR:TAG, docker://REF, …), or a name kept in a known repository.")
    ],
    state: StateOption,
    command: Annotated[list[str] | None, typer.Argument(help="Instead of the image's command.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", help="K=V, or K to pass on ours.")] = None,
    env_file: Annotated[list[Path] | None, typer.Option(help="File with K=V lines.")] = None,
    volume: Annotated[list[str] | None, typer.Option("--volume", "-v", help="SOURCE:TARGET[:ro].")] = None,
    workdir: Annotated[str | None, typer.Option("--workdir", "-w", help="Directory to start in.")] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="Name or number, with :GROUP if wanted.")] = None,
    entrypoint: Annotated[str | None, typer.Option(help="Instead of the image's entry point.")] = None,
    network: Annotated[str, typer.Option(help="host or none.")] = "host",
    hostname: Annotated[str | None, typer.Option(help="Host name inside; default: ours, or made up.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the container while it runs.")] = None,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give it a terminal.")] = False,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Pass standard input on.")] = False,
    remove: Annotated[
        bool, typer.Option("--rm", help="Accepted for the habit: what a container wrote always goes with it.")
    ] = False,
    keep: Annotated[Path | None, typer.Option(help="Directory that keeps what the container writes.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="No writable layer for the program.")] = False,
    platform: Annotated[str | None, typer.Option(help="Which image of an index, such as linux/amd64.")] = None,
    urls: UrlOption = None,
    keys: KeyOption = None,
    proxies: ProxyOption = None,
    cache: CacheOption = None,
    quota: QuotaOption = None,
    config: ConfigOption = None,
    method: MethodOption = None,
    node: NodeOption = NODE_DIRECTORY,
    stats: StatsOption = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Record here what the program asks for, for `mica convert --trace`. Needs an empty cache."),
    ] = None,
) -> None:
    """Run a container. Its files are fetched when they are opened; nothing is left when it ends.

    A node that runs on this host and knows the image's repositories serves the layers, unless options say otherwise.

    The exit code is the program's, 128+n if a signal ended it, 127 or 126 if it could not be started.
    """
    from mica.cli.images import find_image
    from mica.cli.layers import open_node_layers
    from mica.cli.places import Places
    from mica.run.request import RunOptions, parse_env_file, parse_volume, resolve_env

    if network not in {"host", "none"}:
        raise UsageError(f"There is no network {network!r}.", hint="There are 'host' and 'none'.")
    del remove
    stats = writable(stats) if stats is not None else None
    trace = writable(trace) if trace is not None else None
    files = [line for path in env_file or [] for line in parse_env_file(_read_text(path))]
    options = RunOptions(
        command=tuple(command or ()), entrypoint=entrypoint, hostname=hostname, name=name,
        env=resolve_env([*files, *(env or [])], os.environ), user=user, workdir=workdir,
        volumes=tuple(map(parse_volume, volume or [])), network="none" if network == "none" else "host",
        tty=tty, interactive=interactive or tty, read_only=read_only, keep=keep.absolute() if keep else None,
    )  # fmt: skip
    places = Places(state, config=config, urls=urls, keys=keys, proxies=proxies, cache=cache, quota=quota)
    found = find_image(image, places, platform)
    request = _Request(found, options, state, stats, trace, context.obj)
    own = urls or keys or proxies or cache or quota or method or trace
    with open_node_layers(node, found.descriptor, request.program, wanted=not own) as layers:
        if layers is not None:
            if request.early is not None:
                request.early.stop()
            raise typer.Exit(request.run(layers))
    raise typer.Exit(request.run_by_itself(places, places.method(method)))


class _Request(NamedTuple):
    image: "ThinImage"
    options: "RunOptions"
    state: Path
    stats: Path | None
    trace: Path | None
    early: "EarlyService | None"

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.image.config.get("config") or {}
        return config

    @property
    def program(self) -> str:
        from mica.run.request import plan_process

        return plan_process(self.config, self.options, hostname="").args[0]

    def run(self, layers: "LayerStack", opened: "Callable[[Path, Process], None] | None" = None) -> int:
        from mica.run.container import run_container
        from mica.run.request import RunRequest

        return run_container(RunRequest(layers, self.config, self.options, opened), root=self.state / "run")

    def run_by_itself(self, places: "Places", method: "Method") -> int:
        """With layers that children of ours serve."""
        from mica.cli.layers import mounted_layers
        from mica.cli.tracing import ProgramWatch
        from mica.files import mapped_os_errors
        from mica.run.container import enter_private_mounts

        watch = None if self.trace is None else ProgramWatch(places.cache, method)
        enter_private_mounts()
        figures: dict[str, Any] = {}
        try:
            with mounted_layers(
                self.image.descriptor, places, self.state / "mnt", method, figures,
                program=self.program, recorded=None if watch is None else watch.recorded, early=self.early,
            ) as layers:  # fmt: skip
                code = self.run(layers, None if watch is None else watch.watch(layers))
            if watch is not None and self.trace is not None:
                watch.write(self.trace)
            return code
        finally:
            if self.stats is not None:
                import json

                with mapped_os_errors(f"write {self.stats}"):
                    self.stats.write_text(json.dumps(figures) + "\n", encoding="ascii")


def _read_text(path: Path) -> str:
    from mica.files import mapped_os_errors

    with mapped_os_errors(f"read {path}"):
        return path.read_text(encoding="utf-8", errors="surrogateescape")
