"""Files that mica makes itself: they come back as they were stored, bounded, and damage is named."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.noise import noise
from tests.support.repositories import Repository, findings, make_repository

from mica.digest import Suffix
from mica.errors import IntegrityError, NotFoundError, UserError
from mica.publish.catalogtree import CatalogTree, directory_entry
from mica.publish.storedfiles import load_file, store_file, store_marker, store_stream
from mica.publish.transaction import Transaction
from mica.repo.cutting import ChunkRule
from mica.repo.entry import MARKER, Entry, Flag
from mica.store.base import ObjectStore

RULE = ChunkRule(4096, 8192, 16384)
SMALL, LARGE = b"small " * 100, 100_000


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


@contextmanager
def publishing(repository: Repository) -> Iterator[Transaction]:
    with repository.manager() as manager, manager.transaction() as transaction:
        yield transaction


@contextmanager
def published(repository: Repository) -> Iterator[tuple[CatalogTree, ObjectStore]]:
    with repository.manager() as manager, manager.snapshot() as catalogs:
        yield catalogs, manager.store


def load(repository: Repository, path: bytes, *, limit: int = 1 << 20) -> bytes | None:
    with published(repository) as (catalogs, store):
        return load_file(catalogs, store, path, limit=limit)


@pytest.mark.parametrize("data", [b"", b"x", SMALL, noise(LARGE)], ids=len)
def test_a_small_file_comes_back(repository: Repository, tmp_path: Path, data: bytes) -> None:
    with publishing(repository) as transaction:
        entry = store_file(transaction.objects, b"file", data, mtime_s=77)
        transaction.catalogs.put(b"/file", entry)
    assert (entry.name, entry.mode, entry.size, entry.mtime_s) == (b"file", 0o100644, len(data), 77)
    assert (entry.uid, entry.gid, entry.links, entry.group) == (0, 0, 1, 0)
    assert load(repository, b"/file") == data
    assert findings(repository, tmp_path) == []


@pytest.mark.parametrize(("size", "is_cut"), [(0, False), (4096, False), (LARGE, True)])
def test_a_stream_comes_back_cut_by_the_rule(
    repository: Repository, tmp_path: Path, size: int, *, is_cut: bool
) -> None:
    data = noise(size)
    with publishing(repository) as transaction:
        entry, chunks = store_stream(transaction.objects, b"file", io.BytesIO(data), size, RULE)
        transaction.catalogs.put(b"/file", entry, chunks)
    assert bool(chunks) == bool(entry.flags & Flag.CHUNKED) == is_cut
    assert load(repository, b"/file") == data
    assert findings(repository, tmp_path) == []


def test_a_marker_is_an_empty_file_whose_object_is_stored(repository: Repository) -> None:
    with publishing(repository) as transaction:
        marker = store_marker(transaction.objects)
        assert (marker.name, marker.size) == (MARKER, 0)
        assert marker.digest is not None
        assert transaction.store.has(marker.digest.object_path(Suffix.FILE))
        transaction.give_up()


def test_what_is_no_file_has_no_content(repository: Repository) -> None:
    with publishing(repository) as transaction:
        transaction.catalogs.put(b"/directory", directory_entry(b"directory"))
        link = Entry(b"link", 0o120777, 9, 0, None, 0, 0, int(Flag.FILE | Flag.LINK), target=b"directory")
        transaction.catalogs.put(b"/link", link)
    for path in (b"/missing", b"/directory", b"/link", b"/directory/missing", b""):
        assert load(repository, path) is None


def test_a_file_above_the_limit_is_refused(repository: Repository) -> None:
    with publishing(repository) as transaction:
        transaction.catalogs.put(b"/file", store_file(transaction.objects, b"file", SMALL))
    assert load(repository, b"/file", limit=len(SMALL)) == SMALL
    with pytest.raises(
        UserError, match=rf"'/file' has {len(SMALL)} bytes, more than the {len(SMALL) - 1} that are read"
    ):
        load(repository, b"/file", limit=len(SMALL) - 1)


def stored_objects(repository: Repository, path: bytes) -> list[Path]:
    with published(repository) as (catalogs, _):
        entry = catalogs.find(path)
        assert entry is not None
        paths = [chunk.digest.object_path(Suffix.CHUNK) for chunk in catalogs.chunks(path)]
        if entry.digest is not None:
            paths.append(entry.digest.object_path(Suffix.FILE))
    return [repository.storage / one for one in paths]


@pytest.mark.parametrize("size", [100, LARGE])
def test_a_damaged_or_missing_object_is_named(repository: Repository, size: int) -> None:
    data = noise(size)
    with publishing(repository) as transaction:
        entry, chunks = store_stream(transaction.objects, b"file", io.BytesIO(data), size, RULE)
        transaction.catalogs.put(b"/file", entry, chunks)
    for path in stored_objects(repository, b"/file"):
        right = path.read_bytes()
        path.write_bytes(right[:-1] + b"!")
        with pytest.raises(IntegrityError, match="has other content"):
            load(repository, b"/file")
        path.write_bytes(noise(3 << 20))
        with pytest.raises(IntegrityError, match="more than the"):
            load(repository, b"/file")
        path.unlink()
        with pytest.raises(NotFoundError, match=f"{path.name} is not in"):
            load(repository, b"/file")
        path.write_bytes(right)
    assert load(repository, b"/file") == data


def test_an_object_larger_than_its_entry_says_is_named(repository: Repository) -> None:
    with publishing(repository) as transaction:
        entry = store_file(transaction.objects, b"file", SMALL)
        transaction.catalogs.put(b"/file", entry._replace(size=entry.size - 1))
    with pytest.raises(IntegrityError, match=f"unpacks to more than the {len(SMALL) - 1} bytes"):
        load(repository, b"/file")


def test_an_object_smaller_than_its_entry_says_is_named(repository: Repository) -> None:
    with publishing(repository) as transaction:
        entry = store_file(transaction.objects, b"file", SMALL)
        transaction.catalogs.put(b"/file", entry._replace(size=entry.size + 1))
    with pytest.raises(IntegrityError, match=f"'/file' has {len(SMALL)} bytes and not {len(SMALL) + 1}"):
        load(repository, b"/file")


def test_an_unknown_compression_is_named(repository: Repository) -> None:
    """Another program may have published the file."""
    with publishing(repository) as transaction:
        entry = store_file(transaction.objects, b"file", SMALL)
        transaction.catalogs.put(b"/file", entry._replace(flags=entry.flags | 0x1000))
    with pytest.raises(IntegrityError, match="'/file' has an unknown compression"):
        load(repository, b"/file")
