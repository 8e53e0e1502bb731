"""Diff ids: what a configuration states about a layer is true, or nothing is published."""

import dataclasses
from pathlib import Path

import pytest
from tests.support.repositories import Repository, findings, make_repository
from tests.unit.oci.samples import Sample, digest_of, make_config, make_sample, make_tar, write_layout

from mica.convert.converter import Converter, ConverterOptions, Platforms
from mica.convert.publishing import Conversion
from mica.convert.staging import STAGING_DIRECTORY
from mica.errors import IntegrityError, UserError
from mica.oci import mediatypes
from mica.oci.models import Descriptor, format_index
from mica.oci.reference import Reference
from mica.publish.catalogtree import base_name
from mica.thin.layout import chain_ids, chain_path, chain_target, facts_path, image_path, layer_path

ROOT, GOOD, EVIL = (make_tar({name: name.encode()}) for name in ("root", "good", "evil"))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path)


def image(tars: list[bytes], *, states: list[bytes] | None = None, kind: str = "gzip") -> Sample:
    """An image of these layers whose configuration states the diff ids of others."""
    return make_sample(tars, kind=kind, config=make_config(tars if states is None else states))


def convert(repository: Repository, sample: Sample, place: Path, *, every: bool = False) -> Conversion:
    if not place.exists():
        write_layout(place, sample)
    with repository.manager() as manager:
        converter = Converter(manager, ConverterOptions())
        with converter.opened(
            f"oci:{place}", Platforms(every=every), name=f"registry.example/{place.name}:1"
        ) as opened:
            return converter.convert(opened)


def linked_layer(repository: Repository, tars: list[bytes]) -> bytes:
    """Where the chain of these layers leads to; empty if there is none."""
    path = chain_path(chain_ids([digest_of(tar) for tar in tars])[-1])
    with repository.manager() as manager, manager.snapshot() as catalogs:
        found = catalogs.find(path)
        return b"" if found is None else found.target


def test_forged_diff_id_of_a_published_layer_is_refused(repository: Repository, tmp_path: Path) -> None:
    victim = image([ROOT, GOOD])
    convert(repository, victim, tmp_path / "victim")
    convert(repository, image([ROOT, EVIL]), tmp_path / "honest")
    forged = image([ROOT, EVIL], states=[ROOT, GOOD])
    with pytest.raises(IntegrityError, match=f"states the diff id {digest_of(GOOD)}.*unpacks to {digest_of(EVIL)}"):
        convert(repository, forged, tmp_path / "forged")
    assert linked_layer(repository, [ROOT, GOOD]) == chain_target(victim.layers[1].digest)
    with repository.manager() as manager, manager.snapshot() as catalogs:
        assert catalogs.find(image_path(Reference.parse("registry.example/forged:1"))) is None


def test_forged_diff_id_of_a_staged_layer_is_refused(repository: Repository, tmp_path: Path) -> None:
    victim = image([ROOT, GOOD])
    convert(repository, victim, tmp_path / "victim")
    honest = image([EVIL, EVIL[:512]])  # its second layer is cut in the middle
    with pytest.raises(UserError):
        convert(repository, honest, tmp_path / "cut")
    with repository.manager() as manager:
        assert (manager.directory(STAGING_DIRECTORY) / f"{honest.layers[0].digest[7:]}.json").exists()
    with pytest.raises(IntegrityError, match="diff id"):
        convert(repository, image([ROOT, EVIL], states=[ROOT, GOOD]), tmp_path / "forged")
    assert linked_layer(repository, [ROOT, GOOD]) == chain_target(victim.layers[1].digest)
    assert not findings(repository, tmp_path)


def test_one_layer_with_two_diff_ids_in_an_image_is_refused(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="diff id"):
        convert(repository, image([ROOT, EVIL, EVIL], states=[ROOT, EVIL, GOOD]), tmp_path / "twice")
    assert not linked_layer(repository, [ROOT, EVIL])


