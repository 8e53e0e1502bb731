"""Metadata images on a node: the published one as it is, the same bytes from catalogs alone, and what is refused."""

import io
import os
import stat
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tests.support.caches import disk_usage
from tests.support.layers import opened_root, publish_layers
from tests.support.noise import noise
from tests.support.repositories import FQRN, Repository, findings, make_repository, read_back
from tests.support.stockcatalogs import stock_catalogs
from tests.support.tars import END, member
from tests.support.webserver import Answer, serving

from mica.cache.ledger import Account, Limits
from mica.convert import layerbuilder as building
from mica.dataplane.layerimage import generate_layer_image, obtain_layer_image
from mica.errors import IntegrityError, NotFoundError, TemporaryError, UserError
from mica.metaimage.inode import Inode
from mica.metaimage.reader import read_chunk_lists, read_image
from mica.metaimage.writer import ImageLimits
from mica.publish.ingest import build_layer_catalog
from mica.publish.rules import CatalogRules
from mica.publish.storedfiles import store_stream
from mica.publish.transaction import Transaction
from mica.repo.chunklist import parse_chunk_list
from mica.repo.cutting import ChunkRule
from mica.repo.entry import Chunk
from mica.repo.localname import chunked_name
from mica.store.local import LocalStore
from mica.thin.layout import metadata_image_path, tree_path
from mica.unionsigns import OPAQUE, ORIGIN


def rich_layer() -> bytes:
    """A layer with one of everything that a tar can hold."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: object) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.mode = kind, len(data), 0o644
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))

        add(
            "usr/", tarfile.DIRTYPE, mode=0o755, pax_headers={"mtime": "1700000000.123456789", **xattr("user.dir", "d")}
        )
        add("usr/small", data=b"small", uid=1000, gid=4_000_000_000, mode=0o4755)
        add("usr/empty")
        add("usr/large", data=noise(100_000), pax_headers=xattr("security.selinux", "label"))
        add("usr/before", data=b"x", pax_headers={"mtime": "-5.25"})
        add("usr/hard-a", data=b"hard", pax_headers=xattr("user.a", "1"))
        for name in ("usr/hard-b", "usr/-first", "usr/local/elsewhere", "usr/local/again"):
            add(name, tarfile.LNKTYPE, linkname="usr/hard-a")
        add("usr/long", tarfile.SYMTYPE, linkname="l" * 4090)
        add("usr/$(VARIABLE)", tarfile.SYMTYPE, linkname="$(VARIABLE)/x")
        add("usr/null", tarfile.CHRTYPE, devmajor=1, devminor=3)
        add("usr/disk", tarfile.BLKTYPE, devmajor=8, devminor=70_000)
        add("usr/fifo", tarfile.FIFOTYPE)
        add("usr/lost", data=b"x", pax_headers=xattr("lustre.lov", "1"))
        add("usr/.wh.gone")
        add("opaque/.wh..wh..opq")
        add("opaque/new", data=b"new")
        add("opaque/" + "n" * 255, data=b"n")
        for number in range(300):
            add(f"many/{number:0100}", data=b"%d" % number)
    return buffer.getvalue()


def xattr(name: str, value: str) -> dict[str, str]:
    return {f"SCHILY.xattr.{name}": value}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


def images(repository: Repository, tree: bytes, place: Path) -> tuple[bytes, bytes]:
    """What a node obtains, and what it makes of catalogs alone."""
    with opened_root(repository, place / "cache") as (client, root), (place / "made").open("w+b") as made:
        obtain_layer_image(client, root, tree, place / "obtained")
        generate_layer_image(client, root, tree, made)
    return (place / "obtained").read_bytes(), (place / "made").read_bytes()


def entries_of(image: bytes) -> dict[bytes, Inode]:
    return dict(read_image(io.BytesIO(image), "it"))


def test_a_converted_layer_gives_the_same_image_everywhere(repository: Repository, tmp_path: Path) -> None:
    layer = rich_layer()
    (converted,) = publish_layers(repository, layer).layers
    published, generated = images(repository, tree_path(converted.digest).encode(), tmp_path)
    assert published == generated
    other = make_repository(tmp_path / "other")
    publish_layers(other, member(b"another", b"layer") + END, layer)
    (tmp_path / "there").mkdir()
    assert images(other, tree_path(converted.digest).encode(), tmp_path / "there") == (published, published)
    assert findings(repository, tmp_path) == []


def test_a_layer_that_is_too_large_for_one_catalog(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its catalogs are the same everywhere, its image is that of a layer with one catalog."""
    layer = rich_layer() + END
    whole = make_repository(tmp_path / "whole")
    publish_layers(whole, layer)
    split = partial(build_layer_catalog, rules=CatalogRules(most=100, fewest=5))
    monkeypatch.setattr(building, "build_layer_catalog", split)
    (converted,) = publish_layers(repository, layer).layers
    tree = tree_path(converted.digest).encode()
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    published, generated = images(repository, tree, tmp_path / "here")
    assert published == generated == images(whole, tree, tmp_path / "there")[0]
    with LocalStore(repository.storage) as store:
        prefixes = {each.root_prefix for each in stock_catalogs(store) if each.root_prefix.startswith(tree)}
    assert prefixes == {tree + b"/many"}
    assert findings(repository, tmp_path) == []
    shown, expected = read_back(repository, tmp_path / "one"), read_back(whole, tmp_path / "other")
    assert {path: one for path, one in shown.items() if path.startswith(tree)} == {
        path: one for path, one in expected.items() if path.startswith(tree)
    }, "the marker is hidden"
    other = make_repository(tmp_path / "again")
    publish_layers(other, layer)
    assert catalogs_of(other) == catalogs_of(repository)


