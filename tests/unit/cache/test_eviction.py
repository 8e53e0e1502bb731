"""What leaves a cache, and what does not: the order, the second chance, what is protected."""

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mica.cache.eviction import Eviction, Taken, Use, candidates, evict, hurried_s, seconds_until_free, too_fresh
from mica.cache.inventory import Inventory, Item, Kind

NOW = 1_000_000 * 10**9
FRESH_S = dict.fromkeys(Kind, 10.0) | {Kind.IMAGE: 900.0, Kind.LIST: 900.0}


def item(name: str, age_s: float, *, size: int = 1, kind: Kind = Kind.OBJECT, touched_s: float | None = None) -> Item:
    changed = NOW - int((age_s if touched_s is None else touched_s) * 1e9)
    return Item(kind, (f"{kind}/{name}",), 0, size, NOW - int(age_s * 1e9), changed)


@dataclass
class Model:
    """A cache of items by name, with what is in use, warm, or held by something that cannot be seen."""

    in_use: set[str] = field(default_factory=set)
    warm: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    taken: list[str] = field(default_factory=list)
    touched: list[tuple[str, bool]] = field(default_factory=list)

    def look(self, item: Item) -> Use:
        if item.name in self.in_use:
            return Use.IN_USE
        return Use.WARM if item.name in self.warm else Use.COLD

    def spare(self, item: Item, *, is_open: bool) -> None:
        self.touched.append((item.name, is_open))

    def take(self, item: Item) -> Taken:
        if item.name in self.in_use:
            return Taken.IN_USE
        self.taken.append(item.name)
        return Taken.HELD if item.name in self.held else Taken.FREED


def names(items: list[Item]) -> list[str]:
    return [item.name.rpartition("/")[2] for item in items]


def test_the_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    items = candidates(Inventory([item("b", 50), item("a", 90), item("c", 20)], frozenset()), NOW, FRESH_S)
    assert names(items) == ["a", "b", "c"]
    assert names(evict(deque(items), 2, Model()).freed) == ["a", "b"]
    assert names(evict(deque(items), 0, Model()).freed) == []
    assert names(evict(deque(items), 99, Model()).freed) == ["a", "b", "c"]


def test_what_came_or_was_asked_for_just_now_stays() -> None:
    inventory = Inventory(
        [
            item("fresh", 9), item("handed over", 500, touched_s=9), item("old", 11), item("from the future", -1),
            item("image", 899, kind=Kind.IMAGE), item("old image", 901, kind=Kind.IMAGE),
        ],
        frozenset(),
    )  # fmt: skip
    assert names(candidates(inventory, NOW, FRESH_S)) == ["old image", "old", "from the future"]


def test_temporary_files_go_first_and_lists_stay_while_they_are_needed() -> None:
    items = [
        item(".x.1.tmp", 950, kind=Kind.IMAGE), item("x", 999, kind=Kind.IMAGE),
        item("needed", 1000, kind=Kind.LIST), item("free", 1000, kind=Kind.LIST),
    ]  # fmt: skip
    assert names(candidates(Inventory(items, frozenset({"lists/needed"})), NOW, FRESH_S)) == [".x.1.tmp", "free", "x"]
    assert names(candidates(Inventory(items, None), NOW, FRESH_S)) == [".x.1.tmp", "x"]


def test_what_is_in_use_stays_and_counts_as_used() -> None:
    items = [item("a", 90), item("b", 80)]
    model = Model(in_use={"objects/a"})
    outcome = evict(deque(items), 2, model)
    assert (names(outcome.freed), names(outcome.in_use)) == (["b"], ["a"])
    assert model.touched == [("objects/a", True)]


def test_what_is_warm_has_a_second_chance() -> None:
    items = [item("a", 90), item("b", 80), item("c", 70)]
    model = Model(warm={"objects/a"})
    outcome = evict(deque(items), 2, model)
    assert (names(outcome.freed), names(outcome.spared)) == (["b", "c"], ["a"])
    assert model.touched == [("objects/a", False)]


def test_the_oldest_of_the_warm_go_when_there_is_nothing_cold() -> None:
    items = [item(name, 90 - number) for number, name in enumerate("abcdef")]
    model = Model(warm={item.name for item in items})
    outcome = evict(deque(items), 2, model)
    assert names(outcome.freed) == ["a", "b"]
    assert model.touched == [], "no more was spared than was needed"


def test_without_a_goal_all_that_is_cold_goes() -> None:
    items = [item(name, 90) for name in "abcd"]
    outcome = evict(deque(items), None, Model(warm={"objects/b"}, in_use={"objects/c"}))
    assert (names(outcome.freed), names(outcome.spared), names(outcome.in_use)) == (["a", "d"], ["b"], ["c"])


