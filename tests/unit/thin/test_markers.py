"""Layers with files that the stock tools take for markers of nested catalogs: each has a catalog of its own."""

import io
import tarfile
from pathlib import Path

import pytest
from tests.support.layers import opened_root, publish_layers
from tests.support.repositories import Repository, find_path, findings, make_repository, opened_tree, read_file
from tests.support.stockcatalogs import stock_catalogs
from tests.support.tars import END, member

from mica.convert.removal import remove_layers
from mica.dataplane.layerimage import generate_layer_image, obtain_layer_image
from mica.digest import path_hash
from mica.errors import UserError
from mica.metaimage.reader import read_image
from mica.publish import ingest
from mica.repo.entry import MARKER
from mica.store.local import LocalStore
from mica.thin.layout import layer_path, tree_path

DIRECTORY, LINK, HARD = b"5", b"2", b"1"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


def at(directory: bytes) -> bytes:
    return directory + b"/" + MARKER if directory else MARKER


LAYERS = {
    "at the root": member(at(b"")) + member(b"a/x", b"1"),
    "with content": member(at(b"a"), b"content") + member(b"a/x", b"1") + member(b"b", b"2"),
    "in each other": b"".join(member(at(b"/".join([b"d"] * depth))) for depth in range(5)) + member(b"d/d/d/x", b"1"),
    "a directory": member(b"a/" + MARKER, type_flag=DIRECTORY) + member(at(at(b"a")), b"in it") + member(b"a/b/c"),
    "a link": member(at(b"a"), type_flag=LINK, link=b"/etc") + member(b"a/b/c"),
    "a whiteout": member(b"a/.wh." + MARKER) + member(b"a/b/c"),
    "with several names": member(at(b"a"), b"1") + member(b"a/y", type_flag=HARD, link=at(b"a"))
    + member(b"a/p", b"2") + member(b"a/q", type_flag=HARD, link=b"a/p")
    + member(b"b/p", b"2") + member(b"b/q", type_flag=HARD, link=b"b/p") + member(at(b"b")),
    "of a large file": member(at(b"a"), bytes(range(256)) * 20_000) + member(b"b/large", bytes(range(255)) * 20_000),
}  # fmt: skip


def abandoned_markers(repository: Repository) -> list[bytes]:
    """What the stock checker says of entries with the name of a marker: any kind of them, outside a catalog's root, or
    missing there."""
    found = []
    with LocalStore(repository.storage) as store:
        for catalog in stock_catalogs(store):
            top = path_hash(catalog.root_prefix)
            named = [(row, parent) for row, parent in catalog.all_rows() if row.entry.name == MARKER]
            rows = [(row, parent) for row, parent in named if row.key != top]
            found += [catalog.root_prefix for _, parent in rows if parent != top]
            if catalog.root_prefix and not rows:
                found.append(catalog.root_prefix)
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_markers_of_a_layer_stay_and_both_checkers_are_content(
    name: str, repository: Repository, tmp_path: Path
) -> None:
    (converted,) = publish_layers(repository, LAYERS[name] + END).layers
    assert findings(repository, tmp_path) == []
    assert abandoned_markers(repository) == []
    tree = tree_path(converted.digest).encode()
    with opened_root(repository, tmp_path / "cache") as (client, root), (tmp_path / "made").open("w+b") as made:
        obtain_layer_image(client, root, tree, tmp_path / "obtained")
        generate_layer_image(client, root, tree, made)
    image = (tmp_path / "obtained").read_bytes()
    assert (tmp_path / "made").read_bytes() == image
    shown = {path for path, _ in read_image(io.BytesIO(image), "it")}
    with tarfile.open(fileobj=io.BytesIO(LAYERS[name] + END)) as tar:
        names = {b"/" + one.name.encode().replace(b"/.wh.", b"/") for one in tar.getmembers()}
    assert names <= shown


def test_a_container_reads_what_the_marker_holds(repository: Repository, tmp_path: Path) -> None:
    (converted,) = publish_layers(repository, LAYERS["with content"] + END).layers
    with opened_tree(repository, tmp_path / "cache") as tree:
        for name, content in ((MARKER.decode(), b"content"), ("x", b"1")):
            assert read_file(tree, find_path(tree, f"{tree_path(converted.digest)}/a/{name}")) == content


def test_the_same_layer_gives_the_same_catalogs_everywhere(repository: Repository, tmp_path: Path) -> None:
    layer = LAYERS["in each other"] + END
    other = make_repository(tmp_path / "other")
    publish_layers(repository, layer)
    publish_layers(other, member(b"another") + END, layer)
    found = []
    for one in (repository, other):
        with LocalStore(one.storage) as store:
            found.append({c.name for c in stock_catalogs(store) if c.root_prefix.endswith((b"/layerfs", b"/d"))})
    assert len(found[0]) == 5
    assert found[0] == found[1]


def test_a_layer_with_markers_can_be_removed(repository: Repository, tmp_path: Path) -> None:
    (converted,) = publish_layers(repository, LAYERS["in each other"] + END).layers
    with repository.manager() as manager, manager.transaction() as transaction:
        remove_layers(transaction.catalogs, [converted.digest[7:]])
        assert transaction.catalogs.find(layer_path(converted.digest)) is None
    assert findings(repository, tmp_path) == []


def test_too_many_markers_are_refused(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "MARKERS_MAX", 2)
    with pytest.raises(UserError, match=r"3 directories with a \.cvmfscatalog, more than 2"):
        publish_layers(repository, b"".join(member(at(name)) for name in (b"a", b"b", b"c")) + END)
