"""Replicas: what they hold, what a fault of the source or of their store leaves, and that they follow their source."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.fixture import FQRN as STOCK
from tests.support.fixture import Fixture, stock_fixture
from tests.support.memorystore import InjectedError, MemoryStore
from tests.support.noise import noise
from tests.support.replicas import HASTY, broken_catalogs, errors_in, http_fetcher, replicate, shown_revision
from tests.support.repositories import FQRN, Repository, ingest, make_repository
from tests.support.tars import END, member
from tests.support.webserver import Answer, WebServer, serving

from mica.digest import Algorithm, Digest, Suffix
from mica.errors import IntegrityError, LostRaceError, MicaError, NotFoundError, TemporaryError, UserError
from mica.fetch.download import LocalFetcher
from mica.publish.resigning import make_request, resign
from mica.replicate.record import ReplicaHome, Unfinished
from mica.replicate.replica import format_moment
from mica.repo.history import RefKind, parse_reflog
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import parse_manifest
from mica.repo.statusfile import parse_status
from mica.repo.whitelist import NAME as WHITELIST
from mica.repo.whitelist import sign_whitelist
from mica.store.local import LocalStore


class Source(NamedTuple):
    """A repository, and its storage as it was at some revisions."""

    repository: Repository
    at: dict[int, Path]

    @property
    def key(self) -> object:
        return self.repository.master_key


def archive(label: str) -> bytes:
    files = {f"{label}/{number}": f"{label} {number}".encode() * 40 for number in range(40)}
    files |= {f"{label}/large": noise(60_000), "common": b"the same in every revision"}
    return b"".join(member(name.encode(), data) for name, data in files.items()) + END


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Revisions 2 to 6; those before 5 have no tag in revision 6."""
    place = tmp_path_factory.mktemp("source")
    repository = make_repository(place)
    at = {}
    for number in range(2, 7):
        ingest(repository, archive(f"r{number}"), b"/data/%d" % number, nested=True)
        at[number] = place / f"at-{number}"
        shutil.copytree(repository.storage, at[number])
    return Source(repository, at)


@pytest.fixture
def place(source: Source, tmp_path: Path) -> Callable[[int], Path]:
    """A copy that a test may change."""

    def copied(number: int) -> Path:
        shutil.copytree(source.at[number], tmp_path / f"copy-{number}", dirs_exist_ok=True)
        return tmp_path / f"copy-{number}"

    return copied


@pytest.fixture
def run(source: Source, tmp_path: Path) -> Callable[..., object]:
    def call(where: object, store: object, **more: object) -> object:
        return replicate(where, store, source.repository.master_key, tmp_path / "state", **more)  # type: ignore[arg-type]

    return call


def check(source: Source, store: MemoryStore, tmp_path: Path, revision: int) -> None:
    assert shown_revision(store) == revision
    assert errors_in(store, [source.repository.master_key], tmp_path) == []
    assert broken_catalogs(store) == []


def root_of(storage: Path) -> Digest:
    return parse_manifest((storage / MANIFEST).read_bytes(), "manifest")[0].root_catalog


# What a replica holds


def test_a_replica_has_everything_of_its_source(source: Source, run: Callable, tmp_path: Path) -> None:
    store = MemoryStore()
    report = run(source.at[6], store)
    check(source, store, tmp_path, 6)
    held = store.contents()
    assert (report.revision, report.former_revision, report.tags) == (6, 0, 2)
    for path in (MANIFEST, WHITELIST):
        assert held[path] == (source.at[6] / path).read_bytes()
    for path, data in held.items():
        if path.startswith("data/"):
            assert data == (source.at[6] / path).read_bytes()
    assert not {".cvmfs_is_snapshotting", ".cvmfs_master_replica"} & set(held)
    assert held[".cvmfs_last_snapshot"].endswith(b"\n")
    moment = held[".cvmfs_last_snapshot"].decode().strip().replace("UTC", "+0000")
    assert abs(datetime.strptime(moment, "%a %b %d %H:%M:%S %z %Y") - datetime.now(UTC)) < timedelta(hours=1)
    snapshot = parse_status(held[".cvmfs_status.json"], "status").last_snapshot
    assert snapshot is not None
    assert abs(snapshot - datetime.now(UTC)) < timedelta(hours=1)


