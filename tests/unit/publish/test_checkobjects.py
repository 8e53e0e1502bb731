"""Looking at objects: each once, by some threads, and every kind of damage is named."""

import io
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.memoryfetcher import MemoryFetcher, object_name
from tests.support.noise import noise

from mica.digest import Algorithm, Suffix, digest_of
from mica.errors import NotFoundError, TemporaryError
from mica.fetch.download import Consumer, Result
from mica.publish.checkobjects import Finding, ObjectCheck, Wanted
from mica.repo.objectname import ObjectName
from mica.repo.objects import Compression, pack


class Server(MemoryFetcher):
    """What is not there is missing, as with a web server."""

    def __init__(self) -> None:
        super().__init__()
        self.read_bytes = 0

    def fetch(self, path: str, consume: Consumer[Result], *, fresh: bool = False) -> Result:
        self.asked.append(path)
        self.before(path)
        if path not in self.objects:
            raise NotFoundError(f"{path} is not in memory.")
        stream = io.BytesIO(self.objects[path])
        try:
            return consume(stream)
        finally:
            self.read_bytes += stream.tell()

    def put(self, content: bytes, compression: Compression = Compression.ZLIB) -> ObjectName:
        packed = pack(content, Algorithm.SHA1, compression)
        self.objects[packed.digest.object_path(Suffix.FILE)] = packed.stored
        return ObjectName(packed.digest, Suffix.FILE, compression, len(content))


@pytest.fixture
def server() -> Server:
    return Server()


@contextmanager
def checking(server: MemoryFetcher, work: Path, *, in_full: bool = True) -> Iterator[ObjectCheck]:
    with ObjectCheck(server, work / "objects.sqlite", 2, in_full=in_full) as check:
        yield check


def findings(server: Server, work: Path, *wanted: Wanted, in_full: bool = True) -> list[Finding]:
    with checking(server, work, in_full=in_full) as check:
        found = [finding for one in wanted for finding in check.ask(one)]
        return found + list(check.finish())


def stored_path(name: ObjectName) -> str:
    return name.digest.object_path(name.suffix)


@pytest.mark.parametrize("content", [b"", b"x", noise(200_000)], ids=len)
@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("in_full", [True, False])
def test_a_sound_object_is_no_finding(
    server: Server, tmp_path: Path, content: bytes, compression: Compression, *, in_full: bool
) -> None:
    assert findings(server, tmp_path, Wanted("/x", server.put(content, compression)), in_full=in_full) == []


@pytest.mark.parametrize("severity", ["error", "warning"])
@pytest.mark.parametrize("in_full", [True, False])
def test_a_missing_object_has_the_severity_that_was_asked_for(
    server: Server, tmp_path: Path, severity: str, *, in_full: bool
) -> None:
    name = server.put(b"content")
    server.objects.clear()
    wanted = Wanted("/x", name, missing=severity)  # type: ignore[arg-type]
    sentence = f"{stored_path(name)} is not in memory."
    assert findings(server, tmp_path, wanted, in_full=in_full) == [(severity, "/x", sentence)]


CONTENT = b"content " * 5000
STORED = pack(CONTENT, Algorithm.SHA1, Compression.ZLIB).stored


@pytest.mark.parametrize(
    ("stored", "named", "size", "sentence"),
    [
        (b"y" + STORED[1:], STORED, len(CONTENT), "has other content: its bytes hash to "),
        (STORED[:-1], STORED, len(CONTENT), "has other content: its bytes hash to "),
        (b"", STORED, len(CONTENT), "has other content: its bytes hash to "),
        (noise(2 << 20), STORED, len(CONTENT), "has more stored bytes than 40000 bytes of content can need."),
        (STORED, STORED, len(CONTENT) + 1, "unpacks to 40000 bytes and not to 40001."),
        (STORED, STORED, len(CONTENT) - 1, "unpacks to more than the 39999 bytes it may have."),
        (STORED[:-1], STORED[:-1], len(CONTENT), "is cut short."),
        (STORED + b"x", STORED + b"x", len(CONTENT), "is followed by other bytes."),
        (CONTENT, CONTENT, len(CONTENT), "is not a zlib stream."),
        (zlib.compress(bytes(9 << 20)), zlib.compress(bytes(9 << 20)), 10, "unpacks to more than the 10 bytes"),
    ],
    ids=range(10),
)
def test_damage_is_an_error_in_full_and_unseen_otherwise(
    server: Server, tmp_path: Path, stored: bytes, named: bytes, size: int, sentence: str
) -> None:
    name = ObjectName(digest_of(named), Suffix.FILE, Compression.ZLIB, size)
    server.objects[stored_path(name)] = stored
    for missing in ("error", "warning"):
        (tmp_path / missing).mkdir()
        wanted = Wanted("/x", name, missing=missing)  # type: ignore[arg-type]
        (finding,) = findings(server, tmp_path / missing, wanted)
        assert finding[:2] == ("error", "/x"), "damage is never only a warning"
        assert sentence in finding.sentence
    assert findings(server, tmp_path, Wanted("/x", name), in_full=False) == []


