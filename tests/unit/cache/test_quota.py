"""The hard limit: reserved before, kept after, made room for, refused in one sentence."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.caches import NOTHING_FRESH, disk_usage, let_age, put
from tests.support.disks import disk_path, memory_path
from tests.support.memoryfetcher import MemoryFetcher
from tests.support.noise import noise
from tests.support.waiting import PATIENCE_S

from mica.cache.cache import Cache, set_limits
from mica.cache.eviction import Taken
from mica.cache.inventory import Kind, take_inventory
from mica.cache.ledger import Account, Limits
from mica.digest import Algorithm, Digest, Suffix
from mica.errors import UserError
from mica.fetch.client import RepositoryClient
from mica.repo.objectname import ObjectName
from mica.repo.objects import Compression

__all__ = ["disk_path", "memory_path"]

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


def test_a_file_that_fills_the_cache_beside_others_is_told_so(cache: Cache) -> None:
    fetcher = MemoryFetcher()
    content = noise(600 * KIB)
    chunks = fetcher.publish_in_chunks(content, 30 * KIB).chunks
    opened = [path.open("rb") for path in fill(cache, 2)]
    with (
        RepositoryClient("some.example.org", fetcher, cache, []) as client,
        client.open_part(chunks, Compression.ZLIB) as part,
    ):
        client.fetch_chunks(part, part.missing(0, 270 * KIB))
        asked = len(fetcher.asked)
        for _ in range(2):
            with pytest.raises(UserError, match=r"The rest of a file of 600.0 KiB cannot be read: .* do not fit into"):
                client.fetch_chunks(part, part.missing(270 * KIB, 90 * KIB))
        assert len(fetcher.asked) <= asked + 2, "what fitted"
        put(cache, b"small")
    for file in opened:
        file.close()


def test_what_comes_in_is_accounted_for_as_it_is_on_disk(cache: Cache) -> None:
    for size in (0, 1, 4 * KIB, 4 * KIB + 1, 50 * KIB):
        put(cache, noise(size))
    assert cache.quota.account() == Account(disk_usage(cache.root), 0, is_counted=True)


@pytest.mark.parametrize("where", ["disk_path", "memory_path"])
def test_what_comes_in_chunks_is_accounted_for_too(where: str, request: pytest.FixtureRequest) -> None:
    fetcher = MemoryFetcher()
    content = noise(90_000)
    _, chunks = fetcher.publish_in_chunks(content, 20_000)
    with Cache(request.getfixturevalue(where) / "cache", fresh_s=NOTHING_FRESH) as cache:
        cache.quota.set_limits(Limits(LIMIT))
        with RepositoryClient("some.example.org", fetcher, cache, []) as client:
            for number in (3, 0, 1, 2, 4):
                with client.open_part(chunks, Compression.ZLIB) as part:
                    client.fetch_chunks(part, [number])
                assert cache.quota.account() == Account(disk_usage(cache.root), 0, is_counted=True)


def test_a_file_that_fills_up_in_blocks_stays_within_the_limit(cache: Cache) -> None:
    """Blocks are filled up with zeros only in room that is free: a limit that just takes the file takes it."""
    fetcher = MemoryFetcher()
    content = noise(LIMIT - 40 * KIB)
    _, chunks = fetcher.publish_in_chunks(content, 20_000)
    with (
        RepositoryClient("some.example.org", fetcher, cache, []) as client,
        client.open_part(chunks, Compression.ZLIB) as part,
    ):
        for number in range(len(chunks)):
            client.fetch_chunks(part, [number])
            assert cache.quota.account() == Account(disk_usage(cache.root), 0, is_counted=True)
            assert disk_usage(cache.root) <= LIMIT
        assert Path(cache.path(part.name)).read_bytes() == content


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
    with cache.quota.reserving(12 * KIB):
        assert disk_usage(cache.root) == 360 * KIB
    for file in opened:
        file.close()


def test_what_was_too_much_says_nothing_of_what_comes_after_it(cache: Cache) -> None:
    fill(cache, 2)
    opened = [path.open("rb") for path in fill(cache, 9)[2:]]
    with pytest.raises(UserError, match=r"There is no room for 300.0 KiB"):
        cache.quota.reserving(300 * KIB)
    for _ in range(3):
        with cache.quota.reserving(100 * KIB):
            pass
    for file in opened:
        file.close()
    with cache.quota.reserving(300 * KIB):
        pass


def test_what_is_closed_somewhat_later_is_waited_for(cache: Cache) -> None:
    opened = [path.open("rb") for path in fill(cache, 10)]
    looks = 0

    def release() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            opened[4].close()

    cache.quota.release = release
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
    with cache.adding(ObjectName(digest, Suffix.FILE, Compression.ZLIB, None)) as new:
        for _ in range(100):
            new.write(bytes(4 * KIB))
        with pytest.raises(UserError, match=r"404.0 KiB do not fit into the cache .*, whose quota is 400.0 KiB"):
            new.write(b"x")
    assert cache.quota.account().promised == 0


def test_what_is_written_by_name_has_its_room_before(cache: Cache) -> None:
    cache.keep_bytes(cache.root / "images/one", bytes(100 * KIB))
    assert cache.quota.account() == Account(disk_usage(cache.root), 0, is_counted=True)
    for size, sentence in ((500 * KIB, "do not fit"), (350 * KIB, "no room")):
        with (cache.root / "images/one").open("rb"), pytest.raises(UserError, match=sentence):
            cache.keep_bytes(cache.root / "images/two", bytes(size))
        assert os.listdir(cache.root / "images") == ["one"]


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
        waiting.join(PATIENCE_S)
        assert len(reserved) == 1
    assert [path.exists() for path in paths] == [True] * 4 + [False] + [True] * 5


def test_what_is_fresh_leaves_rather_than_that_somebody_waits(tmp_path: Path) -> None:
    """The oldest first, and no more than is needed."""
    with Cache(tmp_path / "cache", fresh_s=dict.fromkeys(Kind, 3600.0)) as cache:
        cache.quota.set_limits(Limits(LIMIT))
        paths = fill(cache, 10)
        with cache.quota.reserving(12 * KIB):
            assert [path.exists() for path in paths] == [False] + [True] * 9


def test_what_came_just_now_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cache(tmp_path / "cache", fresh_s=dict.fromkeys(Kind, 3600.0)) as cache:
        cache.quota.set_limits(Limits(LIMIT))
        paths = fill(cache, 10)
        present = time.time_ns()
        monkeypatch.setattr(time, "time_ns", lambda: present)
        with cache.quota.sweeper.alone():
            wait_s = cache.quota.sweeper.sweep(12 * KIB)
        assert wait_s is not None
        assert 0 < wait_s <= 0.5
        assert all(path.exists() for path in paths)


def test_images_that_are_about_to_be_mounted_stay_whoever_waits(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        cache.quota.set_limits(Limits(LIMIT))
        path = cache.root / "images/one"
        cache.keep_bytes(path, bytes(400 * KIB))
        with pytest.raises(UserError, match="no room"):
            cache.quota.reserving(12 * KIB)
        assert path.exists()


def test_many_large_files_pass_through_a_small_cache(tmp_path: Path) -> None:
    fetcher = MemoryFetcher()
    contents = [noise(190 * KIB) for _ in range(5)]
    lists = [fetcher.publish_in_chunks(content, 30 * KIB).chunks for content in contents]
    with Cache(tmp_path / "cache", fresh_s=dict.fromkeys(Kind, 3600.0)) as cache:
        cache.quota.set_limits(Limits(LIMIT))
        with RepositoryClient("some.example.org", fetcher, cache, []) as client:
            for content, chunks in zip(contents, lists, strict=True):
                with client.open_part(chunks, Compression.ZLIB) as part:
                    client.fetch_chunks(part, part.missing(0, len(content)))
                    assert os.pread(part.fd, len(content), 0) == content


def test_of_a_file_that_is_larger_than_the_quota_parts_can_be_read(cache: Cache) -> None:
    fetcher = MemoryFetcher()
    content = noise(600 * KIB)
    chunks = fetcher.publish_in_chunks(content, 30 * KIB).chunks
    paths = fill(cache, 5)
    with RepositoryClient("some.example.org", fetcher, cache, []) as client:
        with client.open_part(chunks, Compression.ZLIB) as part:
            with pytest.raises(UserError, match=r"The rest of a file of 600.0 KiB cannot be .* its quota of 400.0 KiB"):
                client.fetch_chunks(part, part.missing(0, len(content)))
            assert all(path.exists() for path in paths), "nothing is removed for what cannot come in"
            client.fetch_range(part, 500 * KIB, 100)
            client.fetch_chunks(part, part.missing(0, 300 * KIB))
            assert os.pread(part.fd, 300 * KIB, 0) == content[: 300 * KIB]
            with pytest.raises(UserError, match=r"cannot be read: 332.0 KiB .* and 120.0 KiB more do not fit"):
                client.fetch_chunks(part, part.missing(300 * KIB, 100 * KIB))
            put(cache, b"others go on" + bytes(20 * KIB))
        with client.open_part(chunks, Compression.ZLIB) as part:
            assert os.pread(part.fd, 300 * KIB, 0) == content[: 300 * KIB]


def test_many_threads_want_room_at_once(cache: Cache) -> None:
    fill(cache, 9)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            for turn in range(5):
                put(cache, b"%d %d" % (number, turn) + bytes(9 * KIB))
                with cache.quota.sweeper.alone():  # or what leaves would be counted together with what came instead
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


def test_a_reservation_grows_by_what_is_free(cache: Cache) -> None:
    fill(cache, 8)
    with cache.quota.reserving(20 * KIB) as room:
        assert not room.extend(61 * KIB)
        assert room.extend(60 * KIB)
        assert cache.quota.account() == Account(320 * KIB, 80 * KIB, is_counted=True)
    assert cache.quota.account().promised == 0
    assert disk_usage(cache.root) == 320 * KIB
    cache.quota.set_limits(Limits())
    with cache.quota.reserving(20 * KIB) as room:
        assert room.extend(1 << 40)


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
    fd = cache.open(ObjectName(name.digest, Suffix.FILE, name.compression, name.size))
    assert fd is not None
    os.close(fd)
    assert path.stat().st_ctime_ns == before.st_ctime_ns, "not written down again and again"
    later = time.time() + 6
    monkeypatch.setattr(time, "time", lambda: later)
    fd = cache.open(ObjectName(name.digest, Suffix.FILE, name.compression, name.size))
    assert fd is not None
    os.close(fd)
    assert path.stat().st_mtime - before.st_mtime > 400
    let_age(path, 0)
