"""JSON from outside, bounded and checked: the reader of every image document.

`Fields` answers typed questions about one JSON object and names the object in each refusal. Null counts as absent,
because Go writes it for empty lists and maps. Pure; any thread.
"""

import json
from collections.abc import Mapping
from typing import Any, NoReturn, TypeGuard

from mica.errors import UserError

DOCUMENT_LIMIT_BYTES = 4 << 20
_SIZE_LIMIT_BYTES = (1 << 63) - 1


def parse_document(data: bytes, *, what: str) -> "Fields":
    """Read a JSON object of at most 4 MiB. Raises UserError for everything else."""
    return Fields(parse_json(data, what=what), what=what)


def parse_json(data: bytes, *, what: str) -> Any:
    """The same for any JSON value."""
    if len(data) > DOCUMENT_LIMIT_BYTES:
        raise UserError(f"{what} is larger than {DOCUMENT_LIMIT_BYTES >> 20} MiB.")
    try:
        value = json.loads(data.decode(), parse_constant=_refuse_constant)
        if b"\\u" in data:
            # Half a surrogate pair is legal JSON, but it is no text and cannot be written out again.
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise UserError(f"{what} is nested too deeply.") from error
    except ValueError as error:
        raise UserError(f"{what} is not JSON: {_reason(error)}.") from error
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    return "it is not UTF-8" if isinstance(error, UnicodeError) else "a number is not allowed"


def in_sentence(what: str) -> str:
    """The name of a document at the beginning of a sentence, changed for the middle of one."""
    return f"the {what.removeprefix('The ')}" if what.startswith("The ") else what


class Fields:
    """The members of one JSON object."""

    __slots__ = ("_members", "what")

    def __init__(self, members: object, *, what: str) -> None:
        if not _is_object(members):
            raise UserError(f"{what} is not a JSON object.")
        self._members = members
        self.what = what

    @property
    def members(self) -> Mapping[str, Any]:
        return self._members

    def __contains__(self, name: str) -> bool:
        return self._members.get(name) is not None

    def text(self, name: str, default: str = "") -> str:
        value = self._members.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._refused(name, "text")
        return value

    def integer(self, name: str, default: int = 0) -> int:
        value = self._members.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._refused(name, "a whole number")
        return value

    def size_bytes(self, name: str) -> int:
        """A number that must be there and fit a file."""
        value = self.integer(name, -1)
        if not 0 <= value <= _SIZE_LIMIT_BYTES:
            raise self._refused(name, "a size")
        return value

    def flag(self, name: str) -> bool:
        value = self._members.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._refused(name, "true or false")
        return value is True

    def items(self, name: str) -> list[Any]:
        value = self._members.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._refused(name, "a list")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.items(name)
        if not all(isinstance(value, str) for value in values):
            raise self._refused(name, "a list of texts")
        return tuple(values)

    def text_or_texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, or one text, which is how old builders wrote the shell form."""
        value = self._members.get(name)
        return (value,) if isinstance(value, str) else self.texts(name)

    def text_map(self, name: str) -> dict[str, str]:
        members = self.object(name).members
        if not all(isinstance(value, str) for value in members.values()):
            raise self._refused(name, "a map of texts")
        return dict(members)

    def object(self, name: str) -> "Fields":
        """A member that is an object; an empty one where it is absent."""
        value = self._members.get(name)
        return Fields({} if value is None else value, what=f"{name!r} of {in_sentence(self.what)}")

    def objects(self, name: str) -> "list[Fields]":
        values = self.items(name)
        what = in_sentence(self.what)
        return [Fields(value, what=f"'{name}[{number}]' of {what}") for number, value in enumerate(values)]

    def _refused(self, name: str, wanted: str) -> UserError:
        return UserError(f"{name!r} of {in_sentence(self.what)} is not {wanted}.")


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)
