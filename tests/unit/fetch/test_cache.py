"""The cache of verified content: whole or absent, and never one thing for another."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mica.digest import Algorithm, Digest
from mica.errors import UserError
from mica.fetch.cache import Cache
from mica.repo.objects import Compression

DIGEST = Digest(bytes(range(20)), Algorithm.SHA1)
ZLIB, NONE = Compression.ZLIB, Compression.NONE


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def add(cache: Cache, content: bytes, digest: Digest = DIGEST, compression: Compression = ZLIB) -> None:
    with cache.adding(digest, compression) as new:
        new.write(content)
        os.close(new.commit())


def get(
    cache: Cache, size: int | None = None, digest: Digest = DIGEST, compression: Compression = ZLIB
) -> bytes | None:
    descriptor = cache.open(digest, compression, size)
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def files(cache: Cache) -> list[Path]:
    return [path for path in cache.root.rglob("*") if path.is_file()]


def test_content_comes_back(cache: Cache) -> None:
    assert get(cache) is None
    add(cache, b"content")
    assert get(cache) == get(cache, 7) == b"content"
    (path,) = files(cache)
    assert path.relative_to(cache.root).as_posix() == "00/0102030405060708090a0b0c0d0e0f10111213"
    assert path.stat().st_mode & 0o777 == 0o600
    cache.close()


def test_what_is_here_is_told_without_opening_it(cache: Cache) -> None:
    assert not cache.has(DIGEST, ZLIB, None)
    add(cache, b"content")
    assert cache.has(DIGEST, ZLIB, None)
    assert cache.has(DIGEST, ZLIB, 7)
    assert not cache.has(DIGEST, NONE, 7)
    assert not cache.has(DIGEST, ZLIB, 8)
    assert get(cache, 7) == b"content"
    cache.close()


def test_a_committed_descriptor_reads_from_the_beginning(cache: Cache) -> None:
    with cache.adding(DIGEST, ZLIB) as new:
        new.write(b"con")
        new.write(b"tent")
        descriptor = new.commit()
    with os.fdopen(descriptor, "rb") as file:
        assert os.pread(file.fileno(), 100, 0) == b"content"


def test_what_is_not_committed_vanishes(cache: Cache) -> None:
    with cache.adding(DIGEST, ZLIB) as new:
        new.write(b"half of the con")
    assert get(cache) is None
    assert files(cache) == []


def test_a_file_of_another_size_is_removed(cache: Cache) -> None:
    add(cache, b"cont")
    assert get(cache, 7) is None
    assert files(cache) == []
    add(cache, b"")
    assert get(cache, 0) == b""


def test_compressed_and_plain_do_not_answer_for_each_other(cache: Cache) -> None:
    """Who publishes says which it is: another repository's word must not reach this one's files."""
    add(cache, b"unpacked", compression=ZLIB)
    assert get(cache, compression=NONE) is None
    add(cache, b"as stored", compression=NONE)
    assert get(cache, compression=ZLIB) == b"unpacked"
    assert get(cache, compression=NONE) == b"as stored"
    assert len(files(cache)) == 2


def test_algorithms_do_not_answer_for_each_other(cache: Cache) -> None:
    for algorithm in Algorithm:
        digest = Digest(DIGEST.raw, algorithm)
        assert get(cache, digest=digest) is None
        add(cache, algorithm.name.encode(), digest)
    assert [get(cache, digest=Digest(DIGEST.raw, algorithm)) for algorithm in Algorithm] == [
        algorithm.name.encode() for algorithm in Algorithm
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
    descriptor = cache.open(DIGEST, ZLIB, 7)
    assert descriptor is not None
    files(cache)[0].unlink()
    assert get(cache) is None
    with os.fdopen(descriptor, "rb") as file:
        assert file.read() == b"content"


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"Cannot use the cache directory {tmp_path}/file"):
        Cache(tmp_path / "file")
