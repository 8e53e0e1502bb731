"""The keeper of a private node, started before it is known what the node will serve: it imports the service's modules
meanwhile.

Apart from the network, half of a cold start is imports, those of the caller and those of the service; here they happen
at the same time, on two processors. The caller says what to serve when it knows (`begin`); until then it may kill the
process at any moment. Afterwards the keeper forks the servers and starts each again when it dies:

    caller ── keeper (one thread, everything imported) ──┬── service
                                                         └── server of the object filesystem
"""

import gc
import os
from typing import TYPE_CHECKING, Any, Self

from mica import linux
from mica.logs import configure, log_settings
from mica.serverprocess import Parent, ServerProcess, start_server_process

if TYPE_CHECKING:
    from mica.daemon.nodeservers import NodeSettings
    from mica.thin.descriptor import ThinDescriptor


class EarlyService:
    """A block; to be entered by a process without threads."""

    def __enter__(self) -> Self:
        self._process = start_server_process(_serve, "node of this run")
        self._has_begun = False
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def begin(self, settings: "NodeSettings", first: "ThinDescriptor", program: str | None) -> ServerProcess:
        """Make it serve, in the mount namespace and the directory that the caller is in now."""
        self._has_begun = True
        self._process.send((os.getcwd(), log_settings(), settings, first, program))
        return self._process

    def stop(self) -> None:
        """Make it end and take its result; it has none if it has not begun."""
        if self._has_begun:
            self._process.stop()
        else:
            self._process.kill()


def _serve(parent: Parent) -> Any:
    from mica.daemon.nodeservers import import_service

    gc.disable()
    import_service()
    gc.enable()
    # The servers are forked from here and share its memory: the garbage collector must not write to what is there now.
    gc.freeze()
    order = parent.receive()
    if order is None:
        return None
    from mica.daemon.privatekeeper import keep_private_node

    directory, logs, settings, first, program = order
    if logs is not None:
        configure(logs)
    with open(f"/proc/{os.getppid()}/ns/mnt", "rb") as namespace:
        linux.setns(namespace.fileno(), linux.CLONE_NEWNS)
    os.chdir(directory)
    return keep_private_node(settings, first, program, parent)
