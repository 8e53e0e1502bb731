"""The hard limit of a cache: room is reserved before content is fetched, and made by removing unused content.

    with quota.reserving(size) as room:
        …                       room.cover(more) while it grows
        room.keep(size)         bytes that became part of the cache; the rest is given back

The limits belong to the directory and hold for all its users (`ledger.py`); without limits all this costs nothing. When
a reservation does not fit, its thread makes room, unless another thread or process does so already (`sweeper.py`). Any
thread, any number of processes; not on both sides of a fork.
"""

import functools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from mica.cache.ledger import Account, Ledger, Limits
from mica.errors import UserError
from mica.files import mapped_os_errors
from mica.sizes import format_size

if TYPE_CHECKING:
    from mica.cache.inventory import Kind
    from mica.cache.sweeper import Sweeper

_CLOSING_S: Final = 0.5
"""How long to wait for content in use: when a program closes a file, its server closes it somewhat later."""
_PAUSE: Final = 10
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.05, 1.0
"""A look reads the whole cache. After one in vain, the next look waits ten times as long as that one took."""
_WAIT_MAX_S: Final = 30.0
_POLL_S: Final = 0.002
_POLL_MAX_S: Final = 0.03
_UNLIMITED: Final = 1 << 63
_MORE_ROOM: Final = "A larger quota: mica cache prune --quota 20G; none at all: --quota none."


class NoRoomError(UserError):
    """There is no room, although everything that could be removed is removed."""


class _Vain(NamedTuple):
    """A look that found no room for `size` bytes: when it began, and until when looks for as many are pointless."""

    size: int
    began: float
    until: float


class Reservation:
    """Room for content on its way. One thread at a time."""

    __slots__ = ("_covered", "_ledger", "_left", "_quota")

    def __init__(self, quota: "Quota", ledger: Ledger, covered: int) -> None:
        self._quota = quota
        self._ledger = ledger
        self._covered = covered
        self._left = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._left:
            self._ledger.give_back(self._left)

    def cover(self, size: int) -> None:
        """Reserve up to this many bytes in all. Raises UserError if there is no room."""
        if size > self._covered:
            more = self._quota.blocks(size - self._covered)
            self._promised(self._quota.promise(more, beside=self._covered), more)

    def extend(self, size: int) -> bool:
        """Reserve this many more bytes if they are free; nothing is removed for them."""
        if self._covered < _UNLIMITED:
            more = self._quota.blocks(size)
            ledger = self._quota.try_promise(more)
            if ledger is None:
                return False
            self._promised(ledger, more)
        return True

    def keep(self, size: int) -> None:
        """This many bytes are part of the cache now."""
        promised = min(size, self._left)
        self._left -= promised
        if promised or self._ledger.has_limits:
            self._ledger.take(size, promised)

    def _promised(self, ledger: Ledger, size: int) -> None:
        if ledger is not self._ledger:  # the former record is gone, and its promises with it
            self._ledger, self._left = ledger, 0
        self._left += size
        self._covered += size


