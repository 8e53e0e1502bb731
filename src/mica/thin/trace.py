"""The trace of a program: what it asked for when it started, in order, for others to have it before they ask. Pure.

    {"version": 1, "programs": [
      {"command": ["Rscript", "-e", "1"],           for people only
       "trigger": "ab/….13496",                     the content of the program's file
       "contents": ["ab/….13496", "cd/….31458321.parts 65536+131072", …]}]}

Beside the top layer of an image (docs/format/trace.md). A trace comes out of a repository and is a hint: all of it is
bounded, it names content of that repository only, and content is verified as if a program had asked.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mica.errors import UserError, explain_parse_error
from mica.repo.localname import SIZE_MAX, LocalName

TRACE_MAX_BYTES = 4 << 20
PROGRAMS_MAX = 64
PIECES_MAX = 50_000
_VERSION = 1
_PIECE = re.compile(r"([^ ]{1,200})(?: (0|[1-9][0-9]{0,18})\+([1-9][0-9]{0,9}))?")


class Piece(NamedTuple):
    """Bytes of a file in chunks from `offset` on, or all of another content: then both numbers are 0."""

    name: LocalName
    offset: int = 0
    size: int = 0

    def __str__(self) -> str:
        return f"{self.name} {self.offset}+{self.size}" if self.name.in_chunks else str(self.name)

    @classmethod
    def parse(cls, text: str) -> "Piece":
        """Raises ValueError for anything that `str()` does not give."""
        match = _PIECE.fullmatch(text)
        if match is None:
            raise ValueError(f"not a piece of content: {text[:120]!r}")
        name = LocalName.parse(match[1])
        if name.in_chunks != (match[2] is not None):
            raise ValueError(f"not a piece of content: {text[:120]!r}")
        piece = cls(name, int(match[2] or 0), int(match[3] or 0))
        if piece.offset + piece.size > min(name.size, SIZE_MAX):
            raise ValueError(f"a piece that is not in its file: {text[:120]!r}")
        return piece


@dataclass(frozen=True, slots=True)
class ProgramTrace:
    """Who asks for `trigger` is likely to ask for `pieces`, in this order."""

    command: tuple[str, ...]
    trigger: LocalName
    pieces: tuple[Piece, ...]

    @property
    def program(self) -> str:
        """How the program was called."""
        return self.command[0]


def merge_traces(traces: Iterable[ProgramTrace]) -> list[ProgramTrace]:
    """One for each way to call a program, the last that is given."""
    return list({trace.program: trace for trace in traces}.values())


def format_traces(traces: Sequence[ProgramTrace]) -> bytes:
    programs = [
        {"command": trace.command, "trigger": str(trace.trigger), "contents": list(map(str, trace.pieces))}
        for trace in traces
    ]
    return json.dumps({"version": _VERSION, "programs": programs}, indent=1).encode("ascii") + b"\n"


def parse_traces(data: bytes, what: str) -> list[ProgramTrace]:
    """Raises UserError naming `what` for anything that is not a document of traces within the limits."""
    try:
        if len(data) > TRACE_MAX_BYTES:
            raise ValueError(f"it has more than {TRACE_MAX_BYTES} bytes")
        document = json.loads(data)
        if not isinstance(document, dict) or document.get("version") != _VERSION:
            raise ValueError("not of version 1")
        programs = document.get("programs")
        if not isinstance(programs, list) or len(programs) > PROGRAMS_MAX:
            raise ValueError(f"not a list of at most {PROGRAMS_MAX} programs")
        return [_program(values) for values in programs]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is not a trace: {explain_parse_error(error)}.") from error


def _program(values: object) -> ProgramTrace:
    if not isinstance(values, dict):
        raise ValueError("a program that is no object")
    command, contents = _texts(values.get("command")), _texts(values.get("contents"))
    if not command or len(contents) > PIECES_MAX:
        raise ValueError("a program without a command, or with too many contents")
    trigger = LocalName.parse(str(values.get("trigger")))
    return ProgramTrace(command, trigger, tuple(map(Piece.parse, contents)))


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("not a list of texts")
    return tuple(value)