def test_nothing_is_fetched_again(source: Source, run: Callable, tmp_path: Path) -> None:
    store = MemoryStore()
    with serving(source.at[5]) as server, http_fetcher(server.url) as fetcher:
        run(fetcher, store)
        server.requests.clear()
        report = run(fetcher, store)
        assert len(server.requests) == 4  # permission, manifest, certificate, whitelist
        assert (report.new_objects, report.new_catalogs, report.former_revision) == (0, 0, 5)
    with serving(source.at[6]) as server, http_fetcher(server.url) as fetcher:
        before = set(store.contents())
        run(fetcher, store)
        objects = [path.lstrip("/") for path in server.requests if path.startswith("/data/")]
        certificate = {path for path in objects if path.endswith("X")}
        assert not (set(objects) - certificate) & before
        assert len(objects) == len(set(objects))
    check(source, store, tmp_path, 6)


def test_revisions_between_two_replications_come_too(source: Source, run: Callable) -> None:
    """A client that has one of them may come to the replica."""
    store = MemoryStore()
    run(source.at[2], store)
    run(source.at[6], store)
    for number in range(2, 7):
        assert store.has(root_of(source.at[number]).object_path(Suffix.CATALOG))
    assert broken_catalogs(store) == []
    reflog = parse_reflog(store.contents()[".cvmfsreflog"], "reflog")
    roots = {digest for digest, (kind, _) in reflog.refs.items() if kind == RefKind.CATALOG}
    assert {root_of(source.at[number]) for number in range(2, 7)} <= roots


def test_without_tags_only_the_newest_revision_comes(source: Source, run: Callable, tmp_path: Path) -> None:
    store = MemoryStore()
    run(source.at[2], store, rules=replace(HASTY, tags=False))
    run(source.at[6], store, rules=replace(HASTY, tags=False))
    present = [n for n in range(2, 7) if store.has(root_of(source.at[n]).object_path(Suffix.CATALOG))]
    assert present == [2, 6]
    assert broken_catalogs(store) == []
    assert errors_in(store, [source.repository.master_key], tmp_path) == []
    run(source.at[6], store)
    assert store.has(root_of(source.at[5]).object_path(Suffix.CATALOG))


def test_earlier_revisions_that_the_source_removed_are_done_without(
    source: Source, run: Callable, place: Callable[[int], Path], tmp_path: Path
) -> None:
    store = MemoryStore()
    run(source.at[2], store)
    collected = place(6)
    (collected / root_of(source.at[4]).object_path(Suffix.CATALOG)).unlink()
    run(collected, store)
    check(source, store, tmp_path, 6)
    assert not store.has(root_of(source.at[3]).object_path(Suffix.CATALOG))


def test_a_tag_whose_revision_is_gone_is_told(
    source: Source, run: Callable, place: Callable[[int], Path], tmp_path: Path
) -> None:
    collected = place(6)
    (collected / root_of(source.at[5]).object_path(Suffix.CATALOG)).unlink()
    store = MemoryStore()
    assert run(collected, store).missing_tags == ("trunk-previous",)
    check(source, store, tmp_path, 6)


def test_a_killed_one_after_the_catalogs_still_brings_earlier_revisions(source: Source, run: Callable) -> None:
    store = MemoryStore()
    run(source.at[2], store)
    run(source.at[6], store, rules=replace(HASTY, tags=False))  # the newest is there, as after a kill
    former = (source.at[2] / MANIFEST).read_bytes()
    store.replace(MANIFEST, former)
    run(source.at[6], store)
    assert store.has(root_of(source.at[4]).object_path(Suffix.CATALOG))


def test_new_signatures_alone_are_copied(source: Source, run: Callable, tmp_path: Path) -> None:
    resigned = make_repository(tmp_path / "again")
    ingest(resigned, archive("r2"))
    store = MemoryStore()
    run(resigned.storage, store)
    with resigned.manager() as manager:
        resign(manager, days=60)
    run(resigned.storage, store)
    for path in (MANIFEST, WHITELIST):
        assert store.contents()[path] == (resigned.storage / path).read_bytes()


