"""Changes of a transaction over many catalogs; the checker recomputes every count afterwards."""

import random
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.catalogs import a_file, a_link, run_sql, write_catalog
from tests.support.repositories import Repository, Seen, findings, ingest, make_repository, read_back
from tests.support.stockcatalogs import catalog_bytes, stock_catalogs
from tests.support.tars import END, member
from tests.support.tools import need

from mica.digest import Algorithm, Digest, Suffix
from mica.errors import IntegrityError, NotFoundError, UserError
from mica.publish import catalogtree
from mica.publish.catalogtree import SealedCatalog, base_name, directory_entry, parent_path
from mica.publish.transaction import Transaction
from mica.repo.catalog import NestedCatalog
from mica.repo.catalogwriter import NO_COUNTS, Counters
from mica.repo.entry import MARKER, Entry
from mica.repo.objects import Compression, pack
from mica.store.local import LocalStore


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


def change(repository: Repository, action: Callable[[Transaction], object]) -> None:
    with repository.manager() as manager, manager.transaction() as transaction:
        action(transaction)


def stored_file(transaction: Transaction, name: bytes, content: bytes = b"content") -> Entry:
    return transaction.store_file(name, content, mtime_s=1_600_000_000)


def put_files(transaction: Transaction, *paths: bytes) -> None:
    """Files, with the directories above them."""
    for path in paths:
        transaction.catalogs.make_directories(parent_path(path), directory_entry(b""))
        transaction.catalogs.put(path, stored_file(transaction, base_name(path), path))


def sound(repository: Repository, tmp_path: Path) -> dict[bytes, Seen]:
    """What a client sees, after the checker found nothing at all."""
    assert findings(repository, tmp_path) == []
    cache = tmp_path / f"cache-{random.getrandbits(40)}"
    return read_back(repository, cache)


def mountpoints(repository: Repository) -> list[bytes]:
    with LocalStore(repository.storage) as store:
        return sorted(catalog.root_prefix for catalog in stock_catalogs(store))


def listed_in_root(repository: Repository) -> dict[bytes, Digest]:
    with LocalStore(repository.storage) as store:
        for catalog in stock_catalogs(store):
            return {nested.path: nested.digest for nested in catalog.nested()}
    raise AssertionError


def test_a_large_catalog_goes_from_file_to_file(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogtree, "WHOLE_BYTES", 0)
    change(repository, lambda t: put_files(t, b"/a/one", b"/a/two"))
    change(repository, lambda t: put_files(t, b"/a/three"))
    assert set(sound(repository, tmp_path)) == {b"", b"/a", b"/a/one", b"/a/two", b"/a/three"}


def test_entries_are_put_replaced_and_removed(repository: Repository, tmp_path: Path) -> None:
    change(repository, lambda t: put_files(t, b"/a/b/one", b"/a/b/two", b"/a/three"))
    seen = sound(repository, tmp_path)
    assert set(seen) == {b"", b"/a", b"/a/b", b"/a/b/one", b"/a/b/two", b"/a/three"}
    assert (seen[b""].links, seen[b"/a"].links, seen[b"/a/b"].links) == (3, 3, 2)

    def second(transaction: Transaction) -> None:
        catalogs = transaction.catalogs
        catalogs.remove(b"/a/b/one")
        catalogs.remove(b"/not/there")
        catalogs.remove(b"/a/b/not there")
        catalogs.put(b"/a/b/two", stored_file(transaction, b"two", b"other content"))
        catalogs.put(b"/a/link", a_link(b"link", b"three"))
        assert [entry.name for entry in catalogs.children(b"/a/b")] == [b"two"]
        assert catalogs.find(b"/a/b/one") is None

    change(repository, second)
    seen = sound(repository, tmp_path)
    assert set(seen) == {b"", b"/a", b"/a/b", b"/a/b/two", b"/a/three", b"/a/link"}
    assert seen[b"/a/b/two"].size == len(b"other content")
    change(repository, lambda t: t.catalogs.remove(b"/a"))
    assert set(sound(repository, tmp_path)) == {b""}


