"""Asking a node's service: one connection, through which is held what it gave. One thread at a time."""

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mica.errors import IntegrityError, MicaError, TemporaryError, UsageError, UserError
from mica.node.sockets import MESSAGE_MAX_BYTES, connect

_CLASSES = {kind.exit_code: kind for kind in (UserError, UsageError, IntegrityError, TemporaryError)}


class NodeClient:
    """What was given is held until the block of `open_node` ends."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Raises what the node answered with, or TemporaryError if it ended meanwhile."""
        try:
            self._connection.send(json.dumps({"op": operation, **arguments}).encode("ascii"))
            answer = self._connection.recv(MESSAGE_MAX_BYTES)
        except ConnectionError:
            answer = b""
        if not answer:
            raise TemporaryError("The node ended while it was asked.", hint="Try again when it runs.")
        values: dict[str, Any] = json.loads(answer)
        if "error" in values:
            raise _failure(values)
        return values


def _failure(values: dict[str, Any]) -> MicaError:
    return _CLASSES.get(values["exit_code"], UserError)(values["error"], hint=values["hint"])


@contextlib.contextmanager
def open_node(path: Path) -> Iterator[NodeClient]:
    """A connection to the node whose socket this is. Raises TemporaryError if none runs."""
    try:
        connection = connect(path)
    except OSError as error:
        raise TemporaryError(f"No node answers at {path}.", hint="Start it: mica node") from error
    with connection:
        yield NodeClient(connection)