def test_a_new_key_of_the_source_leaves_no_moment_without_a_signer(run: Callable, tmp_path: Path) -> None:
    """The source's whitelist names both certificates, then only the new one. A replica that was made meanwhile has a
    signer on its whitelist after each of its writes."""
    repository = make_repository(tmp_path / "keys")
    before, between = tmp_path / "before", tmp_path / "between"
    shutil.copytree(repository.storage, before)
    with repository.manager() as manager:
        manager.keys.make_next_signer()
        both, _ = make_request(manager).whitelists
        shutil.copytree(repository.storage, between)
        (between / WHITELIST).write_bytes(sign_whitelist(both, manager.keys.master_key(), Algorithm.SHA1))
        resign(manager)
    for former, newer in ((before, between), (between, repository.storage)):
        first = MemoryStore()
        run(former, first)
        begun = first.contents()
        whole = MemoryStore(begun)
        run(newer, whole)
        for number in range(1, len(whole.writes) + 1):
            store = MemoryStore(begun)
            store.fail_at(number)
            with pytest.raises(InjectedError):
                run(newer, store)
            assert errors_in(store, [repository.master_key], tmp_path) == []
    store = MemoryStore()
    run(before, store)
    run(repository.storage, store)
    assert errors_in(store, [repository.master_key], tmp_path) == []


def test_the_stock_servers_repository_is_replicated_as_its_own_tool_would(tmp_path: Path) -> None:
    """Its facts: object names and bytes, the documents, which pointers a stratum 1 has, and what its reflog lists."""
    fixture: Fixture = stock_fixture()
    store = MemoryStore()
    report = replicate(fixture.storage, store, fixture.master_key, tmp_path / "state", fqrn=STOCK)
    assert report.missing_tags == ()
    assert errors_in(store, [fixture.master_key], tmp_path, fqrn=STOCK) == []
    assert broken_catalogs(store) == []
    held = store.contents()
    theirs = {
        path.relative_to(fixture.storage).as_posix(): path.read_bytes()
        for path in fixture.storage.rglob("*")
        if path.is_file()
    }
    assert {path for path in held if not path.startswith("data/")} == {
        ".cvmfspublished", ".cvmfswhitelist", ".cvmfsreflog", ".cvmfs_last_snapshot", ".cvmfs_status.json",
    }  # fmt: skip
    for path, data in held.items():
        if path.startswith("data/") or path in {MANIFEST, WHITELIST}:
            assert data == theirs[path], path
    missing = {path for path in theirs if path.startswith("data/")} - set(held)
    manifest = parse_manifest(theirs[MANIFEST], "manifest")[0]
    reflog = parse_reflog(theirs[".cvmfsreflog"], "theirs").refs
    # The stock tool leaves out the same in a first snapshot: former histories, and a root catalog without a tag.
    assert len([path for path in missing if path.endswith("H")]) == 9
    others = {path for path in missing if not path.endswith("H")}
    tagless = {digest.object_path(Suffix.CATALOG) for digest, (kind, _) in reflog.items() if kind == RefKind.CATALOG}
    assert len(others) == 1
    assert others < tagless
    ours = parse_reflog(held[".cvmfsreflog"], "ours").refs
    assert {digest for digest, (kind, _) in ours.items() if kind != RefKind.CATALOG} == {
        manifest.certificate, manifest.history, manifest.metainfo,
    }  # fmt: skip
    assert {d for d, (kind, _) in ours.items() if kind == RefKind.CATALOG} <= {
        d for d, (kind, _) in reflog.items() if kind == RefKind.CATALOG
    }


# Sources that must not be copied


def test_a_source_has_to_permit_it(run: Callable, place: Callable[[int], Path]) -> None:
    storage = place(2)
    (storage / ".cvmfs_master_replica").unlink()
    store = MemoryStore()
    with pytest.raises(UserError, match=r"does not permit to replicate .*: it has no \.cvmfs_master_replica"):
        run(storage, store)
    assert store.writes == []


def test_an_older_source_is_refused_unless_asked_for(source: Source, run: Callable, tmp_path: Path) -> None:
    store = MemoryStore()
    run(source.at[6], store)
    with pytest.raises(IntegrityError, match=r"revision 6 is already known|before the one already known") as caught:
        run(source.at[3], store)
    assert "--accept-older" in caught.value.hint
    check(source, store, tmp_path, 6)
    assert not store.has(".cvmfs_is_snapshotting")
    run(source.at[3], store, rules=replace(HASTY, accept_older=True))
    check(source, store, tmp_path, 3)