def test_it_ends_when_removing_frees_nothing() -> None:
    items = [item(name, 90) for name in "abcdef"]
    outcome = evict(deque(items), 2, Model(held={item.name for item in items}))
    assert (len(outcome.freed), len(outcome.held)) == (0, 2)


def test_two_evictions_put_together_have_each_item_once() -> None:
    a, b, c, d = (item(name, 90) for name in "abcd")
    first = Eviction(freed=[a], in_use=[b, c], spared=[d])
    second = Eviction(freed=[c], in_use=[b._replace(changed=0)], spared=[d])
    both = first.then(second)
    assert [names(group) for group in (both.freed, both.held, both.in_use, both.spared)] == [
        ["a", "c"],
        [],
        ["b"],
        ["d"],
    ]
    assert not both.frees_lists
    assert Eviction(freed=[item("e", 90, kind=Kind.IMAGE)]).frees_lists


@pytest.mark.parametrize(("missing", "wait"), [(1, 1.0), (2, 3.0), (4, None)])
def test_how_long_to_wait_for_what_is_fresh(missing: int, wait: float | None) -> None:
    items = [item("a", 9), item("b", 7), item("old", 99), item("c", 5), item("image", 5, kind=Kind.IMAGE)]
    fresh = too_fresh(Inventory(items, frozenset()), NOW, FRESH_S)
    assert seconds_until_free(fresh, NOW, FRESH_S, missing) == wait


def test_who_waits_shortens_what_is_fresh_but_not_what_will_be_mounted() -> None:
    assert hurried_s(FRESH_S) == dict.fromkeys(Kind, 0.5) | {Kind.IMAGE: 900.0, Kind.LIST: 900.0}
    assert hurried_s(dict.fromkeys(Kind, 0.1)) == dict.fromkeys(Kind, 0.1)


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Item], Model, int | None]:
    kinds = st.sampled_from([Kind.OBJECT, Kind.PART, Kind.UNSIZED, Kind.IMAGE, Kind.LIST])
    ages = st.one_of(st.integers(0, 12), st.integers(0, 2000))
    made = [
        item(str(number), draw(ages), size=draw(st.integers(0, 9)), kind=draw(kinds))
        for number in range(draw(st.integers(0, 25)))
    ]
    some = st.sets(st.sampled_from([entry.name for entry in made])) if made else st.just(set())
    model = Model(in_use=draw(some), warm=draw(some), held=draw(some))
    return made, model, draw(st.one_of(st.none(), st.integers(0, 60)))


@given(situations(), st.booleans())
def test_whatever_the_situation(situation: tuple[list[Item], Model, int | None], lists_are_known: bool) -> None:
    items, model, goal = situation
    needed = frozenset(entry.name for entry in items[::2] if entry.kind is Kind.LIST) if lists_are_known else None
    order = candidates(Inventory(items, needed), NOW, FRESH_S)
    assert [entry.used for entry in order] == sorted(entry.used for entry in order)
    for entry in order:
        assert NOW - entry.changed >= FRESH_S[entry.kind] * 1e9
        assert entry.kind is not Kind.LIST or (needed is not None and entry.name not in needed)

    outcome = evict(deque(order), goal, model)

    removed = outcome.freed + outcome.held
    assert sorted(model.taken) == sorted(entry.name for entry in removed)
    assert not {entry.name for entry in removed} & model.in_use, "nothing in use is removed"
    groups = [entry.name for group in (removed, outcome.in_use, outcome.spared) for entry in group]
    assert len(groups) == len(set(groups)), "everything has one fate"
    assert sorted(model.touched) == sorted(
        [(entry.name, False) for entry in outcome.spared] + [(entry.name, True) for entry in outcome.in_use]
    )
    free = [entry for entry in order if entry.name not in model.in_use]
    if goal is None:
        assert {entry.name for entry in removed} == {entry.name for entry in free if entry.name not in model.warm}
        return
    for group in (outcome.freed, outcome.held):
        assert sum(entry.size for entry in group[:-1]) < max(goal, 1), "no more than is needed"
    reachable = sum(entry.size for entry in free if entry.name not in model.held)
    given_up = sum(entry.size for entry in outcome.held) >= goal
    assert outcome.freed_bytes >= min(goal, reachable) or given_up, "all that is needed, if it can be had"
    assert sum(entry.size for entry in outcome.spared[:-1]) < max(goal, 1), "no more is spared than is needed"
