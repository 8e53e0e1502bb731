"""File data to objects: every byte is stored once, memory is bounded, and the first failure ends it."""

import io
import threading
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from tests.support.memorystore import InjectedError, MemoryStore
from tests.support.noise import noise
from tests.support.repositories import SMALL_CHUNKS

from mica.digest import Algorithm, Suffix
from mica.errors import UserError
from mica.publish import objectwriter
from mica.publish.objectwriter import Content, ObjectWriter
from mica.publish.rules import STANDARD_OBJECTS, ObjectRules
from mica.repo.cutting import FINE_RULE, ChunkRule
from mica.repo.entry import Flag, content_flags
from mica.repo.objects import Compression, pack, unpack
from mica.store.base import CountNew
from mica.store.local import LocalStore

RULES = ObjectRules(chunking=SMALL_CHUNKS)


@dataclass
class Owner:
    content: Content | None = None

    @property
    def stored(self) -> Content:
        assert self.content is not None
        return self.content


class Trickle(io.RawIOBase):
    """A stream that gives few bytes at a time, as a pipe may, and counts them."""

    def __init__(self, data: bytes, most: int = 1000) -> None:
        super().__init__()
        self._data = io.BytesIO(data)
        self._most = most
        self.taken = 0

    def read(self, size: int = -1, /) -> bytes:
        block = self._data.read(min(size, self._most))
        self.taken += len(block)
        return block


def content_of(store: MemoryStore, content: Content, rules: ObjectRules = RULES) -> bytes:
    objects = store.contents()
    if content.digest is not None:
        assert content.chunks == ()
        stored = objects[content.digest.object_path(Suffix.FILE)]
        return unpack(stored, content.digest, limit=1 << 30, compression=rules.compression)
    parts = []
    for chunk in content.chunks:
        stored = objects[chunk.digest.object_path(Suffix.CHUNK)]
        parts.append(unpack(stored, chunk.digest, limit=chunk.size, compression=rules.compression))
        assert len(parts[-1]) == chunk.size
    return b"".join(parts)


def stored(data: bytes, rules: ObjectRules = RULES, *, rule: ChunkRule | None = None) -> tuple[MemoryStore, Content]:
    store, owner = MemoryStore(), Owner()
    with ObjectWriter(store, rules, threads=2) as objects:
        objects.add(owner, Trickle(data), len(data), rule=rule)
        objects.finish()
    return store, owner.stored


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 16384, 100_000])
def test_content_comes_back_from_what_is_stored(algorithm: Algorithm, compression: Compression, size: int) -> None:
    rules = ObjectRules(algorithm, compression, SMALL_CHUNKS)
    data = noise(size)
    store, content = stored(data, rules)
    assert content_of(store, content, rules) == data
    assert content.flags == content_flags(algorithm, compression, chunked=bool(content.chunks))
    assert (content.digest is None) == bool(content.chunks)


@pytest.mark.parametrize(("size", "is_cut"), [(4096, False), (4097, None), (16384 + 1, True), (200_000, True)])
def test_large_files_alone_are_cut_by_the_rule(size: int, *, is_cut: bool | None) -> None:
    _, content = stored(noise(size))
    if is_cut is not None:
        assert bool(content.chunks) == is_cut
    if content.chunks:
        assert content.flags & Flag.CHUNKED
        assert content.chunks[0].offset == 0
        assert all(first.offset + first.size == second.offset for first, second in pairwise(content.chunks))
        assert all(SMALL_CHUNKS.minimum <= chunk.size <= SMALL_CHUNKS.maximum for chunk in content.chunks[:-1])
        assert sum(chunk.size for chunk in content.chunks) == size


def test_a_file_above_the_minimum_that_is_one_piece_is_one_object() -> None:
    """Bytes without a cut: as one chunk it would cost a row more and help nobody."""
    store, content = stored(bytes(10_000))
    assert content.digest == pack(bytes(10_000), Algorithm.SHA1, Compression.ZLIB).digest
    assert not content.chunks
    assert len(store.contents()) == 1