def test_another_revision_of_the_same_number_is_refused(run: Callable, tmp_path: Path, source: Source) -> None:
    store = MemoryStore()
    run(source.at[2], store)
    other = make_repository(tmp_path / "other")
    ingest(other, archive("other"))
    with pytest.raises(IntegrityError, match="has another revision 2 of"):
        run(other.storage, store)
    check(source, store, tmp_path, 2)
    run(other.storage, store, rules=replace(HASTY, accept_older=True))
    assert store.contents()[MANIFEST] == (other.storage / MANIFEST).read_bytes()


def test_an_expired_whitelist_is_refused(source: Source, run: Callable) -> None:
    store = MemoryStore()
    with pytest.raises(IntegrityError, match="expired"):
        run(source.at[2], store, now=lambda: datetime.now(UTC) + timedelta(days=400))
    assert shown_revision(store) == 0


def test_another_repositorys_place_is_refused(source: Source, run: Callable, tmp_path: Path) -> None:
    store = MemoryStore()
    run(source.at[2], store)
    fixture = stock_fixture()
    with pytest.raises(UserError, match=f"holds another repository, {FQRN}"):
        replicate(fixture.storage, store, fixture.master_key, tmp_path / "state", fqrn=STOCK)


def test_a_release_managers_storage_is_refused(source: Source, run: Callable, tmp_path: Path) -> None:
    store = MemoryStore({MANIFEST: (source.at[2] / MANIFEST).read_bytes()})
    with pytest.raises(UserError, match="never replicated to there") as caught:
        run(source.at[3], store)
    assert "--take-over" in caught.value.hint
    assert store.writes == []
    run(source.at[3], store, rules=replace(HASTY, take_over=True))
    check(source, store, tmp_path, 3)


def test_a_replica_of_the_stock_tool_goes_on(source: Source, run: Callable, tmp_path: Path) -> None:
    """It has its marker, a reflog of its own, and status of other jobs, which stay."""
    store = MemoryStore()
    run(source.at[3], store)
    shutil.rmtree(tmp_path / "state")
    store.replace(".cvmfs_status.json", b'{\n   "last_gc": "Mon Nov 23 18:11:03 UTC 2026"\n}\n')
    before = parse_reflog(store.contents()[".cvmfsreflog"], "reflog").refs
    run(source.at[6], store)
    check(source, store, tmp_path, 6)
    status = json.loads(store.contents()[".cvmfs_status.json"])
    assert status["last_gc"] == "Mon Nov 23 18:11:03 UTC 2026"
    assert status["last_snapshot"]
    after = parse_reflog(store.contents()[".cvmfsreflog"], "reflog").refs
    assert before.items() <= after.items()


# Sources that fail


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(status=503), TemporaryError),
        (Answer(cut=10), TemporaryError),
        (Answer(hangs_up=True, cut=1), TemporaryError),
        (Answer(body=b"wrong bytes"), IntegrityError),
        (Answer(body=b""), IntegrityError),
        (Answer(status=404), NotFoundError),
    ],
    ids=["503", "cut", "hangs up", "wrong", "empty", "missing"],
)
@pytest.mark.parametrize("victim", ["chunk", "nested catalog", "root catalog", "history"])
def test_a_fault_leaves_the_former_revision_and_the_next_run_goes_on(
    source: Source, run: Callable, tmp_path: Path, victim: str, answer: Answer, error: type[MicaError]
) -> None:
    store = MemoryStore()
    run(source.at[2], store)
    paths = {
        "chunk": lambda: _new_in(source, "P"),
        "nested catalog": lambda: _nested_in(source),
        "root catalog": lambda: root_of(source.at[6]).object_path(Suffix.CATALOG),
        "history": lambda: _new_in(source, "H", of_manifest=True),
    }
    with serving(source.at[6]) as server, http_fetcher(server.url) as fetcher:
        server.answers["/" + paths[victim]()] = answer
        with pytest.raises(error):
            run(fetcher, store)
        check(source, store, tmp_path, 2)
        assert not store.has(".cvmfs_is_snapshotting")
        server.answers.clear()
        run(fetcher, store)
    check(source, store, tmp_path, 6)


