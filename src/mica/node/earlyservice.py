"""A service whose process is there before anybody knows what it is to serve: what it is made of is imported meanwhile.

Half of what a cold start takes besides the network are imports, those of the caller and those of the service; here they
happen at the same time, on two processors. The order comes through a pipe; without one the child ends with the caller.
"""

import contextlib
import gc
import os
import pickle
import signal
from typing import TYPE_CHECKING, Any, Self

from mica import linux
from mica.mount.serverprocess import ServerProcess, Stopped, start_server_process

if TYPE_CHECKING:
    from mica.node.servers import NodeSettings
    from mica.thin.descriptor import ThinDescriptor


class EarlyService:
    """A block; to be entered by a process without threads."""

    def __enter__(self) -> Self:
        reader, self._writer = os.pipe()
        self._process = start_server_process(lambda ready: _serve(reader, self._writer, ready))
        os.close(reader)
        self._is_stopped = False
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def begin(self, settings: "NodeSettings", first: "ThinDescriptor", program: str | None) -> ServerProcess:
        """Have it serve, in the mount namespace and the directory that the caller is in now."""
        order = (os.getcwd(), settings, first, program)
        with contextlib.suppress(BrokenPipeError), open(self._writer, "wb", closefd=False) as pipe:
            pickle.dump(order, pipe)
        self._close()
        return self._process

    def stop(self) -> None:
        """Have it end and take its result, once."""
        if not self._is_stopped:
            self._is_stopped = True
            self._close()
            self._process.stop()

    def _close(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1


def _serve(reader: int, writer: int, ready: Any) -> dict[str, int]:
    # Until there is something to end in good order it just dies: an exception in the middle of an import is anybody's.
    stop = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.close(writer)
    with contextlib.suppress(Stopped), open(reader, "rb") as pipe:
        from mica.node.servers import import_service, service_of

        gc.disable()
        import_service()
        gc.enable()
        gc.freeze()
        # From the caller alone: it made the pipe.
        data = pipe.read()
        if data:
            signal.signal(signal.SIGTERM, stop)
            directory, settings, first, program = pickle.loads(data)  # noqa: S301
            with open(f"/proc/{os.getppid()}/ns/mnt", "rb") as namespace:
                linux.setns(namespace.fileno(), linux.CLONE_NEWNS)
            os.chdir(directory)
            return service_of(settings, first=first, program=program)(ready)
    return {}
