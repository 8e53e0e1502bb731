"""Naming revisions and going back: what becomes of history, catalogs and reflog, judged by the checker."""

from pathlib import Path

import pytest
from tests.support.repositories import FQRN, Repository, findings, make_repository, opened_client, read_back

from mica.digest import Suffix
from mica.errors import NotFoundError, UserError
from mica.mount.repotree import RepositoryTree
from mica.publish.catalogtree import directory_entry
from mica.publish.manager import ReleaseManager
from mica.publish.tags import add_tag, remove_tags, roll_back, set_tag_directories
from mica.publish.transaction import REFLOG, read_history
from mica.repo.catalog import NestedCatalog
from mica.repo.history import History, RefKind, Tag, parse_reflog
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import Manifest, parse_manifest
from mica.store.local import LocalStore


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


def publish(repository: Repository, name: bytes, **names: str) -> Manifest:
    """A revision with one file more, in a nested catalog; `names` are its tags."""
    with repository.manager() as manager, manager.transaction() as transaction:
        directory = b"/" + name
        transaction.catalogs.put(directory, directory_entry(name))
        transaction.catalogs.put(directory + b"/file", transaction.store_file(b"file", name))
        transaction.catalogs.nest(directory, transaction.marker())
        transaction.names.update(names)
    assert transaction.published is not None
    return transaction.published


def head(repository: Repository) -> Manifest:
    return parse_manifest((repository.storage / MANIFEST).read_bytes(), "it")[0]


def history(repository: Repository) -> History:
    with LocalStore(repository.storage) as store:
        return read_history(store, head(repository))


def names(repository: Repository) -> dict[str, int]:
    return {name: tag.revision for name, tag in history(repository).tags.items()}


def tops(repository: Repository, tmp_path: Path) -> set[bytes]:
    """Names at the top of the newest revision, after the checker found nothing at all."""
    assert findings(repository, tmp_path) == []
    seen = read_back(repository, tmp_path / f"cache-{head(repository).root_catalog}")
    return {path for path in seen if path.count(b"/") == 1}


def shown(repository: Repository, tmp_path: Path) -> dict[bytes, set[bytes]]:
    """The tag directories as a mount has them, each with the names in it."""
    manifest = head(repository)
    with opened_client(repository, tmp_path / f"shown-{manifest.root_catalog}") as client:
        tree = RepositoryTree(client, NestedCatalog(b"", manifest.root_catalog, manifest.root_catalog_size))
        assert b".cvmfs" not in {child.name for child in tree.children(1)}, "it is hidden"
        place = tree.lookup(tree.lookup(1, b".cvmfs").inode, b"snapshots").inode
        return {
            child.name: {below.name for below in tree.children(child.attributes.inode)}
            for child in tree.children(place)
        }


def collect(repository: Repository, path: str) -> None:
    (repository.storage / path).unlink()


def test_a_tag_is_added_to_the_newest_revision(repository: Repository, tmp_path: Path) -> None:
    second = publish(repository, b"a")
    with repository.manager() as manager:
        assert add_tag(manager, "release", description="it works").revision == 2
    third = head(repository)
    assert (third.revision, third.root_catalog) == (2, second.root_catalog)
    assert third.history != second.history
    tag = history(repository).tag("release")
    assert tag == history(repository).tag("trunk")._replace(name="release", description="it works")
    assert history(repository).previous == second.history
    refs = parse_reflog((repository.storage / REFLOG).read_bytes(), "it").refs
    assert third.history is not None
    assert refs[third.history][0] == RefKind.HISTORY
    assert names(repository) == {"trunk": 2, "trunk-previous": 1, "release": 2}
    assert tops(repository, tmp_path) == {b"/a"}


def test_a_tag_is_added_to_an_older_revision(repository: Repository) -> None:
    roots = [head(repository), *(publish(repository, name) for name in (b"a", b"b", b"c"))]
    with repository.manager() as manager:
        add_tag(manager, "by-number", "2")
        add_tag(manager, "by-tag", "by-number")
        add_tag(manager, "by-digest", roots[1].root_catalog.text)
    tags = history(repository).tags
    assert {tags[name].root_catalog for name in ("by-number", "by-tag", "by-digest")} == {roots[1].root_catalog}
    facts = (roots[1].published_at, roots[1].root_catalog_size)
    assert (tags["by-number"].timestamp, tags["by-number"].size) == facts


@pytest.mark.parametrize("name", ["trunk", "trunk-previous", "no blanks", ""])
def test_a_name_that_cannot_be_given_changes_nothing(repository: Repository, name: str) -> None:
    before = (repository.storage / MANIFEST).read_bytes()
    with repository.manager() as manager, pytest.raises(UserError):
        add_tag(manager, name)
    assert (repository.storage / MANIFEST).read_bytes() == before