def _new_in(source: Source, letter: str, *, of_manifest: bool = False) -> str:
    if of_manifest:
        manifest = parse_manifest((source.at[6] / MANIFEST).read_bytes(), "manifest")[0]
        assert manifest.history is not None
        return manifest.history.object_path(Suffix.HISTORY)
    names = [{path.relative_to(source.at[n]).as_posix() for path in source.at[n].glob("data/??/*")} for n in (5, 6)]
    return min(path for path in names[1] - names[0] if path.endswith(letter))


def _nested_in(source: Source) -> str:
    root = root_of(source.at[6]).object_path(Suffix.CATALOG)
    names = [{path.relative_to(source.at[n]).as_posix() for path in source.at[n].glob("data/??/*C")} for n in (5, 6)]
    return min(names[1] - names[0] - {root})


def test_a_server_that_is_away_for_a_while_is_waited_for(source: Source, run: Callable, tmp_path: Path) -> None:
    store = MemoryStore()
    with serving(source.at[6]) as server, http_fetcher(server.url) as fetcher:
        server.answers["/" + _new_in(source, "P")] = Answer(status=503, times=3)
        server.answers["/" + MANIFEST] = Answer(cut=5, times=2)
        run(fetcher, store, rules=replace(HASTY, pauses_s=(0.01,) * 5))
    check(source, store, tmp_path, 6)


def test_another_server_has_what_one_has_lost(source: Source, run: Callable, tmp_path: Path) -> None:
    store = MemoryStore()
    with (
        serving(source.at[6]) as bad,
        serving(source.at[6]) as good,
        http_fetcher(bad.url, good.url) as fetcher,
    ):
        bad.answers["/" + _new_in(source, "P")] = Answer(body=b"wrong")
        run(fetcher, store)
    check(source, store, tmp_path, 6)


def test_a_missing_object_is_named_with_what_stays(source: Source, run: Callable, place: Callable[[int], Path]) -> None:
    store = MemoryStore()
    run(source.at[2], store)
    damaged = place(6)
    path = _new_in(source, "P")
    (damaged / path).unlink()
    with pytest.raises(NotFoundError, match=rf"{path} is not .*The catalog of /data/6 needs it\.") as caught:
        run(damaged, store)
    assert "keeps revision 2" in caught.value.hint


def test_a_source_that_publishes_and_collects_meanwhile_is_copied_as_it_is_then(
    source: Source, run: Callable, place: Callable[[int], Path], tmp_path: Path
) -> None:
    """Objects of the revision that was the newest at the beginning vanish while they are copied."""
    store = MemoryStore()
    storage, newer = place(5), source.at[6]
    victim = root_of(source.at[5]).object_path(Suffix.CATALOG)

    class Changing(LocalFetcher):
        def fetch(self, path: str, consume: Callable, *, fresh: bool = False) -> object:  # type: ignore[override]
            if path == victim and (storage / victim).exists():
                shutil.copytree(newer, storage, dirs_exist_ok=True)
                (storage / victim).unlink()
            return super().fetch(path, consume, fresh=fresh)

    with LocalStore(storage) as local:
        report = run(Changing(local), store)
    assert report.missing_tags == ("trunk-previous",)
    check(source, store, tmp_path, 6)


# Stores that fail, and killed runs


def test_another_one_who_publishes_into_the_replica_is_not_undone(source: Source, run: Callable) -> None:
    store = MemoryStore()
    run(source.at[2], store)
    theirs = (source.at[3] / MANIFEST).read_bytes()
    replace_pointer = store.replace

    def interfered(path: str, data: bytes, **more: object) -> None:
        if path == MANIFEST and store.contents()[MANIFEST] != theirs:
            replace_pointer(MANIFEST, theirs)
        replace_pointer(path, data, **more)  # type: ignore[arg-type]

    store.replace = interfered  # type: ignore[method-assign]
    with pytest.raises(LostRaceError):
        run(source.at[6], store)
    assert store.contents()[MANIFEST] == theirs


