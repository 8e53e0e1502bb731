"""Prefetching: begun by whoever starts the program, once, in order, and never what is here."""

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.waiting import eventually
from tests.unit.dataplane.test_objectfs import CONTENT, LARGE, NAME, put

from mica.cache.cache import Cache
from mica.dataplane.messages import Kind, Question, Result
from mica.dataplane.prefetch import Prefetch
from mica.dataplane.traces import Recorder, read_recorded
from mica.thin.trace import Piece, ProgramTrace

OTHER = NAME._replace(size=NAME.size - 1)
TRACE = ProgramTrace(("R", "-e", "1"), NAME, (Piece(NAME), Piece(LARGE, 1, 2), Piece(OTHER)))

LISTED = threading.Event()
LISTED.set()


class Service:
    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.errno = 0
        self.is_ahead = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def answer(self, question: Question) -> Result:
        self.asked.append(question)
        self.gate.wait(20)
        return Result(0, self.errno)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as cache:
        yield cache


@pytest.fixture
def service() -> Service:
    return Service()


def test_it_begins_when_the_programs_content_is_asked_for(cache: Cache, service: Service) -> None:
    with Prefetch(cache, service.answer, service.is_ahead) as prefetch:
        prefetch.asked(NAME)
        prefetch.learn([TRACE], 3, LISTED)
        prefetch.asked(OTHER)
        time.sleep(0.05)
        assert service.asked == []
        prefetch.asked(NAME)
        assert eventually(lambda: len(service.asked) == 3)
        prefetch.asked(NAME)
        assert eventually(lambda: not service.is_ahead.is_set())
    assert sorted(service.asked, key=str) == sorted(
        [
            Question(Kind.OBJECT, 0, 3, NAME),
            Question(Kind.RANGE, 0, 3, LARGE, 1, 2),
            Question(Kind.OBJECT, 0, 3, OTHER),
        ],
        key=str,
    )


@pytest.mark.parametrize(("program", "count"), [("R", 3), ("Rscript", 0), (None, 0)])
def test_it_begins_for_a_program_that_is_named(cache: Cache, service: Service, program: str | None, count: int) -> None:
    with Prefetch(cache, service.answer, service.is_ahead) as prefetch:
        prefetch.learn([TRACE], 0, LISTED, program)
        assert eventually(lambda: len(service.asked) == count)


def test_files_in_chunks_wait_for_their_lists(cache: Cache, service: Service) -> None:
    listed = threading.Event()
    with Prefetch(cache, service.answer, service.is_ahead) as prefetch:
        prefetch.learn([TRACE], 0, listed, "R")
        assert eventually(lambda: len(service.asked) == 2)
        assert service.is_ahead.is_set()
        assert LARGE not in [question.name for question in service.asked]
        listed.set()
        assert eventually(lambda: len(service.asked) == 3)


def test_what_is_here_is_not_asked_for(cache: Cache, service: Service) -> None:
    put(cache, NAME, CONTENT)
    with Prefetch(cache, service.answer, service.is_ahead) as prefetch:
        prefetch.learn([TRACE], 0, LISTED, "R")
        assert eventually(lambda: len(service.asked) == 2)
    assert NAME not in [question.name for question in service.asked]


def test_a_failure_ends_it_and_so_does_the_block(cache: Cache, service: Service) -> None:
    many = ProgramTrace(("R",), NAME, tuple(Piece(NAME._replace(size=size)) for size in range(1, 1000)))
    service.errno = errno.EIO
    with Prefetch(cache, service.answer, service.is_ahead) as prefetch:
        prefetch.learn([many], 0, LISTED, "R")
        assert eventually(lambda: not [one for one in threading.enumerate() if one.name == "prefetch"])
    assert 0 < len(service.asked) < 100
    service.errno = 0
    service.gate.clear()
    with Prefetch(cache, service.answer, service.is_ahead) as prefetch:
        prefetch.learn([many], 0, LISTED, "R")
        prefetch.asked(NAME)
        threading.Timer(0.1, service.gate.set).start()
    assert len(service.asked) < 200


def test_what_is_asked_for_is_recorded_once_and_in_order(tmp_path: Path) -> None:
    recorder = Recorder()
    for question in (
        Question(Kind.OBJECT, 1, 0, NAME),
        Question(Kind.PART, 2, 0, LARGE),
        Question(Kind.RANGE, 3, 0, LARGE, 1, 2),
        Question(Kind.RANGE, 4, 0, LARGE, LARGE.size - 1, 1 << 17),
        Question(Kind.OBJECT, 5, 0, NAME),
        Question(Kind.OBJECT, 6, 0, OTHER),
    ):
        recorder.asked(question)
    recorder.write(tmp_path / "recorded")
    expected = [Piece(NAME), Piece(LARGE, 1, 2), Piece(LARGE, LARGE.size - 1, 1), Piece(OTHER)]
    assert read_recorded(tmp_path / "recorded") == expected
    assert read_recorded(tmp_path / "none") == []
