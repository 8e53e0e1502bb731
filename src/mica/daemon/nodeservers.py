"""The two servers of a node, as functions that child processes run (`serverprocess.py`). They do not depend on the
process that started them.

Each imports its modules in its own process, at the same time as the other, while the parent goes on.
"""

import contextlib
import importlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mica.dataplane.nodedirectory import NodeDirectory
from mica.errors import MicaError
from mica.fetch.location import RepositoryLocation
from mica.fuse.identity import OBJECTS_SOURCE
from mica.layers.stack import Method
from mica.serverprocess import Parent, Serve, leave_open
from mica.thin.descriptor import ThinDescriptor

if TYPE_CHECKING:
    from mica.dataplane.messages import Question
    from mica.dataplane.preparation import Preparation

FILESYSTEM_NAME = OBJECTS_SOURCE


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """The order of `locations` numbers the repositories; a successor keeps it. `deadline_s`: how long the kernel's
    requests wait for a successor before they fail. `complete_bytes_per_s`: how fast completion fetches the rest of
    images in use, 0 for not at all. `recorded`: the file in which the service lists, at its end, the content that it
    was asked for. `one_by_one`: whether overlayfs is known to take layers one by one. `resends`: whether the kernel
    sends again the requests that a session leaves unanswered."""

    directory: NodeDirectory
    cache: Path
    locations: tuple[RepositoryLocation, ...]
    method: Method
    deadline_s: float = 30.0
    complete_bytes_per_s: int = 0
    recorded: Path | None = None
    one_by_one: bool | None = None
    resends: bool = True


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server that a supervisor keeps running. `make` is told whether the server follows one that died."""

    name: str
    make: Callable[[bool], Serve]


def import_service() -> None:
    """Import the service's modules, a fifth of a second of work: for a process that will be a service and still waits
    for its task."""
    for name in ("cache.cache", "fetch.location", "fetch.client", "dataplane.completion", "dataplane.imagecheck",
                 "dataplane.prefetch", "dataplane.preparation", "dataplane.service", "dataplane.traces"):  # fmt: skip
        importlib.import_module(f"mica.{name}")


def service_of(settings: NodeSettings, *, first: ThinDescriptor | None = None, program: str | None = None) -> Serve:
    """The service; its result is its traffic. It begins with the layers of `first` before it is asked for any;
    `program` will be started in them."""

    def serve(parent: Parent) -> dict[str, int]:
        from mica.cache.cache import Cache
        from mica.dataplane.completion import Completion
        from mica.dataplane.imagecheck import open_checkers
        from mica.dataplane.prefetch import Prefetch
        from mica.dataplane.preparation import Preparation
        from mica.dataplane.service import Service, Supply
        from mica.dataplane.traces import Recorder
        from mica.fetch.location import open_repository

        with open_checkers() as check, contextlib.ExitStack() as stack:
            cache = stack.enter_context(Cache(settings.cache))
            clients = [stack.enter_context(open_repository(place, settings.cache)) for place in settings.locations]
            supply = Supply(cache, clients)
            rate = settings.complete_bytes_per_s
            completion = (
                stack.enter_context(Completion(cache, supply.answer, lambda: supply.last_asked, rate)) if rate else None
            )
            latency_s = lambda number: clients[number].latency_s  # noqa: E731
            prefetch = stack.enter_context(Prefetch(cache, supply.answer, supply.is_ahead, latency_s))
            recorder = Recorder()
            preparation = Preparation(cache, clients, settings.directory, settings.method, completion, prefetch, check,
                                      one_by_one=settings.one_by_one)  # fmt: skip
            if first is not None:
                threading.Thread(target=_begin, args=(preparation, first, program), name="first", daemon=True).start()

            def asked(question: "Question") -> None:
                prefetch.asked(question.name)
                if settings.recorded is not None:
                    recorder.asked(question)

            Service(supply, preparation.operations, asked).serve(settings.directory.service, parent)
            leave_open(stack)  # downloads are still under way
            if settings.recorded is not None:
                recorder.write(settings.recorded)
            return _total([client.counter.read()._asdict() for client in clients])

    return serve


def _begin(preparation: "Preparation", descriptor: ThinDescriptor, program: str | None) -> None:
    # A caller that asks for the layers waits for this, or tries again and gets the error.
    with contextlib.suppress(MicaError):
        preparation.obtain(descriptor, program)


def _total(traffic: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(counts[name] for counts in traffic) for name in (traffic[0] if traffic else ())}


def session_of(settings: NodeSettings, fuse_fd: int, journal_fd: int, *, resend: bool = False) -> Serve:
    """The server of the object filesystem, which also writes its journal. The caller still owns the descriptors."""

    def serve(parent: Parent) -> None:
        from mica.dataplane.sessionprocess import serve_session

        parent.ready()
        serve_session(
            os.dup(fuse_fd), journal_fd, settings.cache, settings.directory, len(settings.locations), parent,
            shows_all=not settings.method.has_data_layers, resend=resend, resends=settings.resends,
        )  # fmt: skip

    return serve
