"""An error is the same on both sides of a process's border."""

import json
from collections.abc import Callable

import pytest

from mica import errors
from mica.errors import (
    MicaError,
    NodeAwayError,
    NotFoundError,
    UserError,
    explain_parse_error,
    format_error,
    in_one_line,
    parse_error,
)

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MicaError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_comes_through(kind: type[MicaError]) -> None:
    error = parse_error(json.loads(json.dumps(format_error(kind("What ü is wrong.", hint="Do that.")))))
    assert (type(error), str(error), error.hint) == (kind, "What ü is wrong.", "Do that.")
    assert error.exit_code == kind.exit_code


def test_there_are_the_classes_that_callers_tell_apart() -> None:
    assert {NotFoundError, NodeAwayError, UserError} <= set(KINDS)


def test_a_class_of_another_module_comes_as_its_base() -> None:
    class OwnError(NotFoundError):
        pass

    assert type(parse_error(format_error(OwnError("x")))) is NotFoundError


@pytest.mark.parametrize("kind", [None, 3, "NoSuchError", "Mapping", "Any", "__doc__", "format_error"])
def test_what_is_no_class_of_ours_is_a_plain_failure(kind: object) -> None:
    error = parse_error({"error": "x", "kind": kind})
    assert (type(error), error.hint) == (UserError, "")


def test_a_log_has_the_hint_too() -> None:
    assert in_one_line(UserError("It is wrong.", hint="Do that.")) == "It is wrong. Do that."
    assert in_one_line(UserError("It is wrong.")) == "It is wrong."


@pytest.mark.parametrize(
    ("parse", "words"),
    [
        (b"a\xff".decode, "it is not UTF-8 text, from byte 1 on"),
        (lambda: json.loads('{"a":\n x}'), "it is not JSON: Expecting value at line 2, column 2"),
        (lambda: {}["name"], "'name' is missing"),
        ([].pop, "it ends too early"),
        (lambda: int("x1"), "'x1' is not a number"),
        (lambda: float("x1"), "'x1' is not a number"),
        (lambda: int(None), "a value is of the wrong kind"),  # type: ignore[call-overload]
        (lambda: json.loads("[" * 100_000), "it is nested too deeply"),
    ],
)
def test_what_parsers_raise_is_told_in_words(parse: Callable[[], object], words: str) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        parse()
    assert isinstance(caught.value, Exception)
    assert explain_parse_error(caught.value) == words