def test_another_rule_replaces_that_of_the_repository() -> None:
    data = noise(100_000)
    assert stored(data)[1].chunks
    whole = ChunkRule(1 << 20, 1 << 20, 1 << 20)
    assert not stored(data, rule=whole)[1].chunks
    assert stored(data, STANDARD_OBJECTS, rule=SMALL_CHUNKS)[1] == stored(data)[1]


def test_standard_rules_are_those_of_new_repositories() -> None:
    assert ObjectRules(Algorithm.SHA1, Compression.ZLIB, FINE_RULE) == STANDARD_OBJECTS


def test_content_does_not_depend_on_threads_or_order(tmp_path: Path) -> None:
    files = [noise(size) for size in (0, 10, 3000, 5000, 70_000, 20_000)] * 3
    results = []
    for threads in (1, 4):
        owners = [Owner() for _ in files]
        store = MemoryStore()
        with ObjectWriter(store, RULES, threads=threads, in_flight_bytes=threads) as objects:
            for owner, data in zip(owners, files, strict=True):
                objects.add(owner, io.BytesIO(data), len(data))
            objects.finish()
        results.append(([owner.stored for owner in owners], store.contents()))
    assert results[0] == results[1]


def test_equal_content_is_stored_and_counted_once(tmp_path: Path) -> None:
    data = noise(1000)
    packed = pack(data, Algorithm.SHA1, Compression.ZLIB)
    with LocalStore(tmp_path / "storage") as store:
        store.create()
        for turn, expected in enumerate([(1, len(packed.stored)), (0, 0)]):
            owners = [Owner() for _ in range(200)]
            with ObjectWriter(store, RULES, threads=2) as objects:
                for owner in owners:
                    objects.add_bytes(owner, data)
                objects.finish()
                assert (objects.new_objects, objects.stored_bytes) == expected, turn
            assert {owner.stored.digest for owner in owners} == {packed.digest}
        assert len(list(store.entries("data/"))) == 1


def test_chunks_and_whole_files_of_one_content_have_names_of_their_own() -> None:
    """A client asks for a chunk by another suffix."""
    data = noise(100_000)
    store, owner = MemoryStore(), Owner()
    with ObjectWriter(store, RULES, threads=1) as objects:
        objects.add(owner, io.BytesIO(data), len(data))
        objects.finish()
        chunk = owner.stored.chunks[0]
        objects.add_bytes(Owner(), data[: chunk.size])
        objects.finish()
    assert {chunk.digest.object_path(Suffix.CHUNK), chunk.digest.object_path(Suffix.FILE)} <= set(store.contents())


def test_finish_may_be_called_between_files_and_without_any() -> None:
    store = MemoryStore()
    with ObjectWriter(store, RULES) as objects:
        objects.finish()
        for data in (b"a", noise(50_000), b"b"):
            owner = Owner()
            objects.add(owner, io.BytesIO(data), len(data))
            objects.finish()
            assert content_of(store, owner.stored) == data


def test_no_owner_has_its_content_before_the_data_is_stored() -> None:
    class Watched(MemoryStore):
        def put(self, path: str, data: bytes, *, count_new: CountNew | None = None) -> None:
            assert all(owner.content is None for owner in owners[-3:])
            super().put(path, data, count_new=count_new)

    owners = [Owner() for _ in range(3)]
    store = Watched()
    with ObjectWriter(store, RULES, threads=1) as objects:
        for owner in owners:
            objects.add_bytes(owner, b"x")
        assert not store.contents(), "a batch is not full yet"
        objects.finish()
    assert all(owner.content is not None for owner in owners)


