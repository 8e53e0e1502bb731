"""Which directories a layer's archive did not bring, as layer facts tell it."""

import json

import pytest

from mica.errors import IntegrityError
from mica.layers.implieddirectories import DIRECTORIES_MAX, parse_implied
from mica.texts import printable


def facts(*items: object) -> bytes:
    return json.dumps({"implied_directories": {"total": len(items), "items": items}}).encode()


@pytest.mark.parametrize("path", [b"/", b"/tmp", b"/a\\b/\xff\n", "/caf\u00e9".encode(), b"/\\x41"])
def test_paths_are_what_was_made_printable(path: bytes) -> None:
    assert parse_implied(facts(printable(path)), "facts") == (path,)


def test_what_is_no_path_is_left_out() -> None:
    bad = ("", "tmp", "/a/../b", "//", "/a/", "/./a", r"/a\x00b", "/" + "a" * 5000, 7, None)
    assert parse_implied(facts(*bad, "/a", "/a"), "facts") == (b"/a",)


def test_there_are_not_more_than_facts_list() -> None:
    assert len(parse_implied(facts(*(f"/{number}" for number in range(5000))), "facts")) == DIRECTORIES_MAX


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"implied_directories": 1}',
        b'{"implied_directories": {"items": "/a"}}',
        b"[" * 9999,
    ],
)
def test_what_is_no_document_of_facts_is_named(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="the facts"):
        parse_implied(data, "the facts")


@pytest.mark.parametrize(("version", "expected"), [(3, (b"/", b"/b")), (4, (b"/", b"/a", b"/b"))])
def test_older_facts_do_not_tell_which_directories_are_new(version: int, expected: tuple[bytes, ...]) -> None:
    facts = {
        "format_version": version,
        "implied_directories": {"total": 3, "items": ["/", "/a", "/b"]},
        "opaque": {"total": 2, "items": ["/", "/a"]},
    }
    assert parse_implied(json.dumps(facts).encode(), "facts") == expected
