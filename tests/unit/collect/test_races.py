"""Publishers that go on while garbage is collected: what they published is whole, at whatever moment they did it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.garbage import check_complete, make_old
from tests.support.noise import noise
from tests.support.repositories import Repository, findings, ingest, make_repository
from tests.support.tars import END, member

from mica.collect.collection import opened_collection
from mica.collect.retention import DAY_S, RetentionRules
from mica.digest import Algorithm, Digest
from mica.errors import LostRaceError, TemporaryError
from mica.publish.duration import LONGEST_PUBLICATION_S, PublicationTimer
from mica.publish.tags import add_tag, roll_back
from mica.repo.history import RefKind, format_reflog, parse_reflog
from mica.repo.manifest import Manifest
from mica.store.base import read_limited

RULES = RetentionRules(keep_revisions=1, keep_s=-1, auto_tag_s=None, grace_s=5 * DAY_S)
MOMENTS = ("before Mark", "in Mark", "after Mark", "before Sweep", "in Sweep", "after Sweep")
OLD_CONTENT = b"content of an old revision, which a publisher brings again " * 20


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Everything in it is old; of the first revision nothing is wanted any more."""
    repository = make_repository(tmp_path / "repository")
    publish(repository, OLD_CONTENT)
    for number in range(3):
        publish(repository, b"%d" % number * 500)
    make_all_old(repository)
    return repository


def publish(repository: Repository, content: bytes) -> Manifest:
    archive = member(b"file", content) + member(b"chunks", content * 20) + END
    return ingest(repository, archive, b"/data", nested=True)


def make_all_old(repository: Repository) -> None:
    make_old(repository)
    with repository.manager() as manager:
        reflog = parse_reflog(read_limited(manager.store, ".cvmfsreflog", 1 << 20), "reflog")
        reflog.refs = {digest: (kind, at - int(30 * DAY_S)) for digest, (kind, at) in reflog.refs.items()}
        manager.store.replace(".cvmfsreflog", format_reflog(reflog))


def collect_while(repository: Repository, moment: str, act: Callable[[], object]) -> int:
    """A collection in which something happens once, at a moment; how many objects it removed."""
    done: list[bool] = []

    def happen(now: str) -> None:
        if now == moment and not done:
            done.append(True)
            act()

    @contextmanager
    def phase(name: str) -> Iterator[Callable[[int], None]]:
        happen(f"before {name}")
        yield lambda _objects: happen(f"in {name}")
        happen(f"after {name}")

    with repository.manager() as manager, opened_collection(manager, RULES, phase=phase) as collection:
        removed = collection.run().survey.removed.objects
    assert done, f"there was no such moment: {moment}"
    return removed


def check_whole(repository: Repository, work: Path, *manifests: Manifest) -> None:
    with repository.manager() as manager:
        check_complete(manager, *(manifest.root_catalog for manifest in manifests))
    assert [one for one in findings(repository, work) if one.severity == "error"] == []


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_publisher_finds_old_objects_that_are_about_to_be_removed(
    repository: Repository, tmp_path: Path, moment: str
) -> None:
    published = []
    removed = collect_while(repository, moment, lambda: published.append(publish(repository, OLD_CONTENT)))
    check_whole(repository, tmp_path, *published)
    assert removed, "there was something to remove"


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_publication_that_began_long_before_ends_meanwhile(
    repository: Repository, tmp_path: Path, moment: str
) -> None:
    """It stored its objects before the collection began, and its manifest comes at some moment of it."""
    with repository.manager() as manager:
        timer = PublicationTimer(manager.store)
        with manager.transaction() as before:
            entry = before.store_file(b"again", OLD_CONTENT)
            before.give_up()

        def commit() -> None:
            with manager.transaction(timer=timer) as transaction:
                transaction.catalogs.put(b"/again", entry)

        collect_while(repository, moment, commit)
    check_whole(repository, tmp_path)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_revision_that_nothing_keeps_gets_a_name(repository: Repository, tmp_path: Path, moment: str) -> None:
    """Either it gets it, and stays whole, or it is not complete any more, and the one who asks is told so."""
    refused: list[Exception] = []

    def name() -> None:
        with repository.manager() as manager:
            try:
                add_tag(manager, "again", "2")
            except Exception as error:
                refused.append(error)

    collect_while(repository, moment, name)
    check_whole(repository, tmp_path)
    assert [error for error in refused if "revision" not in str(error).lower()] == []
    if moment in {"before Mark", "in Mark", "after Mark"}:
        assert not refused


