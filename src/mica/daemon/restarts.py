"""Servers that are started again when they die, for as long as a block lasts. For a process without threads: it forks.

Called by the host's supervisor, and by the keeper of a private node.
"""

import time
from typing import Any, Final, Self

from mica.daemon.nodeservers import ServerSpec
from mica.logs import logger
from mica.serverprocess import ServerProcess, Waitable, start_server_process

_log = logger(__name__)
_RESTART_S: Final = 0.2
_RESTART_MAX_S: Final = 2.0
_YOUNG_S: Final = 10.0
"""After each death at a younger age, the wait before the next start is longer."""


class Servers:
    """Stopped at the end of the block, the last one first; `results` has what they returned by then, by name."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[ServerSpec, ServerProcess]] = {}
        self._pauses: dict[str, tuple[float, float]] = {}
        self.results: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _spec, server in reversed(self._running.values()):
            server.stop()
            self.results[server.name] = server.result

    @property
    def sources(self) -> tuple[Waitable, ...]:
        """Waitables that become readable when a server has ended."""
        return tuple(server for _, server in self._running.values())

    def start(self, spec: ServerSpec, *, follows: bool = False) -> None:
        self._running[spec.name] = (spec, start_server_process(spec.make(follows), spec.name))

    def wait_until_ready(self, interrupt: Waitable) -> bool:
        """False if `interrupt` came first. Raises the error of a server that failed."""
        return all(server.wait_until_ready(interrupt) for _, server in self._running.values())

    def tend(self) -> None:
        """Start again the servers that have died."""
        for spec, server in list(self._running.values()):
            if server.has_ended():
                _log.error("the %s died (%s) and is started again", spec.name, server.cause)
                time.sleep(self._pause_s(spec.name))
                self.start(spec, follows=True)

    def _pause_s(self, name: str) -> float:
        now = time.monotonic()
        last_at, pause_s = self._pauses.get(name, (-_YOUNG_S, 0.0))
        pause_s = min(2 * pause_s, _RESTART_MAX_S) if now - last_at < _YOUNG_S else _RESTART_S
        self._pauses[name] = now, pause_s
        return pause_s
