"""The hard limit of a cache: room is reserved before content is fetched, and made by removing what was not used.

    with quota.reserving(size) as room:
        …                       room.cover(more) while it grows
        room.keep(size)         what became part of the cache; the rest is given back

The limits belong to the directory and hold for all who use it (`ledger.py`); without any, nothing of this costs
anything. When a reservation does not fit, its thread makes room if nobody else does so already (`sweeper.py`). Any
thread, any number of processes; not on both sides of a fork.
"""

import functools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from mica.errors import UserError
from mica.fetch.ledger import Account, Ledger, Limits
from mica.files import mapped_os_errors
from mica.sizes import format_size

if TYPE_CHECKING:
    from mica.fetch.inventory import Kind
    from mica.fetch.sweeper import Sweeper

_HOPELESS_S: Final = 1.0
"""How long nobody looks again after everything was found to be in use: a look reads the whole cache."""
_WAIT_MAX_S: Final = 30.0
_POLL_S: Final = 0.002
_POLL_MAX_S: Final = 0.03
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
    """`fresh_s`: how long what came in is safe from removal, in seconds, if not the standard."""

    def __init__(self, root: Path, boot_id: str, *, fresh_s: "Mapping[Kind, float] | None" = None) -> None:
        self._root = root
        self._fresh_s = fresh_s
        self._ledger = Ledger(root / "usage", boot_id)
        self._block_bytes = os.statvfs(root).f_frsize
        self._hopeless_until = 0.0

    def close(self) -> None:
        self._ledger.close()

    @functools.cached_property
    def sweeper(self) -> "Sweeper":
        """Who removes. Loaded when it is needed: most programs end before a cache is full."""
        from mica.fetch.sweeper import Sweeper

        return Sweeper(self._root, self._ledger, fresh_s=self._fresh_s)

    @property
    def limits(self) -> Limits:
        return self._ledger.limits

    def set_limits(self, limits: Limits) -> None:
        """For all who use this cache, from now on."""
        if limits != self._ledger.limits:
            self._ledger.set_limits(limits)

    def account(self) -> Account:
        return self._ledger.account()

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
            with mapped_os_errors(f"count the cache {self._root}"), self.sweeper.alone():
                self.sweeper.count()
        size = self.blocks(size)
        if not self._try_promise(size):
            return False
        self.give_back(size)
        return True

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

    # For reservations

    def blocks(self, size: int) -> int:
        """What content of so many bytes takes on disk."""
        return -(-size // self._block_bytes) * self._block_bytes

    def promise(self, size: int) -> None:
        if not self._try_promise(size):
            with mapped_os_errors(f"make room in the cache {self._root}"):
                self._make_room(size)

    def give_back(self, size: int) -> None:
        self._ledger.give_back(size)

    def take(self, size: int, promised: int) -> None:
        if promised or self._ledger.has_limits:
            self._ledger.take(size, promised)

    def _try_promise(self, size: int) -> bool:
        return self._ledger.promise(size, self.sweeper.available() if self._ledger.keeps_free else 0)

    def _make_room(self, size: int) -> None:
        """Wait for whoever removes things already, or do it."""
        self._refuse_giant(size)
        give_up = time.monotonic() + _WAIT_MAX_S
        poll_s = _POLL_S
        while True:
            wait_s: float | None = poll_s
            poll_s = min(2 * poll_s, _POLL_MAX_S)
            with self.sweeper.alone(wait=False) as is_ours:
                if self._try_promise(size):
                    return
                if is_ours:
                    wait_s = None if time.monotonic() < self._hopeless_until else self.sweeper.sweep(size)
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
            f"{format_size(self.sweeper.available())} free, and {format_size(limits.keep_free)} have to stay free.",
            hint=hint,
        )
