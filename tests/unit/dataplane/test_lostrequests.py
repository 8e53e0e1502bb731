"""Requests that a killed session took with it are found out, and never by mistake."""

import errno

import pytest

from mica.dataplane.lostrequests import _LOOKS, LostRequests, answer_all
from mica.dataplane.messages import Kind, Question
from mica.digest import Digest
from mica.repo.localname import LocalName
from mica.repo.objects import Compression

NAME = LocalName(Digest.parse("ab" * 20), Compression.ZLIB, 10)


def question(ticket: int) -> Question:
    return Question(Kind.OBJECT, ticket, 0, NAME)


class FakeSession:
    """A session in some state; `unanswered` is what the kernel would say."""

    def __init__(self) -> None:
        self.requests = self.busy = self.unanswered = 0
        self.put_off: dict[int, Question] = {}
        self.errors: dict[int, int | None] = {}

    def taken(self) -> tuple[int, int]:
        return self.requests, self.busy

    def complete(self, unique: int, outcome: OSError, /) -> None:
        self.errors[unique] = outcome.errno
        del self.put_off[unique]

    def waiting(self) -> list[Question]:
        return list(self.put_off.values())

    def looks(self, lost: LostRequests, times: int = 3 * _LOOKS) -> list[bool]:
        return [lost.are_there() for _ in range(times)]


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def lost(session: FakeSession) -> LostRequests:
    return LostRequests(session, session.waiting, lambda: session.unanswered)


def test_what_nobody_knows_of_is_lost(session: FakeSession, lost: LostRequests) -> None:
    session.unanswered = 1
    looks = session.looks(lost)
    assert looks[-1]
    assert looks.count(False) >= _LOOKS, "one look is none: a request may just be on its way"


def test_with_nothing_unanswered_nothing_was_lost(session: FakeSession, lost: LostRequests) -> None:
    assert not any(session.looks(lost))
    session.unanswered = 1
    assert not any(session.looks(lost)), "what comes later is ours"


def test_while_we_work_nobody_can_tell(session: FakeSession, lost: LostRequests) -> None:
    session.unanswered, session.busy = 1, 1
    assert not any(session.looks(lost))
    session.busy, session.put_off = 0, {5: question(5)}
    assert not any(session.looks(lost))
    session.put_off = {}
    for _ in range(3 * _LOOKS):
        session.requests += 1
        assert not lost.are_there()
    assert session.looks(lost)[-1]


def test_at_the_end_what_the_service_does_not_answer_fails(session: FakeSession) -> None:
    session.put_off = {7: question(7), 9: question(9)}
    answer_all(session, session.waiting, patience_s=0.0)
    assert session.errors == {7: errno.EIO, 9: errno.EIO}


def test_at_the_end_what_the_service_answers_is_waited_for() -> None:
    class Answered(FakeSession):
        def waiting(self) -> list[Question]:
            found = super().waiting()
            self.put_off.popitem()
            return found[1:]

    session = Answered()
    session.put_off = {7: question(7), 9: question(9)}
    answer_all(session, session.waiting, patience_s=60.0)
    assert session.errors == {}