@pytest.mark.parametrize("moment", MOMENTS)
def test_somebody_rolls_back_meanwhile(repository: Repository, tmp_path: Path, moment: str) -> None:
    def go_back() -> None:
        with repository.manager() as manager:
            roll_back(manager)

    collect_while(repository, moment, go_back)
    check_whole(repository, tmp_path)


def test_whoever_publishes_all_the_time_is_not_kept_out_nor_harmed(repository: Repository, tmp_path: Path) -> None:
    """The newest revision is another one whenever the collection looks: it ends, and has removed nothing."""
    numbers = iter(range(1000))

    @contextmanager
    def phase(name: str) -> Iterator[Callable[[int], None]]:
        yield lambda _objects: None
        if name == "Mark":
            publish(repository, b"all the time %d" % next(numbers))

    before = set(repository.storage.rglob("data/??/*"))
    with (
        repository.manager() as manager,
        opened_collection(manager, RULES, phase=phase) as collection,
        pytest.raises(LostRaceError, match="so often"),
    ):
        collection.run()
    assert before <= set(repository.storage.rglob("data/??/*"))
    check_whole(repository, tmp_path)


def test_a_second_collection_of_this_host_is_refused(repository: Repository) -> None:
    with (
        repository.manager() as manager,
        opened_collection(manager, RULES),
        repository.manager() as other,
        pytest.raises(TemporaryError, match="in use"),
        opened_collection(other, RULES),
    ):
        raise AssertionError("two collections at once")


def test_no_lock_is_held_while_objects_are_looked_at(repository: Repository) -> None:
    """A publisher that does not wait at all gets its turn at every moment but that of the reflog."""
    for moment in MOMENTS:
        collect_while(repository, moment, lambda: publish(repository, noise(40)))


def test_a_publication_that_takes_too_long_is_refused(repository: Repository) -> None:
    """Its first objects may be gone: they look as old as those that nobody needs."""
    with repository.manager() as manager:
        head = manager.head()
        long_ago = PublicationTimer(manager.store)
        long_ago._began -= LONGEST_PUBLICATION_S + 60
        with pytest.raises(TemporaryError, match=r"took 2\.0 days"), manager.transaction(timer=long_ago) as transaction:
            transaction.catalogs.put(b"/late", transaction.store_file(b"late", b"content"))
        back = PublicationTimer(manager.store)
        back._began += 3600
        with pytest.raises(TemporaryError, match="went back"), manager.transaction(timer=back) as transaction:
            transaction.catalogs.put(b"/late", transaction.store_file(b"late", b"content"))
        assert manager.head() == head


def test_a_publisher_is_not_ended_by_a_reflog_that_a_collection_replaces(repository: Repository) -> None:
    with repository.manager() as manager:
        replace = manager.store.replace
        calls: list[str] = []

        def interfere(path: str, data: bytes, **options: object) -> None:
            calls.append(path)
            if path == ".cvmfsreflog" and calls.count(path) == 1:
                reflog = parse_reflog(read_limited(manager.store, path, 1 << 20), "reflog")
                reflog.refs.pop(next(iter(reflog.refs)))
                replace(path, format_reflog(reflog))
            replace(path, data, **options)  # type: ignore[arg-type]

        manager.store.replace = interfere  # type: ignore[method-assign,assignment]
        with manager.transaction() as transaction:
            transaction.catalogs.put(b"/file", transaction.store_file(b"file", b"content"))
        head = manager.head()
        assert calls.count(".cvmfsreflog") == 2
        reflog = parse_reflog(read_limited(manager.store, ".cvmfsreflog", 1 << 20), "reflog")
        assert head.root_catalog in reflog.refs


def test_a_reflog_that_a_publisher_of_another_machine_replaces_is_read_again(repository: Repository) -> None:
    with repository.manager() as manager:
        replace = manager.store.replace
        calls: list[str] = []

        def interfere(path: str, data: bytes, **options: object) -> None:
            calls.append(path)
            if path == ".cvmfsreflog" and calls.count(path) == 1:
                reflog = parse_reflog(read_limited(manager.store, path, 1 << 20), "reflog")
                reflog.refs[Digest(b"\7" * 20, Algorithm.SHA1)] = (RefKind.CATALOG, 1)
                replace(path, format_reflog(reflog))
            replace(path, data, **options)  # type: ignore[arg-type]

        manager.store.replace = interfere  # type: ignore[method-assign,assignment]
        with opened_collection(manager, RULES) as collection:
            assert collection.run().survey.removed.objects > 0
        assert calls.count(".cvmfsreflog") == 2
        reflog = parse_reflog(read_limited(manager.store, ".cvmfsreflog", 1 << 20), "reflog")
        assert Digest(b"\7" * 20, Algorithm.SHA1) in reflog.refs
