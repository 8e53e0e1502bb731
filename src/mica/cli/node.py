"""`mica node`: the daemon of a host."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mica.cli.options import CacheOption, ConfigOption, MethodOption, QuotaOption, StateOption
from mica.errors import UserError

NodeOption = Annotated[
    Path, typer.Option("--node", envvar="MICA_NODE", help="Directory of the host's node: its sockets and its mounts.")
]
NODE_DIRECTORY = Path("/run/mica")


def node(
    state: StateOption,
    config: ConfigOption = None,
    cache: CacheOption = None,
    quota: QuotaOption = None,
    method: MethodOption = None,
    directory: NodeOption = NODE_DIRECTORY,
    docker_socket: Annotated[
        Path | None,
        typer.Option(help="Be a Docker Engine's graph driver at this socket; default: what the configuration says."),
    ] = None,
    stop: Annotated[bool, typer.Option("--stop", help="End the node for good, with its mounts.")] = False,
) -> None:
    """Serve the layers of images to whoever mounts them on this host: the repositories of the configuration.

    Ended by a signal, it leaves mounts and containers as they are: what is in the cache goes on opening, the rest waits
    for the next `mica node`.
    """
    from mica.cli.places import Places
    from mica.drivers.graphdriver.driver import DriverSettings
    from mica.drivers.graphdriver.server import graph_driver_of
    from mica.node.directory import NodeDirectory
    from mica.node.servers import NodeSettings
    from mica.node.stack import Method
    from mica.node.supervisor import run_node, stop_node
    from mica.node.systemd import ServiceManager

    if os.geteuid() != 0:
        raise UserError("Only root can run a node.", hint="Try again with sudo.")
    if stop:
        stop_node(directory)
        return
    places = Places(state, config=config, cache=cache, quota=quota)
    chosen = places.method(method)
    if not chosen.uses_images:
        raise UserError(
            f"A node cannot serve layers by method {chosen.value!r}.",
            hint="mica doctor tells what this kernel lacks; mica run mounts by itself.",
        )
    known = places.known
    if not known:
        raise UserError("There is no repository to serve.", hint="Name some in the configuration.")
    locations = tuple(places.locate(fqrn) for fqrn in known)
    settings = NodeSettings(
        NodeDirectory(directory.absolute()), places.cache, locations, Method(chosen), places.config.deadline_s,
        int(places.config.complete_mb_s * 1e6),
    )  # fmt: skip
    others = []
    docker_socket = docker_socket or places.config.docker_socket
    if docker_socket is not None:
        driver = DriverSettings(
            settings.directory.service, frozenset(known), places.cache, (places.drivers / "docker.json").absolute()
        )
        others.append(graph_driver_of(driver, docker_socket))
    ready = lambda: typer.echo(f"ready {settings.directory.service}")  # noqa: E731
    run_node(settings, ready, ServiceManager(os.environ), others)
