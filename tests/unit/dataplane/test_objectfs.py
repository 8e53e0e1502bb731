"""The object filesystem by its requests, without a kernel and without a service."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mica.cache.cache import Cache
from mica.cache.partfiles import PartFile, keep_list
from mica.cache.shown import Shown, ShownFiles, ShownNames, begin_journal, keep_journal
from mica.dataplane.counts import SharedCounts
from mica.dataplane.messages import ANY_REPOSITORY, Kind, Question, Result
from mica.dataplane.objectfs import ObjectFileSystem
from mica.digest import Algorithm, Digest, digest_of
from mica.fuse import abi as fuse_abi
from mica.fuse.abi import Buffer, Opcode, ReadIn
from mica.fuse.dispatch import PENDING, Pending, Request
from mica.fuse.tree import ROOT_INODE
from mica.repo.chunklist import format_chunk_list
from mica.repo.entry import Chunk
from mica.repo.localname import LocalName, chunked_name
from mica.repo.objects import Compression

NAME = LocalName(Digest(bytes(range(20)), Algorithm.SHA1), Compression.ZLIB, 7)
CONTENT = b"content"
CHUNKS = [Chunk(0, 4, digest_of(b"cont", Algorithm.SHA1)), Chunk(4, 3, digest_of(b"ent", Algorithm.SHA1))]
LARGE = chunked_name(CHUNKS, Compression.ZLIB)
REFUSED = frozenset({66})
"""Unique numbers of requests whose callers have gone: the kernel takes no answer."""


class Kernel(NamedTuple):
    """Sends requests, and hears answers that were put off."""

    filesystem: ObjectFileSystem
    shown: ShownFiles
    asked: list[Question]
    heard: dict[int, Buffer | OSError]

    def ask(self, question: Question) -> None:
        self.asked.append(question)

    def send(self, opcode: Opcode, node: int, body: bytes = b"", unique: int = 2) -> Buffer | Pending:
        scratch = memoryview(bytearray(4096))
        return self.filesystem.handlers[opcode](Request(unique, node, memoryview(body), scratch, 1, 0, 0))

    def look_up(self, node: int, name: str, unique: int = 2) -> Buffer | Pending:
        return self.send(Opcode.LOOKUP, node, fuse_abi.format_name(name.encode()), unique)

    def directory(self, *names: str) -> int:
        node = ROOT_INODE
        for name in names:
            node = found(self.look_up(node, name))
        return node

    def read(self, node: int, offset: int, size: int, unique: int = 2) -> Buffer | Pending:
        return self.send(Opcode.READ, node, fuse_abi.format_read_in(ReadIn(0, offset, size)), unique)


def found(answer: Buffer | Pending) -> int:
    assert answer is not PENDING
    assert not isinstance(answer, Pending)
    attributes = fuse_abi.parse_entry_out(answer).attributes
    assert attributes is not None
    return attributes.inode


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as cache:
        yield cache


def make_kernel(cache: Cache, *, shows_all: bool = False) -> Kernel:
    """The first of a mount, or the successor of the one that was ended by `kill`."""
    journals = os.listdir(cache.root / "shown")
    if journals:
        journal_fd = keep_journal(cache.root, journals[0])
        assert journal_fd is not None
    else:
        _, journal_fd = begin_journal(cache.root)
    shown = ShownFiles(journal_fd, Path("/"))
    asked: list[Question] = []
    heard: dict[int, Buffer | OSError] = {}

    class Supplier:
        def ask(self, question: Question) -> None:
            asked.append(question)

    counts = SharedCounts(cache.root / "counts")
    filesystem = ObjectFileSystem(cache, 2, Supplier(), counts, shown, shows_all=shows_all)

    def complete(unique: int, outcome: Buffer | OSError) -> bool:
        heard[unique] = outcome
        return unique not in REFUSED

    filesystem.complete = complete
    return Kernel(filesystem, shown, asked, heard)


def kill(kernel: Kernel) -> None:
    """Its process is gone, the kernel and the keeper of the journal live on."""
    kernel.shown.__exit__()


def put(cache: Cache, name: LocalName = NAME, content: bytes = CONTENT) -> None:
    with cache.adding_place(cache.path(name)) as new:
        new.write(content)
        os.close(new.commit())


def handed_over(cache: Cache) -> list[str]:
    return sorted(f"{path.parent.name}/{path.name}" for path in (cache.root / "handover").rglob("*") if path.is_file())


def test_a_name_is_asked_for_handed_over_and_then_denied(cache: Cache) -> None:
    kernel = make_kernel(cache)
    assert kernel.look_up(kernel.directory("1", "00"), str(NAME)[3:], unique=44) is PENDING
    assert kernel.asked == [Question(Kind.OBJECT, 44, 1, NAME)]
    assert kernel.filesystem.waiting() == kernel.asked
    put(cache)
    kernel.filesystem.supplied(Result(44, 0))
    outcome = kernel.heard[44]
    assert isinstance(outcome, OSError)
    assert outcome.errno == errno.ENOENT
    assert handed_over(cache) == [str(NAME)]
    assert kernel.filesystem.waiting() == []
    kernel.filesystem.forget_handed_over(3600)
    assert handed_over(cache) == [str(NAME)]
    kernel.filesystem.forget_handed_over(-1)
    assert handed_over(cache) == []


def test_what_cannot_be_supplied_is_denied_and_not_handed_over(cache: Cache) -> None:
    kernel = make_kernel(cache)
    kernel.look_up(kernel.directory("0", "00"), str(NAME)[3:], unique=44)
    kernel.filesystem.supplied(Result(44, errno.EIO))
    outcome = kernel.heard[44]
    assert isinstance(outcome, OSError)
    assert outcome.errno == errno.ENOENT
    assert handed_over(cache) == []


def test_what_came_into_the_cache_meanwhile_is_handed_over_without_asking(cache: Cache) -> None:
    kernel = make_kernel(cache)
    put(cache)
    with pytest.raises(FileNotFoundError):
        kernel.look_up(kernel.directory("0", "00"), str(NAME)[3:])
    assert handed_over(cache) == [str(NAME)]
    assert kernel.asked == []


def test_the_directory_of_errors_has_only_errors(cache: Cache) -> None:
    kernel = make_kernel(cache)
    with pytest.raises(OSError) as error:
        kernel.look_up(kernel.directory("e"), "00")
    assert error.value.errno == errno.EIO


@pytest.mark.parametrize("name", ["2", "-1", "", "01234567", "x", "..", "0x0", "\N{SUPERSCRIPT TWO}"])
def test_there_are_no_other_directories(cache: Cache, name: str) -> None:
    kernel = make_kernel(cache)
    with pytest.raises(FileNotFoundError):
        kernel.look_up(ROOT_INODE, name)


@pytest.mark.parametrize("name", ["0102", "x", "..", str(NAME)[3:] + "x", "\xff"])
def test_what_is_no_local_name_does_not_exist(cache: Cache, name: str) -> None:
    kernel = make_kernel(cache)
    with pytest.raises(FileNotFoundError):
        kernel.look_up(kernel.directory("0", "00"), name)
    for fan in ("0", "000", "0g", "AA"):
        with pytest.raises(FileNotFoundError):
            kernel.look_up(kernel.directory("0"), fan)
    assert kernel.asked == []


def show_large(kernel: Kernel, cache: Cache) -> int:
    keep_list(cache, LARGE.digest, format_chunk_list(CHUNKS))
    text = str(LARGE)
    assert kernel.look_up(kernel.directory("1", text[:2]), text[3:], unique=6) is PENDING
    assert kernel.asked[-1] == Question(Kind.PART, 6, 1, LARGE)
    kernel.filesystem.supplied(Result(6, 0))
    answer = kernel.heard[6]
    assert not isinstance(answer, OSError)
    return found(answer)


def fill(cache: Cache, number: int) -> None:
    with PartFile(cache, LARGE, CHUNKS) as part:
        fd = os.memfd_create("chunk")
        os.write(fd, CONTENT[CHUNKS[number].offset :][: CHUNKS[number].size])
        part.put(number, fd)
        os.close(fd)


def test_a_large_file_is_shown_and_read_as_its_chunks_come(cache: Cache) -> None:
    kernel = make_kernel(cache)
    node = show_large(kernel, cache)
    assert kernel.read(node, 5, 1, unique=8) is PENDING
    assert kernel.asked[-1] == Question(Kind.RANGE, 8, 1, LARGE, 5, 1)
    fill(cache, 1)
    kernel.filesystem.supplied(Result(8, 0))
    assert kernel.heard[8] == b"n"
    assert bytes(kernel.read(node, 4, 100)) == b"ent"  # type: ignore[arg-type]
    assert kernel.read(node, 0, 100, unique=10) is PENDING
    kernel.filesystem.supplied(Result(10, errno.EIO))
    outcome = kernel.heard[10]
    assert isinstance(outcome, OSError)
    assert outcome.errno == errno.EIO
    fill(cache, 0)
    assert bytes(kernel.read(node, 0, 100)) == CONTENT  # type: ignore[arg-type]


def test_a_successor_knows_the_large_files_that_the_kernel_knows(cache: Cache) -> None:
    first = make_kernel(cache)
    node = show_large(first, cache)
    kill(first)
    successor = make_kernel(cache)
    attributes, _ = fuse_abi.parse_attr_out(successor.send(Opcode.GETATTR, node))  # type: ignore[arg-type]
    assert attributes.size == LARGE.size
    assert successor.read(node, 0, 1) is PENDING
    assert successor.asked[-1] == Question(Kind.RANGE, 2, 1, LARGE, 0, 1)


@pytest.mark.parametrize("shows_all", [False, True])
def test_a_number_means_one_content_whatever_comes_and_goes(cache: Cache, shows_all: bool) -> None:
    """Parts leave the cache and come back, servers are killed: no number is given twice."""
    meant: dict[int, LocalName] = {}
    for round_number in range(8):
        kernel = make_kernel(cache, shows_all=shows_all)
        for number in range(4):
            chunks = [Chunk(0, 4, digest_of(b"%d/%d" % (round_number % 3, number), Algorithm.SHA1))]
            name = chunked_name(chunks, Compression.ZLIB)
            keep_list(cache, name.digest, format_chunk_list(chunks))
            answer = kernel.look_up(kernel.directory("0", str(name)[:2]), str(name)[3:], unique=20)
            if answer is PENDING:
                with PartFile(cache, name, chunks):
                    kernel.filesystem.supplied(Result(20, 0))
                answer = kernel.heard[20]  # type: ignore[assignment]
            assert meant.setdefault(found(answer), name) == name
            kernel.filesystem.forgotten(found(answer), number % 2)
            for path in (cache.root / "parts").iterdir():
                path.unlink()
        kill(kernel)


def test_a_journal_that_was_lost_does_not_give_its_numbers_to_others(cache: Cache) -> None:
    first = make_kernel(cache)
    node = show_large(first, cache)
    kill(first)
    for path in (cache.root / "shown").iterdir():
        path.unlink()
    kernel = make_kernel(cache)
    show_large(kernel, cache)
    with pytest.raises(OSError, match="not in the journal") as error:
        kernel.read(node, 0, 1)
    assert error.value.errno == errno.ESTALE


def test_a_file_once_shown_is_shown_for_as_long_as_the_kernel_knows_it(cache: Cache) -> None:
    """A union that lost it would fail with ESTALE."""
    kernel = make_kernel(cache)
    node = show_large(kernel, cache)
    fill(cache, 0)
    fill(cache, 1)
    assert os.path.exists(cache.path(LARGE))
    text = str(LARGE)
    assert found(kernel.look_up(kernel.directory("1", text[:2]), text[3:])) == node
    kernel.filesystem.forgotten(node, 2)
    with pytest.raises(FileNotFoundError):
        kernel.look_up(kernel.directory("1", text[:2]), text[3:])
    assert handed_over(cache) == [text]


def test_a_large_file_that_became_whole_while_it_was_asked_for_is_handed_over(cache: Cache) -> None:
    kernel = make_kernel(cache)
    keep_list(cache, LARGE.digest, format_chunk_list(CHUNKS))
    text = str(LARGE)
    assert kernel.look_up(kernel.directory("1", text[:2]), text[3:], unique=6) is PENDING
    put(cache, LARGE)
    kernel.filesystem.supplied(Result(6, 0))
    outcome = kernel.heard[6]
    assert isinstance(outcome, OSError)
    assert outcome.errno == errno.ENOENT
    assert handed_over(cache) == [text]


def test_what_the_kernel_did_not_take_is_not_known_to_it(cache: Cache) -> None:
    kernel = make_kernel(cache)
    keep_list(cache, LARGE.digest, format_chunk_list(CHUNKS))
    text = str(LARGE)
    assert kernel.look_up(kernel.directory("1", text[:2]), text[3:], unique=66) is PENDING
    kernel.filesystem.supplied(Result(66, 0))
    assert not kernel.shown.is_known(Shown(LARGE, 1))
    answer = kernel.look_up(kernel.directory("1", text[:2]), text[3:], unique=8)
    assert answer is PENDING
    kernel.filesystem.supplied(Result(8, 0))
    assert kernel.shown.is_known(Shown(LARGE, 1))
    kernel.filesystem.undelivered(Opcode.LOOKUP, kernel.heard[8])  # type: ignore[arg-type]
    assert not kernel.shown.is_known(Shown(LARGE, 1))


def test_chunks_that_have_left_again_are_an_error_and_not_zeros(cache: Cache) -> None:
    kernel = make_kernel(cache)
    node = show_large(kernel, cache)
    assert kernel.read(node, 5, 1, unique=8) is PENDING
    for _ in range(5):
        kernel.filesystem.supplied(Result(8, 0))
        assert 8 not in kernel.heard, "it is asked for again"
    kernel.filesystem.supplied(Result(8, 0))
    outcome = kernel.heard[8]
    assert isinstance(outcome, OSError)
    assert outcome.errno == errno.EIO


def test_a_part_that_was_removed_is_begun_again(cache: Cache) -> None:
    kernel = make_kernel(cache)
    node = show_large(kernel, cache)
    fill(cache, 0)
    assert bytes(kernel.read(node, 0, 4)) == b"cont"  # type: ignore[arg-type]
    for path in (cache.root / "parts").iterdir():
        path.unlink()
    assert kernel.read(node, 0, 4, unique=8) is PENDING
    fill(cache, 0)
    kernel.filesystem.supplied(Result(8, 0))
    assert kernel.heard[8] == b"cont"


def test_what_the_kernel_knows_is_in_use(cache: Cache) -> None:
    kernel = make_kernel(cache)
    node = show_large(kernel, cache)
    with ShownNames(cache.root) as names:
        assert names.names() == {LARGE}
        assert names.has(LARGE)
        kernel.filesystem.forgotten(node, 1)
        assert not names.has(LARGE)
        assert names.names() == set()


def test_a_number_that_nobody_gave_is_stale(cache: Cache) -> None:
    kernel = make_kernel(cache)
    for node in (1 << 61 | 12345, 1 << 62 | 1):
        with pytest.raises(OSError) as error:
            kernel.read(node, 0, 1)
        assert error.value.errno == errno.ESTALE


def test_as_an_ordinary_file_system_it_shows_everything_and_fetches_on_reading(cache: Cache) -> None:
    kernel = make_kernel(cache, shows_all=True)
    node = found(kernel.look_up(kernel.directory("any", "00"), str(NAME)[3:]))
    assert node == found(kernel.look_up(kernel.directory("any", "00"), str(NAME)[3:]))
    assert kernel.asked == []
    assert kernel.read(node, 3, 2, unique=12) is PENDING
    assert kernel.asked == [Question(Kind.OBJECT, 12, ANY_REPOSITORY, NAME, 3, 2)]
    put(cache)
    kernel.filesystem.supplied(Result(12, 0))
    assert kernel.heard[12] == b"te"
    assert kernel.read(node, 0, 100) == CONTENT


def test_an_answer_to_nothing_is_ignored(cache: Cache) -> None:
    kernel = make_kernel(cache)
    kernel.filesystem.supplied(Result(99, 0))
    assert kernel.heard == {}
