"""Collections: what nobody needs goes, and everything else stays, whatever happens meanwhile."""

import json
import sqlite3
import time
from pathlib import Path

import pytest
from tests.support.garbage import (
    check_complete,
    make_old,
    needed_objects,
    objects_in,
    tags_of,
    wanted_objects,
    work_files,
)
from tests.support.repositories import Repository, findings, ingest, make_repository
from tests.support.tars import END, member

from mica.collect.collection import opened_collection
from mica.collect.lastrun import read_last_run
from mica.collect.report import CollectionReport
from mica.collect.retention import DAY_S, RetentionRules
from mica.digest import Digest, digest_of
from mica.errors import IntegrityError, NotFoundError, UserError
from mica.publish.manager import ReleaseManager
from mica.publish.tags import add_tag
from mica.repo.history import RefKind, Reflog, format_reflog, parse_reflog
from mica.repo.manifest import Manifest
from mica.store.base import read_limited

NOTHING_OLD = RetentionRules(keep_revisions=1, keep_s=-1, auto_tag_s=None, grace_s=-1)
"""Keep only what is wanted now; nothing is too young, not even what was stored in this second."""


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


def publish(repository: Repository, label: str) -> Manifest:
    """A revision with a nested catalog, a file of its own, one in chunks, and one that all have."""
    files = {"own": label.encode() * 30, "large": label.encode() * 9000, "common": b"the same everywhere"}
    archive = b"".join(member(name.encode(), data) for name, data in files.items()) + END
    return ingest(repository, archive, b"/data", nested=True)


def collect(repository: Repository, rules: RetentionRules = NOTHING_OLD) -> CollectionReport:
    with repository.manager() as manager, opened_collection(manager, rules) as collection:
        return collection.run()


def plan(repository: Repository, rules: RetentionRules = NOTHING_OLD) -> CollectionReport:
    with repository.manager() as manager, opened_collection(manager, rules) as collection:
        return collection.plan()


def read_reflog(manager: ReleaseManager) -> Reflog:
    return parse_reflog(read_limited(manager.store, ".cvmfsreflog", 1 << 20), "reflog")


def check_sound(repository: Repository, work: Path) -> None:
    assert [one for one in findings(repository, work) if one.severity == "error"] == []


def test_what_only_old_revisions_have_goes_and_nothing_else(repository: Repository, tmp_path: Path) -> None:
    first, second, third = (publish(repository, label) for label in ("first", "second", "third"))
    with repository.manager() as manager:
        wanted = wanted_objects(manager)
        before = objects_in(manager.store)
        report = collect(repository)
        assert objects_in(manager.store) == wanted
        roots = {digest for digest, (kind, _) in read_reflog(manager).refs.items() if kind == RefKind.CATALOG}
        assert roots == {second.root_catalog, third.root_catalog}, "trunk-previous is a tag too"
    assert first.root_catalog not in roots
    assert report.survey.removed.objects >= len(before) - len(wanted)
    assert report.survey.removed.bytes > 0
    check_sound(repository, tmp_path)
    assert work_files(repository.state / "repositories" / repository.fqrn) == []


def test_another_collection_finds_nothing(repository: Repository) -> None:
    for label in ("first", "second", "third"):
        publish(repository, label)
    collect(repository)
    again = collect(repository)
    assert again.survey.removed.objects == 0
    assert list(again.lines()) == []


def test_a_plan_changes_nothing_and_says_what_the_collection_does(repository: Repository) -> None:
    for label in ("first", "second", "third"):
        publish(repository, label)
    with repository.manager() as manager:
        before = objects_in(manager.store), read_reflog(manager)
        planned = plan(repository)
        assert (objects_in(manager.store), read_reflog(manager)) == before
    done = collect(repository)
    assert planned.condemned == done.survey.removed
    assert list(planned.lines()) == list(done.lines())
    assert {(line.kind, line.name) for line in planned.lines()} >= {("revision", "1"), ("revision", "2")}


def test_revisions_stay_by_number_and_by_age(repository: Repository) -> None:
    manifests = [publish(repository, label) for label in ("first", "second", "third", "fourth")]
    collect(repository, RetentionRules(keep_revisions=3, keep_s=-1, auto_tag_s=None, grace_s=-1))
    with repository.manager() as manager:
        kept = [manifest.root_catalog for manifest in manifests[1:]]
        assert objects_in(manager.store) == wanted_objects(manager, *kept)
    collect(repository, RetentionRules(keep_revisions=1, keep_s=3600, auto_tag_s=None, grace_s=-1))
    with repository.manager() as manager:
        check_complete(manager, *kept)
    collect(repository)
    with repository.manager() as manager:
        assert objects_in(manager.store) == wanted_objects(manager)


