"""Which content leaves a cache: the least recently used, with a second chance, never what is in use. Pure.

    outcome = evict(deque(candidates(inventory, now_ns)), goal_bytes, hand)

The kernel reads files by itself and does not report reads. For one file at a time we can ask whether it is open and
whether pages of it are in memory. So this is the algorithm CLOCK, with pages in memory as the bit that says "used": a
candidate that has some is spared once, which counts as a use and clears the bit. A `Hand` asks and acts; the one of a
rehearsal only asks.
"""

import enum
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from mica.cache.inventory import Inventory, Item, Kind

FRESH_S: Final[Mapping[Kind, float]] = {
    Kind.OBJECT: 10.0,
    Kind.PART: 10.0,
    Kind.UNSIZED: 10.0,
    Kind.IMAGE: 900.0,
    Kind.LIST: 900.0,
}
"""Content that came or was asked for within this many seconds may be about to be opened. The images of all layers are
obtained before the first is mounted, which can take minutes."""
_HURRIED_S: Final[Mapping[Kind, float]] = {Kind.OBJECT: 0.5, Kind.PART: 0.5, Kind.UNSIZED: 0.5}
"""The same while a download waits for room. From the end of a download to the kernel's open it takes milliseconds."""


class Use(enum.Enum):
    """The use of an item, as far as it can be seen. WARM: it may have been used since `Item.used`."""

    COLD = enum.auto()
    WARM = enum.auto()
    IN_USE = enum.auto()


class Taken(enum.Enum):
    """FREED: removed, and its space is free. HELD: removed, but a holder that could not be seen keeps the content and
    its space. IN_USE: not removed, since it is needed. GONE: it was not there any more."""

    FREED = enum.auto()
    HELD = enum.auto()
    IN_USE = enum.auto()
    GONE = enum.auto()


class Hand(Protocol):
    """The actions on one item."""

    def look(self, item: Item) -> Use: ...

    def spare(self, item: Item, *, is_open: bool) -> None:
        """Count it as used now; unless it is open, it is not warm any more."""
        ...

    def take(self, item: Item) -> Taken:
        """Remove it unless it is in use or was asked for since the inventory."""
        ...


@dataclass
class Eviction:
    """The outcome for the items that were looked at."""

    freed: list[Item] = field(default_factory=list)
    held: list[Item] = field(default_factory=list)
    in_use: list[Item] = field(default_factory=list)
    spared: list[Item] = field(default_factory=list)

    @property
    def freed_bytes(self) -> int:
        return sum(item.size for item in self.freed)

    @property
    def frees_lists(self) -> bool:
        """Whether an item is gone that may have needed chunk lists."""
        return any(item.kind in {Kind.IMAGE, Kind.PART} for item in self.freed)

    def then(self, later: "Eviction") -> "Eviction":
        """Both outcomes as one, each item once."""
        gone = {item.name for item in later.freed + later.held}
        stayed = [
            list({item.name: item for item in group if item.name not in gone}.values())
            for group in (self.in_use + later.in_use, self.spared + later.spared)
        ]
        return Eviction(self.freed + later.freed, self.held + later.held, *stayed)


def candidates(inventory: Inventory, now: int, fresh_s: Mapping[Kind, float] = FRESH_S) -> list[Item]:
    """The items that may be removed, in the order of removal. `now` is in nanoseconds since 1970."""
    fresh = {kind: int(seconds * 1e9) for kind, seconds in fresh_s.items()}
    free = [item for item in inventory.items if not _is_fresh(item, now, fresh) and not _is_needed(item, inventory)]
    return sorted(free, key=lambda item: (not item.is_stray, item.used))


def hurried_s(fresh_s: Mapping[Kind, float]) -> dict[Kind, float]:
    """How long items are fresh while a download waits for room."""
    return {kind: min(seconds, _HURRIED_S.get(kind, seconds)) for kind, seconds in fresh_s.items()}


def too_fresh(inventory: Inventory, now: int, fresh_s: Mapping[Kind, float]) -> list[Item]:
    """Items that may not be removed yet, but soon. Images and lists stay for long and do not count."""
    fresh = {kind: int(seconds * 1e9) for kind, seconds in fresh_s.items()}
    return [item for item in inventory.items if item.kind in _HURRIED_S and _is_fresh(item, now, fresh)]


def seconds_until_free(items: Sequence[Item], now: int, fresh_s: Mapping[Kind, float], missing: int) -> float | None:
    """After how many seconds `missing` bytes of these items may be removed; None if they have fewer."""
    if missing <= 0:
        return 0.0
    for item in sorted(items, key=lambda item: _fresh_until(item, fresh_s)):
        missing -= item.size
        if missing <= 0:
            return (_fresh_until(item, fresh_s) - now) / 1e9
    return None


def _fresh_until(item: Item, fresh_s: Mapping[Kind, float]) -> int:
    return max(item.used, item.changed) + int(fresh_s[item.kind] * 1e9)


def _is_fresh(item: Item, now: int, fresh: Mapping[Kind, int]) -> bool:
    # A time in the future, from before the clock was set back, says nothing.
    return 0 <= now - max(item.used, item.changed) < fresh[item.kind]


def _is_needed(item: Item, inventory: Inventory) -> bool:
    """A chunk list that an image or a part names, or may name."""
    if item.kind is not Kind.LIST or item.is_stray:
        return False
    return inventory.needed is None or item.name in inventory.needed


def evict(items: deque[Item], goal_bytes: int | None, hand: Hand) -> Eviction:
    """Take items from the left until `goal_bytes` are freed; without a goal, take all that are cold.

    At most as many bytes as the goal are spared: where memory is larger than the cache, everything is warm. If the cold
    items are not enough, the oldest of the spared ones go, then the items after them. It also ends when as many bytes
    as the goal were removed and are held: to go on would empty the cache and free nothing.
    """
    run = _Run(hand, goal_bytes)
    warm: deque[Item] = deque()
    to_spare = goal_bytes
    while items and not run.is_done and (to_spare is None or to_spare > 0):
        item = items.popleft()
        use = hand.look(item)
        if use is Use.COLD:
            run.take(item)
        elif use is Use.IN_USE:
            run.outcome.in_use.append(item)
        else:
            warm.append(item)
            to_spare = None if to_spare is None else to_spare - item.size
    for queue in (warm, items) if goal_bytes is not None else ():
        while queue and not run.is_done:
            run.take(queue.popleft())
    run.outcome.spared += warm
    for spared, is_open in ((warm, False), (run.outcome.in_use, True)):
        for item in spared:
            hand.spare(item, is_open=is_open)
    return run.outcome


class _Run:
    def __init__(self, hand: Hand, goal_bytes: int | None) -> None:
        self.outcome = Eviction()
        self._hand = hand
        self._goal = goal_bytes
        self._freed = 0
        self._held = 0

    @property
    def is_done(self) -> bool:
        return self._goal is not None and max(self._freed, self._held) >= self._goal

    def take(self, item: Item) -> None:
        taken = self._hand.take(item)
        if taken is Taken.FREED:
            self._freed += item.size
            self.outcome.freed.append(item)
        elif taken is Taken.HELD:
            self._held += item.size
            self.outcome.held.append(item)
        elif taken is Taken.IN_USE:
            self.outcome.in_use.append(item)
