"""One transaction makes one revision, in an order in which readers see the old one or the new one."""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.repositories import FQRN, Repository, findings, make_repository, read_back

from mica.digest import Algorithm, Suffix, digest_of
from mica.errors import IntegrityError, LostRaceError, NotFoundError, UserError
from mica.files import is_locked
from mica.publish.catalogtree import directory_entry
from mica.publish.manager import ReleaseManager
from mica.publish.transaction import REFLOG, Transaction, read_history
from mica.repo.entry import MARKER
from mica.repo.history import History, RefKind, parse_reflog
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import Manifest, parse_manifest, sign_manifest
from mica.repo.signing import parse_private_key
from mica.store.base import ANYTHING, Anything, CountNew
from mica.store.local import LocalStore

FUTURE_S = 4_000_000_000
STEPS = [
    "a file", "a catalog", "the history", "the certificate", "the meta-info", "the reflog", "the flush", "the manifest",
]  # fmt: skip


class WatchedStore(LocalStore):
    """Writes down each step of publishing, and fails at one if that is asked for; `before` sees each step first."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.steps: list[str] = []
        self.paths: list[str] = []
        self.failing = ""
        self.before: Callable[[], None] = lambda: None

    def put(self, path: str, data: bytes, *, count_new: CountNew | None = None) -> None:
        names = {"C": "a catalog", "H": "the history", "X": "the certificate", "M": "the meta-info"}
        self._step(names.get(path[-1], "a file"), path)
        super().put(path, data, count_new=count_new)

    def replace(self, path: str, data: bytes, *, expected: bytes | Anything | None = ANYTHING) -> None:
        self._step({MANIFEST: "the manifest", REFLOG: "the reflog"}[path], path)
        super().replace(path, data, expected=expected)

    def sync(self) -> None:
        self._step("the flush", "")
        super().sync()

    def _step(self, name: str, path: str) -> None:
        self.before()
        self.steps.append(name)
        self.paths.append(path)
        if name == self.failing:
            raise UserError(f"No space for {name}.")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


@contextmanager
def watched(repository: Repository) -> Iterator[tuple[ReleaseManager, WatchedStore]]:
    with repository.manager() as manager:
        manager.store.close()
        manager.store = store = WatchedStore(repository.storage)
        yield manager, store


def add(transaction: Transaction, name: bytes, content: bytes = b"content") -> None:
    transaction.catalogs.put(b"/" + name, transaction.store_file(name, content))


def publish(repository: Repository, *names: bytes) -> Manifest:
    """One transaction; the head that it leaves."""
    with repository.manager() as manager:
        with manager.transaction() as transaction:
            for name in names:
                add(transaction, name)
        assert transaction.published is not None
        return transaction.published


def head(repository: Repository) -> Manifest:
    return parse_manifest((repository.storage / MANIFEST).read_bytes(), "it")[0]


def history_of(repository: Repository, manifest: Manifest) -> History:
    with LocalStore(repository.storage) as store:
        return read_history(store, manifest)


def published_at_some_time(repository: Repository, time_s: int) -> Manifest:
    """Give the head another time, as a publisher with another clock would have."""
    changed = replace(head(repository), published_at=time_s)
    key = parse_private_key((repository.keys / f"{FQRN}.key").read_bytes(), "key")
    (repository.storage / MANIFEST).write_bytes(sign_manifest(changed, key))
    return changed


def unfinished(repository: Repository) -> list[str]:
    """Temporary files, and what a transaction works with."""
    places = {*repository.storage.rglob("*"), *repository.state.rglob("*")}
    places.discard(repository.storage / "data/txn/pointers.lock")
    return [str(path) for path in places if path.suffix == ".tmp" or path.parent.name in {"txn", "work"}]


def build(transaction: Transaction) -> None:
    """A file, and another one in a catalog of its own; something is left in the directory for scratch files."""
    (transaction.work / "scratch").touch()
    transaction.catalogs.put(b"/below", directory_entry(b"below"))
    add(transaction, b"file")
    transaction.catalogs.put(b"/below/file", transaction.store_file(b"file", b"more content"))
    transaction.catalogs.nest(b"/below", transaction.marker())


def test_the_manifest_comes_last(repository: Repository) -> None:
    """Whoever reads before the last step sees the old revision, and after it all that the new one refers to."""
    old = (repository.storage / MANIFEST).read_bytes()
    seen: set[bytes] = set()
    with watched(repository) as (manager, store):
        store.before = lambda: seen.add((repository.storage / MANIFEST).read_bytes())
        with manager.transaction() as transaction:
            build(transaction)
    assert list(dict.fromkeys(store.steps)) == STEPS
    assert store.steps[-6:] == STEPS[2:]
    assert seen == {old}
    assert head(repository).revision == 2


def test_the_root_catalog_comes_after_those_that_it_names(repository: Repository) -> None:
    with watched(repository) as (manager, store), manager.transaction() as transaction:
        build(transaction)
    catalogs = [path for path in store.paths if path.endswith("C")]
    assert len(catalogs) == 2
    assert catalogs[-1] == head(repository).root_catalog.object_path(Suffix.CATALOG)


@pytest.mark.parametrize("step", STEPS)
def test_an_error_at_any_step_leaves_the_old_revision(repository: Repository, tmp_path: Path, step: str) -> None:
    publish(repository, b"before")
    old, manifest = read_back(repository, tmp_path / "old"), (repository.storage / MANIFEST).read_bytes()
    with watched(repository) as (manager, store):
        store.failing = step
        with pytest.raises(UserError) as failure, manager.transaction() as transaction:
            build(transaction)
        assert str(failure.value) == f"No space for {step}."
        assert store.steps[-1] == step, "something was done after the error"
        assert (repository.storage / MANIFEST).read_bytes() == manifest
        assert read_back(repository, tmp_path / "after") == old
        assert unfinished(repository) == []
        assert not is_locked(repository.state / "repositories" / FQRN / "lock")
        store.failing = ""
        with manager.transaction() as transaction:
            build(transaction)
    assert head(repository).revision == 3
    new = set(read_back(repository, tmp_path / "new"))
    assert new - set(old) == {b"/file", b"/below", b"/below/file", b"/below/" + MARKER}
    assert findings(repository, tmp_path) == []


@pytest.mark.parametrize("error", [UserError("Not so."), KeyboardInterrupt(), ZeroDivisionError()], ids=repr)
def test_an_error_in_the_block_comes_out_as_it_is(repository: Repository, error: BaseException) -> None:
    manifest = (repository.storage / MANIFEST).read_bytes()

    def fail(transaction: Transaction) -> None:
        build(transaction)
        raise error

    with (
        pytest.raises(type(error)) as failure,
        watched(repository) as (manager, store),
        manager.transaction() as transaction,
    ):
        fail(transaction)
    assert failure.value is error
    assert set(store.steps) == {"a file"}, "only data of files is stored within the block"
    assert (repository.storage / MANIFEST).read_bytes() == manifest
    assert unfinished(repository) == []


def test_what_a_failed_transaction_stored_is_used_by_the_next(repository: Repository) -> None:
    with watched(repository) as (manager, store):
        store.failing = "the manifest"
        with pytest.raises(UserError, match="No space"), manager.transaction() as transaction:
            add(transaction, b"file")
        assert transaction.objects.new_objects == 1
        store.failing = ""
        with manager.transaction() as transaction:
            add(transaction, b"file")
        assert transaction.objects.new_objects == 0


def test_a_transaction_that_gives_up_publishes_nothing(repository: Repository) -> None:
    manifest = (repository.storage / MANIFEST).read_bytes()
    with watched(repository) as (manager, store):
        with manager.transaction() as transaction:
            add(transaction, b"file")
            transaction.give_up()
        assert transaction.published == manager.head()
    assert set(store.steps) == {"a file"}
    assert (repository.storage / MANIFEST).read_bytes() == manifest


def test_each_transaction_makes_the_next_revision(repository: Repository) -> None:
    first = head(repository)
    second = publish(repository, b"one")
    third = publish(repository)
    assert [first.revision, second.revision, third.revision] == [1, 2, 3]
    assert third == head(repository)
    with repository.manager() as manager, manager.snapshot() as catalogs:
        root = catalogs.root_catalog
        assert (root.revision, root.previous_revision) == (3, second.root_catalog)
        assert (root.last_modified, root.ttl_s) == (third.published_at, manager.settings.ttl_s)


def test_the_time_of_publication_never_goes_back(repository: Repository) -> None:
    """Clients refuse what was published before what they know: a clock that was put back must not stop them."""
    published_at_some_time(repository, FUTURE_S)
    assert publish(repository, b"file").published_at == FUTURE_S


def test_the_history_moves_on(repository: Repository) -> None:
    first, second = head(repository), publish(repository, b"one")
    third = publish(repository, b"two")
    history = history_of(repository, third)
    assert {name: tag.root_catalog for name, tag in history.tags.items()} == {
        "trunk": third.root_catalog,
        "trunk-previous": second.root_catalog,
    }
    trunk = history.tags["trunk"]
    assert (trunk.revision, trunk.timestamp, trunk.size) == (3, third.published_at, third.root_catalog_size)
    assert history.previous == second.history
    assert history_of(repository, second).previous == first.history
    assert history_of(repository, first).previous is None


def test_the_new_revision_gets_names(repository: Repository) -> None:
    with repository.manager() as manager, manager.transaction() as transaction:
        transaction.names["release"] = "the first"
    tags = history_of(repository, head(repository)).tags
    assert tags["release"] == tags["trunk"]._replace(name="release", description="the first")
    third = publish(repository, b"file")
    assert history_of(repository, third).tags["release"] == tags["release"], "a tag stays where it is"


def test_a_name_that_cannot_be_given_publishes_nothing(repository: Repository) -> None:
    manifest = (repository.storage / MANIFEST).read_bytes()
    with (
        pytest.raises(UserError, match="'trunk' always follows"),
        repository.manager() as manager,
        manager.transaction() as transaction,
    ):
        transaction.names["trunk"] = ""
    assert (repository.storage / MANIFEST).read_bytes() == manifest
    assert unfinished(repository) == []


def test_revisions_are_named_by_their_time(tmp_path: Path) -> None:
    """Those of one second get a number."""
    repository = make_repository(tmp_path, auto_tag=True)
    published_at_some_time(repository, FUTURE_S)
    for name in (b"one", b"two", b"three"):
        last = publish(repository, name)
    named = {name: tag.revision for name, tag in history_of(repository, last).tags.items() if "2096-10-02" in name}
    assert named == {
        "generic-2096-10-02T07:06:40Z": 2,
        "generic_1-2096-10-02T07:06:40Z": 3,
        "generic_2-2096-10-02T07:06:40Z": 4,
    }


def test_the_reflog_lists_all_that_a_revision_refers_to(repository: Repository) -> None:
    first, second = head(repository), publish(repository, b"file")
    data = (repository.storage / REFLOG).read_bytes()
    refs = parse_reflog(data, "it").refs
    for manifest in (first, second):
        assert manifest.history is not None
        assert refs[manifest.root_catalog] == (RefKind.CATALOG, manifest.published_at)
        assert refs[manifest.history] == (RefKind.HISTORY, manifest.published_at)
    assert second.metainfo is not None
    assert refs[second.certificate] == (RefKind.CERTIFICATE, second.published_at)
    assert refs[second.metainfo] == (RefKind.METAINFO, second.published_at)
    assert len(refs) == 6
    assert second.reflog == digest_of(data, Algorithm.SHA1)
    checksum = repository.state / "repositories" / FQRN / "reflog.chksum"
    assert checksum.read_text("ascii") == second.reflog.text


def test_a_lost_reflog_is_begun_again(repository: Repository) -> None:
    (repository.storage / REFLOG).unlink()
    second = publish(repository, b"file")
    refs = parse_reflog((repository.storage / REFLOG).read_bytes(), "it").refs
    assert set(refs) == {second.root_catalog, second.history, second.certificate, second.metainfo}


@pytest.mark.parametrize(
    ("damaged", "sentence"),
    [
        ("reflog", f"The reflog of {FQRN} is not"),
        ("history", "Object {history} has other content"),
        ("catalog", "Object {catalog} has other content"),
    ],
)
def test_what_is_damaged_is_named_and_not_built_upon(repository: Repository, damaged: str, sentence: str) -> None:
    first = head(repository)
    assert first.history is not None
    path = {
        "reflog": REFLOG,
        "history": first.history.object_path(Suffix.HISTORY),
        "catalog": first.root_catalog.object_path(Suffix.CATALOG),
    }[damaged]
    (repository.storage / path).write_bytes(b"damaged")
    expected = sentence.format(history=first.history, catalog=first.root_catalog)
    with pytest.raises(IntegrityError, match=re.escape(expected)):
        publish(repository, b"file")
    assert head(repository) == first
    assert unfinished(repository) == []
    assert not is_locked(repository.state / "repositories" / FQRN / "lock")


def test_a_history_that_is_gone_is_named(repository: Repository) -> None:
    """Only a repository that never had one begins without."""
    first = head(repository)
    assert first.history is not None
    path = first.history.object_path(Suffix.HISTORY)
    (repository.storage / path).unlink()
    with pytest.raises(NotFoundError) as refusal:
        publish(repository, b"file")
    assert str(refusal.value) == f"{path} is not in {repository.storage}."
    assert head(repository) == first


def test_a_checksum_that_cannot_be_written_is_told_in_a_sentence(repository: Repository) -> None:
    checksum = repository.state / "repositories" / FQRN / "reflog.chksum"
    checksum.unlink()
    checksum.mkdir()
    first = head(repository)
    with pytest.raises(UserError) as failure:
        publish(repository, b"file")
    assert str(failure.value).startswith(f"Cannot write {checksum}: Is a directory")
    assert head(repository) == first
    assert unfinished(repository) == []


def publish_elsewhere(repository: Repository, state: Path, name: bytes) -> Manifest:
    """By a release manager of another machine, whose lock nobody here sees."""
    shutil.copytree(repository.state, state, dirs_exist_ok=True)
    return publish(repository._replace(state=state), name)


def test_two_release_managers_never_undo_each_other(repository: Repository, tmp_path: Path) -> None:
    with repository.manager() as manager, contextlib.ExitStack() as stack:
        transaction = stack.enter_context(manager.transaction())
        add(transaction, b"ours", b"ours")
        theirs = publish_elsewhere(repository, tmp_path / "other", b"theirs")
        with pytest.raises(LostRaceError, match=f"{MANIFEST} in .* was replaced by another process") as lost:
            stack.close()
    assert lost.value.exit_code == 4
    assert head(repository) == theirs
    assert findings(repository, tmp_path) == []
    publish(repository, b"ours")
    assert findings(repository, tmp_path) == []
    assert names_in(repository, tmp_path) == {b"theirs", b"ours"}


def names_in(repository: Repository, work: Path) -> set[bytes]:
    with repository.manager() as manager, manager.snapshot() as catalogs:
        return {entry.name for entry in catalogs.children(b"")}


@pytest.mark.parametrize("step", ["the reflog", "the flush", "the manifest"])
def test_one_who_publishes_in_the_last_moment_is_not_undone(repository: Repository, tmp_path: Path, step: str) -> None:
    theirs: list[Manifest] = []

    def publish_first() -> None:
        if store.steps[-1:] == [previous] and not theirs:
            theirs.append(publish_elsewhere(repository, tmp_path / "other", b"theirs"))

    previous = {"the reflog": "the meta-info", "the flush": "the reflog", "the manifest": "the flush"}[step]
    with watched(repository) as (manager, store), contextlib.ExitStack() as stack:
        store.before = publish_first
        add(stack.enter_context(manager.transaction()), b"ours", b"ours")
        with pytest.raises(LostRaceError):
            stack.close()
    assert [head(repository)] == theirs
    assert findings(repository, tmp_path) == []
    publish(repository, b"ours")
    assert names_in(repository, tmp_path) == {b"theirs", b"ours"}
    assert findings(repository, tmp_path) == []
