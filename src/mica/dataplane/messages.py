"""What the object filesystem asks of the node's service, and what it hears: one datagram each. Pure.

    question   <kind u8> <ticket u64> <offset u64> <size u32> <repository u16> <name>
    answer     <ticket u64> <errno i32> <value u64>

The ticket is the unique number of the FUSE request that waits. Little endian; both ends are the same program on one
machine, so there are no versions.
"""

import enum
import struct
from typing import NamedTuple

from mica.repo.localname import LocalName

ANY_REPOSITORY = 0xFFFF
"""Whoever asks does not know any more which repository shows the file: all are tried."""

MESSAGE_BYTES = 512
_QUESTION = struct.Struct("<BQQIH")
_ANSWER = struct.Struct("<QiQ")


class Kind(enum.IntEnum):
    """OBJECT: have it in the cache. PART: have a large file that can be filled; the value is its inode number. RANGE:
    have these bytes of a large file."""

    OBJECT = 1
    PART = 2
    RANGE = 3


class Question(NamedTuple):
    kind: Kind
    ticket: int
    repository: int
    name: LocalName
    offset: int = 0
    size: int = 0


class Result(NamedTuple):
    """`errno` 0: done."""

    ticket: int
    errno: int
    value: int = 0


def format_question(question: Question) -> bytes:
    kind, ticket, repository, name, offset, size = question
    return _QUESTION.pack(kind, ticket, offset, size, repository) + str(name).encode("ascii")


def parse_question(data: bytes) -> Question:
    """Raises ValueError for anything else."""
    try:
        kind, ticket, offset, size, repository = _QUESTION.unpack_from(data)
    except struct.error as error:
        raise ValueError("a question that is too short") from error
    name = LocalName.parse(data[_QUESTION.size :].decode("ascii"))
    return Question(Kind(kind), ticket, repository, name, offset, size)


def format_result(result: Result) -> bytes:
    return _ANSWER.pack(*result)


def parse_result(data: bytes) -> Result:
    return Result._make(_ANSWER.unpack(data))
