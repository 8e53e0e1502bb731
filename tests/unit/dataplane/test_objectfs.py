"""The object filesystem by its requests, without a kernel and without a service."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mica.digest import Algorithm, Digest, digest_of
from mica.fetch.cache import Cache
from mica.fetch.parts import PartFile, keep_list, open_part
from mica.mount import fuse_abi
from mica.mount.fuse_abi import Buffer, Opcode, ReadIn
from mica.mount.fuse_dispatch import PENDING, Pending, Request
from mica.mount.tree import ROOT_INODE
from mica.node.counts import SharedCounts
from mica.node.messages import ANY_REPOSITORY, Kind, Question, Result
from mica.node.objectfs import ObjectFileSystem
from mica.repo.entry import Chunk
from mica.repo.localname import LocalName, chunked_name, format_chunk_list
from mica.repo.objects import Compression

NAME = LocalName(Digest(bytes(range(20)), Algorithm.SHA1), Compression.ZLIB, 7)
CONTENT = b"content"
CHUNKS = [Chunk(0, 4, digest_of(b"cont", Algorithm.SHA1)), Chunk(4, 3, digest_of(b"ent", Algorithm.SHA1))]
LARGE = chunked_name(CHUNKS, Compression.ZLIB)


class Kernel(NamedTuple):
    """Sends requests, and hears answers that were put off."""

    filesystem: ObjectFileSystem
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
    asked: list[Question] = []
    heard: dict[int, Buffer | OSError] = {}

    class Supplier:
        def ask(self, question: Question) -> None:
            asked.append(question)

    counts = SharedCounts(cache.root / "counts")
    filesystem = ObjectFileSystem(cache, 2, Supplier(), counts, shows_all=shows_all)
    filesystem.complete = heard.__setitem__
    return Kernel(filesystem, asked, heard)


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
    with open_part(cache, LARGE) as part:
        kernel.filesystem.supplied(Result(6, 0, part.inode))
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
    node = show_large(make_kernel(cache), cache)
    successor = make_kernel(cache)
    attributes, _ = fuse_abi.parse_attr_out(successor.send(Opcode.GETATTR, node))  # type: ignore[arg-type]
    assert attributes.size == LARGE.size
    assert successor.read(node, 0, 1) is PENDING
    assert successor.asked[-1].repository == ANY_REPOSITORY


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
