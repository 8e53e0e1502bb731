"""The interface of providers (`providers/`), which give the real layers of a thin image to code that makes unions."""

import contextlib
from collections.abc import Iterable
from typing import Protocol

from mica.errors import UserError
from mica.fetch.location import RepositoryLocation
from mica.layers.stack import LayerStack
from mica.thin.descriptor import ThinDescriptor


class LayerProvider(Protocol):
    def check(self, descriptor: ThinDescriptor) -> None:
        """Raises UserError for layers that this host may not or cannot use, without asking a server."""

    def layers(self, descriptor: ThinDescriptor) -> contextlib.AbstractContextManager[LayerStack]:
        """Layers to mount within the block. A union made of them may outlive the block, unless a child of ours serves
        them. Raises MicaError."""


def check_allowed(descriptor: ThinDescriptor, allowed: frozenset[str] | None) -> None:
    """Raises UserError for layers of repositories that are not allowed; None allows all."""
    refused = sorted(descriptor.repositories - allowed) if allowed is not None else []
    if refused:
        raise UserError(
            f"Images from repository {refused[0]} are not allowed here.",
            hint=f"Allowed are {', '.join(sorted(allowed or ())) or 'none'}.",
        )


def check_served(descriptor: ThinDescriptor, locations: Iterable[RepositoryLocation]) -> None:
    """The same for layers of other repositories than those at these places."""
    check_allowed(descriptor, frozenset(location.fqrn for location in locations))
