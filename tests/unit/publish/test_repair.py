"""A repository that lost something is whole again: judged by the checker, and by what a client reads."""

import contextlib
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.repositories import FQRN, Repository, findings, ingest, make_repository, read_back
from tests.support.tars import END, member

from mica.digest import Digest, Suffix, parse_object_path
from mica.errors import NotFoundError
from mica.fetch.download import LocalFetcher
from mica.publish.catalogtree import directory_entry, load_catalog
from mica.publish.repair import RepairRules, Step, repair
from mica.publish.tags import add_tag
from mica.publish.transaction import REFLOG
from mica.repo.catalog import NestedCatalog
from mica.repo.history import RefKind, Reflog, format_reflog, parse_reflog
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import Manifest, parse_manifest
from mica.repo.objects import Compression, pack
from mica.store.local import LocalStore

EXIST = RepairRules()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Three revisions, a nested catalog, a file in chunks, a tag."""
    repository = make_repository(tmp_path / "repository")
    ingest(
        repository, member(b"file", b"content") + member(b"large", bytes(range(256)) * 400) + END, b"/a", nested=True
    )
    ingest(repository, member(b"top", b"other content") + END)
    with repository.manager() as manager:
        add_tag(manager, "release")
    return repository


@pytest.fixture
def replica(repository: Repository, tmp_path: Path) -> Path:
    place = tmp_path / "replica"
    shutil.copytree(repository.storage, place)
    return place


def head(repository: Repository) -> Manifest:
    return parse_manifest((repository.storage / MANIFEST).read_bytes(), "it")[0]


def refs(repository: Repository) -> dict[Digest, tuple[int, int]]:
    return parse_reflog((repository.storage / REFLOG).read_bytes(), "it").refs


def repaired(repository: Repository, replica: Path | None = None, rules: RepairRules = EXIST) -> list[Step]:
    steps: list[Step] = []
    with repository.manager() as manager, contextlib.ExitStack() as stack:
        fetcher = None if replica is None else LocalFetcher(stack.enter_context(LocalStore(replica)))
        repair(manager, fetcher, rules, tell=steps.append)
    return steps


def kinds(steps: list[Step]) -> list[tuple[str, str]]:
    return sorted((step.kind, step.where) for step in steps)


def objects(repository: Repository) -> list[str]:
    paths = (str(path.relative_to(repository.storage)) for path in repository.storage.glob("data/??/*"))
    return sorted(path for path in paths if parse_object_path(path))


@contextlib.contextmanager
def unchanged(repository: Repository) -> Iterator[None]:
    def everything() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in repository.storage.rglob("*") if path.is_file()}

    before = everything()
    yield
    assert everything() == before


def test_a_sound_repository_is_left_alone(repository: Repository) -> None:
    with unchanged(repository):
        assert repaired(repository) == []


@pytest.mark.parametrize("suffix", list(Suffix))
def test_lost_objects_come_back(repository: Repository, replica: Path, tmp_path: Path, suffix: Suffix) -> None:
    before = read_back(repository, tmp_path / "before")
    lost = [path for path in objects(repository) if parse_object_path(path)[1] is suffix]  # type: ignore[index]
    assert lost
    for path in lost:
        (repository.storage / path).unlink()
    needed = kinds(repaired(repository, replica, RepairRules(dry_run=True)))
    assert not set(lost) & set(objects(repository)), "nothing was stored"
    steps = kinds(repaired(repository, replica))
    assert {kind for kind, _ in steps} == {"object"}
    assert [step for step in needed if step[0] == "object"] == steps
    assert findings(repository, tmp_path) == []
    assert read_back(repository, tmp_path / "after") == before
    assert repaired(repository) == []


def test_everything_lost_but_the_pointers(repository: Repository, replica: Path, tmp_path: Path) -> None:
    before = read_back(repository, tmp_path / "before")
    for path in objects(repository):
        (repository.storage / path).unlink()
    repaired(repository, replica)
    assert findings(repository, tmp_path) == []
    assert read_back(repository, tmp_path / "after") == before


def test_damaged_objects_are_replaced_when_they_are_read(repository: Repository, replica: Path, tmp_path: Path) -> None:
    files = [path for path in objects(repository) if parse_object_path(path)[1] is Suffix.FILE]  # type: ignore[index]
    for path in files:
        (repository.storage / path).write_bytes(b"damage")
    assert repaired(repository, replica) == [], "whoever only looks whether they exist does not see it"
    steps = repaired(repository, replica, RepairRules("hash"))
    assert kinds(steps) == [("object", path) for path in files]
    assert findings(repository, tmp_path) == []


def test_a_replica_with_wrong_bytes_is_not_believed(repository: Repository, replica: Path) -> None:
    path = head(repository).root_catalog.object_path(Suffix.CATALOG)
    (repository.storage / path).unlink()
    (replica / path).write_bytes(b"damage")
    steps: list[Step] = []
    with (
        repository.manager() as manager,
        LocalStore(replica) as store,
        pytest.raises(NotFoundError, match=path),
    ):
        repair(manager, LocalFetcher(store), EXIST, tell=steps.append)
    (step,) = steps
    assert (step.kind, step.where) == ("lost", path)
    assert re.search(r"is not in .* has other content: its bytes hash to", step.sentence)
    assert not (repository.storage / path).exists()


def test_without_a_replica_what_is_lost_is_told(repository: Repository) -> None:
    lost = [path for path in objects(repository) if parse_object_path(path)[1] is Suffix.CHUNK]  # type: ignore[index]
    for path in lost:
        (repository.storage / path).unlink()
    with unchanged(repository):
        assert kinds(repaired(repository)) == [("lost", path) for path in lost]


def test_a_lost_root_catalog_without_a_replica(repository: Repository) -> None:
    path = head(repository).root_catalog.object_path(Suffix.CATALOG)
    (repository.storage / path).unlink()
    with pytest.raises(NotFoundError, match=path):
        repaired(repository)
    assert kinds(repaired(repository, rules=RepairRules(dry_run=True)))[-1] == ("lost", path)


def rewritten(repository: Repository, tmp_path: Path, mountpoint: bytes, statement: str) -> None:
    """The newest revision with a change in one of its catalogs that no publisher would make."""
    with repository.manager() as manager, manager.transaction() as transaction:
        if mountpoint:
            (nested,) = transaction.catalogs.root_catalog.nested()
            path = tmp_path / "catalog"
            load_catalog(manager.store, nested, path)
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
                database.execute(statement)
            packed = pack(path.read_bytes(), nested.digest.algorithm, Compression.ZLIB)
            manager.store.put(packed.digest.object_path(Suffix.CATALOG), packed.stored)
            changed = NestedCatalog(nested.path, packed.digest, path.stat().st_size)
            transaction.catalogs._top.writer.put_nested(changed)
        else:
            transaction.catalogs._top.below = (7,) * 12


@pytest.mark.parametrize(
    ("mountpoint", "statement", "wrong"),
    [
        (b"/a", "UPDATE statistics SET value = 99 WHERE counter = 'self_regular'", {"/", "/a"}),
        (b"/a", "DELETE FROM statistics WHERE counter = 'self_xattr'", {"/a", "/"}),
        (b"/a", "UPDATE statistics SET value = -1 WHERE counter = 'subtree_dir'", {"/", "/a"}),
        (b"", "", {"/"}),
    ],
)
def test_wrong_counters_are_counted_again(
    repository: Repository, tmp_path: Path, mountpoint: bytes, statement: str, wrong: set[str]
) -> None:
    before = read_back(repository, tmp_path / "before")
    rewritten(repository, tmp_path, mountpoint, statement)
    assert findings(repository, tmp_path) != []
    revision = head(repository).revision
    with unchanged(repository):
        planned = repaired(repository, rules=RepairRules(dry_run=True))
    steps = repaired(repository)
    assert kinds(planned) == kinds(steps)
    assert {("counters", where) for where in wrong} >= set(kinds(steps)) != set()
    assert findings(repository, tmp_path) == []
    assert head(repository).revision == revision + 1
    assert read_back(repository, tmp_path / "after") == before
    assert repaired(repository) == []


@pytest.mark.parametrize("damage", ["missing", "bytes", "another", "no head", "no older root"])
def test_the_reflog_is_made_again(repository: Repository, tmp_path: Path, damage: str) -> None:
    before, manifest = refs(repository), head(repository)
    place = repository.storage / REFLOG
    if damage == "missing":
        place.unlink()
    elif damage == "bytes":
        place.write_bytes(b"damage")
    elif damage == "another":
        place.write_bytes(format_reflog(Reflog("other.example.org", before)))
    else:
        roots = sorted(
            (seconds, digest) for digest, (kind, seconds) in before.items()
            if kind == RefKind.CATALOG and digest != manifest.root_catalog
        )  # fmt: skip
        gone = manifest.root_catalog if damage == "no head" else roots[0][1]
        kept = {digest: value for digest, value in before.items() if digest != gone}
        place.write_bytes(format_reflog(Reflog(FQRN, kept)))
    with unchanged(repository):
        assert kinds(repaired(repository, rules=RepairRules(dry_run=True))) == [("reflog", REFLOG)]
    (step,) = repaired(repository)
    assert step.sentence.endswith("It is made again from the storage.")
    after = refs(repository)
    assert {digest: kind for digest, (kind, _) in after.items()} == {d: kind for d, (kind, _) in before.items()}
    assert findings(repository, tmp_path) == []
    signed = head(repository)
    assert (signed.revision, signed.root_catalog, signed.history) == (3, manifest.root_catalog, manifest.history)
    assert repaired(repository) == []


def test_all_at_once(repository: Repository, replica: Path, tmp_path: Path) -> None:
    before = read_back(repository, tmp_path / "before")
    rewritten(repository, tmp_path, b"/a", "UPDATE statistics SET value = 5 WHERE counter = 'self_dir'")
    (repository.storage / REFLOG).unlink()
    for path in objects(repository):
        if parse_object_path(path)[1] in {Suffix.FILE, Suffix.CHUNK}:  # type: ignore[index]
            (repository.storage / path).unlink()
    assert {step.kind for step in repaired(repository, replica)} == {"object", "counters", "reflog"}
    assert findings(repository, tmp_path) == []
    assert read_back(repository, tmp_path / "after") == before


def test_a_repository_with_many_catalogs(tmp_path: Path) -> None:
    """Catalogs that are right are closed one after another."""
    repository = make_repository(tmp_path)
    with repository.manager() as manager:
        with manager.transaction() as transaction:
            for number in range(30):
                path = b"/d%d" % number
                transaction.catalogs.put(path, directory_entry(path[1:]))
                transaction.catalogs.nest(path, transaction.marker())
        with manager.transaction() as transaction:
            told: list[bytes] = []
            transaction.catalogs.recount(told.append)
            assert told == []
            assert len(list(transaction.work.iterdir())) == 1
            transaction.give_up()
