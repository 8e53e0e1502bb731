"""Expected failures, which are not bugs: their classes, their texts for logs, their form between processes, and
sentences for the exceptions of parsers. Nothing else.

Each carries one sentence that names the thing, an optional hint, and the exit code of the command line: 1 failed, 2
usage, 3 integrity, 4 temporary. Any other exception is a bug and shows its traceback. Each module that calls foreign
code turns its exceptions into these in one place.
"""

import json
import re
from collections.abc import Mapping
from typing import Any


class MicaError(Exception):
    """An expected failure; `str(error)` is one sentence for people."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UserError(MicaError):
    """What was asked for cannot be done: a wrong name, a missing file, a full disk, a refused input."""


class UsageError(MicaError):
    """The command line itself is wrong."""

    exit_code = 2


class NotFoundError(UserError):
    """The named object, path, tag or image does not exist at a place that answered."""


class IntegrityError(MicaError):
    """Bytes differ from what a signature, a digest or a size says. They are never used, and always named."""

    exit_code = 3


class TemporaryError(MicaError):
    """The same request may succeed later without any change: no connection, time-out, server overloaded."""

    exit_code = 4


class LostRaceError(TemporaryError):
    """Another process replaced what this one had read and was about to replace. Nothing was changed: read it again, and
    decide anew."""


class NodeAwayError(TemporaryError):
    """The node of this host does not answer, or ended during a request. Its servers are started again when they die, so
    another attempt soon may succeed. What a node could not fetch from other servers is not this error."""


def in_one_line(error: MicaError) -> str:
    """The sentence and the hint, for a log."""
    return f"{error} {error.hint}".rstrip()


def format_error(error: MicaError) -> dict[str, str]:
    """The error as a value for JSON. A class of another module is replaced by its nearest base class in this one."""
    kind = next(base.__name__ for base in type(error).__mro__ if base.__module__ == __name__)
    return {"error": str(error), "hint": error.hint, "kind": kind}


def parse_error(values: Mapping[str, Any]) -> MicaError:
    """The error that `format_error` was given. An unknown class, for example of another version, becomes UserError."""
    kind = globals().get(str(values.get("kind")))
    if not (isinstance(kind, type) and issubclass(kind, MicaError)):
        kind = UserError
    return kind(str(values["error"]), hint=str(values.get("hint", "")))


_NO_NUMBER = re.compile(
    r"(?:invalid literal for int\(\) with base 10|could not convert string to float): (.*)", re.DOTALL
)


def explain_parse_error(error: Exception) -> str:
    """The fault of a text, in words for people. The messages of Python's parsers name codecs and types instead."""
    match error:
        case UnicodeDecodeError():
            return f"it is not UTF-8 text, from byte {error.start} on"
        case json.JSONDecodeError():
            return f"it is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        case KeyError():
            return f"{error.args[0]!r} is missing"
        case IndexError():
            return "it ends too early"
        case RecursionError():
            return "it is nested too deeply"
        case TypeError():
            return "a value is of the wrong kind"
    if match := _NO_NUMBER.fullmatch(str(error)):
        return f"{match[1][:80]} is not a number"
    return str(error)