class Quota:
    """`fresh_s`: how long what came in is safe from removal, in seconds, if not the standard."""

    def __init__(self, root: Path, boot_id: str, *, fresh_s: "Mapping[Kind, float] | None" = None) -> None:
        self._root = root
        self._fresh_s = fresh_s
        self._boot_id = boot_id
        self._ledger = Ledger(root / "usage", boot_id)
        self._former: list[Ledger | Sweeper] = []
        self._block_bytes = os.statvfs(root).f_frsize
        self._vain = _Vain(0, 0.0, 0.0)
        self.release: Callable[[], None] = _nothing
        """Closes files that this process does not need. Called before anything is removed; must not wait."""

    def close(self) -> None:
        if "sweeper" in self.__dict__:
            self.sweeper.close()
        for former in (*self._former, self._ledger):
            former.close()

    def renew(self) -> None:
        """Begin a new record if the former one was removed: with the same limits, unless others have set some
        meanwhile. Downloads under way end with the former record. One thread at a time."""
        if self._ledger.is_current:
            return
        former, ledger = self._ledger, Ledger(self._root / "usage", self._boot_id)
        if former.has_limits and not ledger.has_limits:
            ledger.set_limits(former.limits)
        self._former.append(former)
        self._ledger = ledger
        if "sweeper" in self.__dict__:
            self._former.append(self.__dict__.pop("sweeper"))

    @functools.cached_property
    def sweeper(self) -> "Sweeper":
        """It removes content. Loaded when it is needed: most programs end before a cache is full."""
        from mica.cache.sweeper import Sweeper

        return Sweeper(self._root, self._ledger, fresh_s=self._fresh_s, release=self._release)

    @property
    def limits(self) -> Limits:
        return self._ledger.limits

    def set_limits(self, limits: Limits) -> None:
        """Set the limits for all users of this cache."""
        if limits != self._ledger.limits:
            self._ledger.set_limits(limits)

    def account(self) -> Account:
        return self._ledger.account()

    def reserving(self, size: int) -> Reservation:
        """Room for content of this many bytes, for a block. Raises UserError if there is none."""
        if not self._ledger.has_limits:
            return Reservation(self, self._ledger, _UNLIMITED)
        room = Reservation(self, self._ledger, 0)
        room.cover(size)
        return room

    def fits(self, size: int) -> bool:
        """Whether content of this many bytes fits now without removing any: for content that no program waits for."""
        if not self._ledger.has_limits:
            return True
        if not self._ledger.account().is_counted:
            with mapped_os_errors(f"count the cache {self._root}"), self.sweeper.alone():
                self.sweeper.count()
        size = self.blocks(size)
        ledger = self.try_promise(size)
        if ledger is None:
            return False
        ledger.give_back(size)
        return True

    def part_error(self, size: int, *, held: int, whole: int) -> UserError:
        """The error when `size` more bytes of a file of `whole` bytes do not fit beside the `held` ones: a part cannot
        be removed while it is read."""
        return UserError(
            f"The rest of a file of {format_size(whole)} cannot be read: {format_size(held)} of it are in the cache "
            f"{self._root}, and {format_size(size)} more do not fit into its quota of {format_size(self.limits.most)}.",
            hint=_MORE_ROOM,
        )

    def _release(self) -> None:
        self.release()

    # For reservations

    def blocks(self, size: int) -> int:
        """How much content of this many bytes takes on disk."""
        return -(-size // self._block_bytes) * self._block_bytes

    def promise(self, size: int, *, beside: int = 0) -> Ledger:
        """The record that holds the promise. `beside`: bytes that the same content has been promised already."""
        ledger = self.try_promise(size)
        if ledger is None:
            self._refuse_giant(beside + size)
            with mapped_os_errors(f"make room in the cache {self._root}"):
                ledger = self._make_room(size)
        return ledger

    def try_promise(self, size: int) -> Ledger | None:
        """As `promise`, if there is room now."""
        ledger = self._ledger
        return ledger if ledger.promise(size, self.sweeper.available() if ledger.keeps_free else 0) else None

    def _make_room(self, size: int) -> Ledger:
        """Make room, or wait while another thread or process does. It fails only by a look that began after the call:
        an earlier look may have met other content in use."""
        began = look_at = time.monotonic()
        poll_s = _POLL_S
        while True:
            with self.sweeper.alone(wait=False) as is_ours:
                if ledger := self.try_promise(size):
                    return ledger
                now = time.monotonic()
                if is_ours and now >= look_at and (now >= self._vain.until or size < self._vain.size):
                    look_at = now + self._look(size)
                    if ledger := self.try_promise(size):
                        return ledger
            is_vain = size >= self._vain.size and self._vain.began >= began + _CLOSING_S
            if is_vain or now > began + _WAIT_MAX_S:
                raise self._no_room(size)
            time.sleep(poll_s)
            poll_s = min(2 * poll_s, _POLL_MAX_S)

    def _look(self, size: int) -> float:
        """Remove what may be removed; returns after how many seconds to look again. Only while alone."""
        began = time.monotonic()
        wait_s = self.sweeper.sweep(size)
        if wait_s is not None:
            return wait_s
        now = time.monotonic()
        pause_s = min(max(_PAUSE * (now - began), _PAUSE_MIN_S), _PAUSE_MAX_S)
        self._vain = _Vain(size, began, now + pause_s)
        return 0.0

    def _refuse_giant(self, size: int) -> None:
        most = self._ledger.limits.most
        if most and size > most:
            raise UserError(
                f"{format_size(size)} do not fit into the cache {self._root}, whose quota is {format_size(most)}.",
                hint=_MORE_ROOM,
            )

    def _no_room(self, size: int) -> NoRoomError:
        limits, account = self._ledger.limits, self._ledger.account()
        taken = account.taken + account.promised
        hint = f"End what uses it (mica cache ls). {_MORE_ROOM}"
        if limits.most and taken + size > limits.most:
            return NoRoomError(
                f"There is no room for {format_size(size)} in the cache {self._root}: {format_size(taken)} of its "
                f"{format_size(limits.most)} are in use.",
                hint=hint,
            )
        return NoRoomError(
            f"There is no room for {format_size(size)} in the cache {self._root}: its file system has "
            f"{format_size(self.sweeper.available())} free, and {format_size(limits.keep_free)} have to stay free.",
            hint=hint,
        )


def _nothing() -> None:
    pass
