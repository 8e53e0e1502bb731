"""Which content leaves a cache: the least recently used, with a second chance, never what is in use. Pure.

    outcome = evict(deque(candidates(inventory, now_ns)), goal_bytes, hand)

Nobody tells us of reads, which the kernel does by itself. What can be asked, of one file at a time, is whether it is
open and whether pages of it are in memory. So this is the algorithm CLOCK, with pages in memory as the bit that says
"used": a candidate that has some is spared once, which counts as a use and clears the bit. A `Hand` asks and acts; that
of a rehearsal only asks.
"""

import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from mica.fetch.inventory import Inventory, Item, Kind

FRESH_S: Final[Mapping[Kind, float]] = {
    Kind.OBJECT: 10.0,
    Kind.PART: 10.0,
    Kind.UNSIZED: 10.0,
    Kind.IMAGE: 900.0,
    Kind.LIST: 900.0,
}
"""What came or was asked for within this time may be about to be opened. The images of all layers are obtained before
the first is mounted, which can take minutes."""


class Use(enum.Enum):
    """What can be seen of an item. WARM: it may have been used since `Item.used`."""

    COLD = enum.auto()
    WARM = enum.auto()
    IN_USE = enum.auto()


class Taken(enum.Enum):
    """FREED: removed, and the space is there. HELD: removed, but something that could not be seen holds the content and
    its space. IN_USE, GONE: not removed, it is needed, or is not there any more."""

    FREED = enum.auto()
    HELD = enum.auto()
    IN_USE = enum.auto()
    GONE = enum.auto()


class Hand(Protocol):
    """What is done to one item."""

    def look(self, item: Item) -> Use: ...

    def spare(self, item: Item, *, is_open: bool) -> None:
        """It counts as used now, and unless it is open it is not warm any more."""
        ...

    def take(self, item: Item) -> Taken:
        """Remove it unless it is in use or was asked for since the inventory."""
        ...


@dataclass
class Eviction:
    """What became of the items that were looked at."""

    freed: list[Item] = field(default_factory=list)
    held: list[Item] = field(default_factory=list)
    in_use: list[Item] = field(default_factory=list)
    spared: list[Item] = field(default_factory=list)

    @property
    def freed_bytes(self) -> int:
        return sum(item.size for item in self.freed)

    @property
    def frees_lists(self) -> bool:
        """Whether something is gone that may have needed chunk lists."""
        return any(item.kind in {Kind.IMAGE, Kind.PART} for item in self.freed)

    def then(self, later: "Eviction") -> "Eviction":
        """Both, each item once."""
        gone = {item.name for item in later.freed + later.held}
        stayed = [
            list({item.name: item for item in group if item.name not in gone}.values())
            for group in (self.in_use + later.in_use, self.spared + later.spared)
        ]
        return Eviction(self.freed + later.freed, self.held + later.held, *stayed)


def candidates(inventory: Inventory, now: int, fresh_s: Mapping[Kind, float] = FRESH_S) -> list[Item]:
    """What may go, in the order in which it should. `now` is in nanoseconds since 1970."""
    fresh = {kind: int(seconds * 1e9) for kind, seconds in fresh_s.items()}
    free = [item for item in inventory.items if not _is_fresh(item, now, fresh) and not _is_needed(item, inventory)]
    return sorted(free, key=lambda item: (not item.is_stray, item.used))


def seconds_until_free(
    inventory: Inventory, now: int, fresh_s: Mapping[Kind, float], missing_bytes: int
) -> float | None:
    """After how long so many bytes of what is only too fresh now may go; None if there are not so many. Images and
    lists, which stay for long, do not count."""
    fresh = {kind: int(seconds * 1e9) for kind, seconds in fresh_s.items()}
    ends = sorted(
        (max(item.used, item.changed) + fresh[item.kind] - now, item.size)
        for item in inventory.items
        if item.kind not in {Kind.IMAGE, Kind.LIST} and _is_fresh(item, now, fresh)
    )
    for wait, size in ends:
        missing_bytes -= size
        if missing_bytes <= 0:
            return wait / 1e9
    return None


def _is_fresh(item: Item, now: int, fresh: Mapping[Kind, int]) -> bool:
    # A time to come, as a clock that was set back leaves it, says nothing.
    return 0 <= now - max(item.used, item.changed) < fresh[item.kind]


def _is_needed(item: Item, inventory: Inventory) -> bool:
    """A chunk list that an image or a part names, or may name."""
    if item.kind is not Kind.LIST or item.is_stray:
        return False
    return inventory.needed is None or item.name in inventory.needed


def evict(items: deque[Item], goal_bytes: int | None, hand: Hand) -> Eviction:
    """Take items from the left until so many bytes are freed; without a goal all that is cold.

    As many bytes as the goal has are spared at most: where memory is larger than the cache, everything is warm. If the
    cold do not do, the oldest of the spared go, then what comes after them. It also ends when as many bytes as the goal
    were removed and are held: more of that would empty the cache and free nothing.
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