def test_named_revisions_stay(repository: Repository, tmp_path: Path) -> None:
    named = publish(repository, "named")
    with repository.manager() as manager:
        add_tag(manager, "release")
    for label in ("second", "third", "fourth"):
        publish(repository, label)
    collect(repository)
    with repository.manager() as manager:
        check_complete(manager, named.root_catalog)
        assert objects_in(manager.store) == wanted_objects(manager)
    check_sound(repository, tmp_path)


def test_automatic_tags_expire_and_named_ones_do_not(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository", auto_tag=True)
    publish(repository, "first")
    with repository.manager() as manager:
        add_tag(manager, "release")
    for label in ("second", "third", "fourth"):
        publish(repository, label)
    rules = RetentionRules(keep_revisions=1, keep_s=-1, auto_tag_s=-3600, grace_s=-1)
    report = collect(repository, rules)
    with repository.manager() as manager:
        left = {name for name in tags_of(manager) if name.startswith("generic")}
        assert len(left) == 1, "that of the newest revision"
        assert "release" in tags_of(manager)
        check_complete(manager)
        assert objects_in(manager.store) == wanted_objects(manager)
    assert {line.kind for line in report.lines()} >= {"tag"}
    check_sound(repository, tmp_path)


def test_young_objects_stay_whatever_needs_them(repository: Repository) -> None:
    for label in ("first", "second", "third"):
        publish(repository, label)
    rules = RetentionRules(keep_revisions=1, keep_s=0, auto_tag_s=None, grace_s=5 * DAY_S)
    with repository.manager() as manager:
        before = objects_in(manager.store)
        orphan = "data/ab/" + 38 * "c"
        manager.store.put(orphan, b"of a publication that goes on")
        make_old(repository, 4)
        assert collect(repository, rules).survey.removed.objects == 0
        make_old(repository, 4)
        manager.store.refresh(orphan)
        collect(repository, rules)
        assert manager.store.has(orphan)
        assert before <= objects_in(manager.store), "the reflog says that the revisions are young"


def test_objects_of_no_revision_go_and_other_files_stay(repository: Repository) -> None:
    publish(repository, "first")
    orphans = ["data/ab/" + 38 * "c", "data/ab/" + 38 * "c" + "P", "data/00/" + 38 * "d" + "-shake128C"]
    others = ["data/ab/README", "data/ab/" + 38 * "c" + "L", "data/ab/" + 37 * "c", ".cvmfsother"]
    with repository.manager() as manager:
        for path in orphans + others:
            (repository.storage / path).write_bytes(b"x" * 7)
        report = collect(repository)
        assert [path for path in orphans if manager.store.has(path)] == []
        assert [path for path in others if not (repository.storage / path).exists()] == []
    assert report.survey.removed.objects >= 3
    assert report.survey.others == 3


def test_an_object_is_told_from_one_of_another_kind_with_the_same_digest(repository: Repository) -> None:
    head = publish(repository, "first")
    with repository.manager() as manager:
        wanted = next(path for path in needed_objects(manager.store, head.root_catalog.text) if len(path) == 46)
        twin = wanted + "P"
        (repository.storage / twin).write_bytes((repository.storage / wanted).read_bytes())
        collect(repository)
        assert manager.store.has(wanted)
        assert not manager.store.has(twin)


def test_a_collection_leaves_a_record(repository: Repository) -> None:
    home = repository.state / "repositories" / repository.fqrn
    assert read_last_run(home) is None
    for label in ("first", "second", "third"):
        publish(repository, label)
    (repository.storage / ".cvmfs_status.json").write_text('{"last_check": "yesterday"}')
    start = time.time()
    report = collect(repository)
    run = read_last_run(home)
    assert run is not None
    assert start - 1 <= run.began <= run.ended <= time.time()
    assert run.report == json.loads(json.dumps(report.to_json()))
    assert run.report["removed"]["objects"] > 0
    status = json.loads((repository.storage / ".cvmfs_status.json").read_text())
    assert status["last_check"] == "yesterday"
    assert status["last_gc"].endswith(str(time.gmtime().tm_year))


def test_the_reflog_and_its_checksum_belong_together_afterwards(repository: Repository) -> None:
    for label in ("first", "second", "third"):
        publish(repository, label)
    collect(repository)
    home = repository.state / "repositories" / repository.fqrn
    reflog = (repository.storage / ".cvmfsreflog").read_bytes()
    assert (home / "reflog.chksum").read_text() == digest_of(reflog).text
    publish(repository, "fourth")


# What was published before is damaged


def test_nothing_is_removed_where_the_newest_revision_is_not_complete(repository: Repository) -> None:
    publish(repository, "first")
    head = publish(repository, "second")
    with repository.manager() as manager:
        nested = [path for path in needed_objects(manager.store, head.root_catalog.text) if path.endswith("C")][-1]
        manager.store.delete(nested)
        before = objects_in(manager.store)
        with pytest.raises(IntegrityError, match=r"Nothing was removed, because revision 3 .* is not complete"):
            collect(repository)
        assert objects_in(manager.store) == before


def test_nothing_is_removed_where_a_tag_is_not_complete(repository: Repository) -> None:
    named = publish(repository, "first")
    with repository.manager() as manager:
        add_tag(manager, "release")
        nested = [path for path in needed_objects(manager.store, named.root_catalog.text) if path.endswith("C")][-1]
        publish(repository, "second")
        publish(repository, "third")
        manager.store.delete(nested)
        before = objects_in(manager.store)
        with pytest.raises(IntegrityError, match="Nothing was removed, because tag release is not complete") as caught:
            collect(repository)
        assert "remove the tag" in caught.value.hint
        assert objects_in(manager.store) == before


def test_a_tag_whose_root_is_gone_is_told_of(repository: Repository) -> None:
    named = publish(repository, "first")
    with repository.manager() as manager:
        add_tag(manager, "release")
        publish(repository, "second")
        publish(repository, "third")
        manager.store.delete(f"data/{named.root_catalog.text[:2]}/{named.root_catalog.text[2:]}C")
    report = collect(repository)
    assert len(report.warnings) == 1
    assert "tag release" in report.warnings[0]


def test_a_chain_of_revisions_ends_where_one_is_missing(repository: Repository) -> None:
    publish(repository, "first")
    second = publish(repository, "second")
    publish(repository, "third")
    publish(repository, "fourth")
    with repository.manager() as manager:
        manager.store.delete(f"data/{second.root_catalog.text[:2]}/{second.root_catalog.text[2:]}C")
    collect(repository, RetentionRules(keep_revisions=9, keep_s=DAY_S, auto_tag_s=None, grace_s=-1))
    with repository.manager() as manager:
        check_complete(manager)
        assert second.root_catalog not in read_reflog(manager).refs


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(4096), None])
def test_nothing_is_removed_without_a_reflog(repository: Repository, content: bytes | None) -> None:
    publish(repository, "first")
    path = repository.storage / ".cvmfsreflog"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with repository.manager() as manager:
        before = objects_in(manager.store)
        with pytest.raises((IntegrityError, NotFoundError)) as caught:
            collect(repository)
        assert "mica repo repair" in caught.value.hint
        assert objects_in(manager.store) == before


