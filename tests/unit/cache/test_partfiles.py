"""Large files that fill up chunk by chunk: only what is marked counts, and the whole gets its name."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.caches import disk_usage

from mica.cache.cache import Cache
from mica.cache.ledger import Limits
from mica.cache.partfiles import SEAM_BYTES, PartFile, keep_list, open_part
from mica.digest import Algorithm, digest_of
from mica.errors import IntegrityError, UserError
from mica.repo.chunklist import format_chunk_list
from mica.repo.entry import Chunk
from mica.repo.localname import LocalName, chunked_name
from mica.repo.objects import Compression

PIECES = [b"a" * 5, b"b" * 7000, b"c", b"d" * 300]
CONTENT = b"".join(PIECES)
CHUNKS = [
    Chunk(sum(map(len, PIECES[:number])), len(piece), digest_of(piece, Algorithm.SHA1))
    for number, piece in enumerate(PIECES)
]
NAME = chunked_name(CHUNKS, Compression.ZLIB)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as cache:
        yield cache


def put(part: PartFile, number: int, data: bytes | None = None) -> None:
    fd = os.memfd_create("chunk")
    try:
        os.write(fd, PIECES[number] if data is None else data)
        part.put(number, fd)
    finally:
        os.close(fd)


def test_a_file_fills_up_and_gets_its_name_with_the_last_chunk(cache: Cache) -> None:
    with PartFile(cache, NAME, CHUNKS) as part:
        for number in (3, 0, 2):
            put(part, number)
            assert not part.is_whole
            assert not os.path.exists(cache.path(NAME))
        assert part.missing(0, NAME.size) == [1]
        put(part, 1)
        assert part.is_whole
        assert part.missing(0, NAME.size) == []
        assert Path(cache.path(NAME)).read_bytes() == CONTENT
        assert os.path.samestat(os.stat(cache.path(NAME)), os.fstat(part.fd))


def test_what_another_process_put_is_seen_at_once(cache: Cache) -> None:
    with PartFile(cache, NAME, CHUNKS) as one, PartFile(cache, NAME, CHUNKS) as two:
        put(one, 2)
        assert two.missing(0, NAME.size) == [0, 1, 3]
        assert os.pread(two.fd, 1, CHUNKS[2].offset) == b"c"
        for number in (0, 1, 3):
            put(two, number)
        put(one, 3)
        assert one.is_whole


@pytest.mark.parametrize(
    ("offset", "size", "numbers"),
    [
        (0, 1, [0]), (0, 5, [0]), (0, 6, [0, 1]), (4, 1, [0]), (5, 1, [1]), (7004, 3, [1, 2, 3]), (7005, 1, [2]),
        (7006, 1, [3]), (0, 10**9, [0, 1, 2, 3]), (7305, 10**9, [3]), (7306, 1, []), (10**12, 1, []), (5, 0, []),
    ],
)  # fmt: skip
def test_which_chunks_a_range_needs(cache: Cache, offset: int, size: int, numbers: list[int]) -> None:
    with PartFile(cache, NAME, CHUNKS) as part:
        assert list(part.covering(offset, size)) == part.missing(offset, size) == numbers


def test_content_that_is_too_short_is_never_marked(cache: Cache) -> None:
    with PartFile(cache, NAME, CHUNKS) as part:
        with pytest.raises(IntegrityError, match="has 6 bytes and not 7000"):
            put(part, 1, b"b" * 6)
        assert part.missing(0, NAME.size) == [0, 1, 2, 3]


def test_a_name_is_enough_when_its_list_is_here(cache: Cache) -> None:
    with pytest.raises(IntegrityError, match=r"chunk list .* is not in the cache"):
        open_part(cache, NAME)
    keep_list(cache, NAME.digest, format_chunk_list(CHUNKS))
    with open_part(cache, NAME) as part:
        assert part.chunks == CHUNKS
        assert part.is_current
        os.unlink(cache.root / "parts" / str(NAME).replace("/", ""))
        assert not part.is_current


def test_a_list_that_does_not_fit_its_name_is_refused(cache: Cache) -> None:
    keep_list(cache, NAME.digest, format_chunk_list(CHUNKS[:1]))
    with pytest.raises(IntegrityError, match="does not have that digest"):
        open_part(cache, NAME)
    keep_list(cache, NAME.digest, format_chunk_list(CHUNKS))
    lying = LocalName(NAME.digest, NAME.compression, NAME.size + 1, in_chunks=True)
    with pytest.raises(IntegrityError, match="does not add up"):
        open_part(cache, lying)


def test_a_file_that_is_here_as_a_whole_is_not_begun_again(cache: Cache) -> None:
    with cache.adding_place(cache.path(NAME)) as new:
        new.write(CONTENT)
        os.close(new.commit())
    with PartFile(cache, NAME, CHUNKS) as part:
        assert part.is_whole
        assert os.pread(part.fd, 3, 4) == b"abb"
        assert os.path.samestat(os.stat(cache.path(NAME)), os.fstat(part.fd))


def test_a_map_counts_as_soon_as_it_is_made(cache: Cache) -> None:
    cache.quota.set_limits(Limits(most=1 << 20))
    with cache.quota.sweeper.alone():
        cache.quota.sweeper.count()
    with PartFile(cache, NAME, CHUNKS) as part:
        assert cache.quota.account().taken == disk_usage(cache.root) > 0
        with PartFile(cache, NAME, CHUNKS):
            assert cache.quota.account().taken == disk_usage(cache.root)
        with cache.quota.reserving(CHUNKS[1].size + SEAM_BYTES) as room:
            room.keep(part.put_bytes(1, PIECES[1]))
        assert cache.quota.account() == (disk_usage(cache.root), 0, True)


def test_a_large_file_is_not_begun_without_room(cache: Cache) -> None:
    cache.quota.set_limits(Limits(most=1 << 20))
    with cache.quota.reserving(1 << 20), pytest.raises(UserError, match="no room"):
        PartFile(cache, NAME, CHUNKS)
    assert os.listdir(cache.root / "parts") == []


def test_a_large_file_that_is_here_opens_without_room(cache: Cache) -> None:
    with PartFile(cache, NAME, CHUNKS) as part:
        for number in range(len(CHUNKS)):
            put(part, number)
    for path in (cache.root / "parts").iterdir():
        path.unlink()
    cache.quota.set_limits(Limits(most=1 << 20))
    with cache.quota.reserving((1 << 20) - disk_usage(cache.root)), PartFile(cache, NAME, CHUNKS) as part:
        assert part.is_whole


def test_a_map_without_its_file_says_nothing(cache: Cache) -> None:
    """Whoever deletes a file by hand leaves its map: the file that is begun next has nothing of what it says."""
    with PartFile(cache, NAME, CHUNKS) as part:
        put(part, 0)
        put(part, 1)
    (name,) = [path for path in (cache.root / "parts").iterdir() if path.suffix != ".map"]
    name.unlink()
    with PartFile(cache, NAME, CHUNKS) as part:
        assert part.missing(0, NAME.size) == [0, 1, 2, 3]


def test_a_name_that_was_not_given_any_more_is_given_later(cache: Cache) -> None:
    """As after a kill between the last chunk's mark and the name."""
    with PartFile(cache, NAME, CHUNKS) as part:
        for number in range(4):
            put(part, number)
        os.unlink(cache.path(NAME))
    with PartFile(cache, NAME, CHUNKS) as part:
        assert part.is_whole
        assert os.path.samestat(os.stat(cache.path(NAME)), os.fstat(part.fd))


def test_a_damaged_whole_file_is_begun_again(cache: Cache) -> None:
    path = Path(cache.path(NAME))
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-1])
    with PartFile(cache, NAME, CHUNKS) as part:
        assert part.missing(0, NAME.size) == [0, 1, 2, 3]
        assert not path.exists()


def test_a_list_that_is_here_stays_for_a_while(cache: Cache) -> None:
    keep_list(cache, NAME.digest, format_chunk_list(CHUNKS))
    (path,) = (cache.root / "lists").iterdir()
    inode, changed = path.stat().st_ino, path.stat().st_ctime_ns
    keep_list(cache, NAME.digest, format_chunk_list(CHUNKS))
    assert path.stat().st_ino == inode
    assert path.stat().st_ctime_ns > changed
