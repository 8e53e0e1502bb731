"""A replica's garbage follows its source."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.memorystore import InjectedError, MemoryStore
from tests.support.replicas import broken_catalogs, errors_in, replicate, shown_revision
from tests.support.repositories import FQRN, Repository, ingest, make_repository
from tests.support.tars import END, member

from mica.collect.replica import ReplicaCollected, collect_replica
from mica.digest import Digest, Suffix
from mica.errors import IntegrityError, LostRaceError, UserError
from mica.fetch.download import LocalFetcher
from mica.publish.transaction import REFLOG
from mica.repo.history import RefKind, Reflog, format_reflog, parse_reflog
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.statusfile import NAME as STATUS
from mica.repo.statusfile import parse_status
from mica.store.local import LocalStore


class Source(NamedTuple):
    """Revisions 2 to 5: each replaces the file of the one before. The last two have tags."""

    repository: Repository
    roots: dict[int, Digest]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    repository = make_repository(tmp_path_factory.mktemp("source"))
    roots = {}
    for number in range(2, 6):
        content = member(b"file", b"only in %d" % number) + member(b"same", b"the same")
        roots[number] = ingest(repository, content + END, b"/data", nested=number == 2).root_catalog
    return Source(repository, roots)


@pytest.fixture
def full(source: Source, tmp_path: Path) -> MemoryStore:
    """A replica with all revisions, which are old."""
    store = MemoryStore()
    storage = tmp_path / "at-2"
    shutil.copytree(source.repository.storage, storage)
    replicate(storage, store, source.repository.master_key, tmp_path / "state")
    with LocalStore(storage) as local:
        for digest in source.roots.values():
            path = digest.object_path(Suffix.CATALOG)
            if not store.has(path):  # as replications between them would have brought it
                store.put(path, (local.root / path).read_bytes())
        for path in (local.root / "data").glob("??/*"):
            store.put(f"data/{path.parent.name}/{path.name}", path.read_bytes())
    reflog = parse_reflog((storage / REFLOG).read_bytes(), "reflog")
    store.replace(REFLOG, format_reflog(reflog))
    store.sync()
    for path in store.contents():
        store.age(path, 10 * 86400)
    return store


@pytest.fixture
def collect(source: Source, tmp_path: Path) -> Callable[..., ReplicaCollected]:
    """With a source whose reflog has these revisions."""
    storage = tmp_path / "collected"
    shutil.copytree(source.repository.storage, storage)

    def run(store: MemoryStore, kept: set[int], **more: float) -> ReplicaCollected:
        reflog = parse_reflog((source.repository.storage / REFLOG).read_bytes(), "reflog")
        gone = {digest for number, digest in source.roots.items() if number not in kept}
        first = {
            d for d, (kind, _) in reflog.refs.items() if kind == RefKind.CATALOG and d not in source.roots.values()
        }
        left = {digest: row for digest, row in reflog.refs.items() if digest not in gone | first}
        (storage / REFLOG).write_bytes(format_reflog(Reflog(FQRN, left)))
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        with LocalStore(storage) as local:
            return collect_replica(LocalFetcher(local), store, work, **more)

    return run


def there(source: Source, store: MemoryStore) -> set[int]:
    return {number for number, root in source.roots.items() if store.has(root.object_path(Suffix.CATALOG))}


def check(source: Source, store: MemoryStore, tmp_path: Path) -> None:
    assert shown_revision(store) == 5
    assert errors_in(store, [source.repository.master_key], tmp_path) == []
    assert broken_catalogs(store) == []


def test_what_the_source_has_stays(
    source: Source, full: MemoryStore, collect: Callable[..., ReplicaCollected], tmp_path: Path
) -> None:
    collected = collect(full, {2, 3, 4, 5})
    assert there(source, full) == {2, 3, 4, 5}
    assert collected.revisions == 1  # the empty one, which is in no reflog any more
    check(source, full, tmp_path)


def test_what_the_source_forgot_goes(
    source: Source, full: MemoryStore, collect: Callable[..., ReplicaCollected], tmp_path: Path
) -> None:
    before = set(full.contents())
    collected = collect(full, {4, 5})
    assert there(source, full) == {4, 5}
    assert collected.objects == len(before - set(full.contents()))
    assert collected.objects >= 6  # root and nested catalog and the file of two revisions
    check(source, full, tmp_path)
    rows = parse_reflog(full.contents()[REFLOG], "reflog").refs
    assert {digest for digest, (kind, _) in rows.items() if kind == RefKind.CATALOG} == {
        source.roots[4], source.roots[5],
    }  # fmt: skip
    assert parse_status(full.contents()[STATUS], "status").last_gc is not None
    assert collect(full, {4, 5}).objects == 0


def test_tags_and_the_newest_revision_stay_whatever_the_reflog_says(
    source: Source, full: MemoryStore, collect: Callable[..., ReplicaCollected], tmp_path: Path
) -> None:
    """It is not signed."""
    collect(full, set())
    assert there(source, full) == {4, 5}
    check(source, full, tmp_path)


def test_young_objects_stay(
    source: Source, full: MemoryStore, collect: Callable[..., ReplicaCollected], tmp_path: Path
) -> None:
    full.put("data/aa/" + "0" * 38, b"of a replication that was killed")
    collect(full, {4, 5})
    assert full.has("data/aa/" + "0" * 38)
    check(source, full, tmp_path)


def test_killed_anywhere_no_revision_is_there_in_part(
    source: Source, full: MemoryStore, collect: Callable[..., ReplicaCollected], tmp_path: Path
) -> None:
    begun = full.contents()
    counted = _aged(begun)
    collect(counted, {4, 5})
    total = len(counted.writes)
    assert total >= 10
    for number in range(1, total + 1):
        store = _aged(begun)
        store.fail_at(number)
        with pytest.raises(InjectedError):
            collect(store, {4, 5})
        for left in (store, store.after_power_failure()):
            assert errors_in(left, [source.repository.master_key], tmp_path) == []
            assert _roots_in_part(left, source) == []
        again = _aged(store.contents())
        collect(again, {4, 5})
        assert {path for path in again.contents() if path.startswith("data/")} == {
            path for path in counted.contents() if path.startswith("data/")
        }


def _aged(contents: dict[str, bytes]) -> MemoryStore:
    store = MemoryStore(contents)
    for path in contents:
        store.age(path, 10 * 86400)
    return store


def _roots_in_part(store: MemoryStore, source: Source) -> list[str]:
    roots = {root.object_path(Suffix.CATALOG) for root in source.roots.values()}
    return [fault for fault in broken_catalogs(store) if fault.partition(" ")[0] in roots]


def test_an_incomplete_revision_ends_it_before_anything_goes(
    source: Source, full: MemoryStore, collect: Callable[..., ReplicaCollected]
) -> None:
    for path in [path for path in full.contents() if path.endswith("C") and path not in _root_paths(source)]:
        full.delete(path)
    before = full.contents()
    with pytest.raises(IntegrityError, match=r"Nothing was removed, because revision .* is not complete"):
        collect(full, {4, 5})
    assert full.contents() == before


def _root_paths(source: Source) -> set[str]:
    return {root.object_path(Suffix.CATALOG) for root in source.roots.values()}


def test_without_a_reflog_nothing_goes(source: Source, full: MemoryStore, tmp_path: Path) -> None:
    storage = tmp_path / "bare"
    shutil.copytree(source.repository.storage, storage)
    (storage / REFLOG).unlink()
    before = full.contents()
    with LocalStore(storage) as local, pytest.raises(UserError, match="has no reflog of"):
        collect_replica(LocalFetcher(local), full, tmp_path)
    assert full.contents() == before


def test_another_host_that_replicates_meanwhile_is_noticed(
    source: Source, full: MemoryStore, collect: Callable[..., ReplicaCollected]
) -> None:
    shown = full.contents()[MANIFEST]
    reads = [0]
    opened = full.open

    def watched(path: str, *, fresh: bool = False) -> object:
        if path == MANIFEST:
            reads[0] += 1
            if reads[0] == 2:
                full.replace(MANIFEST, shown.replace(b"\nD", b"\nD1"))
        return opened(path, fresh=fresh)

    full.open = watched  # type: ignore[method-assign, assignment]
    before = {path for path in full.contents() if path.startswith("data/")}
    with pytest.raises(LostRaceError, match="Another process replicates"):
        collect(full, {4, 5})
    assert {path for path in full.contents() if path.startswith("data/")} == before
