"""What every object store promises (store/base.py), also when its place fails. A store's test module subclasses this
and provides `store`, `faults`, and `aged`, which makes an object look older by a number of seconds."""

import contextlib
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Protocol

import pytest

from mica.errors import IntegrityError, LostRaceError, NotFoundError, UserError
from mica.store.base import REFRESH_AFTER_S, ObjectStore, read_limited, read_pointer

POINTER = ".cvmfspublished"
OBJECT = "data/ab/cdef0123456789cdef0123456789cdef012345"
OTHER = "data/cd/ef0123456789cdef0123456789cdef01234567"
NO_PLACE = "elsewhere/cdef0123456789"


class StoreFaults(Protocol):
    """What can happen to the place of a store, for the time of a block."""

    def gone(self) -> AbstractContextManager[None]:
        """Nothing is where the store was."""
        ...

    def full(self) -> AbstractContextManager[None]:
        """There is room for the first half of a write."""
        ...

    def read_only(self) -> AbstractContextManager[None]: ...


CALLS: dict[str, Callable[[ObjectStore], object]] = {
    "open an object": lambda store: read_limited(store, OBJECT, 100),
    "open a pointer": lambda store: read_limited(store, POINTER, 100, fresh=True),
    "open what was never there": lambda store: read_limited(store, OTHER, 100),
    "has": lambda store: store.has(OBJECT),
    "put": lambda store: put(store, OTHER, b"new object"),
    "replace": lambda store: store.replace(POINTER, b"new pointer"),
    "put a file": lambda store: put_this_file(store, OTHER),
    "replace the same": lambda store: store.replace(POINTER, b"new pointer", expected=b"old pointer"),
    "refresh": lambda store: store.refresh(OBJECT),
    "delete": lambda store: store.delete(OBJECT),
    "delete many": lambda store: store.delete_many([OBJECT]),
    "delete old ones": lambda store: store.delete_many([OBJECT], unless_changed_since=store.clock() + 9),
    "entries": lambda store: paths(store, "data/"),
    "check": lambda store: store.check_there(),
    "clock": lambda store: store.clock(),
    "sync": lambda store: store.sync(),
}
WRITES = {name: CALLS[name] for name in ("put", "put a file", "replace", "replace the same")}
CHANGES = {name: CALLS[name] for name in (*WRITES, "refresh", "delete", "delete many", "delete old ones")}


def paths(store: ObjectStore, prefix: str) -> list[str]:
    return sorted(entry.path for entry in store.entries(prefix))


def put(store: ObjectStore, path: str, content: bytes) -> bool:
    """Whether it is new."""
    counted: list[int] = []
    store.put(path, content, count_new=counted.append)
    store.sync()
    assert counted in ([], [len(content)])
    return bool(counted)


def put_file(store: ObjectStore, path: str, content: bytes) -> bool:
    """By way of a file that is gone when it was put."""
    counted: list[int] = []
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        store.put_file(path, Path(file.name), count_new=counted.append)
    store.sync()
    assert counted in ([], [len(content)])
    return bool(counted)


def put_this_file(store: ObjectStore, path: str) -> None:
    store.put_file(path, Path(__file__))
    store.sync()


