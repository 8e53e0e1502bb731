"""Where large catalogs are split and small ones merged: the plan, and what becomes of a repository."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.repositories import FQRN, Repository, Seen, findings, make_repository, read_back
from tests.support.stockcatalogs import stock_catalogs

from mica.errors import UserError
from mica.publish.balance import Directory, plan_split
from mica.publish.catalogtree import base_name, directory_entry, parent_path
from mica.publish.rules import CatalogRules
from mica.publish.settings import read_settings, write_settings
from mica.repo.entry import AUTO_MARKER, MARKER
from mica.store.local import LocalStore

RULES = CatalogRules(most=40, fewest=8, nested_limit=60, root_limit=50)
MARKERS = {MARKER, AUTO_MARKER}


def tree_of(paths: Sequence[bytes], *, closed: Sequence[bytes] = ()) -> dict[bytes, Directory]:
    """Directories of a tree with these files."""
    directories: dict[bytes, set[bytes]] = {b"": set()}
    for file in paths:
        path = file
        while path:
            directories.setdefault(parent_path(path), set()).add(path)
            path = parent_path(path)
    return {
        path: Directory(parent_path(path), base_name(path), len(members), path not in closed)
        for path, members in directories.items()
    }


def files(directory: bytes, count: int) -> list[bytes]:
    return [directory + b"/f%03d" % number for number in range(count)]


def test_a_tree_that_is_small_enough_is_not_split() -> None:
    assert plan_split(b"", tree_of(files(b"/a", 18)), RULES) == []


def test_the_heaviest_directory_goes_first() -> None:
    tree = tree_of([*files(b"/a", 5), *files(b"/b", 12), *files(b"/c", 4)])
    assert plan_split(b"", tree, RULES) == [b"/b"]


def test_of_two_that_weigh_the_same_the_name_decides() -> None:
    tree = tree_of([*files(b"/z", 10), *files(b"/B", 10), *files(b"/a", 10)])
    assert plan_split(b"", tree, RULES) == [b"/B", b"/a"]


def test_inner_directories_come_first_and_light_ones_get_none() -> None:
    tree = tree_of([*files(b"/a/x", 15), *files(b"/a/y", 14), *files(b"/light", 3), *files(b"", 30)])
    assert plan_split(b"", tree, RULES) == [b"/a/x", b"/a"]


def test_what_has_a_catalog_already_weighs_one() -> None:
    tree = tree_of([*files(b"/a", 100), *files(b"/b", 17)])
    assert plan_split(b"", {**tree, b"/a": tree[b"/a"]._replace(is_open=False)}, RULES) == []


PATHS = st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), min_size=1, max_size=4).map(
    lambda names: b"".join(b"/" + name for name in names)
)


@given(st.dictionaries(PATHS, st.integers(1, 60), max_size=10), st.integers(2, 60), st.integers(0, 20))
def test_what_a_plan_leaves(sizes: dict[bytes, int], most: int, fewest: int) -> None:
    """Either nothing weighs too much, or nothing in it can be given away."""
    tree = tree_of([path for directory, count in sizes.items() for path in files(directory + b"/x", count)])
    rules = CatalogRules(most, fewest)
    planned = plan_split(b"", tree, rules)
    assert planned == plan_split(b"", dict(sorted(tree.items(), reverse=True)), rules), "the order makes no difference"
    assert len(planned) == len(set(planned))
    assert b"" not in planned
    assert all(not other.startswith(path + b"/") for at, path in enumerate(planned) for other in planned[at + 1 :])

    def weight(path: bytes) -> int:
        below = [key for key, directory in tree.items() if key and directory.parent == path]
        own = tree[path].entries - len(below)
        return 1 + own + sum(1 if child in planned else weight(child) for child in below)

    for path in (b"", *planned):
        open_below = [key for key, directory in tree.items() if key and directory.parent == path and key not in planned]
        assert weight(path) <= most // 2 or all(weight(key) < max(fewest, 2) for key in open_below)
    for path in planned:
        assert weight(path) >= max(fewest, 2)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = make_repository(tmp_path / "repository")
    write_settings(repository.state, replace(read_settings(repository.state, FQRN), catalogs=RULES))
    return repository


def publish(repository: Repository, *paths: bytes, removed: Sequence[bytes] = ()) -> None:
    with repository.manager() as manager, manager.transaction() as transaction:
        for path in removed:
            transaction.catalogs.remove(path)
        for path in paths:
            above = parent_path(path)
            transaction.catalogs.make_directories(above, directory_entry(b"", uid=7))
            transaction.catalogs.put(path, transaction.store_file(base_name(path), path))


def mountpoints(repository: Repository) -> dict[bytes, int]:
    """Of the newest revision, with the number of entries."""
    with LocalStore(repository.storage) as store:
        return {catalog.root_prefix: catalog.row_counts()[0] for catalog in stock_catalogs(store)}


def seen(repository: Repository, tmp_path: Path) -> dict[bytes, Seen]:
    """What a client sees besides markers, after the checker found nothing at all."""
    assert findings(repository, tmp_path) == []
    with repository.manager() as manager:
        place = tmp_path / f"cache-{manager.head().revision}"
    return {path: one for path, one in read_back(repository, place).items() if base_name(path) not in MARKERS}


def test_a_catalog_that_grows_is_split(repository: Repository, tmp_path: Path) -> None:
    publish(repository, *files(b"/a", 12), *files(b"/b/c", 15))
    assert mountpoints(repository) == {b"": 31}
    publish(repository, *files(b"/d", 16))
    assert mountpoints(repository) == {b"": 16, b"/b": 19, b"/d": 19}
    shown = seen(repository, tmp_path)
    assert set(shown) == {
        b"", b"/a", b"/b", b"/b/c", b"/d", *files(b"/a", 12), *files(b"/b/c", 15), *files(b"/d", 16),
    }  # fmt: skip
    with repository.manager() as manager, manager.snapshot() as catalogs:
        for name in MARKERS:
            found = catalogs.find(b"/d/" + name)
            assert found is not None
            assert (found.uid, found.size) == (7, 0)


def test_a_nested_catalog_that_grows_is_split_too(repository: Repository, tmp_path: Path) -> None:
    with repository.manager() as manager, manager.transaction() as transaction:
        transaction.catalogs.put(b"/n", directory_entry(b"n"))
        transaction.catalogs.nest(b"/n", transaction.marker())
    publish(repository, *files(b"/n/a", 30), *files(b"/n/b", 15))
    assert mountpoints(repository) == {b"": 2, b"/n": 19, b"/n/a": 33}
    seen(repository, tmp_path)


def test_a_catalog_that_was_split_off_and_shrinks_is_merged(repository: Repository, tmp_path: Path) -> None:
    paths = [*files(b"/a", 12), *files(b"/b/c", 15), *files(b"/d", 16)]
    publish(repository, *paths)
    assert b"/d" in mountpoints(repository)
    before = seen(repository, tmp_path)
    gone = files(b"/d", 16)[2:]
    publish(repository, removed=gone)
    assert set(mountpoints(repository)) == {b"", b"/b"}
    after = seen(repository, tmp_path)
    assert set(after) == set(before) - set(gone)
    assert after[b"/d"] == before[b"/d"]
    with repository.manager() as manager, manager.snapshot() as catalogs:
        assert [entry.name for entry in catalogs.children(b"/d")] == [b"f000", b"f001"]


def test_a_catalog_that_somebody_asked_for_stays(repository: Repository) -> None:
    with repository.manager() as manager, manager.transaction() as transaction:
        transaction.catalogs.put(b"/n", directory_entry(b"n"))
        transaction.catalogs.nest(b"/n", transaction.marker())
    publish(repository, b"/n/x")
    publish(repository, removed=[b"/n/x"])
    assert mountpoints(repository) == {b"": 2, b"/n": 2}


def test_merging_takes_over_catalogs_below_and_hard_links(repository: Repository, tmp_path: Path) -> None:
    """The catalog in between goes; the one below it is then mounted in the root catalog."""
    publish(repository, *files(b"/a/in", 30), *files(b"/a", 15), *files(b"", 10))
    assert set(mountpoints(repository)) == {b"", b"/a/in", b"/a"}
    with repository.manager() as manager, manager.transaction() as transaction:
        for directory in (b"", b"/a"):
            group = transaction.catalogs.new_link_group(directory)
            for name in (b"one", b"two"):
                entry = transaction.store_file(name, b"linked")._replace(group=group, links=2)
                transaction.catalogs.put(directory + b"/" + name, entry)
    before = seen(repository, tmp_path)
    gone = files(b"/a", 15)
    publish(repository, removed=gone)
    assert set(mountpoints(repository)) == {b"", b"/a/in"}
    after = seen(repository, tmp_path)
    assert set(after) == set(before) - set(gone)
    assert [after[path].links for path in (b"/one", b"/a/one")] == [2, 2]
    publish(repository, removed=[b"/a/in"])
    seen(repository, tmp_path)


def test_what_does_not_change_is_left_alone(repository: Repository) -> None:
    settings = read_settings(repository.state, FQRN)
    write_settings(repository.state, replace(settings, catalogs=CatalogRules()))
    with repository.manager() as manager, manager.transaction() as transaction:
        transaction.catalogs.put(b"/n", directory_entry(b"n"))
        transaction.catalogs.nest(b"/n", transaction.marker())
    publish(repository, *files(b"/n/a", 60))
    write_settings(repository.state, settings)
    publish(repository, b"/x")
    assert mountpoints(repository) == {b"": 3, b"/n": 63}
    publish(repository, b"/n/x")
    assert mountpoints(repository) == {b"": 3, b"/n": 4, b"/n/a": 63 - 2 + 2 - 1 + 1}


@pytest.mark.parametrize(("directory", "count", "entries", "limit"), [(b"", 70, 71, 50), (b"/n", 70, 72, 60)])
def test_a_catalog_that_is_too_large_and_cannot_be_split(
    repository: Repository, directory: bytes, count: int, entries: int, limit: int
) -> None:
    with repository.manager() as manager, manager.transaction() as transaction:
        transaction.catalogs.put(b"/n", directory_entry(b"n"))
        transaction.catalogs.nest(b"/n", transaction.marker())
    before = mountpoints(repository)
    extra = 1 if not directory else 0  # the directory /n
    with pytest.raises(UserError) as refusal:
        publish(repository, *files(directory, count))
    where = directory.decode() or "/"
    assert str(refusal.value) == (
        f"The catalog of '{where}' would have {entries + extra} entries, more than {limit}."
    )  # fmt: skip
    assert mountpoints(repository) == before


def test_without_limits_nothing_is_refused_or_split(repository: Repository, tmp_path: Path) -> None:
    settings = read_settings(repository.state, FQRN)
    write_settings(repository.state, replace(settings, catalogs=CatalogRules(0, 0, 0, 0)))
    publish(repository, *files(b"/a", 70), *files(b"", 70))
    assert mountpoints(repository) == {b"": 142}
    seen(repository, tmp_path)
