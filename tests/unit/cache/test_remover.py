"""Removing items for real: what is open stays, what was touched meanwhile stays, a part goes with its map."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.caches import let_age, put
from tests.support.disks import disk_path, memory_path

from mica import linux
from mica.cache.cache import Cache
from mica.cache.eviction import Taken, Use
from mica.cache.inventory import Item, Kind, take_inventory
from mica.cache.removedfiles import RemovedFiles
from mica.cache.remover import Rehearsal, Remover
from mica.cache.shown import ShownNames

__all__ = ["disk_path", "memory_path"]


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as cache:
        yield cache


@pytest.fixture
def remover(cache: Cache) -> Remover:
    return Remover(cache.root, ShownNames(cache.root), RemovedFiles(cache.root))


def the_item(cache: Cache) -> Item:
    (item,) = take_inventory(cache.root).items
    return item


def exists(cache: Cache, item: Item) -> bool:
    return (cache.root / item.name).exists()


def test_what_nobody_uses_goes(cache: Cache, remover: Remover) -> None:
    put(cache, b"x")
    item = the_item(cache)
    assert Rehearsal(cache.root, ShownNames(cache.root)).take(item) is Taken.FREED
    assert exists(cache, item)
    assert remover.take(item) is Taken.FREED
    assert not exists(cache, item)
    assert remover.take(item) is Taken.GONE


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_what_is_open_stays(cache: Cache, remover: Remover, flags: int) -> None:
    name = put(cache, b"x")
    item = the_item(cache)
    fd = os.open(cache.path(name), flags)
    assert Rehearsal(cache.root, ShownNames(cache.root)).take(item) is Taken.IN_USE
    assert remover.look(item) is Use.IN_USE
    assert remover.take(item) is Taken.IN_USE
    os.close(fd)
    assert remover.take(item) is Taken.FREED


def test_what_was_asked_for_since_the_inventory_stays(cache: Cache, remover: Remover) -> None:
    name = put(cache, b"x")
    item = the_item(cache)
    (cache.root / "handover/ab").mkdir()
    os.link(cache.path(name), cache.root / "handover/ab/x")
    assert remover.take(item) is Taken.IN_USE
    assert exists(cache, item)


def test_another_file_under_the_name_stays(cache: Cache, remover: Remover) -> None:
    name = put(cache, b"x")
    item = the_item(cache)
    os.link(cache.path(name), cache.root / "txn/kept")  # so that the inode's number is not given again
    os.unlink(cache.path(name))
    put(cache, b"x")
    assert remover.take(item) is Taken.GONE
    assert exists(cache, item)


def test_all_names_go(cache: Cache, remover: Remover) -> None:
    for name in ("parts/a.map", "parts/a"):
        (cache.root / name).write_bytes(b"\1")
    assert remover.take(the_item(cache)) is Taken.FREED
    assert list((cache.root / "parts").iterdir()) == []


@pytest.fixture
def cache_on_disk(disk_path: Path) -> Iterator[Cache]:
    with Cache(disk_path / "cache-on-disk") as cache:
        yield cache


@pytest.fixture
def cache_in_memory(memory_path: Path) -> Iterator[Cache]:
    with Cache(memory_path / "cache-in-memory") as cache:
        yield cache


def test_pages_in_memory_make_it_warm_until_it_is_spared(cache_on_disk: Cache) -> None:
    cache = cache_on_disk
    remover = Remover(cache.root, ShownNames(cache.root), RemovedFiles(cache.root))
    name = put(cache, b"x" * 9000, age_s=500)
    assert remover.look(the_item(cache)) is Use.COLD
    with open(cache.path(name), "rb") as file:
        file.read()
    before = the_item(cache)
    assert remover.look(before) is Use.WARM
    remover.spare(before, is_open=False)
    after = the_item(cache)
    assert remover.look(after) is Use.COLD
    assert after.used - before.used > 400 * 10**9
    with open(cache.path(name), "rb") as file:
        file.read()
        remover.spare(after, is_open=True)
        assert linux.resident_pages(file.fileno()) == 3


def test_on_a_tmpfs_pages_in_memory_tell_nothing(cache_in_memory: Cache) -> None:
    cache = cache_in_memory
    remover = Remover(cache.root, ShownNames(cache.root), RemovedFiles(cache.root))
    name = put(cache, b"x" * 9000, age_s=500)
    with open(cache.path(name), "rb") as file:
        file.read()
        assert linux.resident_pages(file.fileno()) == 3
    before = the_item(cache)
    assert remover.look(before) is Use.COLD
    assert remover.take(before) is Taken.FREED


def test_a_temporary_file_is_never_warm(cache: Cache, remover: Remover) -> None:
    (cache.root / "lists/.x.1.tmp").write_bytes(b"x")
    assert remover.look(the_item(cache)) is Use.COLD


@pytest.mark.parametrize(
    ("kind", "name", "taken"),
    [
        (Kind.OBJECT, "objects/x", Taken.FREED), (Kind.PART, "parts/x", Taken.IN_USE),
        (Kind.IMAGE, "images/x", Taken.IN_USE), (Kind.LIST, "lists/x", Taken.FREED),
    ],
)  # fmt: skip
def test_where_nobody_can_tell_what_is_open(
    cache: Cache, remover: Remover, monkeypatch: pytest.MonkeyPatch, kind: Kind, name: str, taken: Taken
) -> None:
    """As on a file system without leases: content can always be fetched again, but parts and images are relied upon."""

    def refuse(_fd: int) -> bool:
        raise OSError(22, "F_SETLEASE: Invalid argument")

    monkeypatch.setattr(linux, "is_open_elsewhere", refuse)
    (cache.root / name).write_bytes(b"x")
    let_age(cache.root / name, 0)
    status = (cache.root / name).stat()
    assert remover.take(Item(kind, (name,), status.st_ino, 4096, status.st_mtime_ns, status.st_ctime_ns)) is taken
