"""Chunks that are written block by block: what zeros may be written over, what they take, and what they never touch."""

import os
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from tests.support.caches import disk_usage
from tests.support.waiting import PATIENCE_S

from mica.cache.cache import Cache
from mica.cache.ledger import Limits
from mica.cache.partfiles import MARGIN_BYTES, SEAM_BYTES, PartFile
from mica.digest import Algorithm, digest_of
from mica.files import allocated_bytes
from mica.repo.entry import Chunk
from mica.repo.localname import chunked_name
from mica.repo.objects import Compression

KIB = 1 << 10
BLOCK = MARGIN_BYTES // 2
CONTENT = random.Random(1).randbytes(6 * BLOCK + 5 * KIB)


def cut(places: Sequence[int]) -> list[Chunk]:
    return [
        Chunk(start, end - start, digest_of(CONTENT[start:end], Algorithm.SHA1))
        for start, end in pairwise([0, *places, len(CONTENT)])
    ]


UNEVEN = cut(list(accumulate([BLOCK // 2 + 1, BLOCK // 8, 2 * BLOCK + 77, BLOCK - 5, 9, BLOCK // 3])))


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as cache:
        yield cache


def open_part(cache: Cache, chunks: Sequence[Chunk]) -> PartFile:
    return PartFile(cache, chunked_name(chunks, Compression.ZLIB), chunks)


def content_of(chunk: Chunk) -> bytes:
    return CONTENT[chunk.offset : chunk.offset + chunk.size]


def put(part: PartFile, number: int, *, in_memory: bool = True, fill: bool = True) -> int:
    content = content_of(part.chunks[number])
    if in_memory:
        return part.put_bytes(number, content, fill=fill)
    fd = os.memfd_create("chunk")
    try:
        os.write(fd, content)
        return part.put(number, fd, fill=fill)
    finally:
        os.close(fd)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_in_whatever_order_chunks_come_all_stay_right(cache: Cache, seed: int, *, in_memory: bool) -> None:
    order = random.Random(seed).sample(range(len(UNEVEN)), len(UNEVEN))
    with open_part(cache, UNEVEN) as part:
        for count, number in enumerate(order, 1):
            put(part, number, in_memory=in_memory, fill=(seed + count) % 3 > 0)
            for known in order[:count]:
                chunk = UNEVEN[known]
                assert os.pread(part.fd, chunk.size, chunk.offset) == content_of(chunk)
            assert part.missing(0, len(CONTENT)) == sorted(order[count:])
        assert Path(cache.path(part.name)).read_bytes() == CONTENT


def test_a_block_of_which_nothing_is_here_is_written_at_once(cache: Cache) -> None:
    with open_part(cache, UNEVEN) as part:
        put(part, 1)
        assert os.lseek(part.fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(part.fd, 0, os.SEEK_HOLE) == BLOCK
        assert os.pread(part.fd, UNEVEN[1].offset, 0) == bytes(UNEVEN[1].offset)


def test_only_when_that_is_wanted(cache: Cache) -> None:
    chunk = UNEVEN[1]
    with open_part(cache, UNEVEN) as part:
        assert put(part, 1, fill=False) <= chunk.size + SEAM_BYTES
        assert os.lseek(part.fd, 0, os.SEEK_DATA) >= chunk.offset - SEAM_BYTES


def test_zeros_end_with_the_file(cache: Cache) -> None:
    with open_part(cache, UNEVEN) as part:
        put(part, len(UNEVEN) - 1)
        assert os.fstat(part.fd).st_size == len(CONTENT)


def test_who_reads_here_and_there_fills_nothing_up(cache: Cache) -> None:
    digest = UNEVEN[0].digest
    chunks = [Chunk(start, BLOCK // 2, digest) for start in range(0, 40 * BLOCK, BLOCK // 2)]
    with open_part(cache, chunks) as part:
        assert not part.is_filling_up(3)
        part.put_bytes(0, bytes(BLOCK // 2))
        assert part.is_filling_up(3)
        assert not part.is_filling_up(len(chunks) - 1)


def test_all_that_it_takes_is_accounted_for(cache: Cache) -> None:
    cache.quota.set_limits(Limits(most=20 * BLOCK))
    with cache.quota.sweeper.alone():
        cache.quota.sweeper.count()
    with open_part(cache, UNEVEN) as part:
        for number in (5, 2, 0, 1, 4, 3, 6):
            size = UNEVEN[number].size + SEAM_BYTES
            with cache.quota.reserving(size) as room:
                assert room.extend(MARGIN_BYTES)
                grown = put(part, number)
                assert grown <= size + MARGIN_BYTES
                room.keep(grown)
            assert cache.quota.account() == (disk_usage(cache.root), 0, True)
        assert part.is_whole
        assert allocated_bytes(os.fstat(part.fd)) <= len(CONTENT) + SEAM_BYTES


def test_two_who_fill_up_one_block_keep_what_the_other_wrote(cache: Cache) -> None:
    """As two processes: each has the file open for itself."""
    halves = cut(range(BLOCK // 2, len(CONTENT), BLOCK // 2))
    for _ in range(15):
        both = threading.Barrier(2, timeout=PATIENCE_S)

        def fill_up(first: int, both: threading.Barrier = both) -> None:
            with open_part(cache, halves) as part:
                for number in range(first, len(halves) - 1, 2):
                    both.wait()
                    put(part, number)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(fill_up, (0, 1)))
        with open_part(cache, halves) as part:
            assert part.missing(0, len(CONTENT)) == [len(halves) - 1]
            known = halves[-1].offset
            assert os.pread(part.fd, known, 0) == CONTENT[:known]
        for path in (cache.root / "parts").iterdir():
            path.unlink()
