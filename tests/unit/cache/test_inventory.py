"""What is in a cache: every file once, with what leaves together with it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.caches import disk_usage, put

from mica.cache.cache import Cache
from mica.cache.inventory import Inventory, Kind, take_inventory
from mica.cache.partfiles import PartFile, keep_list
from mica.digest import Algorithm, digest_of
from mica.repo.chunklist import format_chunk_list
from mica.repo.entry import Chunk
from mica.repo.localname import chunked_name
from mica.repo.objects import Compression

CHUNKS = [Chunk(0, 5000, digest_of(b"a" * 5000, Algorithm.SHA1)), Chunk(5000, 9, digest_of(b"b" * 9, Algorithm.SHA1))]
NAME = chunked_name(CHUNKS, Compression.ZLIB)
PART = str(NAME).replace("/", "")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as cache:
        yield cache


def names(inventory: Inventory) -> set[tuple[str, ...]]:
    return {item.names for item in inventory.items}


def fill(part: PartFile, *numbers: int) -> None:
    for number in numbers:
        fd = os.memfd_create("chunk")
        try:
            os.write(fd, b"ab"[number : number + 1] * CHUNKS[number].size)
            part.put(number, fd)
        finally:
            os.close(fd)


def test_an_empty_cache(cache: Cache) -> None:
    assert take_inventory(cache.root) == Inventory([], frozenset())


def test_files_by_kind_with_size_and_time(cache: Cache) -> None:
    name = put(cache, b"x" * 5000, age_s=100)
    (cache.root / "unsized" / "ab").write_bytes(b"y")
    by_kind = {item.kind: item for item in take_inventory(cache.root).items}
    assert set(by_kind) == {Kind.OBJECT, Kind.UNSIZED}
    item = by_kind[Kind.OBJECT]
    status = os.stat(cache.path(name))
    assert item == (
        Kind.OBJECT, (f"objects/{name}",), status.st_ino, status.st_blocks * 512, status.st_mtime_ns, status.st_ctime_ns
    )  # fmt: skip


def test_a_file_handed_over_is_one_with_two_names(cache: Cache) -> None:
    name = put(cache, b"x")
    (cache.root / "handover" / "ab").mkdir()
    os.link(cache.path(name), cache.root / "handover/ab/one")
    inventory = take_inventory(cache.root)
    assert names(inventory) == {("handover/ab/one", f"objects/{name}")}
    assert inventory.size == disk_usage(cache.root)
    os.unlink(cache.path(name))
    assert names(take_inventory(cache.root)) == {("handover/ab/one",)}


def test_a_part_leaves_with_its_map_and_a_whole_one_with_all_names(cache: Cache) -> None:
    with PartFile(cache, NAME, CHUNKS) as part:
        fill(part, 1)
        inventory = take_inventory(cache.root)
        assert names(inventory) == {(f"parts/{PART}.map", f"parts/{PART}")}
        assert inventory.items[0].kind is Kind.PART
        assert inventory.size == disk_usage(cache.root)
        fill(part, 0)
        inventory = take_inventory(cache.root)
        assert names(inventory) == {(f"parts/{PART}.map", f"parts/{PART}", f"objects/{NAME}")}
        assert inventory.items[0].kind is Kind.OBJECT
        assert inventory.size == disk_usage(cache.root)


def test_a_map_alone_and_a_record_alone_are_items(cache: Cache) -> None:
    (cache.root / "parts/x.map").write_bytes(b"\1")
    (cache.root / "images/x.json").write_text('{"lists": []}')
    assert names(take_inventory(cache.root)) == {("parts/x.map",), ("images/x.json",)}


def test_an_image_leaves_with_its_record_and_needs_its_lists(cache: Cache) -> None:
    (cache.root / "images/abc").write_bytes(b"image")
    (cache.root / "images/mask-1").write_bytes(b"mask")
    (cache.root / "images/abc.json").write_text(json.dumps({"lists": ["d1", "d2"]}))
    inventory = take_inventory(cache.root)
    assert names(inventory) == {("images/abc.json", "images/abc"), ("images/mask-1",)}
    assert inventory.needed == {"lists/d1", "lists/d2"}


@pytest.mark.parametrize("record", ['{"root": "x"}', "{", "[]", "", '{"lists": 3}'])
def test_a_record_that_does_not_say_may_need_any_list(cache: Cache, record: str) -> None:
    (cache.root / "images/abc").write_bytes(b"image")
    (cache.root / "images/abc.json").write_text(record)
    assert take_inventory(cache.root).needed is None


def test_a_part_needs_its_list(cache: Cache) -> None:
    keep_list(cache, NAME.digest, format_chunk_list(CHUNKS))
    assert take_inventory(cache.root).needed == frozenset()
    with PartFile(cache, NAME, CHUNKS):
        assert take_inventory(cache.root).needed == {f"lists/{NAME.digest}"}


def test_what_a_kill_left_is_stray(cache: Cache) -> None:
    (cache.root / "images/.abc.77.tmp").write_bytes(b"half")
    (cache.root / "images/.abc.json.77.tmp").write_bytes(b"{")
    inventory = take_inventory(cache.root)
    assert all(item.is_stray for item in inventory.items)
    assert len(inventory.items) == 2
    assert inventory.needed == frozenset()


def test_links_and_directories_are_no_items(cache: Cache) -> None:
    (cache.root / "lists/link").symlink_to("/etc/passwd")
    (cache.root / "lists/directory").mkdir()
    assert take_inventory(cache.root).items == []