def test_forged_image_beside_an_honest_one_in_an_index_is_refused(repository: Repository, tmp_path: Path) -> None:
    honest, forged = image([ROOT, EVIL]), image([ROOT, EVIL], states=[ROOT, GOOD])
    place = tmp_path / "index"
    index = format_index((honest.manifest, forged.manifest))
    both = dataclasses.replace(honest, blobs=honest.blobs | forged.blobs | {digest_of(index): index})
    write_layout(place, both, Descriptor(mediatypes.OCI_INDEX, digest_of(index), len(index)))
    with pytest.raises(IntegrityError, match="diff id"):
        convert(repository, honest, place, every=True)
    assert not linked_layer(repository, [ROOT, GOOD])


def test_chain_link_that_was_forged_is_put_right(repository: Repository, tmp_path: Path) -> None:
    victim, other = image([ROOT, GOOD]), image([ROOT, EVIL])
    convert(repository, victim, tmp_path / "victim")
    convert(repository, other, tmp_path / "other")
    path = chain_path(chain_ids([digest_of(ROOT), digest_of(GOOD)])[-1])
    with repository.manager() as manager, manager.transaction() as transaction:
        link = transaction.catalogs.find(path)
        assert link is not None
        target = chain_target(other.layers[1].digest)
        transaction.catalogs.put(path, link._replace(target=target, size=len(target)))
    convert(repository, victim, tmp_path / "victim")
    assert linked_layer(repository, [ROOT, GOOD]) == chain_target(victim.layers[1].digest)


def test_chain_link_stays_when_the_layer_comes_compressed_otherwise(repository: Repository, tmp_path: Path) -> None:
    first = image([ROOT, GOOD])
    convert(repository, first, tmp_path / "gzip")
    convert(repository, image([ROOT, GOOD], kind="zstd"), tmp_path / "zstd")
    assert linked_layer(repository, [ROOT, GOOD]) == chain_target(first.layers[1].digest)


def test_layer_of_others_gets_no_chain_link(repository: Repository, tmp_path: Path) -> None:
    """Stock tools put layers into the same place, without facts: nothing vouches for their diff ids."""
    sample = image([ROOT, GOOD])
    convert(repository, sample, tmp_path / "first")
    with repository.manager() as manager, manager.transaction() as transaction:
        transaction.catalogs.remove(facts_path(sample.layers[1].digest))
        transaction.catalogs.remove(chain_path(chain_ids([digest_of(ROOT), digest_of(GOOD)])[-1]))
    convert(repository, sample, tmp_path / "again")
    assert not linked_layer(repository, [ROOT, GOOD])
    assert linked_layer(repository, [ROOT]) == chain_target(sample.layers[0].digest)


@pytest.mark.parametrize("damage", [b"{", b"[" * 100_000])
def test_damaged_facts_are_named(repository: Repository, tmp_path: Path, damage: bytes) -> None:
    sample = image([ROOT])
    convert(repository, sample, tmp_path / "image")
    path = facts_path(sample.layers[0].digest)
    with repository.manager() as manager, manager.transaction() as transaction:
        transaction.catalogs.put(path, transaction.store_file(base_name(path), damage))
    with pytest.raises(IntegrityError, match=path.decode()):
        convert(repository, sample, tmp_path / "image")


def test_layer_that_says_nothing_in_its_facts_is_taken(repository: Repository, tmp_path: Path) -> None:
    sample = image([ROOT])
    convert(repository, sample, tmp_path / "image")
    path = facts_path(sample.layers[0].digest)
    with repository.manager() as manager, manager.transaction() as transaction:
        transaction.catalogs.put(path, transaction.store_file(base_name(path), b"[]"))
        assert transaction.catalogs.find(layer_path(sample.layers[0].digest)) is not None
    assert convert(repository, sample, tmp_path / "image").layers[0].is_new is False
