"""The interface by its simplest implementation: the store in memory that other tests publish into."""

import contextlib
import io
from collections.abc import Callable, Iterator

import pytest
from tests.contracts.object_store import OBJECT, OTHER, POINTER, ObjectStoreContract
from tests.support.memorystore import InjectedError, MemoryStore

from mica.errors import IntegrityError
from mica.store.base import read_limited
from mica.streams import Readable


class TestInMemory(ObjectStoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()

    @pytest.fixture
    def faults(self, store: MemoryStore) -> MemoryStore:
        return store

    @pytest.fixture
    def aged(self, store: MemoryStore) -> Callable[[str, float], None]:
        return store.age


class Dripping:
    """A source whose streams give a byte at a time."""

    where = "a tap"

    @contextlib.contextmanager
    def open(self, path: str, *, fresh: bool = False) -> Iterator[Readable]:
        yield ByteByByte(path.encode())


class ByteByByte(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(1 if size else 0)


def test_what_comes_in_pieces_is_read_whole_and_no_further() -> None:
    assert read_limited(Dripping(), "abcdef", 6) == b"abcdef"
    with pytest.raises(IntegrityError, match="abcdef from a tap has more than the 5 bytes"):
        read_limited(Dripping(), "abcdef", 5)


def test_a_write_fails_before_or_after_it_took_place() -> None:
    store = MemoryStore()
    store.fail_at(2)
    store.put(OBJECT, b"x")
    with pytest.raises(InjectedError):
        store.put(OTHER, b"x")
    assert set(store.contents()) == {OBJECT}
    store.fail_at(1, late=True)
    with pytest.raises(InjectedError):
        store.put(OTHER, b"x")
    assert set(store.contents()) == {OBJECT, OTHER}
    counted: list[int] = []
    store.put(OTHER, b"x", count_new=counted.append)
    assert counted == []


def test_objects_last_once_they_are_flushed_and_pointers_at_once() -> None:
    store = MemoryStore()
    store.put(OBJECT, b"x")
    store.sync()
    store.put(OTHER, b"x")
    store.replace(POINTER, b"x")
    assert set(store.contents()) == {OBJECT, OTHER, POINTER}
    assert set(store.after_power_failure().contents()) == {OBJECT, POINTER}
