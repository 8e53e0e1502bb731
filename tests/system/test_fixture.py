"""The repository that the stock server made: every column of every path, and the checker's opinion, over HTTP."""

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.fixture import FQRN, ExpectedRow, Fixture, stock_fixture
from tests.support.repositories import read_file
from tests.support.tools import need_fuse
from tests.support.webserver import WebServer, serving

from mica import linux
from mica.cache.cache import Cache
from mica.fetch.client import RepositoryClient
from mica.fetch.counters import TrafficCounter
from mica.fetch.download import HttpFetcher
from mica.fetch.routes import Routes
from mica.fuse.tree import ROOT_INODE, Attributes
from mica.mount.repotree import RepositoryTree
from mica.publish.check import CheckProgress, check_repository
from mica.repo.catalog import NestedCatalog

_KINDS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
    stat.S_IFSOCK: "s",
}


@pytest.fixture(scope="module")
def stock() -> Fixture:
    return stock_fixture()


@pytest.fixture(scope="module")
def server(stock: Fixture) -> Iterator[WebServer]:
    with serving(stock.root) as server:
        yield server


@pytest.fixture
def fetcher(server: WebServer) -> Iterator[HttpFetcher]:
    fetcher = HttpFetcher(Routes([f"{server.url}/cvmfs/{FQRN}"]), counter=TrafficCounter())
    yield fetcher
    fetcher.close()


@pytest.fixture
def tree(stock: Fixture, fetcher: HttpFetcher, tmp_path: Path) -> Iterator[RepositoryTree]:
    with (
        Cache(tmp_path / "cache") as cache,
        RepositoryClient(FQRN, fetcher, cache, [stock.master_key]) as client,
    ):
        manifest = client.update().manifest
        root = NestedCatalog(b"", manifest.root_catalog, manifest.root_catalog_size)
        yield RepositoryTree(client, root, variables={})


def test_every_column_of_every_path_through_the_tree(stock: Fixture, tree: RepositoryTree) -> None:
    expected = {row.path: row for row in stock.expected()}
    seen = {row.path: row for row in _tree_rows(tree)}
    assert sorted(seen) == sorted(expected)
    assert {path: row for path, row in seen.items() if row != expected[path]} == {}


def test_lookup_finds_what_listings_show(tree: RepositoryTree) -> None:
    pending = [ROOT_INODE]
    while pending:
        directory = pending.pop()
        for child in tree.children(directory):
            assert tree.lookup(directory, child.name) == child.attributes
            if stat.S_ISDIR(child.attributes.mode):
                assert tree.parent(child.attributes.inode) == directory
                pending.append(child.attributes.inode)


@pytest.mark.parametrize("objects", ["exist", "hash"])
def test_the_checker_finds_nothing(stock: Fixture, fetcher: HttpFetcher, tmp_path: Path, objects: str) -> None:
    told: list[CheckProgress] = []
    assert objects in {"exist", "hash"}
    found = list(
        check_repository(
            fetcher, FQRN, [stock.master_key], objects=objects, work=tmp_path, progress=told.append,  # type: ignore[arg-type]
        )
    )  # fmt: skip
    assert found == []
    assert told[-1].catalogs == 9
    assert told[-1].objects > 100
    assert told[-1].entries == told[-1].of_entries > 300
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def mounted(stock: Fixture, server: WebServer, tmp_path: Path) -> Iterator[bytes]:
    need_fuse()
    target, key = tmp_path / "mnt", stock.root / "keys" / f"{FQRN}.pub"
    target.mkdir()
    unset = {"CVMFS_TEST_VARIANT", "X", "Y"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    subprocess.run(
        [
            sys.executable, "-m", "mica", "mount", FQRN, str(target), "--magic", "never",
            "--url", f"{server.url}/cvmfs/{FQRN}", "--key", str(key),
            "--state", str(tmp_path / "state"), "--cache", str(tmp_path / "cache"),
        ],
        env=environment, check=True, timeout=60,
    )  # fmt: skip
    try:
        yield os.fsencode(target)
    finally:
        linux.umount2(target, linux.MNT_DETACH)


@pytest.mark.system
def test_every_column_of_every_path_through_the_kernel(stock: Fixture, mounted: bytes) -> None:
    expected = {row.path: row for row in stock.expected()}
    seen = {row.path: row for row in _mounted_rows(mounted)}
    assert sorted(seen) == sorted(expected)
    assert {path: row for path, row in seen.items() if row != expected[path]} == {}


def _tree_rows(tree: RepositoryTree) -> Iterator[ExpectedRow]:
    paths: dict[bytes, Attributes] = {}
    pending = [(b"", ROOT_INODE)]
    while pending:
        path, inode = pending.pop()
        attributes = paths[path or b"/"] = tree.attributes(inode)
        if stat.S_ISDIR(attributes.mode):
            pending += [(path + b"/" + child.name, child.attributes.inode) for child in tree.children(inode)]
    smallest = _smallest_names({path: attributes.inode for path, attributes in paths.items()})
    for path, shown in paths.items():
        kind = _KINDS[stat.S_IFMT(shown.mode)]
        yield ExpectedRow(
            path=path,
            kind=kind,
            mode=stat.S_IMODE(shown.mode),
            uid=_shown_by_kernel(shown.uid),
            gid=_shown_by_kernel(shown.gid),
            size=shown.size,
            mtime=f"{shown.mtime_s}.{shown.mtime_ns:09}",
            target=tree.readlink(shown.inode) if kind == "l" else b"",
            links=shown.links,
            rdev=f"{os.major(shown.rdev)}:{os.minor(shown.rdev)}" if kind in {"b", "c"} else "",
            sha256=hashlib.sha256(read_file(tree, shown.inode)).hexdigest() if kind == "f" else "",
            xattrs=tree.xattrs(shown.inode),
            group=smallest[shown.inode] if kind != "d" and shown.links > 1 else b"",
        )


def _mounted_rows(root: bytes) -> Iterator[ExpectedRow]:
    paths = {b"/": os.lstat(root)}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = directory + b"/" + name
            paths[path[len(root) :]] = os.lstat(path)
    smallest = _smallest_names({path: status.st_ino for path, status in paths.items()})
    for path, status in paths.items():
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        place = root + path
        seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
        yield ExpectedRow(
            path=path,
            kind=kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            size=status.st_size,
            mtime=f"{seconds}.{nanoseconds:09}",
            target=os.readlink(place) if kind == "l" else b"",
            links=status.st_nlink,
            rdev=f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}" if kind in {"b", "c"} else "",
            sha256=hashlib.sha256(Path(os.fsdecode(place)).read_bytes()).hexdigest() if kind == "f" else "",
            xattrs={
                os.fsencode(name): os.getxattr(place, name, follow_symlinks=False)
                for name in os.listxattr(place, follow_symlinks=False)
            },
            group=smallest[status.st_ino] if kind != "d" and status.st_nlink > 1 else b"",
        )


def _smallest_names(inodes: dict[bytes, int]) -> dict[int, bytes]:
    smallest: dict[int, bytes] = {}
    for path in sorted(inodes):
        smallest.setdefault(inodes[path], path)
    return smallest


def _shown_by_kernel(number: int) -> int:
    """-1 is no owner: the kernel shows the overflow id instead, in expected.tsv too."""
    return 65534 if number == 4294967295 else number