@pytest.mark.parametrize("late", [False, True])
def test_a_write_that_fails_ends_it_and_its_threads(*, late: bool) -> None:
    store = MemoryStore()
    store.fail_at(3, late=late)
    owners = [Owner() for _ in range(5)]
    with pytest.raises(InjectedError):
        add_and_finish(store, owners)
    assert not any(owner.content for owner in owners), "of a batch that failed nobody knows what is stored"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("objects")]


def add_and_finish(store: MemoryStore, owners: list[Owner]) -> None:
    with ObjectWriter(store, RULES, threads=2) as objects:
        for number, owner in enumerate(owners):
            objects.add_bytes(owner, b"%d" % number)
        objects.finish()


def test_a_failure_is_raised_while_files_are_added() -> None:
    """A full disk ends a layer of many gigabytes early."""
    store = MemoryStore()
    stream = Trickle(noise(4 << 20), most=1 << 16)
    with store.full(), ObjectWriter(store, RULES, threads=1, in_flight_bytes=1) as objects:
        with pytest.raises(UserError, match="No space left"):
            objects.add(Owner(), stream, 4 << 20)
        assert stream.taken < 4 << 20


def test_data_in_flight_is_bounded() -> None:
    """While the store takes nothing, the stream is not read on."""
    released, read_too_far = threading.Event(), threading.Event()
    limit, size = 2 << 20, 16 << 20

    class Slow(MemoryStore):
        def put(self, path: str, data: bytes, *, count_new: CountNew | None = None) -> None:
            if not released.is_set():
                read_too_far.wait(0.3)
                released.set()
            super().put(path, data, count_new=count_new)

    class Watched(Trickle):
        def read(self, size: int = -1, /) -> bytes:
            if self.taken > limit + (2 << 20) and not released.is_set():
                read_too_far.set()
            return super().read(size)

    data = noise(1 << 20) * 16
    store, owner = Slow(), Owner()
    with ObjectWriter(store, RULES, threads=1, in_flight_bytes=limit) as objects:
        objects.add(owner, Watched(data, most=1 << 16), size)
        objects.finish()
    assert not read_too_far.is_set()
    assert content_of(store, owner.stored) == data


def test_many_small_files_travel_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()

    class Watched(MemoryStore):
        def put(self, path: str, data: bytes, *, count_new: CountNew | None = None) -> None:
            threads.add(threading.current_thread().name)
            super().put(path, data, count_new=count_new)

    store = Watched()
    with ObjectWriter(store, RULES, threads=1) as objects:
        for number in range(64):
            assert not threads, f"{number} files are not a batch"
            objects.add_bytes(Owner(), b"%d" % number)
        objects.finish()
    assert len(threads) == 1
    assert threading.current_thread().name not in threads


@pytest.mark.parametrize(("limit", "is_refused"), [(4, True), (5, False)])
def test_a_file_of_too_many_chunks_is_refused(monkeypatch: pytest.MonkeyPatch, limit: int, *, is_refused: bool) -> None:
    """Clients refuse it, so nobody could read it."""
    monkeypatch.setattr(objectwriter, "CHUNKS_MAX", limit)
    fixed = ObjectRules(chunking=ChunkRule(4096, 4096, 4096))
    with ObjectWriter(MemoryStore(), fixed) as objects:
        if is_refused:
            with pytest.raises(UserError, match=r"more than 4 chunks.*") as refusal:
                objects.add(Owner(), io.BytesIO(bytes(5 * 4096)), 5 * 4096)
            assert "--chunk-sizes" in refusal.value.hint
        else:
            objects.add(Owner(), io.BytesIO(bytes(5 * 4096)), 5 * 4096)
            objects.finish()


def test_an_error_in_the_block_drops_what_was_not_stored() -> None:
    store, owner = MemoryStore(), Owner()
    with pytest.raises(KeyError):
        add_and_raise(store, owner)
    assert owner.content is None
    assert not store.contents()


def add_and_raise(store: MemoryStore, owner: Owner) -> None:
    with ObjectWriter(store, RULES, threads=1) as objects:
        objects.add_bytes(owner, b"x")
        raise KeyError
