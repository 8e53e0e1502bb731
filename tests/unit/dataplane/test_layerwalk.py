"""Walking layers that others published: signs of aufs, nested catalogs, the stock server's repository; hostile rows."""

import os
import stat
from pathlib import Path

import pytest
from tests.support.catalogs import a_file, a_link
from tests.support.fixture import FQRN as STOCK_FQRN
from tests.support.fixture import ExpectedRow, stock_fixture
from tests.support.layers import opened_root
from tests.support.repositories import Repository, ingest, make_repository
from tests.support.tars import END, member

from mica.cache.cache import Cache
from mica.dataplane.layerimage import generate_layer_image
from mica.errors import IntegrityError, UserError
from mica.fetch.client import RepositoryClient
from mica.fetch.download import LocalFetcher
from mica.metaimage.inode import Inode
from mica.metaimage.reader import read_image
from mica.publish.catalogtree import directory_entry
from mica.repo.catalog import NestedCatalog
from mica.repo.entry import MARKER, Chunk, Entry, Flag, format_xattrs
from mica.unionsigns import OPAQUE, ORIGIN

TREE = b"/.layers/ab/abcd/layerfs"
WHITEOUT = Inode(stat.S_IFCHR)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


def image_of(repository: Repository, place: Path, tree: bytes = TREE) -> dict[bytes, Inode]:
    with opened_root(repository, place / "cache") as (client, root), (place / "image").open("w+b") as file:
        generate_layer_image(client, root, tree, file)
        return dict(read_image(file, "it"))


def names_below(directory: bytes, image: dict[bytes, Inode]) -> set[bytes]:
    return {path[len(directory) + 1 :] for path in image if path.startswith(directory + b"/")}


def directory(name: bytes) -> bytes:
    return member(name + b"/", type_flag=b"5")


def stock_layer(*names: bytes) -> bytes:
    """An archive as the stock tools put it into a repository: all its names are files or directories of that name."""
    members = [directory(name[:-1]) if name.endswith(b"/") else member(name, name) for name in names]
    return b"".join(members) + END


def test_signs_of_aufs(repository: Repository, tmp_path: Path) -> None:
    archive = stock_layer(
        b".wh.gone", b"-kept", b".a", b"zz", b"d/", b"d/.wh..wh..opq", b"d/.wh.other", b"d/new", b"both", b".wh.both",
        b".wh.dir", b"dir/", b"dir/x", b".wh..wh.aufs", b".wh..wh.plnk/", b".wh..wh.plnk/1.2", b".wh..wh.orph/",
        b".wh.", b".wh..", b".wh...", b".wh....", b".wh..hidden", b"dir/.wh.deep",
    )  # fmt: skip
    ingest(repository, archive, TREE)
    image = image_of(repository, tmp_path)
    assert names_below(b"", image) == {
        b"gone", b"-kept", b".a", b"zz", b"d", b"d/other", b"d/new", b"both", b"dir", b"dir/x", b"dir/deep", b".hidden",
        b"...",
    }  # fmt: skip
    assert {path for path, inode in image.items() if inode == WHITEOUT} == {
        b"/gone", b"/d/other", b"/dir/deep", b"/.hidden", b"/..."
    }  # fmt: skip
    assert {path for path, inode in image.items() if OPAQUE in inode.xattrs} == {b"/d", b"/dir"}
    assert {path for path, inode in image.items() if ORIGIN in inode.xattrs} == {b"", b"/d", b"/dir"}
    assert stat.S_ISREG(image[b"/both"].mode), "an entry hides what lower layers have under its name anyhow"


def test_an_opaque_root(repository: Repository, tmp_path: Path) -> None:
    ingest(repository, stock_layer(b".wh..wh..opq", b"only"), TREE)
    image = image_of(repository, tmp_path)
    assert image[b""].xattrs == {OPAQUE: b"y"}
    assert names_below(b"", image) == {b"only"}


