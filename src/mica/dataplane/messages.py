"""Questions of the object filesystem to the node's service, and its answers: one datagram each. Pure.

    question   <kind u8> <ticket u64> <offset u64> <size u32> <repository u16> <name>
    answer     <ticket u64> <errno i32>

The ticket is the unique number of the FUSE request that waits. Little endian; both ends are the same program on one
machine, so there are no versions.
"""

import enum
import struct
from typing import NamedTuple

from mica.repo.localname import LocalName

ANY_REPOSITORY = 0xFFFF
"""Stands for any repository: all are tried for the content."""

MESSAGE_BYTES = 512
_QUESTION = struct.Struct("<BQQIH")
_ANSWER = struct.Struct("<Qi")


class Kind(enum.IntEnum):
    """OBJECT: bring it into the cache. PART: begin a part, so that it can be filled. RANGE: bring these bytes into
    it."""

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
