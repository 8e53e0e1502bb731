"""The two servers of a node, as what a child process runs (`mount/serverprocess.py`). Neither knows who started it.

What they are made of is imported in them: at the same time, and while who started them goes on.
"""

import contextlib
import importlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mica.errors import MicaError
from mica.fetch.location import RepositoryLocation
from mica.mount.serverprocess import Serve, Stopped
from mica.node.directory import NodeDirectory
from mica.node.stack import Method
from mica.thin.descriptor import ThinDescriptor

if TYPE_CHECKING:
    from mica.node.messages import Question
    from mica.node.preparing import Preparation

FILESYSTEM_NAME = "mica#objects"


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """The order of `locations` numbers the repositories; a successor keeps it. `deadline_s`: how long the kernel's
    requests wait for a successor before they fail. `complete_bytes_per_s`: how fast the rest of images in use is
    fetched, 0 for not at all. `recorded`: where the service writes at its end what was asked of it."""

    directory: NodeDirectory
    cache: Path
    locations: tuple[RepositoryLocation, ...]
    method: Method
    deadline_s: float = 30.0
    complete_bytes_per_s: int = 0
    recorded: Path | None = None


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server that a supervisor keeps running. `make` is told whether the server follows one that died."""

    name: str
    make: Callable[[bool], Serve]


def import_service() -> None:
    """What a service is made of, a fifth of a second of work: for who will be one and has nothing else to do yet."""
    for name in ("fetch.cache", "fetch.location", "fetch.client", "node.completion", "node.imagecheck", "node.prefetch",
                 "node.preparing", "node.service", "node.traces"):  # fmt: skip
        importlib.import_module(f"mica.{name}")


def service_of(
    settings: NodeSettings, *, first: ThinDescriptor | None = None, program: str | None = None
) -> Callable[[Callable[[], None]], dict[str, int]]:
    """The service; its result is its traffic. It begins with the layers of `first`, before anybody asks, of which
    `program` will be started."""

    def serve(ready: Callable[[], None]) -> dict[str, int]:
        from mica.fetch.cache import Cache
        from mica.fetch.location import open_repository
        from mica.node.completion import Completion
        from mica.node.imagecheck import open_checkers
        from mica.node.prefetch import Prefetch
        from mica.node.preparing import Preparation
        from mica.node.service import Service, Supply
        from mica.node.traces import Recorder

        with contextlib.ExitStack() as stack:
            check = stack.enter_context(open_checkers())
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
            preparation = Preparation(cache, clients, settings.directory, settings.method, completion, prefetch, check)
            if first is not None:
                threading.Thread(target=_begin, args=(preparation, first, program), name="first", daemon=True).start()

            def asked(question: "Question") -> None:
                prefetch.asked(question.name)
                if settings.recorded is not None:
                    recorder.asked(question)

            with contextlib.suppress(Stopped):
                Service(supply, preparation.operations, asked).serve(settings.directory.service, ready)
            if settings.recorded is not None:
                recorder.write(settings.recorded)
            return _total([client.counter.read()._asdict() for client in clients])

    return serve


def _begin(preparation: "Preparation", descriptor: ThinDescriptor, program: str | None) -> None:
    # Whoever asks for the layers joins this, or does it again and is told what is wrong.
    with contextlib.suppress(MicaError):
        preparation.obtain(descriptor, program)


def _total(traffic: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(counts[name] for counts in traffic) for name in (traffic[0] if traffic else ())}


def session_of(settings: NodeSettings, fuse_fd: int, *, resend: bool = False) -> Callable[[Callable[[], None]], None]:
    """The server of the object filesystem; the descriptor stays the caller's."""

    def serve(ready: Callable[[], None]) -> None:
        from mica.node.sessionprocess import serve_session

        ready()
        with contextlib.suppress(Stopped):
            serve_session(
                os.dup(fuse_fd), settings.cache, settings.directory, len(settings.locations),
                shows_all=settings.method is Method.ORDINARY, resend=resend,
            )  # fmt: skip

    return serve
