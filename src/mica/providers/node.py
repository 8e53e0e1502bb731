"""Layers from the node of this host, and what stands in its place where no node serves layers. Any thread."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Never

from mica.daemon.client import check_objects, open_answer, open_layers
from mica.dataplane.nodedirectory import NodeDirectory
from mica.errors import NodeAwayError, UserError
from mica.layers.provider import check_allowed
from mica.layers.stack import LayerStack
from mica.thin.descriptor import ThinDescriptor


class NodeProvider:
    """`service`: the node's socket. `allowed`: repositories whose layers may be used; None: those of the node.
    `program` is about to start in the layers."""

    def __init__(self, service: Path, allowed: frozenset[str] | None = None, *, program: str | None = None) -> None:
        self._service = service
        self._allowed = allowed
        self._program = program

    def knows(self, descriptor: ThinDescriptor) -> bool:
        """Whether a node runs that serves the repositories. Waits for a service that is being started again."""
        try:
            with open_answer(self._service, "status", waits_for_node=False) as status:
                return descriptor.repositories <= {known["fqrn"] for known in status["repositories"]}
        except NodeAwayError:
            return False

    def check(self, descriptor: ThinDescriptor) -> None:
        check_allowed(descriptor, self._allowed)

    @contextlib.contextmanager
    def layers(self, descriptor: ThinDescriptor) -> Iterator[LayerStack]:
        """The node holds the layers for the block. Call it outside of private mount namespaces: there, later mounts of
        the node appear only by propagation."""
        self.check(descriptor)
        with open_layers(self._service, descriptor, self._program) as layers:
            try:
                yield layers
            except UserError:
                # Without the node's mounts a union or a program fails with a message that does not help.
                check_objects(NodeDirectory(self._service.parent))
                raise


class NoProvider:
    """Where no source of layers exists: such a host has only the layers of its engines."""

    def check(self, descriptor: ThinDescriptor) -> Never:
        raise UserError(
            f"Layer {descriptor.layers[-1].url} is not available: no node serves layers on this host.",
            hint="Start the engine with --storage-opt mica.method=external, or see mica doctor.",
        )

    def layers(self, descriptor: ThinDescriptor) -> Never:
        self.check(descriptor)
