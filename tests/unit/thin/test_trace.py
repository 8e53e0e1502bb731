"""Traces as documents: what is written is read, and what a repository may hold instead."""

import json
from typing import Any

import pytest

from mica.digest import Algorithm, Digest
from mica.errors import UserError
from mica.repo.localname import LocalName
from mica.repo.objects import Compression
from mica.thin.trace import (
    PIECES_MAX,
    PROGRAMS_MAX,
    TRACE_MAX_BYTES,
    Piece,
    ProgramTrace,
    format_traces,
    merge_traces,
    parse_traces,
)

WHOLE = LocalName(Digest(bytes(20), Algorithm.SHA1), Compression.ZLIB, 10)
LARGE = LocalName(Digest(bytes(19) + b"x", Algorithm.SHA1), Compression.NONE, 1 << 33, in_chunks=True)
TRACE = ProgramTrace(("R", "-e", "µ"), LARGE, (Piece(WHOLE), Piece(LARGE, 0, 4096), Piece(LARGE, 1 << 32, 1 << 20)))


def test_what_is_written_is_read() -> None:
    other = ProgramTrace(("sh",), WHOLE, ())
    assert parse_traces(format_traces([TRACE, other]), "x") == [TRACE, other]


def test_the_last_trace_of_a_program_counts() -> None:
    newer = ProgramTrace(("R", "--version"), WHOLE, ())
    assert merge_traces([TRACE, ProgramTrace(("sh",), WHOLE, ()), newer]) == [newer, ProgramTrace(("sh",), WHOLE, ())]


def changed(**values: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(format_traces([TRACE]))
    document["programs"][0].update(values)
    return document


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"version": 2, "programs": []},
        {"version": 1},
        {"version": 1, "programs": {}},
        {"version": 1, "programs": [{}] * (PROGRAMS_MAX + 1)},
        {"version": 1, "programs": ["R"]},
        changed(command=[]),
        changed(command="R"),
        changed(command=[1]),
        changed(trigger=None),
        changed(trigger="../../etc/passwd"),
        changed(contents="x"),
        changed(contents=[str(WHOLE)] * (PIECES_MAX + 1)),
        changed(contents=["../../etc/passwd"]),
        changed(contents=[f"{WHOLE} 0+10"]),
        changed(contents=[str(LARGE)]),
        changed(contents=[f"{LARGE} 0+0"]),
        changed(contents=[f"{LARGE} 0+-1"]),
        changed(contents=[f"{LARGE} {1 << 33}+1"]),
        changed(contents=[f"{LARGE} 0+1 "]),
        changed(contents=["x" * 1_000_000]),
    ],
)
def test_anything_else_is_refused(document: object) -> None:
    with pytest.raises(UserError, match=r"^the thing is not a trace: "):
        parse_traces(json.dumps(document).encode(), "the thing")


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b" " * (TRACE_MAX_BYTES + 1), b"\xff"])
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="is not a trace"):
        parse_traces(data, "x")
