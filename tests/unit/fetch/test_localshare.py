"""How much of a repository is in a cache, counted without a server."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.noise import noise
from tests.support.repositories import Repository, ingest, make_repository, opened_client
from tests.support.tars import END, member

from mica.cache.cache import Cache
from mica.digest import Suffix
from mica.errors import IntegrityError
from mica.fetch.client import RepositoryClient, catalog_object
from mica.fetch.localshare import LocalShare, measure_local_share
from mica.fuse.tree import ROOT_INODE
from mica.mount.repotree import RepositoryTree
from mica.repo.catalog import NestedCatalog
from mica.repo.objectname import ObjectName

LARGE = noise(100_000)
ARCHIVE = (
    member(b"one", b"same")
    + member(b"two", b"same")
    + member(b"empty", b"")
    + member(b"nested/.cvmfscatalog")
    + member(b"nested/large", LARGE)
    + member(b"nested/deep/.cvmfscatalog")
    + member(b"nested/deep/file", b"deep")
    + END
)
FILES, BYTES = 7, 4 + 4 + 100_000 + 4


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = make_repository(tmp_path / "repository")
    ingest(repository, ARCHIVE)
    return repository


class Reader:
    def __init__(self, client: RepositoryClient, cache: Cache) -> None:
        manifest = client.update().manifest
        self.client = client
        self.root = NestedCatalog(b"", manifest.root_catalog, manifest.root_catalog_size)
        self.tree = RepositoryTree(client, self.root)
        self.cache = cache

    def inode(self, path: bytes) -> int:
        inode = ROOT_INODE
        for name in path.split(b"/"):
            inode = self.tree.lookup(inode, name).inode
        return inode

    def read(self, path: bytes, offset: int = 0, size: int = 1 << 20) -> None:
        file = self.tree.open(self.inode(path))
        file.read(offset, size)
        file.close()

    def share(self) -> LocalShare | None:
        return measure_local_share(self.cache, self.root)


@pytest.fixture
def reader(repository: Repository, tmp_path: Path) -> Iterator[Reader]:
    with opened_client(repository, tmp_path / "cache") as client, Cache(tmp_path / "cache") as cache:
        yield Reader(client, cache)


def test_without_the_root_catalog_nothing_is_known(reader: Reader) -> None:
    assert reader.share() is None


def test_catalogs_that_are_not_here_count_but_are_not_looked_into(reader: Reader) -> None:
    reader.tree.attributes(ROOT_INODE)
    assert reader.share() == LocalShare(FILES, 0, BYTES, 0, 3, 2)
    reader.inode(b"nested/large")
    assert reader.share() == LocalShare(FILES, 0, BYTES, 0, 3, 1)
    reader.inode(b"nested/deep/file")
    assert reader.share() == LocalShare(FILES, 0, BYTES, 0, 3, 0)


def test_content_counts_under_every_name_it_has(reader: Reader) -> None:
    reader.read(b"one")
    assert reader.share() == LocalShare(FILES, 2, BYTES, 8, 3, 2)


def test_an_empty_file_has_an_object_like_any_other(reader: Reader) -> None:
    reader.read(b"empty")
    assert reader.share() == LocalShare(FILES, 1, BYTES, 0, 3, 2)


def test_of_a_file_in_chunks_those_that_are_here_count(reader: Reader) -> None:
    inode = reader.inode(b"nested/large")
    chunks = reader.tree.objects(inode)
    assert len(chunks) > 4
    reader.read(b"nested/large", 0, 1)
    share = reader.share()
    assert share is not None
    assert (share.local_files, share.local_bytes) == (0, chunks[0].size)
    reader.read(b"nested/large")
    share = reader.share()
    assert share is not None
    assert (share.local_files, share.local_bytes) == (1, len(LARGE))


def test_everything(reader: Reader) -> None:
    for path in (b"one", b"empty", b"nested/large", b"nested/.cvmfscatalog", b"nested/deep/file"):
        reader.read(path)
    seen: list[int] = []
    share = measure_local_share(reader.cache, reader.root, progress=seen.append)
    assert share == LocalShare(FILES, FILES, BYTES, BYTES, 3, 0)
    assert sum(seen) == BYTES


def test_a_file_of_another_size_is_not_local_and_is_left_alone(reader: Reader) -> None:
    reader.read(b"one")
    name = reader.tree.objects(reader.inode(b"one"))[0]
    path = Path(reader.cache.place(name))
    path.write_bytes(b"longer than it was")
    share = reader.share()
    assert share is not None
    assert share.local_files == 0
    assert path.exists()


def test_looking_changes_nothing(reader: Reader, tmp_path: Path) -> None:
    reader.read(b"nested/large", 0, 1)
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "cache").rglob("*"))
    reader.share()
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "cache").rglob("*")) == before


def test_a_damaged_catalog_is_named(reader: Reader) -> None:
    reader.tree.attributes(ROOT_INODE)
    path = Path(reader.cache.place(catalog_object(reader.root)))
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(IntegrityError, match=reader.root.digest.text):
        reader.share()


def test_what_a_client_says_is_local(reader: Reader) -> None:
    name = reader.tree.objects(reader.inode(b"one"))[0]
    assert name == ObjectName(name.digest, Suffix.FILE, name.compression, 4)
    assert reader.client.open_local(name) is None
    reader.read(b"two")
    descriptor = reader.client.open_local(name)
    assert descriptor is not None
    with os.fdopen(descriptor, "rb") as file:
        assert file.read() == b"same"