def test_a_directory_cannot_be_made_below_a_file(repository: Repository) -> None:
    change(repository, lambda t: put_files(t, b"/file"))
    with pytest.raises(UserError, match="'/file' in the repository is not a directory"):
        change(repository, lambda t: t.catalogs.make_directories(b"/file/x", directory_entry(b"")))


def test_nesting_moves_everything_below(repository: Repository, tmp_path: Path) -> None:
    change(repository, lambda t: put_files(t, b"/a/b/c/one", b"/a/b/two", b"/a/three"))
    before = sound(repository, tmp_path)
    change(repository, lambda t: t.catalogs.nest(b"/a/b", t.marker()))
    assert mountpoints(repository) == [b"", b"/a/b"]
    after = sound(repository, tmp_path)
    assert set(after) - set(before) == {b"/a/b/" + MARKER}
    assert {path: after[path] for path in before} == before


def test_nested_catalogs_in_nested_catalogs(repository: Repository, tmp_path: Path) -> None:
    def nest_all(transaction: Transaction) -> None:
        put_files(transaction, b"/a/b/c/d/file", b"/a/b/other")
        for path in (b"/a/b/c/d", b"/a/b", b"/a", b"/a/b/c"):
            transaction.catalogs.nest(path, transaction.marker())

    change(repository, nest_all)
    everything = [b"", b"/a", b"/a/b", b"/a/b/c", b"/a/b/c/d"]
    assert mountpoints(repository) == everything
    sound(repository, tmp_path)
    # A change deep down rewrites the catalogs above it and their counters.
    change(repository, lambda t: put_files(t, b"/a/b/c/d/e/new"))
    assert b"/a/b/c/d/e/new" in sound(repository, tmp_path)
    assert mountpoints(repository) == everything


def test_nesting_above_existing_catalogs_of_earlier_revisions(repository: Repository, tmp_path: Path) -> None:
    def first(transaction: Transaction) -> None:
        put_files(transaction, b"/a/b/one", b"/a/c/two", b"/d/three")
        transaction.catalogs.nest(b"/a/b", transaction.marker())
        transaction.catalogs.nest(b"/a/c", transaction.marker())

    change(repository, first)
    before = sound(repository, tmp_path)

    def second(transaction: Transaction) -> None:
        put_files(transaction, b"/a/b/changed")
        transaction.catalogs.nest(b"/a", transaction.marker())

    change(repository, second)
    assert mountpoints(repository) == [b"", b"/a", b"/a/b", b"/a/c"]
    after = sound(repository, tmp_path)
    assert set(after) - set(before) == {b"/a/" + MARKER, b"/a/b/changed"}


def test_removing_nested_catalogs(repository: Repository, tmp_path: Path) -> None:
    def build(transaction: Transaction) -> None:
        put_files(transaction, b"/a/b/c/one", b"/a/d/two", b"/e/f/three", b"/e/four")
        for path in (b"/a/b/c", b"/a/b", b"/a/d", b"/e/f"):
            transaction.catalogs.nest(path, transaction.marker())

    change(repository, build)
    sound(repository, tmp_path)
    change(repository, lambda t: t.catalogs.remove(b"/a/b"))
    assert mountpoints(repository) == [b"", b"/a/d", b"/e/f"]
    assert set(sound(repository, tmp_path)) & {b"/a/b", b"/a/b/c"} == set()

    def change_then_remove(transaction: Transaction) -> None:
        put_files(transaction, b"/e/f/g/new", b"/e/f/h/new")
        transaction.catalogs.nest(b"/e/f/g", transaction.marker())
        transaction.catalogs.remove(b"/e")
        transaction.catalogs.remove(b"/a")

    change(repository, change_then_remove)
    assert mountpoints(repository) == [b""]
    assert set(sound(repository, tmp_path)) == {b""}


