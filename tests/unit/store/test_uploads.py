"""Uploads in the background: bounded, waited for, and never taken for arrived when they have not."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest
from tests.support.waiting import PATIENCE_S, eventually

from mica.errors import TemporaryError
from mica.store.uploads import Uploads


@pytest.fixture
def uploads() -> Iterator[Uploads]:
    with contextlib.closing(Uploads(threads=4, in_flight_bytes=100)) as uploads:
        yield uploads


class Server:
    """Takes uploads while it is `up`, as long as `gate` is open."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.asked = 0
        self.up = True
        self.gate = threading.Event()
        self.gate.set()

    def take(self, key: str) -> Callable[[], None]:
        def send() -> None:
            self.asked += 1
            assert self.gate.wait(PATIENCE_S)
            if not self.up:
                raise TemporaryError(f"no {key}")
            self.got.append(key)

        return send


def test_everything_that_was_added_has_arrived_after_a_flush(uploads: Uploads) -> None:
    server = Server()
    keys = [f"key {number}" for number in range(300)]
    for key in keys:
        uploads.add(key, 30, server.take(key))
    uploads.flush()
    assert sorted(server.got) == sorted(keys)
    uploads.flush()


def test_what_is_on_its_way_is_not_added_again(uploads: Uploads) -> None:
    server = Server()
    server.gate.clear()
    for _ in range(3):
        uploads.add("key", 30, server.take("key"))
    server.gate.set()
    uploads.flush()
    assert server.got == ["key"]
    uploads.add("key", 30, server.take("key"))
    uploads.wait("key")
    assert server.got == ["key", "key"]


def test_adding_waits_while_too_much_is_on_its_way(uploads: Uploads) -> None:
    server = Server()
    server.gate.clear()
    uploads.add("large", 1000, server.take("large"))
    added = threading.Event()

    def add() -> None:
        uploads.add("small", 1, server.take("small"))
        added.set()

    thread = threading.Thread(target=add)
    thread.start()
    assert eventually(lambda: server.asked == 1)
    assert not added.wait(0.1)
    server.gate.set()
    thread.join(PATIENCE_S)
    uploads.flush()
    assert server.got == ["large", "small"]


def test_a_failure_is_told_by_each_flush_until_the_upload_has_arrived(uploads: Uploads) -> None:
    server = Server()
    server.up = False
    uploads.add("key", 30, server.take("key"))
    for _ in range(3):
        with pytest.raises(TemporaryError, match="no key"):
            uploads.flush()
    uploads.wait("key")
    server.up = True
    uploads.flush()
    assert server.got == ["key"]
    uploads.flush()


def test_all_threads_that_share_the_uploads_are_told(uploads: Uploads) -> None:
    server = Server()
    server.up = False
    uploads.add("key", 30, server.take("key"))
    told: list[str] = []

    def flush() -> None:
        try:
            uploads.flush()
        except TemporaryError as error:
            told.append(str(error))

    threads = [threading.Thread(target=flush) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert told == ["no key"] * 8


@pytest.mark.parametrize("size", [0, 60], ids=["too many", "too large"])
def test_whoever_adds_is_stopped_when_too_much_has_failed(uploads: Uploads, size: int) -> None:
    server = Server()
    server.up = False

    def add_many() -> None:
        for number in range(1000):
            uploads.add(f"key {number}", size, server.take(f"key {number}"))

    with pytest.raises(TemporaryError, match="no key"):
        add_many()
    for number in range(1000):  # some are tried again at that moment, and the server is still down for them
        uploads.wait(f"key {number}")
    server.up = True
    uploads.flush()
    assert server.got


def test_what_has_not_begun_is_dropped_at_the_end() -> None:
    server = Server()
    server.gate.clear()
    uploads = Uploads(threads=1, in_flight_bytes=100)
    for number in range(3):
        uploads.add(f"key {number}", 1, server.take(f"key {number}"))
    assert eventually(lambda: server.asked == 1)
    closing = threading.Thread(target=uploads.close)
    closing.start()
    server.gate.set()
    closing.join(PATIENCE_S)
    assert "key 2" not in server.got or server.asked == 3
