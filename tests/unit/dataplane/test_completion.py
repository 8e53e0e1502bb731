"""Completion: everything in the end, nothing twice, never before those who wait."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.waiting import eventually
from tests.unit.dataplane.test_objectfs import CHUNKS, CONTENT, LARGE, NAME, fill, put

from mica.cache.cache import Cache
from mica.cache.partfiles import keep_list
from mica.dataplane.completion import Completion
from mica.dataplane.messages import Kind, Question, Result
from mica.digest import Algorithm, Digest
from mica.metaimage.inode import Inode
from mica.metaimage.writer import write_image
from mica.repo.chunklist import format_chunk_list
from mica.repo.localname import LocalName
from mica.repo.objects import Compression

OTHER = LocalName(Digest(bytes(20), Algorithm.SHA1), Compression.NONE, 3)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as cache:
        keep_list(cache, LARGE.digest, format_chunk_list(CHUNKS))
        yield cache


@pytest.fixture
def image(tmp_path: Path) -> Path:
    files = {b"/a": NAME, b"/b": LARGE, b"/c": OTHER}
    entries = [(b"", Inode(0o40755))]
    entries += [(path, Inode(0o100644, size=name.size, content=name)) for path, name in files.items()]
    path = tmp_path / "image"
    with path.open("wb") as file:
        write_image(entries, file, {LARGE.digest: format_chunk_list(CHUNKS)})
    return path


class Service:
    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.asked: list[LocalName] = []
        self.failing: LocalName | None = None

    def answer(self, question: Question) -> Result:
        self.asked.append(question.name)
        assert question.kind is (Kind.RANGE if question.name.in_chunks else Kind.OBJECT)
        if question.name == self.failing:
            return Result(0, errno.EIO)
        if question.name == LARGE:
            fill(self.cache, 0)
            fill(self.cache, 1)
        else:
            put(self.cache, question.name, CONTENT[: question.name.size])
        return Result(0, 0)


def complete(cache: Cache, service: Service, image: Path, rate: int = 1 << 30) -> None:
    Completion(cache, service.answer, lambda: -1e9, rate).run([image], 0, threading.Event())


def test_all_that_is_missing_comes_and_nothing_twice(cache: Cache, image: Path) -> None:
    service = Service(cache)
    put(cache, OTHER, b"con")
    complete(cache, service, image)
    assert service.asked == [NAME, LARGE]
    assert all(os.path.exists(cache.path(name)) for name in (NAME, LARGE, OTHER))
    complete(cache, service, image)
    assert len(service.asked) == 2


def test_a_failure_ends_it(cache: Cache, image: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = Service(cache)
    service.failing = NAME
    complete(cache, service, image)
    assert service.asked == [NAME]
    assert [record.getMessage() for record in caplog.records] == ["completion ends: EIO"]


def test_it_waits_while_programs_wait_and_ends_when_told(cache: Cache, image: Path) -> None:
    service = Service(cache)
    with Completion(cache, service.answer, time.monotonic, 1 << 30) as completion:
        ended = completion.start([image], 0)
        ended.set()
        completion.run([image], 0, ended)
    assert service.asked == []


def test_the_rate_bounds_it_and_the_block_ends_it(cache: Cache, image: Path) -> None:
    service = Service(cache)
    with Completion(cache, service.answer, lambda: -1e9, 1) as completion:
        completion.start([image], 0)
        assert eventually(lambda: service.asked)
    assert service.asked == [NAME], "7 bytes take 7 seconds"
    assert not [thread for thread in threading.enumerate() if thread.name == "completion"]