def test_a_reflog_that_lies_harms_nothing(repository: Repository, tmp_path: Path) -> None:
    """It lists what is wanted as something else, things that never were, and kinds that no version knows."""
    publish(repository, "first")
    head = publish(repository, "second")
    third = publish(repository, "third")
    odd = {
        Digest(bytes(20), third.root_catalog.algorithm): (RefKind.CATALOG, 1),
        Digest(b"\1" * 20, third.root_catalog.algorithm): (77, 1),
        Digest(b"\2" * 20, third.root_catalog.algorithm): (-1, 1 << 60),
        Digest(b"\3" * 20, third.root_catalog.algorithm): (RefKind.CATALOG, 1 << 60),
        third.certificate: (RefKind.CATALOG, 1),
        third.root_catalog: (RefKind.HISTORY, 0),
    }
    with repository.manager() as manager:
        reflog = read_reflog(manager)
        reflog.refs.update(odd)
        manager.store.replace(".cvmfsreflog", format_reflog(reflog))
        collect(repository)
        check_complete(manager, head.root_catalog)
        assert manager.store.has(f"data/{third.certificate.text[:2]}/{third.certificate.text[2:]}X")
    publish(repository, "fourth")
    check_sound(repository, tmp_path)


def test_a_repository_that_forbids_it_is_left_alone(repository: Repository) -> None:
    path = repository.state / "repositories" / repository.fqrn / "repository.toml"
    path.write_text(path.read_text().replace("garbage_collectable = true", "garbage_collectable = false"))
    publish(repository, "first")
    with pytest.raises(UserError, match="must not be collected"):
        collect(repository)


def test_a_database_in_a_catalog_that_is_none_is_refused(repository: Repository) -> None:
    """The newest revision's catalog is replaced by a file that SQLite cannot read: its digest is wrong."""
    head = publish(repository, "first")
    path = repository.storage / f"data/{head.root_catalog.text[:2]}/{head.root_catalog.text[2:]}C"
    path.write_bytes(b"nothing")
    with pytest.raises((IntegrityError, sqlite3.Error)):
        collect(repository)
