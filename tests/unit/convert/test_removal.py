"""Images leave a repository with the layers that no other image has, and nothing else does."""

from pathlib import Path

import pytest
from tests.support.repositories import Repository, findings, make_repository, read_back
from tests.unit.oci.samples import Sample, digest_of, make_sample, make_tar, write_layout

from mica.convert.converter import Converter, ConverterOptions, Platforms
from mica.convert.removal import list_records, remove_layers, remove_record, unused_layers
from mica.errors import UserError
from mica.oci.reference import Reference
from mica.thin.layout import chain_ids, chain_path, facts_path, hex_of, image_path, layer_path, metadata_image_paths
from mica.thin.record import ImageRecord

BASE, ONE, TWO = (make_tar({name: name.encode()}) for name in ("base", "one", "two"))
FIRST, SECOND = make_sample([BASE, ONE]), make_sample([BASE, TWO])


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = make_repository(tmp_path / "repository")
    convert(repository, FIRST, tmp_path / "first")
    convert(repository, SECOND, tmp_path / "second")
    return repository


def convert(repository: Repository, sample: Sample, place: Path) -> None:
    write_layout(place, sample)
    with repository.manager() as manager:
        converter = Converter(manager, ConverterOptions())
        with converter.opened(f"oci:{place}", Platforms(), name=f"registry.example/team/{place.name}:1") as opened:
            converter.convert(opened)


def record_path(name: str) -> bytes:
    return image_path(Reference.parse(f"registry.example/team/{name}:1"))


def records(repository: Repository) -> dict[bytes, ImageRecord]:
    with repository.manager() as manager, manager.snapshot() as catalogs:
        return dict(list_records(catalogs, manager.store))


def unused(repository: Repository) -> set[str]:
    with repository.manager() as manager, manager.snapshot() as catalogs:
        return unused_layers(catalogs, [record for _, record in list_records(catalogs, manager.store)])


def test_all_records_are_listed_with_their_paths(repository: Repository) -> None:
    found = records(repository)
    assert set(found) == {record_path("first"), record_path("second")}
    assert found[record_path("first")].manifest_digest == FIRST.manifest.digest
    assert unused(repository) == set()


def test_a_new_repository_has_neither_records_nor_layers(tmp_path: Path) -> None:
    repository = make_repository(tmp_path)
    assert records(repository) == {}
    assert unused(repository) == set()


def test_a_record_goes_with_the_directories_that_become_empty(repository: Repository, tmp_path: Path) -> None:
    directory = b"/.images/registry.example"
    with repository.manager() as manager:
        with manager.transaction() as transaction:
            assert remove_record(transaction.catalogs, record_path("first"))
            assert not remove_record(transaction.catalogs, record_path("first")), "it is gone already"
        assert set(records(repository)) == {record_path("second")}
        with manager.snapshot() as catalogs:
            assert [entry.name for entry in catalogs.children(directory + b"/team")] == [b"second"]
        with manager.transaction() as transaction:
            assert remove_record(transaction.catalogs, record_path("second"))
    seen = read_back(repository, tmp_path / "cache")
    assert b"/.images" in seen, "the directory of all images stays"
    assert directory not in seen


def test_layers_that_no_record_names_go_with_all_beside_them(repository: Repository, tmp_path: Path) -> None:
    one, two = FIRST.layers[1].digest, SECOND.layers[1].digest
    before = set(read_back(repository, tmp_path / "before"))
    with repository.manager() as manager, manager.transaction() as transaction:
        remove_record(transaction.catalogs, record_path("first"))
    assert unused(repository) == {hex_of(one)}, "the second image has the common layer too"
    with repository.manager() as manager, manager.transaction() as transaction:
        remove_layers(transaction.catalogs, [hex_of(one)])
    after = set(read_back(repository, tmp_path / "after"))
    gone = {path for path in before - after if not path.startswith((b"/.images/", layer_path(one) + b"/"))}
    chain = chain_path(chain_ids([digest_of(BASE), digest_of(ONE)])[-1])
    beside = set(metadata_image_paths(one)) & before
    assert beside
    assert gone == {layer_path(one), facts_path(one), chain, *beside}
    assert {layer_path(two), facts_path(two), layer_path(FIRST.layers[0].digest)} <= after
    assert findings(repository, tmp_path) == []


def test_a_layer_of_another_tool_is_never_unused(repository: Repository) -> None:
    """It has no facts beside it."""
    with repository.manager() as manager, manager.transaction() as transaction:
        for name in ("first", "second"):
            remove_record(transaction.catalogs, record_path(name))
        transaction.catalogs.remove(facts_path(FIRST.layers[1].digest))
    assert unused(repository) == {hex_of(FIRST.layers[0].digest), hex_of(SECOND.layers[1].digest)}


def test_a_malformed_record_is_named(repository: Repository) -> None:
    """Layers that it may need would count as unused."""
    path = record_path("first")
    with repository.manager() as manager, manager.transaction() as transaction:
        transaction.catalogs.put(path, transaction.store_file(path.rpartition(b"/")[2], b"{"))
    with pytest.raises(UserError, match=path.decode()):
        records(repository)
