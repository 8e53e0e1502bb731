"""Layers from a node for one run: its service and its object filesystem, kept by a child of ours and gone with it.

Everything is in a directory on a file system of its own in the caller's private mount namespace, so that nothing is
left whatever happens. The service begins to fetch metadata images as soon as it runs, while the caller does other
work. To be opened by a process without threads.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mica import linux
from mica.cache.cache import Cache
from mica.daemon.client import open_layers
from mica.daemon.earlyservice import EarlyService
from mica.daemon.nodeservers import NodeSettings
from mica.dataplane.nodedirectory import NodeDirectory
from mica.fetch.counters import TrafficCounter
from mica.fetch.location import RepositoryLocation
from mica.files import locked, mapped_os_errors
from mica.layers.provider import check_served
from mica.layers.stack import LayerStack, Method
from mica.serverprocess import ServerProcess
from mica.thin.descriptor import ThinDescriptor
from mica.thin.trace import Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateProvider:
    """`directory` exists; a mount covers it for the block, in which `program` will be started. `early` may have begun
    already. After the block `counter` has the traffic, and `recorded` lists the content that was asked for."""

    locations: Sequence[RepositoryLocation]
    cache: Path
    directory: Path
    method: Method
    counter: TrafficCounter
    program: str | None = None
    early: EarlyService | None = None
    recorded: list[Piece] | None = None
    one_by_one: bool | None = None

    def check(self, descriptor: ThinDescriptor) -> None:
        check_served(descriptor, self.locations)

    @contextlib.contextmanager
    def layers(self, descriptor: ThinDescriptor) -> Iterator[LayerStack]:
        """Call it in a private mount namespace. Raises the error of the service if that failed."""
        self.check(descriptor)
        directory = self.directory
        node = NodeDirectory(directory)
        with contextlib.ExitStack() as stack:
            with mapped_os_errors(f"use {directory} for a private node"):
                linux.mount("mica", directory, "tmpfs", flags=linux.MS_NOSUID | linux.MS_NODEV, data="mode=0700")
            stack.callback(linux.umount2, directory, linux.MNT_DETACH)
            node.create()
            stack.enter_context(locked(node.lock, what="The private node"))  # it is kept running
            with Cache(self.cache):
                pass  # makes the cache here, so that both children do not make it at once
            keeper = self._begin(node, descriptor, stack)
            keeper.wait_until_ready()
            yield stack.enter_context(open_layers(node.service, descriptor))

    def _begin(self, node: NodeDirectory, descriptor: ThinDescriptor, stack: contextlib.ExitStack) -> ServerProcess:
        recorded = None
        if self.recorded is not None:
            recorded = self.directory / "recorded"
            stack.callback(_read_recorded, recorded, self.recorded)
        settings = NodeSettings(
            node, self.cache, tuple(self.locations), self.method, recorded=recorded, one_by_one=self.one_by_one
        )
        early = self.early or stack.enter_context(EarlyService())
        keeper = early.begin(settings, descriptor, self.program)
        stack.callback(self._count, keeper)
        stack.callback(early.stop)
        return keeper

    def _count(self, keeper: ServerProcess) -> None:
        self.counter.add(**(keeper.result or {}))


def _read_recorded(path: Path, recorded: list[Piece]) -> None:
    from mica.dataplane.traces import read_recorded

    recorded.extend(read_recorded(path))