def test_a_removed_nested_catalog_can_come_back_in_the_same_transaction(repository: Repository, tmp_path: Path) -> None:
    def first(transaction: Transaction) -> None:
        put_files(transaction, b"/a/old")
        transaction.catalogs.nest(b"/a", transaction.marker())

    def second(transaction: Transaction) -> None:
        transaction.catalogs.remove(b"/a")
        first(transaction)
        put_files(transaction, b"/a/new")
        transaction.catalogs.remove(b"/a/old")

    change(repository, first)
    change(repository, second)
    assert set(sound(repository, tmp_path)) == {b"", b"/a", b"/a/" + MARKER, b"/a/new"}
    assert mountpoints(repository) == [b"", b"/a"]


def test_attributes_of_a_mountpoint_change_in_both_catalogs(repository: Repository, tmp_path: Path) -> None:
    def build(transaction: Transaction) -> None:
        put_files(transaction, b"/a/b/file")
        transaction.catalogs.nest(b"/a", transaction.marker())

    change(repository, build)
    new = directory_entry(b"ignored", 0o1777, uid=7, gid=8, mtime_s=99)._replace(xattrs=b"\x01\x01\x01\x01kv")
    for path in (b"/a", b"/a/b", b""):
        change(repository, lambda t, path=path: t.catalogs.set_attributes(path, new))
        seen = sound(repository, tmp_path)[path]
        assert (stat.S_IMODE(seen.mode), seen.uid, seen.gid, seen.mtime, seen.xattrs) == (
            0o1777, 7, 8, (99, 0), ((b"k", b"v"),),
        )  # fmt: skip
    assert mountpoints(repository) == [b"", b"/a"]


def test_chunks_and_link_groups_survive_nesting(repository: Repository, tmp_path: Path) -> None:
    large = random.Random(1).randbytes(60_000)
    archive = b"".join(
        [
            member(b"a/large", large),
            member(b"a/one", b"linked"), member(b"a/two", type_flag=b"1", link=b"a/one"),
            member(b"a/x", b"other"), member(b"a/y", type_flag=b"1", link=b"a/x"),
            END,
        ]
    )  # fmt: skip
    ingest(repository, archive)
    before = sound(repository, tmp_path)
    change(repository, lambda t: t.catalogs.nest(b"/a", t.marker()))
    after = sound(repository, tmp_path)
    assert {path: after[path] for path in before} == before
    change(repository, lambda t: t.catalogs.remove(b"/a/one"))
    assert sound(repository, tmp_path)[b"/a/two"].links == 1
    change(repository, lambda t: t.catalogs.remove(b"/a/large"))
    assert b"/a/large" not in sound(repository, tmp_path)


def test_a_catalog_that_belongs_elsewhere_is_refused(repository: Repository) -> None:
    def build(transaction: Transaction) -> None:
        put_files(transaction, b"/a/file", b"/b/file")
        for path in (b"/a", b"/b"):
            transaction.catalogs.nest(path, transaction.marker())

    change(repository, build)

    def mix_up(transaction: Transaction) -> None:
        catalogs = transaction.catalogs
        listed = catalogs.root_catalog.nested()
        branch = catalogs._top
        branch.mountpoints[b"/a"] = NestedCatalog(b"/a", listed[1].digest, listed[1].size)
        catalogs.find(b"/a/file")

    with pytest.raises(IntegrityError, match="says it belongs to '/b'"):
        change(repository, mix_up)


def test_a_catalog_without_its_root_is_refused(repository: Repository, tmp_path: Path) -> None:
    """Another publisher signed it, so it is what it was meant to be, and wrong."""
    path = write_catalog(tmp_path / "catalog", [(b"/a/file", a_file(b"file"))], mountpoint=b"/a")
    run_sql(path, "DELETE FROM catalog WHERE flags & 1")
    packed = pack(path.read_bytes(), Algorithm.SHA1, Compression.ZLIB)
    nested = NestedCatalog(b"", packed.digest, path.stat().st_size)

    def attach_and_look(transaction: Transaction) -> None:
        transaction.store.put(packed.digest.object_path(Suffix.CATALOG), packed.stored)
        counters = Counters(NO_COUNTS, NO_COUNTS)
        transaction.catalogs.attach(b"/a", SealedCatalog(nested, counters, directory_entry(b"")))
        transaction.catalogs.find(b"/a/file")

    with pytest.raises(IntegrityError, match="of '/a' has no row for its own root"):
        change(repository, attach_and_look)


