"""Where the real layers of a thin image come from: the node of this host, or another client's mount. Any thread."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from mica.errors import NotFoundError, TemporaryError, UserError
from mica.node.client import open_node
from mica.node.stack import LayerStack
from mica.thin.descriptor import FILE_NAME, SIZE_LIMIT, ThinDescriptor, format_descriptor, parse_descriptor

_RESTART_S = 5.0
"""How long a node's service may be away: its supervisor starts it anew when it dies."""


class LayerProvider(Protocol):
    def check(self, descriptor: ThinDescriptor) -> None:
        """Raises UserError for layers that this host may not or cannot use, without asking a server."""

    def layers(self, descriptor: ThinDescriptor) -> contextlib.AbstractContextManager[LayerStack]:
        """Layers to mount within the block; a union made of them may outlive it. Raises MicaError."""


class NodeProvider:
    """`allowed`: repositories whose layers may be used; None: those of the node."""

    def __init__(self, service: Path, allowed: frozenset[str] | None = None) -> None:
        self._service = service
        self._allowed = allowed

    def check(self, descriptor: ThinDescriptor) -> None:
        check_allowed(descriptor, self._allowed)

    @contextlib.contextmanager
    def layers(self, descriptor: ThinDescriptor) -> Iterator[LayerStack]:
        self.check(descriptor)
        with contextlib.ExitStack() as stack:
            until = time.monotonic() + _RESTART_S
            while True:
                try:
                    client = stack.enter_context(open_node(self._service))
                    answer = client.ask("layers", descriptor=json.loads(format_descriptor(descriptor)))
                    break
                except TemporaryError as error:
                    if not _is_away(error) or time.monotonic() > until:
                        raise
                    stack.close()
                    time.sleep(0.1)
            yield LayerStack.from_json(answer)


def _is_away(error: TemporaryError) -> bool:
    """Whether it is the node itself that does not answer, and not a server of repositories."""
    return error.__cause__ is not None or str(error).startswith("The node ended")


class ExternalProvider:
    """Layer trees below a directory where another client shows repositories, such as /cvmfs."""

    def __init__(self, root: Path, allowed: frozenset[str] | None = None) -> None:
        self._root = root
        self._allowed = allowed

    def check(self, descriptor: ThinDescriptor) -> None:
        check_allowed(descriptor, self._allowed)

    @contextlib.contextmanager
    def layers(self, descriptor: ThinDescriptor) -> Iterator[LayerStack]:
        self.check(descriptor)
        trees = [self._root / layer.fqrn / layer.path[1:] for layer in descriptor.layers]
        for tree, layer in zip(trees, descriptor.layers, strict=True):
            # A repository that is not mounted appears when its first path is looked up.
            if not tree.is_dir():
                raise NotFoundError(f"There is no layer {layer.url} below {self._root}.")
        yield LayerStack(tuple(reversed(trees)))


def check_allowed(descriptor: ThinDescriptor, allowed: frozenset[str] | None) -> None:
    refused = sorted(descriptor.repositories - allowed) if allowed is not None else []
    if refused:
        raise UserError(
            f"Images from repository {refused[0]} are not allowed here.",
            hint=f"Allowed are {', '.join(sorted(allowed or ())) or 'none'}.",
        )


def find_descriptor(directory: Path, what: str) -> ThinDescriptor | None:
    """The descriptor of a lowest layer that is thin: whose only entry is a regular file `thin.json`; None otherwise.

    Raises UserError if that file is not a descriptor.
    """
    with os.scandir(directory) as entries:
        first, second = next(entries, None), next(entries, None)
        if first is None or second is not None or first.name != FILE_NAME or not first.is_file(follow_symlinks=False):
            return None
    fd = os.open(directory / FILE_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        data = file.read(SIZE_LIMIT + 1)
    return parse_descriptor(data, f"{FILE_NAME} of {what}")