def test_nested_catalogs(repository: Repository, tmp_path: Path) -> None:
    """The layer's own, as the stock tools make it, and others in it. Their markers are not a container's business."""
    archive = stock_layer(
        b"top", b"a/", b"a/" + MARKER, b"a/x", b"a/b/", b"a/b/" + MARKER, b"a/b/y", b"a/b/.wh.z", b"c/", b"c/" + MARKER
    )
    ingest(repository, archive, TREE, nested=True)
    image = image_of(repository, tmp_path)
    assert names_below(b"", image) == {b"top", b"a", b"a/x", b"a/b", b"a/b/y", b"a/b/z", b"c"}
    assert image[b"/a/b/z"] == WHITEOUT
    assert image[b"/a/b"].xattrs == {ORIGIN: b""}


def test_hard_links_have_as_many_names_as_are_there(repository: Repository, tmp_path: Path) -> None:
    linked = member(b"d/b", b"content") + member(b"d/a", type_flag=b"1", link=b"d/b") + member(b"d/c", b"alone") + END
    ingest(repository, linked, TREE)
    image = image_of(repository, tmp_path)
    assert image[b"/d/a"] == image[b"/d/b"]
    assert (image[b"/d/a"].links, image[b"/d/c"].links, image[b"/d/c"].group) == (2, 1, 0)


def test_the_stock_server_s_repository(tmp_path: Path) -> None:
    """Every path of it as the stock client sees it, from its root on."""
    fixture = stock_fixture()
    with (
        fixture.store as store,
        Cache(tmp_path / "cache") as cache,
        RepositoryClient(STOCK_FQRN, LocalFetcher(store), cache, [fixture.master_key]) as client,
        (tmp_path / "image").open("w+b") as file,
    ):
        manifest = client.update().manifest
        root = NestedCatalog(b"", manifest.root_catalog, manifest.root_catalog_size)
        generate_layer_image(client, root, b"", file)
        found = dict(read_image(file, "it"))
    expected = {row.path if row.path != b"/" else b"": row for row in fixture.expected()}
    left_out = {path for path in expected.keys() - found.keys() if path.rpartition(b"/")[2] != MARKER}
    assert left_out == {
        b"/layers/upper/home/.wh.u", b"/layers/upper/etc/.wh.gone", b"/layers/upper/etc/conf.d/.wh..wh..opq"
    }  # fmt: skip
    assert {path for path in found if path not in expected} == {b"/layers/upper/home/u", b"/layers/upper/etc/gone"}
    assert {path for path, inode in found.items() if inode == WHITEOUT} == found.keys() - expected.keys()
    assert found[b"/layers/upper/etc/conf.d"].xattrs == {OPAQUE: b"y"}
    common = found.keys() & expected.keys()
    assert {path: (found[path], expected[path]) for path in common if not agrees(found[path], expected[path])} == {}


def agrees(inode: Inode, row: ExpectedRow) -> bool:
    kind = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK, "p": stat.S_IFIFO, "s": stat.S_IFSOCK,
            "c": stat.S_IFCHR, "b": stat.S_IFBLK}[row.kind]  # fmt: skip
    size = row.size if kind != stat.S_IFREG else inode.size
    links = row.links if kind == stat.S_IFDIR else inode.links
    # Variables of the client are for mounts of whole repositories; a layer's link is what its archive says.
    target = row.target if b"$(" in inode.target else inode.target
    return (inode.mode, _shown_id(inode.uid), _shown_id(inode.gid), target, size, links) == (
        kind | row.mode, row.uid, row.gid, row.target, row.size, row.links
    ) and row.mtime == f"{inode.mtime_s}.{inode.mtime_ns:09d}"  # fmt: skip


def _shown_id(number: int) -> int:
    """What stat shows of the number that means none."""
    return 65534 if number == 0xFFFFFFFF else number


def put(repository: Repository, *rows: Entry, chunks: tuple[Chunk, ...] = ()) -> None:
    """Rows that no publisher of ours makes, as children of the tree."""
    with repository.manager() as manager, manager.transaction() as transaction:
        transaction.catalogs.make_directories(TREE, directory_entry(b""))
        for row in rows:
            transaction.catalogs.put(TREE + b"/" + row.name, row, chunks)


