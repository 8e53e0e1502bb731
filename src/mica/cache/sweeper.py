"""Making room in a cache, by whoever needs some: one at a time among all processes.

What may leave is listed in one look at the whole cache, and taken in small steps as room is needed, so that nobody
waits for long; each item is looked at again before it goes. A list is of use for a minute. What was once open in a
union and is not any more is let go before (`unions.py`). What happens when, and what was measured:
docs/design/cache.md.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from mica.fetch.eviction import FRESH_S, Eviction, candidates, evict, seconds_until_free
from mica.fetch.held import HeldFiles
from mica.fetch.inventory import Inventory, Item, Kind, take_inventory
from mica.fetch.ledger import Ledger
from mica.fetch.removal import Rehearsal, Remover
from mica.fetch.unions import let_go
from mica.files import locked_in_turn, mapped_os_errors
from mica.logs import logger
from mica.sizes import format_size

_log = logger(__name__)
_STEPS: Final = 1000
"""Each step frees this part of the limit beyond what is needed."""
_LIST_S: Final = 60.0


class Sweeper:
    """`fresh_s`: how long what came in is safe, in seconds."""

    def __init__(self, root: Path, ledger: Ledger, *, fresh_s: Mapping[Kind, float] | None = None) -> None:
        self._root = root
        self._ledger = ledger
        self._fresh_s = FRESH_S if fresh_s is None else fresh_s
        self._held = HeldFiles(root)
        self._lock = threading.Lock()
        self._listed: deque[Item] = deque()
        self._inventory = Inventory([], None)
        self._list_ends = 0.0

    @contextlib.contextmanager
    def alone(self, *, wait: bool = True) -> Iterator[bool]:
        """The only one who removes, in this process and among all; without `wait` that may not be, which the value
        says. Raises OSError."""
        with contextlib.ExitStack() as stack:
            is_first = self._lock.acquire(blocking=wait)
            if is_first:
                stack.callback(self._lock.release)
            yield is_first and stack.enter_context(locked_in_turn(self._root / "txn", wait=wait))

    def count(self) -> tuple[Inventory, int]:
        """All that is here, and the bytes of removed files that are held still; it is written down. Only while
        `alone`."""
        begun = self._ledger.begin_count()
        inventory, held = take_inventory(self._root), self._held.total()
        self._ledger.end_count(inventory.size + held, begun)
        return inventory, held

    def remover(self) -> Remover:
        """Only while `alone`; to be followed by a `count`."""
        return Remover(self._root, self._held)

    def prune(self, to_bytes: int | None, older_than_s: float | None = None, *, rehearse: bool = False) -> Eviction:
        """Remove until the cache takes so many bytes at most, or all that was not used for so long; both: only such,
        and only until then. With `rehearse` only say what would be removed.

        Raises UserError for what the system refuses.
        """
        with mapped_os_errors(f"prune the cache {self._root}"), self.alone():
            inventory, held = self.count()
            now = time.time_ns()
            items = candidates(inventory, now, self._fresh_s)
            if older_than_s is not None:
                items = [item for item in items if now - item.used > older_than_s * 1e9]
            goal = None if to_bytes is None else max(0, inventory.size + held - to_bytes)
            if rehearse:
                return evict(deque(items), goal, Rehearsal(self._root))
            let_go(self._root)
            outcome = self._take(deque(items), goal)
        return outcome.then(self.prune(to_bytes, older_than_s)) if outcome.frees_lists else outcome

    def sweep(self, size: int) -> float | None:
        """Remove so much that a reservation fits, if that can be. Only while `alone`.

        Returns after how many seconds more may leave than now; None: nothing that is known of.
        """
        is_new = not self._listed or time.monotonic() > self._list_ends
        if is_new:
            self._list()
        self._take(self._listed, self._goal(size, _STEPS))
        if not is_new and self._goal(size):
            self._list()
            self._take(self._listed, self._goal(size, _STEPS))
        return seconds_until_free(self._inventory, time.time_ns(), self._fresh_s, self._goal(size))

    def available(self) -> int:
        """Free bytes of the file system."""
        status = os.statvfs(self._root)
        return status.f_bavail * status.f_frsize

    def _list(self) -> None:
        let_go(self._root)
        self._inventory, _ = self.count()
        self._listed = deque(candidates(self._inventory, time.time_ns(), self._fresh_s))
        self._list_ends = time.monotonic() + _LIST_S

    def _goal(self, size: int, steps: int = 0) -> int:
        """How many bytes have to go for a reservation of so many to fit; with `steps` somewhat more."""
        limits, account = self._ledger.limits, self._ledger.account()
        goals = [0]
        for limit, missing in (
            (limits.most, account.taken + account.promised + size - limits.most),
            (limits.keep_free, limits.keep_free + account.promised + size - self.available()),
        ):
            if limit and missing > 0:
                goals.append(missing + (limit // steps if steps else 0))
        return min(max(goals), account.taken)

    def _take(self, items: deque[Item], goal: int | None) -> Eviction:
        outcome = evict(items, goal, self.remover())
        self._ledger.remove(outcome.freed_bytes)
        if outcome.held:
            # A union has opened them since it was made to let go.
            let_go(self._root)
            self._ledger.remove(self._held.forget_gone())
        if outcome.freed:
            count, size = len(outcome.freed), format_size(outcome.freed_bytes)
            _log.info("%s: %d files with %s are removed, %d are in use", self._root, count, size, len(outcome.in_use))
        return outcome
