"""The layers of a thin image, ready for a union, by whichever method this host can do best."""

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mica.errors import NotFoundError, TemporaryError, UserError
from mica.files import mapped_os_errors
from mica.node.client import open_node
from mica.node.directory import NodeDirectory
from mica.node.stack import LayerStack, Method
from mica.thin.descriptor import ThinDescriptor, ThinLayer, format_descriptor

if TYPE_CHECKING:
    from mica.cli.places import Places
    from mica.fetch.location import RepositoryLocation
    from mica.mount.serverprocess import ServerProcess
    from mica.node.earlyservice import EarlyService
    from mica.thin.trace import Piece


@contextlib.contextmanager
def open_node_layers(
    directory: Path, descriptor: ThinDescriptor, program: str | None, *, wanted: bool
) -> Iterator[LayerStack | None]:
    """The layers from the node of this host, held for the block; None if none runs that knows their repositories.

    To be opened outside of private mount namespaces, which see what the node mounts later only by propagation.
    """
    with contextlib.ExitStack() as stack:
        try:
            node = stack.enter_context(open_node(NodeDirectory(directory).service)) if wanted else None
        except TemporaryError:
            node = None
        if node is None or not descriptor.repositories <= {
            known["fqrn"] for known in node.ask("status")["repositories"]
        }:
            yield None
        else:
            document = json.loads(format_descriptor(descriptor))
            yield LayerStack.from_json(node.ask("layers", descriptor=document, program=program))


@contextlib.contextmanager
def mounted_layers(
    descriptor: ThinDescriptor,
    places: "Places",
    directory: Path,
    method: Method,
    figures: dict[str, Any],
    *,
    program: str | None = None,
    recorded: "list[Piece] | None" = None,
    early: "EarlyService | None" = None,
) -> Iterator[LayerStack]:
    """The layers for the block, served by children of ours. Call it in a private mount namespace: the directory is
    shared by all runs.

    After the block `figures` has the traffic of everything together, and `recorded` what was asked for, where the
    method knows.
    """
    servers: list[ServerProcess] = []
    with mapped_os_errors(f"make the mount directory {directory}"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            if method is Method.EXTERNAL:
                yield LayerStack(_trees(descriptor, places.config.external))
            elif method is Method.REPOSITORY:
                servers += [
                    stack.enter_context(_mounted_repository(places, fqrn, directory / fqrn))
                    for fqrn in sorted(descriptor.repositories)
                ]
                yield LayerStack(_trees(descriptor, directory))
            else:
                from mica.node.privatenode import private_layers

                locations = [places.locate(fqrn) for fqrn in sorted(descriptor.repositories)]
                yield stack.enter_context(
                    private_layers(
                        descriptor,
                        locations,
                        places.cache,
                        directory,
                        method,
                        servers,
                        program=program,
                        recorded=recorded,
                        early=early,
                    )
                )
    finally:
        for traffic in (places.counter.read()._asdict(), *(server.result or {} for server in servers)):
            for name, count in traffic.items():
                figures[name] = figures.get(name, 0) + count


@contextlib.contextmanager
def _mounted_repository(places: "Places", fqrn: str, target: Path) -> Iterator["ServerProcess"]:
    from mica.mount.serverprocess import open_server_process

    with mapped_os_errors(f"make the mount directory {target}"):
        target.mkdir(parents=True, exist_ok=True)
    with open_server_process(_server(places.locate(fqrn), places.cache, target)) as server:
        yield server


def _trees(descriptor: ThinDescriptor, directory: Path) -> tuple[Path, ...]:
    return tuple(_tree(directory / layer.fqrn, layer) for layer in reversed(descriptor.layers))


def _tree(root: Path, layer: ThinLayer) -> Path:
    """A descriptor may come from anywhere and a repository may hold any link: followed, it would lead to our files."""
    tree = root
    for name in layer.path.strip("/").split("/"):
        tree /= name
        with mapped_os_errors(f"look at layer {layer.url}"):
            try:
                mode = tree.lstat().st_mode
            except (FileNotFoundError, NotADirectoryError) as error:
                raise NotFoundError(f"Layer {layer.url} is not in the newest revision of {layer.fqrn}.") from error
        if not stat.S_ISDIR(mode):
            raise UserError(f"Layer {layer.url} is not a directory, or has a link in its path.")
    return tree


def _server(
    location: "RepositoryLocation", cache: Path, target: Path
) -> Callable[[Callable[[], None]], dict[str, int]]:
    def serve(ready: Callable[[], None]) -> dict[str, int]:
        from mica.fetch.location import open_repository
        from mica.mount.repomount import mounted, wait_for_end
        from mica.mount.serverprocess import Stopped

        with open_repository(location, cache) as client:
            with contextlib.suppress(Stopped), mounted(client, target, follow=False, variables=os.environ) as session:
                ready()
                wait_for_end(session, lambda: None)
            return client.counter.read()._asdict()

    return serve