def test_only_a_directory_that_exists_can_be_changed(repository: Repository) -> None:
    with pytest.raises(NotFoundError, match="There is no '/a' in the repository"):
        change(repository, lambda t: t.catalogs.set_attributes(b"/a", directory_entry(b"")))
    with pytest.raises(NotFoundError, match="There is no '/a' in the repository"):
        change(repository, lambda t: t.catalogs.nest(b"/a"))


def test_nested_catalogs_count_their_own_commits(repository: Repository) -> None:
    def build(transaction: Transaction) -> None:
        put_files(transaction, b"/a/file")
        transaction.catalogs.nest(b"/a", transaction.marker())

    change(repository, build)
    change(repository, lambda t: put_files(t, b"/elsewhere"))
    change(repository, lambda t: put_files(t, b"/a/more"))
    with LocalStore(repository.storage) as store:
        seen = {c.root_prefix: (c.revision, c.previous_revision) for c in stock_catalogs(store)}
    assert [revision for revision, _ in seen.values()] == [4, 2]
    assert all(previous is not None for _, previous in seen.values())


def test_an_unchanged_nested_catalog_is_not_written_again(repository: Repository) -> None:
    def build(transaction: Transaction) -> None:
        put_files(transaction, b"/a/file", b"/b/file")
        for path in (b"/a", b"/b"):
            transaction.catalogs.nest(path, transaction.marker())

    change(repository, build)

    before = listed_in_root(repository)

    def look_and_change(transaction: Transaction) -> None:
        assert transaction.catalogs.find(b"/a/file") is not None
        put_files(transaction, b"/b/more")

    change(repository, look_and_change)
    after = listed_in_root(repository)
    assert after[b"/a"] == before[b"/a"]
    assert after[b"/b"] != before[b"/b"]


def test_link_groups_of_two_archives_stay_apart(repository: Repository, tmp_path: Path) -> None:
    """Groups are numbered within a catalog: the second archive's must not take numbers of the first."""

    def pair(one: bytes, two: bytes, content: bytes) -> bytes:
        return member(one, content) + member(two, type_flag=b"1", link=one) + END

    ingest(repository, pair(b"d/one", b"d/two", b"first"))
    ingest(repository, pair(b"d/three", b"d/four", b"second archive"))
    ingest(repository, pair(b"e/five", b"e/six", b"third"))
    seen = sound(repository, tmp_path)
    sizes = {path[1:]: (entry.links, entry.size) for path, entry in seen.items() if stat.S_ISREG(entry.mode)}
    assert sizes == {
        b"d/one": (2, 5), b"d/two": (2, 5), b"d/three": (2, 14), b"d/four": (2, 14), b"e/five": (2, 5), b"e/six": (2, 5)
    }  # fmt: skip


def test_replacing_one_name_of_a_linked_file(repository: Repository, tmp_path: Path) -> None:
    linked = member(b"one", b"linked") + b"".join(
        member(name, type_flag=b"1", link=b"one") for name in (b"two", b"three")
    )
    ingest(repository, linked + END)
    ingest(repository, member(b"two", b"alone") + END)
    seen = sound(repository, tmp_path)
    assert {path: seen[path].links for path in (b"/one", b"/two", b"/three")} == {b"/one": 2, b"/two": 1, b"/three": 2}