def catalogs_of(repository: Repository) -> set[str]:
    """Objects of catalogs that belong to layers: their time does not depend on when they were published."""
    with LocalStore(repository.storage) as store:
        return {each.name.split()[0] for each in stock_catalogs(store) if each.root_prefix.count(b"/") > 2}


def test_what_a_layer_has_is_in_its_image(repository: Repository, tmp_path: Path) -> None:
    (converted,) = publish_layers(repository, rich_layer()).layers
    image, _ = images(repository, tree_path(converted.digest).encode(), tmp_path)
    found = entries_of(image)
    assert len(found) == 323
    usr = found[b"/usr"]
    assert (usr.mode, usr.mtime_s, usr.mtime_ns, usr.xattrs) == (
        0o40755,
        1_700_000_000,
        123_456_789,
        {b"user.dir": b"d", ORIGIN: b""},
    )
    small = found[b"/usr/small"]
    assert (small.mode, small.uid, small.gid, small.size) == (0o104755, 1000, 4_000_000_000, 5)
    assert (found[b"/usr/before"].mtime_s, found[b"/usr/before"].mtime_ns) == (-6, 750_000_000)
    groups = [found[b"/usr/" + name].group for name in (b"hard-a", b"hard-b", b"-first")]
    assert len(set(groups)) == 1
    assert found[b"/usr/hard-a"].links == 3
    assert found[b"/usr/local/elsewhere"].links == 2, "a group of their own: catalogs have them inside a directory only"
    assert found[b"/usr/$(VARIABLE)"].target == b"$(VARIABLE)/x", "variables are for mounts of a whole repository"
    assert found[b"/usr/disk"].device == os.makedev(8, 70_000)
    assert found[b"/usr/gone"] == Inode(stat.S_IFCHR)
    assert found[b"/opaque"].xattrs == {OPAQUE: b"y"}
    large = found[b"/usr/large"]
    assert large.content is not None
    assert large.content.in_chunks
    lists = dict(read_chunk_lists(io.BytesIO(image), "it"))
    assert lists.keys() == {large.content.digest}
    assert found[b"/usr/empty"].content is None
    assert found[b"/usr/lost"].xattrs == {}, "EROFS has no such name"


def test_a_published_image_costs_three_catalogs_and_one_object(repository: Repository, tmp_path: Path) -> None:
    (converted,) = publish_layers(repository, rich_layer()).layers
    tree = tree_path(converted.digest).encode()
    with serving(repository.storage) as server:
        with opened_root(repository, tmp_path / "cache", url=server.url) as (client, root):
            before = len(server.requests)
            obtain_layer_image(client, root, tree, tmp_path / "image")
        fetched = server.requests[before:]
    assert len(fetched) == 4
    assert [path[-1] for path in fetched[:3]] == ["C", "C", "C"]


def test_a_large_image_comes_in_chunks(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "WHOLE_IMAGE_BYTES", 8192)
    monkeypatch.setattr(building, "STANDARD_RULE", ChunkRule(4096, 8192, 16384))
    (converted,) = publish_layers(repository, rich_layer()).layers
    with repository.manager() as manager, manager.transaction() as transaction:
        entry = transaction.catalogs.find(metadata_image_path(converted.digest, 2))
        assert entry is not None
        assert entry.digest is None
        transaction.give_up()
    published, generated = images(repository, tree_path(converted.digest).encode(), tmp_path)
    assert published == generated


def test_facts_say_what_an_image_cannot(repository: Repository) -> None:
    conversion = publish_layers(repository, rich_layer())
    (changes,) = conversion.changes.values()
    assert changes == {
        "split_hardlinks": 1, "dropped_xattrs": 0, "image_dropped_xattrs": 1, "changed_times": 0,
        "implied_directories": 4,
    }  # fmt: skip


def change(repository: Repository, action: Callable[[Transaction], object]) -> None:
    with repository.manager() as manager, manager.transaction() as transaction:
        action(transaction)