SPECIAL = int(Flag.FILE | Flag.SPECIAL)
CHUNKED = int(Flag.FILE | Flag.CHUNKED)


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        ([a_file(b"f", digest=None)], "neither an object nor chunks"),
        ([a_file(b"f", flags=CHUNKED, digest=None)], "chunks of 0 bytes"),
        ([a_file(b"f", flags=int(Flag.FILE) | 7 << 11)], "f' in .* has an unknown compression 7"),
        ([a_file(b"f", flags=int(Flag.FILE | Flag.EXTERNAL))], "f' in .* is an external file"),
        ([a_link(b"l", b"")], "target of 0 bytes"),
        ([a_link(b"l", b"t" * 5000)], "target of 5000 bytes"),
        ([a_file(b"f", size=(8 << 40) + 1)], "8796093022209 bytes"),
        ([Entry(b"d", 0o020600, os.makedev(5000, 0), 0, 0, 0, 0, SPECIAL)], "device 5000:0"),
        ([Entry(b"d", 0o170600, 0, 0, 0, 0, 0, SPECIAL)], "mode 170600"),
        ([Entry(b"d", 0o600, 0, 0, 0, 0, 0, SPECIAL)], "mode 600"),
        ([a_file(b"a", group=1, links=2), a_file(b"b", group=1, links=2, size=6)], "differs from the file"),
    ],
)
def test_rows_that_are_no_files(rows: list[Entry], word: str, repository: Repository, tmp_path: Path) -> None:
    put(repository, *rows)
    with pytest.raises((IntegrityError, UserError), match=word):
        image_of(repository, tmp_path)


def test_what_catalogs_may_not_steer(repository: Repository, tmp_path: Path) -> None:
    evil = {b"trusted.overlay.redirect": b"/etc", b"trusted.overlay.metacopy": b"", b"user.kept": b"1"}
    put(
        repository,
        a_file(b"f", xattrs=format_xattrs(evil)),
        a_file(b"hidden", flags=a_file(b"f").flags | Flag.HIDDEN),
        Entry(b"whiteout", 0o020000, 0, 0, 0, 0, 0, SPECIAL),
        a_file(b"alone", group=7, links=9),
    )
    image = image_of(repository, tmp_path)
    assert names_below(b"", image) == {b"f", b"whiteout", b"alone"}
    assert image[b"/f"].xattrs == {b"user.kept": b"1"}
    assert image[b"/whiteout"] == WHITEOUT
    assert (image[b"/alone"].links, image[b"/alone"].group) == (1, 0)


def test_a_directory_that_only_claims_to_be_mounted(repository: Repository, tmp_path: Path) -> None:
    put(repository, directory_entry(b"d")._replace(flags=int(Flag.DIRECTORY | Flag.MOUNTPOINT)))
    with pytest.raises(IntegrityError, match="does not list the catalog of"):
        image_of(repository, tmp_path)


def test_a_catalog_of_another_path(repository: Repository, tmp_path: Path) -> None:
    ingest(repository, stock_layer(b"inside"), b"/elsewhere", nested=True)
    with repository.manager() as manager, manager.transaction() as transaction:
        (nested,) = transaction.catalogs.root_catalog.nested()
        transaction.catalogs.make_directories(TREE, directory_entry(b""))
        transaction.catalogs.put(
            TREE + b"/d",
            directory_entry(b"d")._replace(flags=int(Flag.DIRECTORY | Flag.MOUNTPOINT)),
        )
        branch = transaction.catalogs._branch_below(TREE)
        branch.writer.put_nested(nested._replace(path=TREE + b"/d"))
    with pytest.raises(IntegrityError, match="belongs to b'/elsewhere'"):
        image_of(repository, tmp_path)


def test_trees_are_no_deeper_than_paths_are_long(repository: Repository, tmp_path: Path) -> None:
    """Paths are bounded, so a circle of catalogs would be too."""
    deep = TREE
    with repository.manager() as manager, manager.transaction() as transaction:
        for _ in range(18):
            deep += b"/" + b"d" * 240
            transaction.catalogs.make_directories(deep, directory_entry(b""))
    with pytest.raises(IntegrityError, match="is too deep"):
        image_of(repository, tmp_path)