def test_the_reserved_name_is_refused(repository: Repository, tmp_path: Path) -> None:
    """`/.cvmfs` belongs to the catalogs of old revisions."""
    for archive, base in ((member(b".cvmfs/x", b"x") + END, b""), (END, b"/.cvmfs"), (END, b"/.cvmfs/snapshots")):
        with pytest.raises(UserError, match="reserved"):
            ingest(repository, archive, base)
    ingest(repository, member(b"a/.cvmfs/x", b"x") + END)
    assert b"/a/.cvmfs/x" in sound(repository, tmp_path)


def test_a_marker_at_the_top_makes_no_catalog(repository: Repository, tmp_path: Path) -> None:
    ingest(repository, member(MARKER) + member(b"a/" + MARKER) + member(b"a/file", b"x") + END)
    assert mountpoints(repository) == [b"", b"/a"]
    assert b"/a/file" in read_back(repository, tmp_path / "cache")
    assert [finding.severity for finding in findings(repository, tmp_path)] == ["warning"]


def test_sqlite_finds_nothing_wrong_either(repository: Repository, tmp_path: Path) -> None:
    program = need("sqlite3", "sqlite3")
    ingest(repository, b"".join(member(b"a/%d" % n, b"x" * n) for n in range(300)) + END, nested=False)
    change(repository, lambda t: t.catalogs.nest(b"/a", t.marker()))
    change(repository, lambda t: t.catalogs.remove(b"/a/17"))
    with LocalStore(repository.storage) as store:
        files = [catalog_bytes(store, digest) for digest in listed_in_root(repository).values()]
    for number, content in enumerate(files):
        path = tmp_path / f"{number}.sqlite"
        path.write_bytes(content)
        query = "PRAGMA integrity_check; PRAGMA foreign_key_check; PRAGMA journal_mode; PRAGMA encoding;"
        query += "SELECT count(*), sum(typeof(name) = 'text'), sum(name = '17') FROM catalog;"
        query += "SELECT group_concat(typeof(value)) FROM properties WHERE key = 'schema'"
        done = subprocess.run([program, path, query], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["ok", "delete", "UTF-8", "301|301|0", "text"]
    assert len(files) == 1


@pytest.mark.parametrize("seed", range(4))
def test_random_changes_agree_with_a_model(repository: Repository, tmp_path: Path, seed: int) -> None:
    """Files and directories put, removed, nested and touched in any order, over several revisions."""
    dice = random.Random(seed)
    model = {b"": "d"}
    for _ in range(4):
        with repository.manager() as manager, manager.transaction() as transaction:
            for _ in range(30):
                _random_change(dice, transaction, model)
        seen = sound(repository, tmp_path)
        assert set(seen) == set(model)
        assert all(stat.S_ISDIR(seen[path].mode) == (kind != "f") for path, kind in model.items())
    assert set(mountpoints(repository)) == {b""} | {path for path, kind in model.items() if kind == "n"}


def _random_change(dice: random.Random, transaction: Transaction, model: dict[bytes, str]) -> None:
    catalogs = transaction.catalogs
    directories = sorted(path for path, kind in model.items() if kind != "f")
    directory = dice.choice(directories)
    path = directory + b"/" + dice.choice([b"a", b"b", b"c", b"d"])
    what = dice.randrange(10)
    if what < 4 and path not in model:
        catalogs.put(path, directory_entry(base_name(path)))
        model[path] = "d"
    elif what < 7 and model.get(path, "f") == "f":
        catalogs.put(path, stored_file(transaction, base_name(path), b"%d" % dice.randrange(9)))
        model[path] = "f"
    elif what == 7 and directory:
        catalogs.set_attributes(directory, directory_entry(b"", mtime_s=dice.randrange(99)))
    elif what == 8 and directory:
        catalogs.nest(directory, transaction.marker())
        model[directory] = "n"
        model[directory + b"/" + MARKER] = "f"
    elif what == 9 and dice.randrange(2) and path in model:
        catalogs.remove(path)
        for below in [known for known in model if known == path or known.startswith(path + b"/")]:
            del model[below]
