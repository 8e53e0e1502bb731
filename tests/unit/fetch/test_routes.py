"""Which host and proxy come next: the state machine without a network."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mica.errors import UserError
from mica.fetch.routes import DIRECT, HOST_RESET_S, PROXY_RESET_S, Route, Routes, parse_proxies, without_password


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def first(choices: Sequence[str]) -> str:
    return choices[0]


def routes(hosts: Sequence[str], proxies: Sequence[Sequence[str]] = ((DIRECT,),), clock: Clock | None = None) -> Routes:
    return Routes(hosts, proxies, clock=clock or Clock(), choose=first)


def test_hosts_come_in_order_and_again() -> None:
    state = routes(["a", "b", "c"])
    seen = []
    for _ in range(4):
        seen.append(state.current().host)
        state.leave_host(state.current())
    assert seen == ["a", "b", "c", "a"]


def test_a_late_complaint_changes_nothing() -> None:
    """Two threads failed with the same route: only the first one moves on."""
    state = routes(["a", "b", "c"], [["p", "q"]])
    stale = state.current()
    state.leave_host(stale)
    state.leave_host(stale)
    assert state.current() == Route("b", "p")
    stale = state.current()
    state.leave_proxy(stale)
    state.leave_proxy(stale)
    assert state.current() == Route("b", "q")


def test_proxies_of_a_group_then_groups_then_hosts() -> None:
    state = routes(["a", "b"], [["p1", "p2"], ["q"], [DIRECT]])
    seen = []
    for _ in range(6):
        seen.append(state.current())
        state.leave_proxy(state.current())
    assert seen == [
        Route("a", "p1"), Route("a", "p2"), Route("a", "q"), Route("a", None), Route("b", "p1"), Route("b", "p2"),
    ]  # fmt: skip


def test_a_direct_connection_that_fails_is_the_hosts_fault() -> None:
    state = routes(["a", "b"])
    state.leave_proxy(state.current())
    assert state.current() == Route("b", None)


def test_leaving_a_host_keeps_the_proxy() -> None:
    state = routes(["a", "b"], [["p1"], ["p2"]])
    state.leave_proxy(state.current())
    state.leave_host(state.current())
    assert state.current() == Route("b", "p2")


def test_preferred_ones_come_back_after_a_while() -> None:
    clock = Clock()
    state = routes(["a", "b"], [["p"], ["q"]], clock)
    state.leave_proxy(state.current())
    state.leave_host(state.current())
    assert state.current() == Route("b", "q")
    clock.now += PROXY_RESET_S + 1
    assert state.current() == Route("b", "p")
    clock.now += HOST_RESET_S - PROXY_RESET_S
    assert state.current() == Route("a", "p")


def test_a_burned_proxy_of_the_first_group_comes_back() -> None:
    clock = Clock()
    state = routes(["a"], [["p", "q"]], clock)
    state.leave_proxy(state.current())
    assert state.current().proxy == "q"
    clock.now += PROXY_RESET_S + 1
    assert state.current().proxy == "p"


def test_members_of_a_group_are_chosen_at_random() -> None:
    asked: list[list[str]] = []

    def choose(choices: Sequence[str]) -> str:
        asked.append(list(choices))
        return choices[-1]

    state = Routes(["a"], [["p", "q", "r"]], clock=Clock(), choose=choose)
    assert state.current().proxy == "r"
    state.leave_proxy(state.current())
    assert asked == [["p", "q", "r"], ["p", "q"]]


@given(st.integers(1, 3), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.lists(st.booleans(), max_size=30))
def test_every_route_is_reached_and_every_state_is_one(hosts: int, groups: list[int], complaints: list[bool]) -> None:
    proxies = [[f"{g}.{p}" for p in range(size)] for g, size in enumerate(groups)]
    state = routes([f"h{n}" for n in range(hosts)], proxies)
    for of_proxy in complaints:
        (state.leave_proxy if of_proxy else state.leave_host)(state.current())
    seen = set()
    for _ in range(2 * hosts * sum(groups)):
        seen.add(state.current())
        state.leave_proxy(state.current())
    assert len(seen) == hosts * sum(groups)


def test_routes_name_themselves_without_secrets() -> None:
    assert str(Route("http://host:80/cvmfs/x", None)) == "host:80"
    assert str(Route("http://host/cvmfs/x", "http://proxy:3128")) == "host through proxy:3128"
    assert "secret" not in str(Route("http://user:secret@host/x", "http://user:secret@proxy:3128"))


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("DIRECT", [[DIRECT]]),
        ("direct", [[DIRECT]]),
        ("http://a:3128|http://b:3128;DIRECT", [["http://a:3128", "http://b:3128"], [DIRECT]]),
        ("a:3128 | b:3128 ; ; direct", [["http://a:3128", "http://b:3128"], [DIRECT]]),
        ("https://a", [["https://a"]]),
    ],
)
def test_lists_of_proxies(text: str, groups: list[list[str]]) -> None:
    assert parse_proxies(text) == groups


@pytest.mark.parametrize(
    "text", ["", " ", ";|;", "ftp://a", "http://", "socks5://a:1", "gar bage", "http://a\tb", "http://a\x7f:1"]
)
def test_other_lists_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"empty|not a proxy URL"):
        parse_proxies(text)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host/cvmfs/x", "http://host/cvmfs/x"),
        ("https://user:secret@host:8000/cvmfs/x?y=@z", "https://host:8000/cvmfs/x?y=@z"),
        ("http://user@[::1]:3128", "http://[::1]:3128"),
        ("http://us@er:sec@ret@host", "http://host"),
    ],
)
def test_urls_are_shown_without_passwords(url: str, shown: str) -> None:
    assert without_password(url) == shown
