"""What every object store promises (store/base.py). A store's test module subclasses this and provides `store`."""

from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from mica.errors import IntegrityError, NotFoundError
from mica.store.base import ObjectStore, read_limited

POINTER = ".cvmfspublished"
OBJECT = "data/ab/cdef0123456789cdef0123456789cdef012345"


class ObjectStoreContract:
    sizes: ClassVar = [0, 1, 4096, 3_000_000]

    @pytest.mark.parametrize("size", sizes)
    def test_objects_come_back(self, store: ObjectStore, size: int) -> None:
        content = bytes(range(256)) * (size // 256 + 1)
        assert store.put(OBJECT, content[:size])
        assert read_limited(store, OBJECT, size) == content[:size]

    def test_an_object_is_put_once(self, store: ObjectStore) -> None:
        assert store.put(OBJECT, b"first")
        assert not store.put(OBJECT, b"other")
        assert read_limited(store, OBJECT, 100) == b"first"

    def test_suffixes_make_other_objects(self, store: ObjectStore) -> None:
        assert store.put(OBJECT, b"file")
        assert store.put(OBJECT + "C", b"catalog")
        assert read_limited(store, OBJECT, 100) == b"file"

    def test_presence(self, store: ObjectStore) -> None:
        assert not store.has(OBJECT)
        store.put(OBJECT, b"")
        assert store.has(OBJECT)

    def test_what_is_not_there_is_not_found(self, store: ObjectStore) -> None:
        with pytest.raises(NotFoundError) as caught, store.open(OBJECT):
            pass
        assert OBJECT in str(caught.value)
        assert store.where in str(caught.value)

    def test_pointers_are_replaced(self, store: ObjectStore) -> None:
        for content in (b"one", b"", b"three" * 1000):
            store.replace(POINTER, content)
            assert read_limited(store, POINTER, 5000, fresh=True) == content

    def test_a_reader_keeps_what_it_opened(self, store: ObjectStore) -> None:
        store.replace(POINTER, b"old content")
        with store.open(POINTER) as stream:
            store.replace(POINTER, b"new")
            assert stream.read(100) == b"old content"

    def test_deleting(self, store: ObjectStore) -> None:
        store.put(OBJECT, b"x")
        store.delete(OBJECT)
        store.delete(OBJECT)
        assert not store.has(OBJECT)
        assert store.put(OBJECT, b"again")

    def test_listing(self, store: ObjectStore) -> None:
        names = {f"data/{number:02x}/{'0' * 38}" for number in range(0, 256, 17)}
        for name in names:
            store.put(name, b"x")
        store.replace(POINTER, b"x")
        assert set(store.paths("data/")) == names
        assert set(store.paths("data/11/")) == {f"data/11/{'0' * 38}"}

    def test_limits(self, store: ObjectStore) -> None:
        store.put(OBJECT, b"12345")
        assert read_limited(store, OBJECT, 5) == b"12345"
        with pytest.raises(IntegrityError, match=f"{OBJECT} from .* has more than the 4 bytes"):
            read_limited(store, OBJECT, 4)

    def test_many_threads_put_the_same(self, store: ObjectStore) -> None:
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda number: store.put(f"data/00/{number % 10}", b"x" * 5000), range(200)))
        assert results.count(True) == 10
        assert len(list(store.paths("data/"))) == 10

    def test_sync_returns(self, store: ObjectStore) -> None:
        store.put(OBJECT, b"x")
        store.sync()
        assert store.has(OBJECT)