@pytest.mark.parametrize("late", [False, True], ids=["refused", "answer lost"])
def test_a_write_that_fails_leaves_the_old_revision_or_the_new_one(
    source: Source, run: Callable, tmp_path: Path, late: bool
) -> None:
    first = MemoryStore()
    run(source.at[5], first)
    begun = first.contents()
    whole = MemoryStore(begun)
    run(source.at[6], whole)
    total = len(whole.writes)
    assert total > 60
    for number in sorted({*range(1, total + 1, 7), *range(total - 12, total + 1)}):
        store = MemoryStore(begun)
        store.fail_at(number, late=late)
        with pytest.raises(InjectedError):
            run(source.at[6], store)
        for left in (MemoryStore(store.contents()), store.after_power_failure()):
            assert shown_revision(left) in (5, 6)
            assert errors_in(left, [source.repository.master_key], tmp_path) == []
            assert broken_catalogs(left) == []
            run(source.at[6], left)
            check(source, left, tmp_path, 6)
            assert not left.has(".cvmfs_is_snapshotting")


def test_whatever_a_loss_of_power_keeps_is_no_broken_replica(source: Source, run: Callable, tmp_path: Path) -> None:
    """Files that were not flushed may be there or not, one by one; those that are there may be cut."""
    first = MemoryStore()
    run(source.at[5], first)
    begun = first.contents()
    whole = MemoryStore(begun)
    run(source.at[6], whole)
    chance = random.Random(5)
    for number in range(2, len(whole.writes), 5):
        store = MemoryStore(begun)
        store.fail_at(number)
        with pytest.raises(InjectedError):
            run(source.at[6], store, boot=lambda: "before")
        left = store.after_power_failure(lambda _path: chance.random() < 0.5)
        assert errors_in(left, [source.repository.master_key], tmp_path) == []
        assert broken_catalogs(left) == []
        lasting = store.after_power_failure().contents()
        for path in sorted(set(left.contents()) - set(lasting)):
            if path.startswith("data/") and chance.random() < 0.5:
                data = left.contents()[path]
                left.delete(path)
                left.put(path, data[: chance.randrange(len(data))])
        report = run(source.at[6], left, boot=lambda: "after")
        check(source, left, tmp_path, 6)
        assert report.repaired <= 40


def test_what_was_flushed_is_not_read_again(source: Source, run: Callable, tmp_path: Path) -> None:
    """Only a run that did not end, in another run of the kernel, is distrusted."""
    store = MemoryStore()
    home = ReplicaHome(tmp_path / "state", FQRN, store.where)
    run(source.at[5], store, boot=lambda: "before")
    record = home.read()
    assert record is not None
    assert record.unfinished is None
    assert (record.revision, record.destination) == (5, "memory")
    store.fail_at(20)
    with pytest.raises(InjectedError):
        run(source.at[6], store, boot=lambda: "before")
    record = home.read()
    assert record is not None
    assert record.unfinished is not None
    since = record.unfinished
    store.fail_at(2)  # more than one thread wrote: how much the first run left is not certain
    with pytest.raises(InjectedError):
        run(source.at[6], store, boot=lambda: "before")
    record = home.read()
    assert record is not None
    assert record.unfinished == since == Unfinished(since.since, "before")


def test_a_full_store_is_a_sentence(source: Source, run: Callable, tmp_path: Path) -> None:
    store = MemoryStore()
    run(source.at[5], store)
    with store.full(), pytest.raises(UserError, match="No space left"):
        run(source.at[6], store)
    check(source, store, tmp_path, 5)


def test_moments_are_those_of_date() -> None:
    assert format_moment(1795457463) == "Mon Nov 23 18:11:03 UTC 2026"
    assert format_moment(0) == "Thu Jan  1 00:00:00 UTC 1970"


def test_a_server_is_what_a_webserver_shows(source: Source, run: Callable, tmp_path: Path) -> None:
    """A replica in a directory, over HTTP both ways."""
    with serving(source.at[6]) as server, http_fetcher(server.url) as fetcher, LocalStore(tmp_path / "r") as store:
        run(fetcher, store)
        check(source, store, tmp_path, 6)  # type: ignore[arg-type]
    assert isinstance(server, WebServer)
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert names == {
        "data", ".cvmfspublished", ".cvmfswhitelist", ".cvmfsreflog", ".cvmfs_last_snapshot", ".cvmfs_status.json",
    }  # fmt: skip
