"""Images and layers leave when nobody has wanted them for long enough, and only then."""

import json
import os
import time
from pathlib import Path

import pytest
from tests.support.garbage import check_complete, objects_in, wanted_objects
from tests.support.repositories import Repository, findings, ingest, make_repository
from tests.support.tars import END, member
from tests.unit.oci.samples import Sample, make_sample, make_tar, write_layout

from mica.collect.collection import opened_collection
from mica.collect.lastrun import read_last_run
from mica.collect.removals import read_unwanted
from mica.collect.report import CollectionReport
from mica.collect.retention import DAY_S, RetentionRules
from mica.convert.converter import Converter, ConverterOptions, Platforms
from mica.convert.removal import list_records
from mica.convert.staging import STAGING_DIRECTORY
from mica.publish.catalogtree import base_name
from mica.publish.tags import add_tag
from mica.sync.state import STATE_DIRECTORY, SyncedImage, SyncState, write_state
from mica.thin.layout import CHAINS, LAYERS, hex_of, image_path, layer_path

BASE, ONE, TWO = (make_tar({name: name.encode() * 99}) for name in ("base", "one", "two"))
FIRST, SECOND = make_sample([BASE, ONE]), make_sample([BASE, TWO])
AT_ONCE = RetentionRules(keep_revisions=1, keep_s=-1, auto_tag_s=None, grace_s=-1)
LATER = RetentionRules(keep_revisions=1, keep_s=10 * DAY_S, auto_tag_s=None, grace_s=-1)
NAME = "registry.example/team/app"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Tag 1 had the first image, and has the second one now."""
    repository = make_repository(tmp_path / "repository")
    convert(repository, FIRST, tmp_path / "first", f"{NAME}:1")
    convert(repository, SECOND, tmp_path / "second", f"{NAME}:1")
    return repository


def convert(repository: Repository, sample: Sample, place: Path, name: str) -> None:
    write_layout(place, sample)
    with repository.manager() as manager:
        converter = Converter(manager, ConverterOptions())
        with converter.opened(f"oci:{place}", Platforms(), name=name) as opened:
            converter.convert(opened)


def collect(repository: Repository, rules: RetentionRules = AT_ONCE) -> CollectionReport:
    with repository.manager() as manager, opened_collection(manager, rules) as collection:
        return collection.run()


def layers(repository: Repository) -> set[str]:
    with repository.manager() as manager, manager.snapshot() as catalogs:
        places = [entry.name for entry in catalogs.children(LAYERS) if entry.is_directory]
        below = [one for place in places for one in catalogs.children(LAYERS + b"/" + place)]
        return {one.name.decode() for one in below if one.is_directory}


def names_beside(repository: Repository, layer: str) -> list[bytes]:
    with repository.manager() as manager, manager.snapshot() as catalogs:
        directory = layer_path(f":{layer}").rpartition(b"/")[0]
        if catalogs.find(directory) is None:
            return []
        return [one.name for one in catalogs.children(directory) if one.name.startswith(layer.encode())]


def chains(repository: Repository) -> int:
    with repository.manager() as manager, manager.snapshot() as catalogs:
        return sum(len(catalogs.children(CHAINS + b"/" + one.name)) for one in catalogs.children(CHAINS))


def hexes(*samples: Sample) -> set[str]:
    return {hex_of(layer.digest) for sample in samples for layer in sample.layers}


def kinds(report: CollectionReport, kind: str) -> dict[str, tuple[bool, int]]:
    return {line.name: (line.is_due, line.sum.objects) for line in report.lines() if line.kind == kind}


def test_a_layer_that_no_image_has_goes_with_all_beside_it(repository: Repository, tmp_path: Path) -> None:
    assert layers(repository) == hexes(FIRST, SECOND)
    assert chains(repository) == 3
    gone = hex_of(FIRST.layers[1].digest)
    report = collect(repository)
    assert layers(repository) == hexes(SECOND)
    assert names_beside(repository, gone) == []
    assert chains(repository) == 2
    due, objects = kinds(report, "layer")[gone]
    assert due
    assert objects >= 3, "its catalog, its file, its facts"
    collect(repository)
    with repository.manager() as manager:
        check_complete(manager)
        assert objects_in(manager.store) == wanted_objects(manager), "the revision that had the layer is gone too"
    assert [one for one in findings(repository, tmp_path) if one.severity == "error"] == []


def test_a_layer_stays_until_nobody_has_wanted_it_for_long(repository: Repository) -> None:
    gone = hex_of(FIRST.layers[1].digest)
    report = collect(repository, LATER)
    assert kinds(report, "layer") == {gone: (False, kinds(report, "layer")[gone][1])}
    assert layers(repository) == hexes(FIRST, SECOND)
    path = repository.state / "repositories" / repository.fqrn / "gc" / "unwanted.json"
    assert set(read_unwanted(path).layers) == {gone}
    document = json.loads(path.read_text())
    document["layers"][gone] -= int(11 * DAY_S)
    path.write_text(json.dumps(document))
    collect(repository, LATER)
    assert layers(repository) == hexes(SECOND)
    assert read_unwanted(path).layers == {}
    with repository.manager() as manager:
        check_complete(manager)


def test_a_layer_that_is_wanted_again_begins_anew(repository: Repository, tmp_path: Path) -> None:
    collect(repository, LATER)
    convert(repository, FIRST, tmp_path / "again", f"{NAME}:2")
    collect(repository)
    assert layers(repository) == hexes(FIRST, SECOND)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"version": 9}', b"\xff", b'{"version": 1, "layers": 1}'])
def test_what_is_remembered_may_be_lost(repository: Repository, content: bytes) -> None:
    path = repository.state / "repositories" / repository.fqrn / "gc" / "unwanted.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    collect(repository, LATER)
    assert layers(repository) == hexes(FIRST, SECOND)
    assert len(read_unwanted(path).layers) == 1


def test_a_layer_of_a_named_revision_stays_in_the_storage(repository: Repository) -> None:
    with repository.manager() as manager:
        add_tag(manager, "both", "3")
    collect(repository)
    collect(repository)
    with repository.manager() as manager:
        check_complete(manager)
    assert layers(repository) == hexes(SECOND)


def test_a_layer_that_a_link_leads_into_stays(repository: Repository) -> None:
    gone = FIRST.layers[1].digest
    archive = member(b"one", type_flag=b"2", link=b"../.." + layer_path(gone)) + END
    ingest(repository, archive, b"/apps/mine")
    collect(repository)
    assert layers(repository) == hexes(FIRST, SECOND)


def test_a_layer_of_an_image_of_another_tool_stays(repository: Repository) -> None:
    manifest = json.dumps({"SchemaVersion": 2, "Layers": [{"Digest": FIRST.layers[1].digest}]}).encode()
    ingest(repository, member(b"manifest.json", manifest) + END, b"/.metadata/registry.example/app:1")
    ingest(repository, member(b"manifest.json", b"no json") + END, b"/.metadata/registry.example/other:1")
    collect(repository)
    assert layers(repository) == hexes(FIRST, SECOND)


def test_a_chain_link_to_nowhere_goes(repository: Repository) -> None:
    with repository.manager() as manager, manager.transaction() as transaction:
        for place in transaction.catalogs.children(CHAINS)[:1]:
            for link in transaction.catalogs.children(CHAINS + b"/" + place.name)[:1]:
                target = b"../../.layers/ab/" + 32 * b"ab"
                stray = link._replace(name=32 * b"cd", target=target, size=len(target))
                transaction.catalogs.put(CHAINS + b"/" + place.name + b"/" + stray.name, stray)
    assert chains(repository) == 4
    collect(repository, LATER)
    assert chains(repository) == 3


def record_names(repository: Repository) -> set[str]:
    with repository.manager() as manager, manager.snapshot() as catalogs:
        return {str(record.reference) for _, record in list_records(catalogs, manager.store)}


def put_record(repository: Repository, name: str, *, index: list[str] | None) -> None:
    """A record under another name, as a conversion of an index makes them."""
    from mica.oci.reference import Reference

    with repository.manager() as manager, manager.transaction() as transaction:
        _, record = next(list_records(transaction.catalogs, manager.store))
        document = {
            "version": 1, "reference": name, "manifest_digest": record.manifest_digest, "manifest": {},
            "config": record.config,
            "thin": {"version": "1.0", "layers": [{"digest": one.digest, "url": one.url}
                                                  for one in record.descriptor.layers]},
        }  # fmt: skip
        if index is not None:
            document["index"] = index
        path = image_path(Reference.parse(name))
        entry = transaction.store_file(base_name(path), json.dumps(document).encode())
        transaction.catalogs.put(path, entry)


def test_images_of_an_index_stay_with_its_name_and_go_when_it_has_others(repository: Repository) -> None:
    now, before, asked = (f"{NAME}@sha256:{letter * 64}" for letter in "abc")
    put_record(repository, now, index=None)
    put_record(repository, before, index=None)
    put_record(repository, asked, index=[])
    put_record(repository, f"{NAME}:2", index=[now.partition("@")[2]])
    report = collect(repository, LATER)
    assert set(kinds(report, "image")) == {before}
    assert record_names(repository) == {now, before, asked, f"{NAME}:1", f"{NAME}:2"}
    collect(repository)
    assert record_names(repository) == {now, asked, f"{NAME}:1", f"{NAME}:2"}


def test_images_by_digest_stay_while_a_record_of_their_name_is_of_an_older_version(repository: Repository) -> None:
    put_record(repository, f"{NAME}@sha256:{'a' * 64}", index=None)
    put_record(repository, f"{NAME}:2", index=None)
    collect(repository)
    assert len(record_names(repository)) == 3


def test_recipes_keep_their_images_and_those_that_they_gave_up_go_when_due(repository: Repository) -> None:
    wanted, given_up, later = (f"{NAME}@sha256:{letter * 64}" for letter in "abc")
    for name in (wanted, given_up, later):
        put_record(repository, name, index=None)
    state = SyncState(
        images={f"{NAME}:1": SyncedImage("sha256:1", "", (wanted,))},
        leaving={given_up: int(time.time()) - 1000, later: int(time.time()) + 1000},
    )
    write_state(repository.state / "repositories" / repository.fqrn / STATE_DIRECTORY / "mine.json", state)
    report = collect(repository)
    assert record_names(repository) == {wanted, later, f"{NAME}:1"}
    assert [line.reason for line in report.lines() if line.kind == "image"] == ["its recipe gave it up"]


def test_old_staged_layers_are_forgotten(repository: Repository) -> None:
    directory = repository.state / "repositories" / repository.fqrn / STAGING_DIRECTORY
    directory.mkdir(exist_ok=True)
    for name, days in (("aa", 8), ("bb", 6)):
        (directory / f"{name}.json").write_bytes(b"{}")
        at = time.time() - days * DAY_S
        os.utime(directory / f"{name}.json", (at, at))
    collect(repository, RetentionRules(keep_revisions=1, keep_s=-1, auto_tag_s=None, grace_s=7 * DAY_S))
    assert [path.name for path in directory.iterdir()] == ["bb.json"]


def test_the_record_of_a_collection_has_the_images(repository: Repository) -> None:
    put_record(repository, f"{NAME}@sha256:{'a' * 64}", index=None)
    collect(repository)
    run = read_last_run(repository.state / "repositories" / repository.fqrn)
    assert run is not None
    assert (run.report["images"], run.report["layers"]) == (1, 1)
