"""Collections that end anywhere, on a store without renames: what is kept is whole, and the next one does the rest."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from tests.support.garbage import check_complete, objects_in, wanted_objects
from tests.support.memorystore import MemoryStore
from tests.support.repositories import Repository, ingest, make_repository
from tests.support.tars import END, member

from mica.collect.collection import opened_collection
from mica.collect.report import CollectionReport
from mica.collect.retention import RetentionRules
from mica.errors import TemporaryError, UserError
from mica.publish.manager import ReleaseManager
from mica.publish.tags import add_tag

RULES = RetentionRules(keep_revisions=1, keep_s=-1, auto_tag_s=-3600, grace_s=-1)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Revisions with automatic tags that are due, one with a name, and objects of no revision."""
    repository = make_repository(tmp_path_factory.mktemp("interrupted"), auto_tag=True)
    for label in ("first", "second", "third", "fourth", "fifth"):
        archive = b"".join(member(f"{label}/{n}".encode(), f"{label} {n}".encode() * 9) for n in range(4)) + END
        ingest(repository, archive, b"/data", nested=True)
        if label == "second":
            with repository.manager() as manager:
                add_tag(manager, "release")
    with repository.manager() as manager:
        for number in range(20):
            manager.store.put(f"data/{number:02x}/{38 * 'e'}", b"left by a publisher that was killed")
    return repository


@pytest.fixture(scope="module")
def files(repository: Repository) -> dict[str, bytes]:
    root = repository.storage
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "txn" not in path.parts
    }


@contextmanager
def in_memory(repository: Repository, store: MemoryStore) -> Iterator[ReleaseManager]:
    with repository.manager() as manager:
        on_disk, manager.store = manager.store, store
        yield manager
        on_disk.close()


def collect(repository: Repository, store: MemoryStore, rules: RetentionRules = RULES) -> CollectionReport:
    with in_memory(repository, store) as manager, opened_collection(manager, rules) as collection:
        return collection.run()


def test_a_collection_that_ends_at_any_step_breaks_nothing_and_the_next_one_does_the_rest(
    repository: Repository, files: dict[str, bytes]
) -> None:
    counted = MemoryStore(files)
    collect(repository, counted)
    with in_memory(repository, counted) as manager:
        check_complete(manager)
        assert objects_in(counted) == wanted_objects(manager)
    total = len(counted.writes)
    assert total >= 30, "that many points, and each of them before the change and after it"
    for number in range(1, total + 1):
        for late in (False, True):
            store = MemoryStore(files)
            store.fail_at(number, late=late)
            with pytest.raises(UserError):
                collect(repository, store)
            for survivor in (store, store.after_power_failure()):
                with in_memory(repository, survivor) as manager:
                    check_complete(manager)
            survivor = store.after_power_failure()
            collect(repository, survivor)
            with in_memory(repository, survivor) as manager:
                check_complete(manager)
                assert objects_in(survivor) == wanted_objects(manager), (number, late)


def test_a_store_that_cannot_be_written_is_left_as_it_is(repository: Repository, files: dict[str, bytes]) -> None:
    for trouble in (MemoryStore.full, MemoryStore.read_only, MemoryStore.gone):
        store = MemoryStore(files)
        with trouble(store), pytest.raises(UserError, match=r"No space left|Read-only|not there"):
            collect(repository, store)
        assert store.contents() == files


def test_nothing_is_removed_when_the_clock_goes_back(repository: Repository, files: dict[str, bytes]) -> None:
    now = [2e9]
    store = MemoryStore(files, now=lambda: now[0])
    now[0] += 3600
    rules = RetentionRules(keep_revisions=1, keep_s=-1, auto_tag_s=None, grace_s=60)

    def put_back(_objects: int) -> None:
        now[0] = 2e9

    @contextmanager
    def phase(name: str) -> Iterator[Callable[[int], None]]:
        yield put_back if name == "Sweep" else lambda _objects: None

    with (
        in_memory(repository, store) as manager,
        opened_collection(manager, rules, phase=phase) as collection,
        pytest.raises(TemporaryError, match="went back"),
    ):
        collection.run()
    assert store.contents() == files
    now[0] += 3600
    assert collect(repository, store, rules).survey.removed.objects >= 20