def test_tags_are_removed_all_or_none(repository: Repository, tmp_path: Path) -> None:
    publish(repository, b"a", one="", two="", three="")
    with repository.manager() as manager:
        with pytest.raises(NotFoundError, match="has no tag 'four'"):
            remove_tags(manager, ["one", "four"])
        with pytest.raises(UserError, match="'trunk' always follows"):
            remove_tags(manager, ["one", "trunk"])
        assert names(repository).keys() >= {"one", "two", "three"}
        assert [tag.name for tag in remove_tags(manager, ["one", "two", "one"])] == ["one", "two"]
    assert names(repository) == {"trunk": 2, "trunk-previous": 1, "three": 2}
    assert findings(repository, tmp_path) == []


def test_back_to_the_revision_before(repository: Repository, tmp_path: Path) -> None:
    second = publish(repository, b"a")
    third = publish(repository, b"b")
    with repository.manager() as manager:
        done = roll_back(manager)
        assert (done.target.root_catalog, done.head.revision) == (second.root_catalog, 4)
        assert tops(repository, tmp_path) == {b"/a"}
        assert names(repository) == {"trunk": 4}, "as the stock server leaves it: nothing to undo"
        with manager.snapshot() as catalogs:
            assert catalogs.root_catalog.previous_revision == third.root_catalog
            assert catalogs.root_catalog.revision == 4
        with pytest.raises(UserError) as refusal:
            roll_back(manager)
        assert str(refusal.value) == f"Nothing was published into {FQRN} since it was rolled back, or ever."
        roll_back(manager, "3")
    assert tops(repository, tmp_path) == {b"/a", b"/b"}, "a rollback can be taken back by its number"
    refs = parse_reflog((repository.storage / REFLOG).read_bytes(), "it").refs
    assert sum(kind == RefKind.CATALOG for kind, _ in refs.values()) == 5


def test_back_to_a_tag(repository: Repository, tmp_path: Path) -> None:
    publish(repository, b"a", old="kept")
    publish(repository, b"b", target="the text stays", same="")
    publish(repository, b"c", new="")
    publish(repository, b"d", newer="")
    with repository.manager() as manager:
        done = roll_back(manager, "target")
    assert [tag.name for tag in done.removed] == ["newer", "new"]
    assert names(repository) == {"trunk": 6, "old": 2, "same": 3, "target": 6}
    tags = history(repository).tags
    assert tags["target"].description == "the text stays"
    assert tags["target"].root_catalog == head(repository).root_catalog != tags["same"].root_catalog
    assert tops(repository, tmp_path) == {b"/a", b"/b"}
    publish(repository, b"e")
    assert tops(repository, tmp_path) == {b"/a", b"/b", b"/e"}
    assert names(repository)["trunk-previous"] == 6


@pytest.mark.parametrize("target", ["3", "trunk", "here"])
def test_there_is_no_way_back_to_the_newest_revision(repository: Repository, target: str) -> None:
    publish(repository, b"a")
    newest = publish(repository, b"b", here="")
    with repository.manager() as manager, pytest.raises(UserError, match="Revision 3 is the newest one"):
        roll_back(manager, target)
    assert head(repository) == newest


def test_there_is_no_way_back_to_another_branch(repository: Repository) -> None:
    publish(repository, b"a")
    with repository.manager() as manager:
        with manager.transaction() as transaction:
            transaction.keep_content()
            trunk = transaction.history.tag("trunk-previous")
            transaction.history.tags["side"] = Tag("side", *trunk[1:6], branch="side")
        with pytest.raises(UserError, match="Tag 'side' is on the branch 'side'"):
            roll_back(manager, "side")


def test_a_rollback_that_fails_leaves_all_as_it_was(repository: Repository, tmp_path: Path) -> None:
    publish(repository, b"a", old="")
    newest = publish(repository, b"b", new="")
    before = names(repository)
    with repository.manager() as manager:
        collect(repository, history(repository).tag("old").root_catalog.object_path(Suffix.CATALOG))
        with pytest.raises(NotFoundError):
            roll_back(manager, "old")
    assert head(repository) == newest
    assert names(repository) == before
    assert {finding.severity for finding in findings(repository, tmp_path)} == {"warning"}, "only the tag is lost"


