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
    run_root,
)
from mica.cli.printing import writable
from mica.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mica.cli.places import Places
    from mica.daemon.earlyservice import EarlyService
    from mica.layers.stack import LayerStack, Method
    from mica.run.request import Process, RunOptions
    from mica.thin.image import ThinImage


def run(
    context: typer.Context,
    image: Annotated[
        str, typer.Argument(help="A thin image (oci:DIR:TAG, docker://REF, …), or a name kept in a known repository.")
    ],
    state: StateOption,
    command: Annotated[list[str] | None, typer.Argument(help="Run this instead of the image's command.")] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", help="K=V, or K to pass on the value of this shell.")
    ] = None,
    env_file: Annotated[list[Path] | None, typer.Option(help="File with K=V lines.")] = None,
    volume: Annotated[list[str] | None, typer.Option("--volume", "-v", help="SOURCE:TARGET[:ro].")] = None,
    workdir: Annotated[str | None, typer.Option("--workdir", "-w", help="Directory to start in.")] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="Name or number, with :GROUP if wanted.")] = None,
    entrypoint: Annotated[str | None, typer.Option(help="Use this instead of the image's entry point.")] = None,
    network: Annotated[str, typer.Option(help="host or none.")] = "host",
    hostname: Annotated[
        str | None, typer.Option(help="Host name inside; default: the host's, or a random one with --network none.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the container while it runs.")] = None,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give the program a terminal.")] = False,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Pass standard input on.")] = False,
    remove: Annotated[
        bool, typer.Option("--rm", help="Has no effect: a container's files are always removed when it ends.")
    ] = False,
    keep: Annotated[Path | None, typer.Option(help="Directory that keeps what the container writes.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Give the program no writable layer.")] = False,
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
        typer.Option(help="File for a trace of the program, for `mica convert --trace`. Needs an empty cache."),
    ] = None,
) -> None:
    """Run a container. Its files are fetched when they are opened; nothing is left behind when it ends.

    If a node runs on this host and knows the image's repositories, it serves the layers, unless options say otherwise.

    The exit code is the program's, 128+n if a signal ended it, 127 if there is no such program, 126 if it cannot be
    executed, 125 if runc cannot make the container. If mica refuses the command before that, it is one of the usual
    codes: 1 failed, 2 usage, 3 integrity, 4 temporary.
    """
    from mica.cli.images import find_image
    from mica.cli.places import Places
    from mica.dataplane.nodedirectory import NodeDirectory
    from mica.providers.node import NodeProvider
    from mica.run.request import RunOptions, parse_env_file, parse_volume, resolve_env

    if network not in {"host", "none"}:
        raise UsageError(f"There is no network {network!r}.", hint="Use 'host' or 'none'.")
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
    if trace is not None:
        from mica.cli.tracing import refuse_used_cache

        refuse_used_cache(places.cache)
    found = find_image(image, places, platform)
    request = _Request(found, found.descriptor.origin or image, options, state, stats, trace, context.obj)
    own = urls or keys or proxies or cache or quota or method or trace
    provider = NodeProvider(NodeDirectory(node).service, program=request.program)
    if not own and provider.knows(found.descriptor):
        with provider.layers(found.descriptor) as layers:
            if request.early is not None:
                request.early.stop()
            raise typer.Exit(request.run(layers, node=str(node)))
    raise typer.Exit(request.run_by_itself(places, places.method(method)))


class _Request(NamedTuple):
    image: "ThinImage"
    name: str
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

    def run(
        self,
        layers: "LayerStack",
        opened: "Callable[[Path, Process], None] | None" = None,
        *,
        node: str = "",
        cache: str = "",
    ) -> int:
        from mica.run.container import run_container
        from mica.run.request import RunRequest
        from mica.run.runrecords import RunRecord

        record = RunRecord(self.name, node, cache)
        return run_container(RunRequest(layers, self.config, self.options, opened, record), root=run_root(self.state))

    def run_by_itself(self, places: "Places", method: "Method") -> int:
        """Run it with layers that child processes of this command serve."""
        from mica.cli.providerchoice import choose_provider
        from mica.cli.tracing import ProgramWatch
        from mica.files import mapped_os_errors
        from mica.layers.stack import Method
        from mica.run.container import enter_private_mounts

        watch = None if self.trace is None else ProgramWatch(method)
        enter_private_mounts()
        try:
            provider = choose_provider(
                self.image.descriptor, places, self.state / "mnt", method,
                program=self.program, recorded=None if watch is None else watch.recorded, early=self.early,
            )  # fmt: skip
            with provider.layers(self.image.descriptor) as layers:
                cache = "" if method is Method.EXTERNAL else str(places.cache)
                code = self.run(layers, None if watch is None else watch.watch(layers), cache=cache)
            if watch is not None and self.trace is not None:
                watch.write(self.trace)
            return code
        finally:
            if self.stats is not None:
                import json

                figures = places.counter.read()._asdict()
                with mapped_os_errors(f"write {self.stats}"):
                    self.stats.write_text(json.dumps(figures) + "\n", encoding="ascii")


def _read_text(path: Path) -> str:
    from mica.files import mapped_os_errors

    with mapped_os_errors(f"read {path}"):
        return path.read_text(encoding="utf-8", errors="surrogateescape")