@pytest.mark.parametrize("content", [b"", b"no image", bytes(8192)])
def test_a_published_image_that_is_none_is_refused(content: bytes, repository: Repository, tmp_path: Path) -> None:
    (converted,) = publish_layers(repository, rich_layer()).layers
    path = metadata_image_path(converted.digest, 2)
    change(
        repository,
        lambda transaction: transaction.catalogs.put(path, transaction.store_file(path.rpartition(b"/")[2], content)),
    )
    target = tmp_path / "image"
    target.write_bytes(b"as it was")
    with (
        opened_root(repository, tmp_path / "cache") as (client, root),
        pytest.raises(IntegrityError, match=rf"{converted.digest[7:]}.2.erofs' of {FQRN} is"),
    ):
        obtain_layer_image(client, root, tree_path(converted.digest).encode(), target)
    assert target.read_bytes() == b"as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "cache.trust", "image", "repository"]


def test_an_image_of_impossible_chunks_is_refused(repository: Repository, tmp_path: Path) -> None:
    (converted,) = publish_layers(repository, rich_layer()).layers
    path = metadata_image_path(converted.digest, 2)

    def put(transaction: Transaction) -> None:
        entry, chunks = store_stream(
            transaction.objects,
            path.rpartition(b"/")[2],
            io.BytesIO(noise(50_000)),
            50_000,
            ChunkRule(4096, 8192, 16384),
        )
        transaction.catalogs.put(path, entry, [chunks[0], Chunk(chunks[0].size, (1 << 40), chunks[1].digest)])

    change(repository, put)
    with (
        opened_root(repository, tmp_path / "cache") as (client, root),
        pytest.raises(IntegrityError, match=r"broken chunks|impossible entry|has chunks"),
    ):
        obtain_layer_image(client, root, tree_path(converted.digest).encode(), tmp_path / "image")


@pytest.mark.parametrize("published", [True, False])
def test_an_image_has_its_room_in_the_cache(repository: Repository, tmp_path: Path, published: bool) -> None:
    (converted,) = publish_layers(repository, rich_layer()).layers
    if not published:
        change(repository, lambda transaction: transaction.catalogs.remove(metadata_image_path(converted.digest, 2)))
    with opened_root(repository, tmp_path / "cache") as (client, root):
        client.cache.quota.set_limits(Limits(64 << 20))
        tree = tree_path(converted.digest).encode()
        obtain_layer_image(client, root, tree, client.cache.root / "images/one")
        assert client.cache.quota.account() == Account(disk_usage(client.cache.root), 0, is_counted=True)
        client.cache.quota.set_limits(Limits(disk_usage(client.cache.root)))
        with pytest.raises(UserError, match="There is no room"):
            obtain_layer_image(client, root, tree, client.cache.root / "images/two")
        assert os.listdir(client.cache.root / "images") == ["one"]


def test_layers_that_are_not_there(repository: Repository, tmp_path: Path) -> None:
    (converted,) = publish_layers(repository, rich_layer()).layers
    tree = tree_path(converted.digest).encode()
    with opened_root(repository, tmp_path / "cache") as (client, root):
        for path in (b"/.layers/ab/abcd/layerfs", b"/nowhere", tree + b"/nothing", b"/.layers/layerfs"):
            with pytest.raises(NotFoundError, match="There is no layer"):
                obtain_layer_image(client, root, path, tmp_path / "image")
        with pytest.raises(NotFoundError, match="is not a directory"):
            obtain_layer_image(client, root, tree + b"/usr/small", tmp_path / "image")
        with pytest.raises(UserError, match="write the metadata image"):
            obtain_layer_image(client, root, tree, tmp_path / "no" / "such" / "directory")
    assert not (tmp_path / "image").exists()


def test_a_server_that_is_gone_is_temporary(repository: Repository, tmp_path: Path) -> None:
    (converted,) = publish_layers(repository, rich_layer()).layers
    with (
        serving(repository.storage) as server,
        opened_root(repository, tmp_path / "cache", url=server.url) as (client, root),
    ):
        server.default = Answer(status=503)
        with pytest.raises(TemporaryError):
            obtain_layer_image(client, root, tree_path(converted.digest).encode(), tmp_path / "image")
    assert not (tmp_path / "image").exists()


def test_limits_hold(repository: Repository, tmp_path: Path) -> None:
    (converted,) = publish_layers(repository, rich_layer()).layers
    tree = tree_path(converted.digest).encode()
    with (
        opened_root(repository, tmp_path / "cache") as (client, root),
        (tmp_path / "made").open("w+b") as made,
        pytest.raises(UserError, match="more than the 100 entries"),
    ):
        generate_layer_image(client, root, tree, made, limits=ImageLimits(max_entries=100))


def test_names_of_chunked_files_agree_with_their_lists(repository: Repository, tmp_path: Path) -> None:
    """Whoever has the image can open a large file by its redirect alone."""
    (converted,) = publish_layers(repository, rich_layer()).layers
    image, _ = images(repository, tree_path(converted.digest).encode(), tmp_path)
    content = entries_of(image)[b"/usr/large"].content
    assert content is not None
    data = dict(read_chunk_lists(io.BytesIO(image), "it"))[content.digest]
    chunks = parse_chunk_list(data, content.digest.algorithm)
    assert chunked_name(chunks, content.compression) == content
