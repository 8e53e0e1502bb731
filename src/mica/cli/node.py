"""`mica node`: the daemon of a host."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mica.cli.options import CacheOption, ConfigOption, MethodOption, QuotaOption, StateOption, run_root
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
        typer.Option(help="Serve a Docker Engine as graph driver at this socket; default: that of the configuration."),
    ] = None,
    stop: Annotated[bool, typer.Option("--stop", help="End the node for good, with its mounts.")] = False,
) -> None:
    """Serve layers of the configuration's repositories to containers and engines on this host.

    A signal ends the node and leaves mounts and containers as they are: programs can still open what is in the cache,
    and other opens wait for the next `mica node`.
    """
    from mica.cli.places import Places
    from mica.daemon.nodeservers import NodeSettings, ServerSpec
    from mica.daemon.supervisor import run_drivers, run_node, stop_node
    from mica.daemon.systemd import ServiceManager
    from mica.dataplane.nodedirectory import NodeDirectory
    from mica.drivers.docker.driver import DriverSettings
    from mica.drivers.docker.server import graph_driver_of
    from mica.layers.stack import Method
    from mica.run.scratch import sweep

    if os.geteuid() != 0:
        raise UserError("Only root can run a node.", hint="Try again with sudo.")
    sweep(run_root(state))  # remove what killed runs left; otherwise only the next run would
    directory = directory.resolve()  # as the table of mounts has it
    if stop:
        stop_node(directory)
        return
    places = Places(state, config=config, cache=cache, quota=quota)
    docker_socket = docker_socket or places.config.docker_socket
    chosen, known = places.method(method), places.known
    manager = ServiceManager(os.environ)

    def docker(service: Path | None) -> list[ServerSpec]:
        if docker_socket is None:
            return []
        kept = (places.drivers / "docker.json").absolute()
        return [graph_driver_of(DriverSettings(service, frozenset(known), places.cache, kept), docker_socket)]

    if not chosen.uses_images:
        # An engine needs no node for ordinary images, and can have the layers of thin ones from another client.
        drivers = docker(None)
        if not drivers:
            raise UserError(
                f"A node cannot serve layers by method {chosen.value!r}.",
                hint="mica doctor tells what this kernel lacks; mica run mounts by itself.",
            )
        run_drivers(drivers, lambda: typer.echo(f"ready {docker_socket}, without layers of a node"), manager)
        return
    if not known:
        raise UserError("There is no repository to serve.", hint="Name some in the configuration.")
    locations = tuple(places.locate(fqrn) for fqrn in known)
    facts = places.kernel_facts()
    settings = NodeSettings(
        NodeDirectory(directory), places.cache, locations, Method(chosen), places.config.deadline_s,
        int(places.config.complete_mb_s * 1e6), one_by_one=facts.one_by_one, resends=facts.resends,
    )  # fmt: skip
    ready = lambda: typer.echo(f"ready {settings.directory.service}")  # noqa: E731
    run_node(settings, ready, manager, docker(settings.directory.service))