def test_an_object_that_only_has_to_exist_is_not_read_to_its_end(server: Server, tmp_path: Path) -> None:
    name = server.put(noise(3 << 20))
    assert findings(server, tmp_path, Wanted("/x", name), in_full=False) == []
    assert server.read_bytes == 64 << 10


def test_each_object_is_looked_at_once(server: Server, tmp_path: Path) -> None:
    name = server.put(b"content")
    with checking(server, tmp_path) as check:
        found = [one for number in range(500) for one in check.ask(Wanted(f"/{number}", name))]
        assert found + list(check.finish()) == []
        assert check.looked_at == 1
    assert server.asked == [stored_path(name)]


def test_one_object_under_two_sizes_or_compressions_is_looked_at_for_each(server: Server, tmp_path: Path) -> None:
    """A right row must not hide a wrong one of the same object."""
    right = server.put(CONTENT)
    wrong = [right._replace(size=3), right._replace(compression=Compression.NONE), right._replace(size=None, limit=4)]
    chunk = right._replace(suffix=Suffix.CHUNK)
    asked = [Wanted(f"/{number}", name) for number, name in enumerate([right, *wrong, chunk, *wrong])]
    assert [finding.where for finding in findings(server, tmp_path, *asked)] == ["/1", "/2", "/3", "/4"]


def test_findings_of_thousands_of_objects_come_in_order_and_all(server: Server, tmp_path: Path) -> None:
    wanted = []
    for number in range(3000):
        name = server.put(b"%d" % number)
        if number % 10 == 0:
            del server.objects[stored_path(name)]
        wanted.append(Wanted(f"/{number}", name))
    with checking(server, tmp_path) as check:
        early = [finding for one in wanted for finding in check.ask(one)]
        found = early + list(check.finish())
        assert check.looked_at == 3000
    assert early, "findings come during the walk"
    assert [finding.where for finding in found] == [f"/{number}" for number in range(0, 3000, 10)]


def test_what_is_asked_for_at_a_time_is_bounded(server: Server, tmp_path: Path) -> None:
    """While the server does not answer, the walk stands still: it does not collect all that it will ask for."""
    too_far, answers = threading.Event(), threading.Event()

    def answer_late(path: str) -> None:
        if not answers.is_set():
            too_far.wait(0.3)
            answers.set()

    server.before = answer_late
    names = [server.put(b"%d" % number) for number in range(3000)]
    with checking(server, tmp_path) as check:
        for number, name in enumerate(names):
            if number > (4 * 2 + 1) * 64 and not answers.is_set():
                too_far.set()
            assert list(check.ask(Wanted("/x", name))) == []
        assert list(check.finish()) == []
    assert not too_far.is_set()
    assert len(server.asked) == 3000


def test_a_server_that_does_not_answer_ends_the_check(server: Server, tmp_path: Path) -> None:
    def fail(path: str) -> None:
        raise TemporaryError(f"{path} could not be fetched.")

    server.before = fail
    wanted = Wanted("/x", object_name(server.publish(b"x")))
    with pytest.raises(TemporaryError, match="could not be fetched"):
        findings(server, tmp_path, wanted)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("check")]


def test_an_interrupted_check_does_not_wait_for_the_server(server: Server, tmp_path: Path) -> None:
    released = threading.Event()
    server.before = lambda path: released.wait(60) and None
    name = server.put(b"x")
    try:
        with pytest.raises(KeyboardInterrupt):
            ask_and_interrupt(server, tmp_path, name)
        assert [thread for thread in threading.enumerate() if thread.name.startswith("check")], "it still waits"
    finally:
        released.set()
    for thread in threading.enumerate():
        if thread.name.startswith("check"):
            thread.join(60)


def ask_and_interrupt(server: Server, work: Path, name: ObjectName) -> None:
    with checking(server, work) as check:
        for size in range(64):
            list(check.ask(Wanted("/x", name._replace(size=size))))
        raise KeyboardInterrupt
