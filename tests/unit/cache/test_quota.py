"""The hard limit: reserved before, kept after, made room for, refused in one sentence."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.caches import NOTHING_FRESH, disk_usage, let_age, put

from mica.digest import Algorithm, Digest
from mica.errors import UserError
from mica.fetch.cache import Cache, set_limits
from mica.fetch.eviction import Taken
from mica.fetch.inventory import Kind, take_inventory
from mica.fetch.ledger import Account, Limits
from mica.repo.objects import Compression

KIB = 1 << 10
LIMIT = 400 * KIB


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache", fresh_s=NOTHING_FRESH) as cache:
        cache.quota.set_limits(Limits(LIMIT))
        yield cache


def fill(cache: Cache, number: int, *, size: int = 40 * KIB) -> list[Path]:
    """Files, the first the oldest."""
    return [Path(cache.path(put(cache, b"%06d" % n + bytes(size - 6), age_s=1000 - n))) for n in range(number)]


def test_without_limits_nothing_is_accounted_for(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        put(cache, b"x" * 10_000)
        assert cache.quota.account() == Account(0, 0, is_counted=False)


def test_what_is_kept_counts_and_the_rest_is_given_back(cache: Cache) -> None:
    with cache.quota.reserving(100 * KIB) as room:
        assert cache.quota.account() == Account(0, 100 * KIB, is_counted=True)
        room.keep(40 * KIB)
        assert cache.quota.account() == Account(40 * KIB, 60 * KIB, is_counted=True)
    assert cache.quota.account() == Account(40 * KIB, 0, is_counted=True)


def test_a_reservation_grows(cache: Cache) -> None:
    with cache.quota.reserving(0) as room:
        room.cover(5)
        room.cover(4 * KIB)
        assert cache.quota.account().promised == 4 * KIB
        room.cover(4 * KIB + 1)
        assert cache.quota.account().promised == 8 * KIB


def test_a_failure_gives_everything_back(cache: Cache) -> None:
    with pytest.raises(ZeroDivisionError), cache.quota.reserving(100 * KIB):
        raise ZeroDivisionError
    assert cache.quota.account().promised == 0


def test_what_comes_in_is_accounted_for_as_it_is_on_disk(cache: Cache) -> None:
    for size in (0, 1, 4 * KIB, 4 * KIB + 1, 50 * KIB):
        put(cache, os.urandom(size))
    assert cache.quota.account() == Account(disk_usage(cache.root), 0, is_counted=True)


def test_what_is_here_already_is_not_counted_twice(cache: Cache) -> None:
    put(cache, b"same")
    put(cache, b"same")
    assert cache.quota.account() == Account(4 * KIB, 0, is_counted=True)


def test_the_oldest_leave_when_there_is_no_room(cache: Cache) -> None:
    paths = fill(cache, 10)
    assert all(path.exists() for path in paths)
    put(cache, bytes(10 * KIB))
    assert [path.exists() for path in paths] == [False] + [True] * 9, "no more than is needed"
    put(cache, bytes(70 * KIB))
    assert [path.exists() for path in paths] == [False] * 3 + [True] * 7
    assert cache.quota.account() == Account(disk_usage(cache.root), 0, is_counted=True)


def test_what_is_in_use_stays_and_then_there_is_no_room(cache: Cache) -> None:
    opened = [path.open("rb") for path in fill(cache, 10)]
    with pytest.raises(UserError, match=r"There is no room for 12.0 KiB in the cache .*: 400.0 KiB of its 400.0 KiB"):
        cache.quota.reserving(12 * KIB)
    assert disk_usage(cache.root) == 400 * KIB
    for file in opened[3:5]:
        file.close()
    time.sleep(1.1)  # nobody looks again for a second
    with cache.quota.reserving(12 * KIB):
        assert disk_usage(cache.root) == 360 * KIB
    for file in opened:
        file.close()


def test_what_is_larger_than_the_quota_is_refused_at_once(cache: Cache) -> None:
    paths = fill(cache, 2)
    with pytest.raises(UserError, match=r"500.0 KiB do not fit into the cache .*, whose quota is 400.0 KiB"):
        cache.quota.reserving(500 * KIB)
    assert all(path.exists() for path in paths), "nothing is removed for what cannot come in"


def test_content_of_unknown_size_ends_at_the_limit(cache: Cache) -> None:
    digest = Digest(bytes(20), Algorithm.SHA1)
    with cache.adding(digest, Compression.ZLIB, None) as new:
        for _ in range(100):
            new.write(bytes(4 * KIB))
        with pytest.raises(UserError, match=r"400.0 KiB of its 400.0 KiB are in use"):
            new.write(b"x")
    assert cache.quota.account().promised == 0


def test_a_file_that_was_written_by_name_counts_or_goes(cache: Cache) -> None:
    path = cache.root / "images/one"
    path.write_bytes(bytes(100 * KIB))
    cache.account(str(path))
    assert cache.quota.account().taken == 100 * KIB
    path = cache.root / "images/two"
    path.write_bytes(bytes(500 * KIB))
    with pytest.raises(UserError, match="do not fit"):
        cache.account(str(path))
    assert not path.exists()


def test_a_quota_below_what_is_here_makes_room_at_the_next_chance(cache: Cache) -> None:
    fill(cache, 10)
    set_limits(cache.root, 100 * KIB, None)
    assert cache.quota.limits == Limits(100 * KIB)
    put(cache, b"x")
    assert disk_usage(cache.root) <= 90 * KIB


def test_limits_can_be_taken_away(cache: Cache) -> None:
    set_limits(cache.root, 0, None)
    fill(cache, 12)
    assert disk_usage(cache.root) == 480 * KIB


def test_what_was_used_since_it_was_listed_stays(cache: Cache) -> None:
    paths = fill(cache, 10)
    put(cache, bytes(10 * KIB))
    assert not paths[0].exists()
    os.utime(paths[1])
    put(cache, bytes(30 * KIB))
    assert [path.exists() for path in paths] == [False, True, False] + [True] * 7


def test_whoever_needs_room_while_another_makes_some_waits_for_it(cache: Cache) -> None:
    """And goes on as soon as there is some, be the other still at work."""
    paths = fill(cache, 10)
    reserved: list[Account] = []

    def reserve() -> None:
        with cache.quota.reserving(12 * KIB):
            reserved.append(cache.quota.account())

    with cache.quota.sweeper.alone():
        waiting = threading.Thread(target=reserve)
        waiting.start()
        time.sleep(0.2)
        assert not reserved
        item = next(i for i in take_inventory(cache.root).items if paths[4].name in i.name)
        assert cache.quota.sweeper.remover().take(item) is Taken.FREED
        cache.quota.sweeper.count()
        waiting.join(10)
        assert len(reserved) == 1
    assert [path.exists() for path in paths] == [True] * 4 + [False] + [True] * 5


def test_what_is_fresh_is_waited_for(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache", fresh_s=dict.fromkeys(Kind, 1.5)) as cache:
        cache.quota.set_limits(Limits(LIMIT))
        fill(cache, 10)
        with cache.quota.reserving(12 * KIB):
            assert disk_usage(cache.root) <= LIMIT - 12 * KIB


def test_many_threads_want_room_at_once(cache: Cache) -> None:
    fill(cache, 9)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            for turn in range(5):
                put(cache, b"%d %d" % (number, turn) + bytes(9 * KIB))
                assert disk_usage(cache.root) <= LIMIT
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert cache.quota.account().promised == 0


def test_the_file_system_keeps_some_space(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """As seen through statvfs, which here tells of a small file system."""
    paths = fill(cache, 5)
    status = os.statvfs(cache.root)

    def small(_path: object) -> object:
        free = 300 * KIB - disk_usage(cache.root)
        return os.statvfs_result([*status[:4], free // status.f_frsize, *status[5:]])

    monkeypatch.setattr(os, "statvfs", small)
    cache.quota.set_limits(Limits(0, keep_free=100 * KIB))
    with cache.quota.reserving(20 * KIB):
        assert [path.exists() for path in paths] == [False, True, True, True, True]
    with pytest.raises(UserError, match=r"has 300.0 KiB free, and 100.0 KiB have to stay free"):
        cache.quota.reserving(250 * KIB)


def test_whether_something_fits_without_anything_leaving(cache: Cache) -> None:
    fill(cache, 8)
    assert cache.quota.fits(80 * KIB)
    assert not cache.quota.fits(81 * KIB)
    assert cache.quota.account().promised == 0
    assert disk_usage(cache.root) == 320 * KIB


def test_pruning_to_a_size_and_by_age(cache: Cache) -> None:
    paths = fill(cache, 10)
    rehearsed = cache.quota.sweeper.prune(300 * KIB, rehearse=True)
    assert all(path.exists() for path in paths)
    outcome = cache.quota.sweeper.prune(300 * KIB)
    assert [item.name for item in outcome.freed] == [item.name for item in rehearsed.freed]
    assert [path.exists() for path in paths] == [False] * 3 + [True] * 7
    assert cache.quota.account() == Account(280 * KIB, 0, is_counted=True)
    cache.quota.sweeper.prune(None, 994.5)
    assert [path.exists() for path in paths] == [False] * 6 + [True] * 4
    cache.quota.sweeper.prune(100 * KIB, 992.5)
    assert [path.exists() for path in paths] == [False] * 8 + [True] * 2, "only the old, and only until the size"


def test_a_hit_is_a_use(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    name = put(cache, b"x", age_s=500)
    path = Path(cache.path(name))
    before = path.stat()
    fd = cache.open(name.digest, name.compression, name.size)
    assert fd is not None
    os.close(fd)
    assert path.stat().st_ctime_ns == before.st_ctime_ns, "not written down again and again"
    later = time.time() + 6
    monkeypatch.setattr(time, "time", lambda: later)
    fd = cache.open(name.digest, name.compression, name.size)
    assert fd is not None
    os.close(fd)
    assert path.stat().st_mtime - before.st_mtime > 400
    let_age(path, 0)
