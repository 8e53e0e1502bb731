"""The cache of verified content: whole or absent, and never one thing for another."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.caches import NOTHING_FRESH, disk_usage, put

from mica.cache.cache import Cache, recover
from mica.cache.ledger import Account, Limits
from mica.cache.partfiles import keep_list, open_part
from mica.digest import Algorithm, Digest, Suffix
from mica.errors import UserError
from mica.repo.chunklist import format_chunk_list
from mica.repo.entry import Chunk
from mica.repo.localname import chunked_name
from mica.repo.objectname import ObjectName
from mica.repo.objects import Compression

DIGEST = Digest(bytes(range(20)), Algorithm.SHA1)
ZLIB, NONE = Compression.ZLIB, Compression.NONE


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def object_name(size: int | None, digest: Digest = DIGEST, compression: Compression = ZLIB) -> ObjectName:
    return ObjectName(digest, Suffix.FILE, compression, size)


def add(
    cache: Cache, content: bytes, digest: Digest = DIGEST, compression: Compression = ZLIB, *, size: int | None = -1
) -> None:
    with cache.adding(object_name(len(content) if size == -1 else size, digest, compression)) as new:
        new.write(content)
        os.close(new.commit())


def get(cache: Cache, size: int | None, digest: Digest = DIGEST, compression: Compression = ZLIB) -> bytes | None:
    descriptor = cache.open(object_name(size, digest, compression))
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def files(cache: Cache) -> list[Path]:
    """Content, without what the cache writes about itself."""
    own = {cache.root / name for name in ("boot", ".recovery", "usage")}
    return [path for path in cache.root.rglob("*") if path.is_file() and path not in own]


def test_content_comes_back(cache: Cache) -> None:
    assert get(cache, 7) is None
    add(cache, b"content")
    assert get(cache, 7) == b"content"
    (path,) = files(cache)
    assert path.relative_to(cache.root).as_posix() == "objects/00/0102030405060708090a0b0c0d0e0f10111213.7"
    assert path.stat().st_mode & 0o777 == 0o600
    cache.close()


def test_what_is_here_is_told_without_opening_it(cache: Cache) -> None:
    assert not cache.has(object_name(7))
    add(cache, b"content")
    add(cache, b"unsized", size=None)
    assert cache.has(object_name(None))
    assert cache.has(object_name(7))
    assert not cache.has(object_name(7, compression=NONE))
    assert not cache.has(object_name(8))
    assert get(cache, 7) == b"content"
    cache.close()


def test_content_of_unknown_size_has_a_place_of_its_own(cache: Cache) -> None:
    add(cache, b"tags", size=None)
    assert get(cache, None) == b"tags"
    assert get(cache, 4) is None
    (path,) = files(cache)
    assert path.parent.name == "unsized"
    cache.close()


def test_a_committed_descriptor_reads_from_the_beginning(cache: Cache) -> None:
    with cache.adding(object_name(7)) as new:
        new.write(b"con")
        new.write(b"tent")
        descriptor = new.commit()
    with os.fdopen(descriptor, "rb") as file:
        assert os.pread(file.fileno(), 100, 0) == b"content"


def test_what_is_not_committed_vanishes(cache: Cache) -> None:
    with cache.adding(object_name(16)) as new:
        new.write(b"half of the con")
    assert get(cache, 16) is None
    assert files(cache) == []


def test_a_file_of_another_size_is_removed(cache: Cache) -> None:
    add(cache, b"cont", size=7)
    assert get(cache, 7) is None
    assert files(cache) == []
    add(cache, b"")
    assert get(cache, 0) == b""


def test_sizes_do_not_answer_for_each_other(cache: Cache) -> None:
    add(cache, b"four")
    assert get(cache, 5) is None
    assert get(cache, 4) == b"four"


def test_compressed_and_plain_do_not_answer_for_each_other(cache: Cache) -> None:
    """Who publishes says which it is: another repository's word must not reach this one's files."""
    add(cache, b"unpacked", compression=ZLIB)
    assert get(cache, 8, compression=NONE) is None
    add(cache, b"asstored", compression=NONE)
    assert get(cache, 8, compression=ZLIB) == b"unpacked"
    assert get(cache, 8, compression=NONE) == b"asstored"
    assert len(files(cache)) == 2


def test_algorithms_do_not_answer_for_each_other(cache: Cache) -> None:
    for algorithm in Algorithm:
        digest = Digest(DIGEST.raw, algorithm)
        assert get(cache, 1, digest) is None
        add(cache, b"%d" % algorithm, digest)
    assert [get(cache, 1, Digest(DIGEST.raw, algorithm)) for algorithm in Algorithm] == [
        b"%d" % algorithm for algorithm in Algorithm
    ]


def test_adding_twice_is_no_error_and_the_first_stays(cache: Cache) -> None:
    add(cache, b"same")
    (path,) = files(cache)
    inode = path.stat().st_ino
    add(cache, b"same")
    assert path.stat().st_ino == inode


def test_many_add_the_same_at_once(tmp_path: Path) -> None:
    caches = [Cache(tmp_path / "cache") for _ in range(2)]

    def one(number: int) -> bytes | None:
        cache = caches[number % 2]
        add(cache, b"x" * 100_000)
        return get(cache, 100_000)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, range(64))) == {b"x" * 100_000}
    assert len(files(caches[0])) == 1
    for cache in caches:
        cache.close()


def test_deleting_files_is_safe_at_any_time(cache: Cache) -> None:
    add(cache, b"content")
    descriptor = cache.open(object_name(7))
    assert descriptor is not None
    files(cache)[0].unlink()
    assert get(cache, 7) is None
    with os.fdopen(descriptor, "rb") as file:
        assert file.read() == b"content"


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"Cannot use the cache directory {tmp_path}/file"):
        Cache(tmp_path / "file")


def test_a_new_life_of_the_machine_drops_what_may_have_lost_its_tail(cache: Cache) -> None:
    add(cache, b"whole")
    add(cache, b"cut sho", Digest(bytes(20), Algorithm.SHA1), size=9)
    add(cache, b"who knows", size=None)
    (cache.root / "objects/.stray").touch()
    (cache.root / "parts/some").touch()
    recover(cache.root, "another life")
    (path,) = files(cache)
    assert path.read_bytes() == b"whole"
    add(cache, b"cut sho", Digest(bytes(20), Algorithm.SHA1), size=9)
    recover(cache.root, "another life")
    assert len(files(cache)) == 2, "looked for twice in one life"
    cache.close()


CHUNKS = [Chunk(0, 5, DIGEST), Chunk(5, 5, DIGEST)]


def use_everything(cache: Cache) -> None:
    add(cache, b"content")
    assert get(cache, 7) == b"content"
    add(cache, b"unsized", size=None)
    name = chunked_name(CHUNKS, ZLIB)
    keep_list(cache, name.digest, format_chunk_list(CHUNKS))
    with open_part(cache, name) as part:
        part.put_bytes(0, b"abcde")
        assert part.is_current
    cache.keep_bytes(cache.root / "images/one", b"image")


@pytest.mark.parametrize("limits", [Limits(), Limits(1 << 30, 1 << 10)])
@pytest.mark.parametrize("lost", ["", "objects", "parts", "lists", "images", "unsized", "handover", "txn", "usage"])
def test_a_cache_that_is_removed_while_it_is_used_is_made_again(
    tmp_path: Path, lost: str, limits: Limits, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "cache"
    with Cache(root, fresh_s=NOTHING_FRESH) as cache, Cache(root, fresh_s=NOTHING_FRESH) as other:
        cache.quota.set_limits(limits)
        use_everything(cache)
        if lost == "usage":
            (root / lost).unlink()
        else:
            shutil.rmtree(root / lost)
        use_everything(cache)
        use_everything(other)
        put(other, b"x" * 10_000)
        put(cache, b"y" * 10_000)
        assert cache.quota.limits == other.quota.limits == limits
        if limits.most and lost in {"", "usage"}:
            account = cache.quota.account()
            assert account == other.quota.account()
            assert account.is_counted
            assert account.taken >= disk_usage(root)
        cache.quota.sweeper.prune(0)
        assert disk_usage(root) == 0
    told = [record.message for record in caplog.records if "was removed while it is used" in record.message]
    assert len(told) == (lost != "usage")
    with Cache(root):
        pass


def test_a_cache_that_is_removed_while_something_comes(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache", fresh_s=NOTHING_FRESH) as cache:
        cache.quota.set_limits(Limits(1 << 20))
        with cache.reserving(50_000) as room:
            shutil.rmtree(cache.root)
            put(cache, b"another")
            room.cover(100_000)
            room.keep(50_000)
        with cache.quota.sweeper.alone():
            cache.quota.sweeper.count()
        assert cache.quota.account() == Account(disk_usage(cache.root), 0, is_counted=True)


def test_a_cache_that_was_moved_away_is_made_again(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        add(cache, b"content")
        cache.root.rename(tmp_path / "elsewhere")
        assert get(cache, 7) is None
        add(cache, b"content")
        assert get(cache, 7) == b"content"
