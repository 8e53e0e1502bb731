"""Layers from whole repositories that children of ours mount, where metadata images cannot be mounted. To be opened by
a process without threads."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mica.fetch.counters import TrafficCounter
from mica.fetch.location import RepositoryLocation
from mica.files import mapped_os_errors
from mica.layers.provider import check_served
from mica.layers.stack import LayerStack
from mica.layers.trees import find_layer_trees
from mica.serverprocess import Parent, Serve, ServerProcess, open_server_process
from mica.thin.descriptor import ThinDescriptor


@dataclass(frozen=True, slots=True)
class RepositoryProvider:
    """Layer trees as published. `directory` exists and gets a mount for each repository; `counter` gets the traffic of
    the children that serve them, when these have ended."""

    locations: Sequence[RepositoryLocation]
    cache: Path
    directory: Path
    counter: TrafficCounter

    def check(self, descriptor: ThinDescriptor) -> None:
        check_served(descriptor, self.locations)

    @contextlib.contextmanager
    def layers(self, descriptor: ThinDescriptor) -> Iterator[LayerStack]:
        """Call it in a private mount namespace."""
        self.check(descriptor)
        servers: list[ServerProcess] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self._count, servers)
            for location in self.locations:
                servers += [stack.enter_context(self._mounted(location))]
            yield LayerStack(find_layer_trees(self.directory, descriptor), untrusted=self.directory)

    @contextlib.contextmanager
    def _mounted(self, location: RepositoryLocation) -> Iterator[ServerProcess]:
        target = self.directory / location.fqrn
        with mapped_os_errors(f"make the mount directory {target}"):
            target.mkdir(exist_ok=True)
        with open_server_process(_server(location, self.cache, target), f"server of {location.fqrn}") as server:
            yield server

    def _count(self, servers: list[ServerProcess]) -> None:
        for server in servers:
            self.counter.add(**(server.result or {}))


def _server(location: RepositoryLocation, cache: Path, target: Path) -> Serve:
    def serve(parent: Parent) -> dict[str, int]:
        from mica.fetch.location import open_repository
        from mica.mount.repomount import mounted

        with open_repository(location, cache) as client:
            with mounted(client, target, follow=False) as session:
                parent.ready()
                while not session.wait(0) and parent.wait(timeout_s=1.0):
                    pass
            return client.counter.read()._asdict()

    return serve
