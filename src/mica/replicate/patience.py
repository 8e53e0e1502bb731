"""A fetcher that asks again for longer than a program that waits for a file would.

A replication may take days: a server that is restarted meanwhile must not end it. What is missing or wrong is reported
at once, after what the fetcher itself does about it. Any thread.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import Final

from mica.errors import TemporaryError
from mica.fetch.download import Connection, Consumer, Fetcher, Result

PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
"""About the time in which a server starts."""


class PatientFetcher:
    """Repeats what failed for the moment, after each of the pauses, which are shortened at random."""

    def __init__(
        self, fetcher: Fetcher, pauses_s: Sequence[float] = PAUSES_S, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._fetcher = fetcher
        self._pauses_s = tuple(pauses_s)
        self._sleep = sleep

    @property
    def where(self) -> str:
        return self._fetcher.where

    @property
    def connection(self) -> Connection:
        return self._fetcher.connection

    @property
    def impatient(self) -> Fetcher:
        """The fetcher itself, for several fetches that are repeated together."""
        return self._fetcher

    def fetch(self, path: str, consume: Consumer[Result], *, fresh: bool = False) -> Result:
        return self.insist(lambda: self._fetcher.fetch(path, consume, fresh=fresh))

    def insist(self, act: Callable[[], Result]) -> Result:
        """Do something, and again after each pause as long as it raises TemporaryError."""
        for pause_s in self._pauses_s:
            try:
                return act()
            except TemporaryError:
                self._sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311 - spreads requests, no secret
        return act()
