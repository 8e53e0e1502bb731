"""The journal of what an object filesystem shows."""

import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mica.cache.cache import Cache
from mica.cache.shown import Shown, ShownFiles, ShownNames, begin_journal, is_removed, keep_journal, renew_journal
from mica.digest import Algorithm, digest_of
from mica.errors import IntegrityError
from mica.repo.localname import LocalName
from mica.repo.objects import Compression

HERE = Path("/nowhere")


def file(number: int, repository: int = 0) -> Shown:
    digest = digest_of(b"%d" % number, Algorithm.SHAKE128 if number % 2 else Algorithm.SHA1)
    return Shown(LocalName(digest, Compression.ZLIB, number, in_chunks=True), repository)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    with Cache(tmp_path / "cache") as cache:
        yield cache.root


@pytest.fixture
def journal(cache: Path) -> Iterator[int]:
    _, fd = begin_journal(cache)
    yield fd
    os.close(fd)


def test_a_name_has_one_number_and_a_number_one_name(journal: int) -> None:
    with ShownFiles(journal, HERE) as shown:
        files = [file(number, repository) for number in range(2000) for repository in (0, 3)]
        numbers = [shown.show(each) for each in files]
        assert len(set(numbers)) == len(files)
        assert [shown.show(each) for each in files] == numbers
        assert [shown.find(number) for number in numbers] == files
        for strange in (min(numbers) - 1, max(numbers) + 1, 0, 1 << 60):
            assert shown.find(strange) is None


def test_a_successor_finds_names_numbers_and_counts(cache: Path, journal: int) -> None:
    with ShownFiles(journal, HERE) as shown:
        numbers = [shown.show(file(number)) for number in range(10)]
        shown.show(file(3))
        shown.forget(numbers[4], 1)
    with ShownFiles(journal, HERE) as shown:
        assert [shown.find(number) for number in numbers] == [file(number) for number in range(10)]
        assert [shown.is_known(file(number)) for number in range(10)] == [number != 4 for number in range(10)]
        assert shown.show(file(4)) == numbers[4]
        assert shown.show(file(77)) not in numbers
        shown.forget(numbers[3], 1)
        assert shown.is_known(file(3))
        shown.forget(numbers[3], 1)
        assert not shown.is_known(file(3))
    with ShownNames(cache) as names:
        assert names.names() == {file(number).name for number in (*range(3), *range(4, 10), 77)}


def test_forgetting_more_than_was_shown_is_forgetting(journal: int) -> None:
    with ShownFiles(journal, HERE) as shown:
        number = shown.show(file(1))
        shown.forget(number, 5)
        shown.forget(number + 1, 1)
        assert not shown.is_known(file(1))
        shown.show(file(1))
        assert shown.is_known(file(1))


def test_a_reader_sees_what_is_shown_while_it_reads(cache: Path, journal: int) -> None:
    with ShownFiles(journal, HERE) as shown, ShownNames(cache) as names:
        assert not names.has(file(1).name)
        first, other = shown.show(file(1)), shown.show(file(1, repository=1))
        assert names.has(file(1).name)
        shown.forget(first, 1)
        assert names.has(file(1).name), "the other repository shows it"
        shown.forget(other, 1)
        assert not names.has(file(1).name)


def test_names_are_told_while_more_are_shown(cache: Path, journal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process shows a file between any two looks of the reader."""
    with ShownFiles(journal, HERE) as shown, ShownNames(cache) as names:
        first = {file(number).name for number in range(3) if shown.show(file(number)) >= 0}
        more = iter(range(3, 20))
        pread = os.pread

        def pread_after_another(fd: int, size: int, offset: int) -> bytes:
            for number in itertools.islice(more, size == 8):  # when it looks at a count
                shown.show(file(number))
            return pread(fd, size, offset)

        monkeypatch.setattr(os, "pread", pread_after_another)
        assert names.names() >= first


def test_what_a_killed_server_left_uncertain_is_asked_of_the_kernel(
    journal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with ShownFiles(journal, HERE) as shown:
        numbers = [shown.show(file(number)) for number in range(3)]
        shown.settle(lambda _: pytest.fail("nothing is uncertain"))
    with ShownFiles(journal, HERE) as shown:
        shown.settle(lambda _: pytest.fail("an answer may still be under way"))
        now[0] += 2
        shown.show(file(2))
        asked: list[int] = []
        shown.settle(lambda number: bool(asked.append(number)) or number == numbers[1])
        assert asked == numbers[:2]
        assert [shown.is_known(file(number)) for number in range(3)] == [False, True, True]
        now[0] += 2
        shown.settle(lambda number: bool(asked.append(number)))
        assert asked == numbers
        shown.settle(lambda _: pytest.fail("nothing is uncertain any more"))


def test_a_journal_that_nobody_keeps_is_removed(cache: Path) -> None:
    name, fd = begin_journal(cache)
    with ShownFiles(fd, HERE) as shown:
        shown.show(file(1))
        os.close(fd)
        with ShownNames(cache) as names:
            assert names.names() == {file(1).name}
    with ShownNames(cache) as names:
        assert names.names() == set()
    assert keep_journal(cache, name) is None
    assert not list((cache / "shown").iterdir())


def test_a_new_journal_begins_at_another_number(cache: Path) -> None:
    firsts = set()
    for _ in range(20):
        _, fd = begin_journal(cache)
        with ShownFiles(fd, HERE) as shown:
            firsts.add(shown.show(file(1)))
        os.close(fd)
    assert len(firsts) == 20
    assert all(0 <= first < 1 << 59 for first in firsts)
    assert not list((cache / "shown").iterdir())[1:], "those before it are gone"


def test_of_two_servers_of_one_mount_the_second_waits(journal: int) -> None:
    order: list[str] = []

    def follow() -> None:
        with ShownFiles(journal, HERE) as shown:
            order.append("second")
            assert shown.is_known(file(1))

    with ShownFiles(journal, HERE) as shown:
        thread = threading.Thread(target=follow)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        shown.show(file(1))
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_another_file_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(b"x" * 10)
    fd = os.open(path, os.O_RDWR)
    with pytest.raises(IntegrityError, match="journal of an object filesystem"):
        ShownFiles(fd, HERE)
    os.close(fd)


def test_a_journal_that_was_removed_is_there_again(cache: Path) -> None:
    name, fd = begin_journal(cache)
    try:
        with ShownFiles(fd, HERE) as shown:
            numbers = [shown.show(file(number)) for number in range(2000)]
        assert not is_removed(fd)
        (cache / "shown" / name).unlink()
        assert is_removed(fd)
        renew_journal(cache, name, fd)
        assert not is_removed(fd)
        assert not os.get_inheritable(fd)
        with ShownFiles(fd, HERE) as shown, ShownNames(cache) as names:
            assert [shown.find(number) for number in numbers] == [file(number) for number in range(2000)]
            assert names.has(file(1999).name), "somebody keeps it"
            assert shown.show(file(2000)) not in numbers
    finally:
        os.close(fd)
    with ShownNames(cache) as names:
        assert names.names() == set()