@pytest.mark.parametrize("missing", ["file", "catalog", "root"])
def test_a_revision_that_was_collected_in_part_is_refused(repository: Repository, missing: str) -> None:
    """As garbage collection leaves it that was interrupted. A tag would have kept it."""
    with repository.manager() as manager:
        with manager.transaction() as transaction:
            transaction.catalogs.put(b"/a", directory_entry(b"a"))
            entry = transaction.store_file(b"file", b"only there")
            transaction.catalogs.put(b"/a/file", entry)
            transaction.catalogs.nest(b"/a", transaction.marker())
        second = transaction.published
        with manager.snapshot() as catalogs:
            (nested,) = catalogs.root_catalog.nested()
        with manager.transaction() as transaction:
            transaction.catalogs.remove(b"/a")
        publish(repository, b"b")
        assert second is not None
        assert entry.digest is not None
        path = {
            "file": entry.digest.object_path(Suffix.FILE),
            "catalog": nested.digest.object_path(Suffix.CATALOG),
            "root": second.root_catalog.object_path(Suffix.CATALOG),
        }[missing]
        collect(repository, path)
        before = head(repository)
        for act in (lambda: roll_back(manager, "2"), lambda: add_tag(manager, "late", "2")):
            with pytest.raises(NotFoundError) as refusal:
                act()
            what = "not there any more" if missing == "root" else "not complete any more"
            assert str(refusal.value) == f"Revision 2 of {FQRN} is {what}: {path} is not in {repository.storage}."
        assert head(repository) == before
        assert roll_back(manager, "3").head.revision == 5, "what it lacks was not in that revision"


def test_tag_directories_follow_the_tags(repository: Repository, tmp_path: Path) -> None:
    publish(repository, b"a", one="")
    publish(repository, b"b", two="")
    with repository.manager() as manager:
        assert set_tag_directories(manager, wanted=True).revision == 4
        assert shown(repository, tmp_path) == {b"one": {b"a"}, b"two": {b"a", b"b"}}
        assert tops(repository, tmp_path) == {b"/a", b"/b"}
        assert set_tag_directories(manager, wanted=True).revision == 4, "nothing to do"
        add_tag(manager, "three", "one")
        assert head(repository).revision == 5, "catalogs changed, so there is a new revision"
        remove_tags(manager, ["one"])
        assert set(shown(repository, tmp_path)) == {b"two", b"three"}
        add_tag(manager, "two", "three", move=True)
        assert shown(repository, tmp_path) == {b"two": {b"a"}, b"three": {b"a"}}
        add_tag(manager, "not/a/name", "three")
        assert head(repository).revision == 7, "a name with slashes has no directory"
        publish(repository, b"c")
        assert shown(repository, tmp_path) == {b"two": {b"a"}, b"three": {b"a"}}
        assert set_tag_directories(manager, wanted=False).revision == 9
        assert tops(repository, tmp_path) == {b"/a", b"/b", b"/c"}
        with manager.snapshot() as catalogs:
            assert catalogs.find(b"/.cvmfs") is None


def test_a_revision_that_is_named_as_it_is_published_gets_a_directory_by_the_next(
    repository: Repository, tmp_path: Path
) -> None:
    with repository.manager() as manager:
        set_tag_directories(manager, wanted=True)
    third = publish(repository, b"a", release="")
    assert (third.revision, names(repository)) == (4, {"trunk": 4, "trunk-previous": 2, "release": 3})
    assert shown(repository, tmp_path) == {b"release": {b"a"}}
    refs = parse_reflog((repository.storage / REFLOG).read_bytes(), "it").refs
    assert history(repository).tag("release").root_catalog in refs
    assert tops(repository, tmp_path) == {b"/a"}


def test_a_rollback_takes_the_tag_directories_of_now(repository: Repository, tmp_path: Path) -> None:
    publish(repository, b"a", one="")
    with repository.manager() as manager:
        set_tag_directories(manager, wanted=True)
        publish(repository, b"b", two="")
        roll_back(manager, "one")
        assert shown(repository, tmp_path) == {b"one": {b"a"}}
        assert tops(repository, tmp_path) == {b"/a"}
        set_tag_directories(manager, wanted=False)
        publish(repository, b"c")
        revision_with_directories = names(repository)["one"] + 1
        roll_back(manager, str(revision_with_directories))
        with manager.snapshot() as catalogs:
            assert catalogs.find(b"/.cvmfs") is None


def test_a_tag_whose_revision_is_gone_has_no_directory(repository: Repository, tmp_path: Path) -> None:
    publish(repository, b"a", one="")
    publish(repository, b"b")
    collect(repository, history(repository).tag("one").root_catalog.object_path(Suffix.CATALOG))
    with repository.manager() as manager:
        set_tag_directories(manager, wanted=True)
    assert shown(repository, tmp_path) == {}


def test_nothing_is_changed_while_another_process_publishes(repository: Repository) -> None:
    publish(repository, b"a")
    with (
        repository.manager() as manager,
        ReleaseManager.open(repository.state, FQRN) as other,
        manager.transaction() as transaction,
    ):
        transaction.give_up()
        for act in (roll_back, lambda m: add_tag(m, "x"), lambda m: remove_tags(m, ["x"])):
            with pytest.raises(Exception, match=FQRN) as refusal:
                act(other)
            assert getattr(refusal.value, "exit_code", 0) == 4