def each(calls: dict[str, Callable[[ObjectStore], object]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("call", calls.values(), ids=calls)


def fill(store: ObjectStore) -> None:
    assert put(store, OBJECT, b"old object")
    store.replace(POINTER, b"old pointer")


def assert_nothing_changed(store: ObjectStore) -> None:
    """Since `fill`."""
    assert read_limited(store, OBJECT, 100) == b"old object"
    assert read_limited(store, POINTER, 100, fresh=True) == b"old pointer"
    assert paths(store, "data/") == [OBJECT]


class ObjectStoreContract:
    """`store` refreshes objects that are older than REFRESH_AFTER_S."""

    sizes: ClassVar = [0, 1, 4096, 3_000_000, 20_000_000]
    many: ClassVar = 100
    """More than the store deletes by one request."""

    @pytest.mark.parametrize("size", sizes)
    @pytest.mark.parametrize("way", [put, put_file], ids=["bytes", "file"])
    def test_objects_come_back(
        self, store: ObjectStore, size: int, way: Callable[[ObjectStore, str, bytes], bool]
    ) -> None:
        content = (bytes(range(256)) * (size // 256 + 1))[:size]
        assert way(store, OBJECT, content)
        assert not way(store, OBJECT, content)
        assert read_limited(store, OBJECT, size) == content

    def test_an_object_is_put_once(self, store: ObjectStore) -> None:
        assert put(store, OBJECT, b"first")
        assert not put(store, OBJECT, b"other")
        assert not put_file(store, OBJECT, b"another")
        assert read_limited(store, OBJECT, 100) == b"first"

    def test_what_was_put_is_read_at_once(self, store: ObjectStore) -> None:
        for number in range(50):
            path = f"data/00/{number:038x}"
            store.put(path, b"%d" % number)
            assert read_limited(store, path, 100) == b"%d" % number
            assert store.has(path)

    def test_suffixes_make_other_objects(self, store: ObjectStore) -> None:
        assert put(store, OBJECT, b"file")
        assert put(store, OBJECT + "C", b"catalog")
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

    def test_a_ready_place_can_be_made_ready_again(self, store: ObjectStore) -> None:
        fill(store)
        store.create()
        store.check_there()
        store.clear_unfinished()
        assert_nothing_changed(store)

    # Pointers

    def test_pointers_are_replaced(self, store: ObjectStore) -> None:
        for content in (b"one", b"", b"three" * 1000):
            store.replace(POINTER, content)
            assert read_limited(store, POINTER, 5000, fresh=True) == content

    def test_a_reader_keeps_what_it_opened(self, store: ObjectStore) -> None:
        store.replace(POINTER, b"old content")
        with store.open(POINTER) as stream:
            store.replace(POINTER, b"new")
            assert stream.read(100) == b"old content"

    def test_a_pointer_is_replaced_if_it_is_what_was_read(self, store: ObjectStore) -> None:
        assert read_pointer(store, POINTER, 100) is None
        for content in (b"one", b"two", b""):
            store.replace(POINTER, content, expected=read_pointer(store, POINTER, 100))
            assert read_pointer(store, POINTER, 100) == content

    @pytest.mark.parametrize("expected", [None, b"", b"one", b"tw", b"two "])
    def test_a_pointer_that_is_another_stays(self, store: ObjectStore, expected: bytes | None) -> None:
        store.replace(POINTER, b"one")
        store.replace(POINTER, b"two")
        with pytest.raises(LostRaceError) as caught:
            store.replace(POINTER, b"three", expected=expected)
        assert POINTER in str(caught.value)
        assert store.where in str(caught.value)
        assert caught.value.exit_code == 4
        assert read_pointer(store, POINTER, 100) == b"two"

    def test_a_pointer_that_is_gone_is_another(self, store: ObjectStore) -> None:
        store.replace(POINTER, b"one")
        store.delete(POINTER)
        with pytest.raises(LostRaceError):
            store.replace(POINTER, b"two", expected=b"one")
        assert read_pointer(store, POINTER, 100) is None

    @pytest.mark.parametrize("first", [None, b"first"], ids=["new", "old"])
    def test_of_many_who_expect_the_same_one_wins(self, store: ObjectStore, first: bytes | None) -> None:
        if first is not None:
            store.replace(POINTER, first)

        def replaced(number: int) -> bool:
            try:
                store.replace(POINTER, b"%d" % number, expected=first)
            except LostRaceError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(replaced, range(16)))
        assert results.count(True) == 1
        assert read_pointer(store, POINTER, 100) == b"%d" % results.index(True)

    def test_no_replacement_gets_lost(self, store: ObjectStore) -> None:
        """Each of several threads adds its lines, as often as it takes."""
        store.replace(POINTER, b"")

        def add(line: bytes) -> None:
            while True:
                content = read_pointer(store, POINTER, 1 << 16)
                assert content is not None
                with contextlib.suppress(LostRaceError):
                    store.replace(POINTER, content + line, expected=content)
                    return

        lines = [b"%d\n" % number for number in range(40)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add, lines))
        content = read_pointer(store, POINTER, 1 << 16)
        assert content is not None
        assert sorted(content.splitlines(keepends=True)) == sorted(lines)

    # Deleting and times

    def test_deleting(self, store: ObjectStore) -> None:
        put(store, OBJECT, b"x")
        store.delete(OBJECT)
        store.delete(OBJECT)
        assert not store.has(OBJECT)
        assert put(store, OBJECT, b"again")

    def test_deleting_many(self, store: ObjectStore) -> None:
        names = [f"data/{number % 256:02x}/{number:038x}" for number in range(self.many)]
        for name in names:
            store.put(name, b"x")
        store.sync()
        assert store.delete_many(iter([OBJECT, *names[1:]])) == self.many - 1
        assert paths(store, "data/") == names[:1]

    def test_what_changed_since_a_time_stays(self, store: ObjectStore) -> None:
        put(store, OBJECT, b"x")
        (entry,) = store.entries("data/")
        assert store.delete_many([OBJECT, OTHER], unless_changed_since=entry.changed_at) == 0
        assert store.has(OBJECT)
        assert read_limited(store, OBJECT, 100) == b"x"
        assert store.delete_many([OBJECT, OTHER], unless_changed_since=entry.changed_at + 1) == 1
        assert not store.has(OBJECT)
        assert list(store.entries("data/")) == []

    def test_a_listing_tells_times_of_the_clock(self, store: ObjectStore) -> None:
        before = store.clock()
        put(store, OBJECT, b"x")
        (entry,) = store.entries("data/")
        # S3 has whole seconds.
        assert int(before) <= entry.changed_at <= store.clock() + 1

    def test_an_old_object_that_is_put_again_is_young(
        self, store: ObjectStore, aged: Callable[[str, float], None]
    ) -> None:
        for path, age_s in ((OBJECT, REFRESH_AFTER_S * 2), (OTHER, REFRESH_AFTER_S / 2)):
            put(store, path, b"x")
            aged(path, age_s)
        before = {entry.path: entry.changed_at for entry in store.entries("data/")}
        for way in (put, put_file):
            assert not way(store, OBJECT, b"x")
            assert not way(store, OTHER, b"x")
        after = {entry.path: entry.changed_at for entry in store.entries("data/")}
        assert after[OBJECT] > before[OBJECT]
        assert after[OTHER] == before[OTHER]
        assert read_limited(store, OBJECT, 100) == b"x"

    def test_refreshing(self, store: ObjectStore, aged: Callable[[str, float], None]) -> None:
        assert not store.refresh(OBJECT)
        assert not store.has(OBJECT)
        put(store, OBJECT, b"content")
        aged(OBJECT, 2.0)
        (before,) = store.entries("data/")
        assert store.refresh(OBJECT)
        (after,) = store.entries("data/")
        assert after.changed_at > before.changed_at
        assert read_limited(store, OBJECT, 100) == b"content"

    # Listing

    def test_listing(self, store: ObjectStore) -> None:
        names = {f"data/{number:02x}/{'0' * 38}" for number in range(0, 256, 17)}
        for name in names:
            put(store, name, b"xy")
        store.replace(POINTER, b"x")
        assert paths(store, "data/") == sorted(names)
        assert paths(store, "data/11/") == [f"data/11/{'0' * 38}"]
        assert paths(store, "") == sorted({*names, POINTER})
        assert {entry.path: entry.size_bytes for entry in store.entries("")} == dict.fromkeys(names, 2) | {POINTER: 1}

    def test_listing_nothing(self, store: ObjectStore) -> None:
        put(store, OBJECT, b"x")
        assert paths(store, "data/00/") == []
        assert paths(store, "elsewhere/") == []
        store.delete(OBJECT)
        assert paths(store, "data/") == []

    def test_limits(self, store: ObjectStore) -> None:
        store.put(OBJECT, b"12345")
        assert read_limited(store, OBJECT, 5) == b"12345"
        with pytest.raises(IntegrityError, match=f"{OBJECT} from .* has more than the 4 bytes"):
            read_limited(store, OBJECT, 4)

    # Many threads

    def test_many_threads_put_the_same(self, store: ObjectStore) -> None:
        counted: list[int] = []

        def put_one(number: int) -> None:
            store.put(f"data/00/{number % 10}", b"x" * 5000, count_new=counted.append)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put_one, range(200)))
        store.sync()
        assert counted == [5000] * 10
        assert len(paths(store, "data/")) == 10

    def test_of_threads_that_put_different_bytes_one_wins(self, store: ObjectStore) -> None:
        contents = [b"%02d" % number * (5000 + number) for number in range(32)]
        counted: list[int] = []
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda content: store.put(OBJECT, content, count_new=counted.append), contents))
        store.sync()
        (size,) = counted
        assert read_limited(store, OBJECT, 20_000) == contents[size // 2 - 5000]

    def test_an_object_that_is_open_can_be_deleted(self, store: ObjectStore) -> None:
        put(store, OBJECT, b"content")
        with store.open(OBJECT) as stream:
            store.delete(OBJECT)
            put(store, OBJECT, b"other")
            assert stream.read(100) == b"content"

    def test_readers_of_a_pointer_see_one_content_or_another(self, store: ObjectStore) -> None:
        contents = {letter * size for letter, size in ((b"a", 70_000), (b"b", 3), (b"c", 130_000))}
        store.replace(POINTER, b"b" * 3)

        def replace(_: int) -> None:
            for content in contents:
                store.replace(POINTER, content)

        with ThreadPoolExecutor(4) as pool:
            writers = [pool.submit(replace, number) for number in range(40)]
            seen = {read_limited(store, POINTER, 1 << 20, fresh=True) for _ in range(400)}
            for writer in writers:
                writer.result()
        assert seen <= contents

    # Errors

    def test_a_missing_pointer_is_not_found(self, store: ObjectStore) -> None:
        with pytest.raises(NotFoundError, match=POINTER), store.open(POINTER, fresh=True):
            pass

    def test_a_name_without_a_place_cannot_be_written(self, store: ObjectStore) -> None:
        for write in (put, put_file, lambda store, path, data: store.replace(path, data)):
            with pytest.raises(UserError) as caught:
                write(store, NO_PLACE, b"x")
            assert not isinstance(caught.value, NotFoundError)
            assert NO_PLACE in str(caught.value)
            assert store.where in str(caught.value)
        assert not store.has(NO_PLACE)
        with pytest.raises(NotFoundError), store.open(NO_PLACE):
            pass

    @each(CALLS)
    def test_a_store_that_is_gone_is_no_missing_path(
        self, store: ObjectStore, faults: StoreFaults, call: Callable[[ObjectStore], object]
    ) -> None:
        fill(store)
        with faults.gone(), pytest.raises(UserError) as caught:
            call(store)
        assert not isinstance(caught.value, NotFoundError)
        assert store.where in str(caught.value)
        assert_nothing_changed(store)

    @each(WRITES)
    def test_a_full_place_keeps_what_it_has(
        self, store: ObjectStore, faults: StoreFaults, call: Callable[[ObjectStore], object]
    ) -> None:
        fill(store)
        with faults.full():
            with pytest.raises(UserError, match="No space left") as caught:
                call(store)
            assert_nothing_changed(store)
            assert not store.has(OTHER)
        assert store.where in str(caught.value)
        assert "nothing was published" in caught.value.hint
        # What failed left nothing that is in the way of another attempt.
        call(store)
        assert store.has(OTHER) or read_limited(store, POINTER, 100) == b"new pointer"

    def test_a_full_place_can_be_emptied(self, store: ObjectStore, faults: StoreFaults) -> None:
        fill(store)
        with faults.full():
            store.delete(OBJECT)
            assert not store.has(OBJECT)

    @each(CHANGES)
    def test_a_place_for_reading_only_keeps_what_it_has(
        self, store: ObjectStore, faults: StoreFaults, call: Callable[[ObjectStore], object]
    ) -> None:
        fill(store)
        with faults.read_only():
            with pytest.raises(UserError, match="Read-only") as caught:
                call(store)
            assert_nothing_changed(store)
        assert store.where in str(caught.value)
        assert_nothing_changed(store)
