"""What is refused although it is signed."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mica.errors import UserError
from mica.repo.blacklist import Blacklist, joined, parse_blacklist

PRINT = ":".join(["AB"] * 20)


def test_lines() -> None:
    text = f"# ours\n\n{PRINT}\tstolen\r\n{PRINT}-SHAKE128 # too\n<a.org 7\n  <b.org\t12  # why\n<a.org 5"
    found = parse_blacklist(text.encode(), "it")
    assert found.fingerprints == {PRINT, f"{PRINT}-SHAKE128"}
    assert found.revisions == {"a.org": 7, "b.org": 12}
    assert (found.oldest("a.org"), found.oldest("c.org")) == (7, 0)
    assert parse_blacklist(b"", "it") == Blacklist()


@pytest.mark.parametrize(
    "line", ["<a.org", "<a.org x", "<a.org -1", "< a.org 5", "<a.org 5 6", "AB:CD", "a.org 5", "\xa0"]
)
def test_a_line_that_would_refuse_nothing_is_an_error(line: str) -> None:
    with pytest.raises(UserError, match="Line 2 of it is neither"):
        parse_blacklist(f"# a\n{line}\n".encode("latin-1"), "it")


def test_what_any_refuses_is_refused() -> None:
    first = Blacklist(frozenset({"A"}), {"a.org": 7, "b.org": 1})
    second = Blacklist(frozenset({"B"}), {"a.org": 5, "b.org": 3})
    assert joined([first, second]) == Blacklist(frozenset({"A", "B"}), {"a.org": 7, "b.org": 3})
    assert joined([]) == Blacklist()


@given(st.binary(max_size=100))
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(UserError):
        parse_blacklist(data, "it")
