"""What comes from outside is shown as one line that can control no terminal."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mica.texts import format_time, one_line, printable, printable_path, quoted, quoted_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain name", "plain name"),
        ("ü€😀".encode(), "ü€😀"),
        (b"a\nb\tc", "a\\x0ab\\x09c"),
        (b"\x1b[2J", "\\x1b[2J"),
        (b"\x9b2J", "\\x9b2J"),
        ("\x9b2J".encode(), "\\xc2\\x9b2J"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("\u202egnp.exe".encode(), "\\xe2\\x80\\xaegnp.exe"),
        (b"\xe2\x82", "\\xe2\\x82"),
        (b"a\\b", "a\\x5cb"),
    ],
)
def test_names_that_are_not_printable_are_escaped_byte_by_byte(name: bytes, text: str) -> None:
    assert printable(name) == text


@given(st.binary(max_size=40))
def test_every_name_is_printable(name: bytes) -> None:
    shown = printable(name)
    assert shown.isprintable()
    shown.encode("utf-8")


@given(st.text(st.characters(), max_size=40))
def test_every_text_is_printable(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    shown.encode("utf-8")
    assert shown == text or not text.isprintable()


def test_half_a_surrogate_pair_from_json_is_shown() -> None:
    assert one_line(json.loads('"a\\ud800b"')) == "a\\ud800b"


@given(st.binary(max_size=6), st.binary(max_size=6))
def test_names_that_differ_look_different(one: bytes, other: bytes) -> None:
    assert (printable(one) == printable(other)) == (one == other)


@given(st.binary(max_size=40))
def test_a_name_in_a_sentence_is_shown_once(name: bytes) -> None:
    assert one_line(quoted(name)) == quoted(name) == f"'{printable(name)}'"


def test_an_absurdly_long_name_is_cut_in_a_sentence() -> None:
    assert quoted(b"n" * 200) == f"'{'n' * 200}'"
    assert quoted(b"n" * 5000) == f"'{'n' * 200}…'"


def test_the_root_is_a_slash() -> None:
    assert (printable_path(b""), printable_path(b"/a")) == ("/", "/a")
    assert (quoted_path(b""), quoted_path(b"/a")) == ("'/'", "'/a'")


def test_a_time() -> None:
    assert format_time(1_717_156_800) == "2024-05-31 12:00:00Z"
