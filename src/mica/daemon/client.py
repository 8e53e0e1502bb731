"""Asking a node's service: one connection. The node holds what it gave until the connection ends. One thread at a
time."""

import contextlib
import functools
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from mica import linux
from mica.dataplane.nodedirectory import NodeDirectory
from mica.dataplane.sockets import MESSAGE_MAX_BYTES, connect
from mica.errors import NodeAwayError, parse_error
from mica.files import is_locked
from mica.fuse.identity import SERVER_GONE
from mica.layers.stack import LayerStack
from mica.thin.descriptor import ThinDescriptor, descriptor_document

_RESTART_S: Final = 30.0
"""How long a service may be away while its supervisor lives, which starts it again when it dies."""
_UPGRADE_S: Final = 5.0
"""How long a whole node may be away."""
_AGAIN_S: Final = 0.1
_DEATHS_MAX: Final = 3
"""How often the service may die while it is asked the same question."""


class NodeClient:
    """The node holds what it gave until the block of `open_node` ends."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Raises the error that the node answered, or NodeAwayError if it ended meanwhile."""
        try:
            self._connection.send(json.dumps({"op": operation, **arguments}).encode("ascii"))
            answer = self._connection.recv(MESSAGE_MAX_BYTES)
        except ConnectionError:
            answer = b""
        if not answer:
            raise NodeAwayError("The node ended before it answered.", hint="Try again when it runs.")
        values: dict[str, Any] = json.loads(answer)
        if "error" in values:
            raise parse_error(values)
        return values


@contextlib.contextmanager
def open_node(path: Path) -> Iterator[NodeClient]:
    """A connection to the node whose socket this is. Raises NodeAwayError if none runs."""
    try:
        connection = connect(path)
    except OSError as error:
        raise NodeAwayError(f"No node answers at {path}.", hint="Start it: mica node") from error
    with connection:
        yield NodeClient(connection)


@contextlib.contextmanager
def open_answer(
    path: Path,
    operation: str,
    *,
    waits_for_node: bool = True,
    check: Callable[[], None] = lambda: None,
    **arguments: Any,
) -> Iterator[dict[str, Any]]:
    """The node's answer; what it gives is held for the block. The question is asked again when a service that died is
    back, when a node was started again (if it is waited for), and when `check` raises NodeAwayError after the answer.

    Raises NodeAwayError if the service stays away, and any error that it answered.
    """
    deaths = 0
    away_since = time.monotonic()
    with contextlib.ExitStack() as stack:
        while True:
            is_there = False
            try:
                client = stack.enter_context(open_node(path))
                is_there = True
                answer = client.ask(operation, **arguments)
                is_there = False
                check()
                break
            except NodeAwayError:
                stack.close()
                if is_there:
                    deaths += 1
                    away_since = time.monotonic()
                patience_s = _RESTART_S if has_supervisor(path) else _UPGRADE_S if waits_for_node else 0.0
                if deaths >= _DEATHS_MAX or time.monotonic() - away_since >= patience_s:
                    raise
                time.sleep(_AGAIN_S)
        yield answer


def has_supervisor(path: Path) -> bool:
    """Whether a supervisor keeps the service of this socket running."""
    return is_locked(NodeDirectory(path.parent).lock)


@contextlib.contextmanager
def open_layers(path: Path, descriptor: ThinDescriptor, program: str | None = None) -> Iterator[LayerStack]:
    """The layers of an image, held for the block; `program` is about to start in it. Raises as `open_answer`."""
    check = functools.partial(check_objects, NodeDirectory(path.parent))
    document = descriptor_document(descriptor)
    with open_answer(path, "layers", check=check, descriptor=document, program=program) as answer:
        yield LayerStack.from_json(answer)


def check_objects(node: NodeDirectory) -> None:
    """Raises NodeAwayError for an object filesystem that was unmounted or aborted: its node puts it back, or ends so
    that the next one mounts it again."""
    reason = _reason_against(node.objects)
    if reason:
        raise NodeAwayError(
            f"The object filesystem {node.objects} of the node is not there: {reason}.",
            hint="Try again when the node has mounted it again; mica status tells whether it runs.",
        )


def _reason_against(objects: Path) -> str:
    """Empty if it is served. The kernel answers most calls by itself; for this one it asks the server."""
    if linux.mounted_device(objects.parent.resolve() / objects.name) is None:
        return "nothing is mounted"
    try:
        os.statvfs(objects)
    except OSError as error:
        # Any other error is an answer.
        return f"{error.strerror}" if error.errno in SERVER_GONE else ""
    return ""
