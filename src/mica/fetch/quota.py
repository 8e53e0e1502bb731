"""The hard limit of a cache: room is reserved before content is fetched, and made by removing what was not used.

    with quota.reserving(size) as room:
        …                       room.cover(more) while it grows
        room.keep(size)         what became part of the cache; the rest is given back

The limits belong to the directory and hold for all who use it (`ledger.py`); without any, nothing of this costs
anything. When a reservation does not fit, its thread counts the whole cache and removes down to nine tenths of the
limit (`eviction.py`); all others who need room wait for it. Any thread, any number of processes, not on both sides of a
fork. What happens when, and what was measured: docs/design/cache.md.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

from mica.errors import UserError
from mica.fetch.eviction import FRESH_S, Eviction, candidates, evict, seconds_until_free
from mica.fetch.held import HeldFiles
from mica.fetch.inventory import Inventory, Item, Kind, take_inventory
from mica.fetch.ledger import Account, Ledger, Limits
from mica.fetch.removal import Rehearsal, Remover
from mica.fetch.unions import let_go
from mica.files import locked_in_turn, mapped_os_errors
from mica.logs import logger
from mica.sizes import format_size

_log = logger(__name__)
_SLACK_PARTS: Final = 10
"""Removal goes on until this part of the limit is free."""
_HOPELESS_S: Final = 1.0
"""How long nobody looks again after everything was found to be in use: a look reads the whole cache."""
_WAIT_MAX_S: Final = 30.0
_UNLIMITED: Final = 1 << 63


class Reservation:
    """Room for content on its way. One thread at a time."""

    __slots__ = ("_covered", "_left", "_quota")

    def __init__(self, quota: "Quota", covered: int) -> None:
        self._quota = quota
        self._covered = covered
        self._left = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._left:
            self._quota.give_back(self._left)

    def cover(self, size: int) -> None:
        """Have room for so many bytes in all. Raises UserError if they cannot be had."""
        if size > self._covered:
            more = self._quota.blocks(size - self._covered)
            self._quota.promise(more)
            self._left += more
            self._covered += more

    def keep(self, size: int) -> None:
        """So many bytes are part of the cache now."""
        promised = min(size, self._left)
        self._left -= promised
        self._quota.take(size, promised)


class Quota:
    """`fresh_s`: how long what came in is safe from removal, in seconds."""

    def __init__(self, root: Path, boot_id: str, *, fresh_s: Mapping[Kind, float] = FRESH_S) -> None:
        self._root = root
        self._fresh_s = fresh_s
        self._ledger = Ledger(root / "usage", boot_id)
        self._held = HeldFiles(root)
        self._block_bytes = os.statvfs(root).f_frsize
        self._evicting = threading.Lock()
        self._hopeless_until = 0.0

    def close(self) -> None:
        self._ledger.close()

    @property
    def limits(self) -> Limits:
        return self._ledger.limits

    def set_limits(self, limits: Limits) -> None:
        """For all who use this cache, from now on."""
        if limits != self._ledger.limits:
            self._ledger.set_limits(limits)

    def reserving(self, size: int) -> Reservation:
        """Room for content of so many bytes, for a block. Raises UserError if it cannot be had."""
        if not self._ledger.has_limits:
            return Reservation(self, _UNLIMITED)
        room = Reservation(self, 0)
        room.cover(size)
        return room

    def fits(self, size: int) -> bool:
        """Whether content of so many bytes could come in now without anything leaving: for what nobody waits for."""
        if not self._ledger.has_limits:
            return True
        if not self._ledger.account().is_counted:
            with mapped_os_errors(f"count the cache {self._root}"), self.evicting():
                self.count()
        size = self.blocks(size)
        if not self._try_promise(size):
            return False
        self.give_back(size)
        return True

    def blocks(self, size: int) -> int:
        """What content of so many bytes takes on disk."""
        return -(-size // self._block_bytes) * self._block_bytes

    def admit(self, size: int) -> None:
        """Count what is here already. Raises UserError if there is no room for it: then it has to go."""
        if self._ledger.has_limits:
            self._refuse_giant(size)
            self._ledger.take(size, 0)
            try:
                self.promise(0)
            except UserError as error:
                self._ledger.remove(size)
                raise self._no_room(size) from error

    def promise(self, size: int) -> None:
        if not self._try_promise(size):
            with mapped_os_errors(f"make room in the cache {self._root}"):
                self._make_room(size)

    def give_back(self, size: int) -> None:
        self._ledger.give_back(size)

    def take(self, size: int, promised: int) -> None:
        if promised or self._ledger.has_limits:
            self._ledger.take(size, promised)

    def count(self) -> tuple[Inventory, int]:
        """All that is here, and the bytes of removed files that are held still; it is written down. Only while
        `evicting`."""
        begun = self._ledger.begin_count()
        inventory, held = take_inventory(self._root), self._held.total()
        self._ledger.end_count(inventory.size + held, begun)
        return inventory, held

    def account(self) -> Account:
        return self._ledger.account()

    @contextlib.contextmanager
    def evicting(self) -> Iterator[None]:
        """The only one who removes, in this process and among all. Raises OSError."""
        with self._evicting, locked_in_turn(self._root / "txn"):
            yield

    def remover(self) -> Remover:
        """Only while `evicting`; to be followed by a `count`."""
        return Remover(self._root, self._held)

    def prune(self, to_bytes: int | None, older_than_s: float | None = None, *, rehearse: bool = False) -> Eviction:
        """Remove until the cache takes so many bytes at most, or all that was not used for so long; both: only such,
        and only until then. With `rehearse` only say what would be removed.

        Raises UserError for what the system refuses.
        """
        with mapped_os_errors(f"prune the cache {self._root}"), self.evicting():
            inventory, held = self.count()
            now = time.time_ns()
            items = candidates(inventory, now, self._fresh_s)
            if older_than_s is not None:
                items = [item for item in items if now - item.used > older_than_s * 1e9]
            goal = None if to_bytes is None else max(0, inventory.size + held - to_bytes)
            if rehearse:
                return evict(items, goal, Rehearsal(self._root))
            outcome = self._remove(items, goal)
        return outcome.then(self.prune(to_bytes, older_than_s)) if outcome.frees_lists else outcome

    def _try_promise(self, size: int) -> bool:
        return self._ledger.promise(size, self._available() if self._ledger.keeps_free else 0)

    def _available(self) -> int:
        status = os.statvfs(self._root)
        return status.f_bavail * status.f_frsize

    def _make_room(self, size: int) -> None:
        self._refuse_giant(size)
        give_up = time.monotonic() + _WAIT_MAX_S
        with self.evicting():
            while not self._try_promise(size):
                wait_s = None if time.monotonic() < self._hopeless_until else self._sweep(size)
                if self._try_promise(size):
                    return
                if wait_s is None or time.monotonic() + wait_s > give_up:
                    self._hopeless_until = max(self._hopeless_until, time.monotonic() + _HOPELESS_S)
                    raise self._no_room(size)
                time.sleep(wait_s)

    def _refuse_giant(self, size: int) -> None:
        most = self._ledger.limits.most
        if most and size > most:
            raise UserError(
                f"{format_size(size)} do not fit into the cache {self._root}, whose quota is {format_size(most)}.",
                hint="Raise its quota.",
            )

    def _sweep(self, size: int) -> float | None:
        """Remove so much that a reservation fits, if that can be; otherwise after how many seconds it may be."""
        inventory, _ = self.count()
        goal = self._goal(size, slack=True)
        if goal <= 0:
            return None
        now = time.time_ns()
        outcome = self._remove(candidates(inventory, now, self._fresh_s), goal)
        _log.info(
            "%s: %d files with %s removed, %d are in use", self._root, len(outcome.freed),
            format_size(outcome.freed_bytes), len(outcome.in_use),
        )  # fmt: skip
        return seconds_until_free(inventory, now, self._fresh_s, self._goal(size, slack=False))

    def _goal(self, size: int, *, slack: bool) -> int:
        """How many bytes have to go for a reservation of so many to fit."""
        limits, account = self._ledger.limits, self._ledger.account()
        goals = [0]
        for limit, missing in (
            (limits.most, account.taken + account.promised + size - limits.most),
            (limits.keep_free, limits.keep_free + account.promised + size - self._available()),
        ):
            if limit and missing > 0:
                goals.append(missing + (limit // _SLACK_PARTS if slack else 0))
        return min(max(goals), account.taken)

    def _remove(self, items: list[Item], goal: int | None) -> Eviction:
        let_go(self._root)
        outcome = evict(items, goal, self.remover())
        self._ledger.remove(outcome.freed_bytes)
        return outcome

    def _no_room(self, size: int) -> UserError:
        limits, account = self._ledger.limits, self._ledger.account()
        taken = account.taken + account.promised
        hint = "End what uses it, or change its limits; mica cache ls shows what is in use."
        if limits.most and taken + size > limits.most:
            return UserError(
                f"There is no room for {format_size(size)} in the cache {self._root}: {format_size(taken)} of its "
                f"{format_size(limits.most)} are in use.",
                hint=hint,
            )
        return UserError(
            f"There is no room for {format_size(size)} in the cache {self._root}: its file system has "
            f"{format_size(self._available())} free, and {format_size(limits.keep_free)} have to stay free.",
            hint=hint,
        )
