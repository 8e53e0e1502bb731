"""Making room in a cache. The thread that needs room does it; one at a time among all processes.

One look at the whole cache lists the items that may be removed. They are removed in small steps as room is needed, so
that no download waits for long; each is looked at again before it is removed. A list is used for a minute. Before that,
unions and object filesystems are made to forget files that are not open any more (`overlays.py`, `shown.py`). Order of
steps and measurements: docs/design/cache.md.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from mica.cache.eviction import (
    FRESH_S,
    Eviction,
    Use,
    candidates,
    evict,
    hurried_s,
    seconds_until_free,
    too_fresh,
)
from mica.cache.inventory import Inventory, Item, Kind, take_inventory
from mica.cache.ledger import Ledger
from mica.cache.overlays import let_go
from mica.cache.removedfiles import RemovedFiles
from mica.cache.remover import Rehearsal, Remover
from mica.cache.shown import ShownNames
from mica.files import locked_in_turn, mapped_os_errors
from mica.logs import logger
from mica.sizes import format_size

_log = logger(__name__)
_STEPS: Final = 1000
"""Each step frees what is needed and the limit divided by this."""
_LIST_S: Final = 60.0


class Sweeper:
    """`fresh_s`: how long new content is safe, in seconds. `release` closes files that this process does not need."""

    def __init__(
        self,
        root: Path,
        ledger: Ledger,
        *,
        fresh_s: Mapping[Kind, float] | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._root = root
        self._ledger = ledger
        self._fresh_s = FRESH_S if fresh_s is None else fresh_s
        self._release = release
        self._held = RemovedFiles(root)
        self._shown = ShownNames(root)
        self._lock = threading.Lock()
        self._listed: deque[Item] = deque()
        self._inventory = Inventory([], None)
        self._list_ends = 0.0

    def close(self) -> None:
        self._shown.close()

    @contextlib.contextmanager
    def alone(self, *, wait: bool = True) -> Iterator[bool]:
        """A block in which no other thread or process removes. Without `wait` the value is False if another one does.
        Raises OSError."""
        with contextlib.ExitStack() as stack:
            is_first = self._lock.acquire(blocking=wait)
            if is_first:
                stack.callback(self._lock.release)
            yield is_first and stack.enter_context(locked_in_turn(self._root / "txn", wait=wait))

    def count(self) -> tuple[Inventory, int]:
        """Everything in the cache, and the bytes of removed files that are still held; the ledger gets their sum. Only
        while `alone`."""
        begun = self._ledger.begin_count()
        inventory, held = take_inventory(self._root), self._held.total()
        self._ledger.end_count(inventory.size + held, begun)
        return inventory, held

    def remover(self) -> Remover:
        """Only while `alone`; call `count` afterwards."""
        return Remover(self._root, self._shown, self._held)

    def prune(self, to_bytes: int | None, older_than_s: float | None = None, *, rehearse: bool = False) -> Eviction:
        """Remove until the cache takes at most `to_bytes`, or remove all content that was not used for `older_than_s`.
        With both, remove only such content, and only until then. With `rehearse` only say what would be removed.

        Raises UserError if the system refuses.
        """
        with mapped_os_errors(f"prune the cache {self._root}"), self.alone():
            inventory, held = self.count()
            now = time.time_ns()
            items = candidates(inventory, now, self._fresh_s)
            if older_than_s is not None:
                items = [item for item in items if now - item.used > older_than_s * 1e9]
            goal = None if to_bytes is None else max(0, inventory.size + held - to_bytes)
            if rehearse:
                return evict(deque(items), goal, Rehearsal(self._root, self._shown))
            self._let_go()
            outcome = self._take(deque(items), goal)
        return outcome.then(self.prune(to_bytes, older_than_s)) if outcome.frees_lists else outcome

    def sweep(self, size: int) -> float | None:
        """Remove enough for a reservation of `size` bytes to fit, if possible. Only while `alone`.

        Returns after how many seconds more can be removed; None if no such time is known.
        """
        is_new = not self._listed or time.monotonic() > self._list_ends
        if is_new:
            self._list()
        self._take(self._listed, self._goal(size, _STEPS))
        if not is_new and self._goal(size):
            self._list()
            self._take(self._listed, self._goal(size, _STEPS))
        return self._sweep_fresh(size) if self._missing(size) else 0.0

    def _sweep_fresh(self, size: int) -> float | None:
        """The same with fresh content, oldest first: while a download waits, content is fresh for a shorter time."""
        now, hurried = time.time_ns(), hurried_s(self._fresh_s)
        known = {item.name for item in candidates(self._inventory, now, self._fresh_s)}
        fresh = [item for item in candidates(self._inventory, now, hurried) if item.name not in known]
        self._take(deque(fresh), self._goal(size, _STEPS))
        remover = self.remover()
        later = [item for item in too_fresh(self._inventory, now, hurried) if remover.look(item) is not Use.IN_USE]
        missing = max((missing for _, missing in self._missing(size)), default=0)
        return seconds_until_free(later, now, hurried, missing)

    def available(self) -> int:
        """Free bytes of the file system."""
        status = os.statvfs(self._root)
        return status.f_bavail * status.f_frsize

    def _let_go(self) -> None:
        """Unions first: files of object filesystems count as in use while a union remembers them."""
        self._release()
        let_go(self._root, self._shown.places())
        self._shown.let_go()

    def _list(self) -> None:
        self._let_go()
        self._inventory, _ = self.count()
        self._listed = deque(candidates(self._inventory, time.time_ns(), self._fresh_s))
        self._list_ends = time.monotonic() + _LIST_S

    def _goal(self, size: int, steps: int = 0) -> int:
        """How many bytes to remove for a reservation of `size` bytes to fit; with `steps` somewhat more."""
        missing = [missing + (limit // steps if steps else 0) for limit, missing in self._missing(size)]
        return min(max(missing, default=0), self._ledger.account().taken)

    def _missing(self, size: int) -> list[tuple[int, int]]:
        """Each limit that a reservation would exceed, and by how much."""
        limits, account = self._ledger.limits, self._ledger.account()
        over = (
            (limits.most, account.taken + account.promised + size - limits.most),
            (limits.keep_free, limits.keep_free + account.promised + size - self.available()),
        )
        return [(limit, missing) for limit, missing in over if limit and missing > 0]

    def _take(self, items: deque[Item], goal: int | None) -> Eviction:
        outcome = evict(items, goal, self.remover())
        self._ledger.remove(outcome.freed_bytes)
        if outcome.held:
            # Unions have opened these files again since they were made to forget.
            self._let_go()
            self._ledger.remove(self._held.forget_gone())
        if outcome.freed:
            count, size = len(outcome.freed), format_size(outcome.freed_bytes)
            _log.info("%s: %d files with %s are removed, %d are in use", self._root, count, size, len(outcome.in_use))
        return outcome
