"""Older revisions, found by tag, number and digest over root catalogs that name the ones before them."""

import pytest
from tests.support.catalogs import some_digest

from mica.digest import Digest
from mica.errors import IntegrityError, NotFoundError
from mica.fetch.revisions import RootFacts, all_revisions, find_number, find_revision
from mica.repo.catalog import NestedCatalog
from mica.repo.history import History, Tag
from mica.repo.manifest import Manifest

FQRN = "small.example.org"


def root(revision: int) -> Digest:
    return some_digest(f"root {revision}")


def tag(name: str, revision: int) -> Tag:
    return Tag(name, root(revision), revision, 1000 + revision, f"text of {name}", 10 * revision)


class Roots:
    """Root catalogs of some revisions, and how often they were looked at."""

    def __init__(self, *revisions: int) -> None:
        self.facts = {
            root(number): RootFacts(number, 1000 + number, root(before) if before else None, 10 * number)
            for before, number in zip((0, *revisions), revisions, strict=False)
        }
        self.newest = revisions[-1]
        self.looks = 0

    def look(self, reference: NestedCatalog) -> RootFacts:
        self.looks += 1
        if reference.digest not in self.facts:
            raise NotFoundError(f"{reference.digest} is gone.")
        return self.facts[reference.digest]

    @property
    def head(self) -> Manifest:
        return Manifest(root(self.newest), 10 * self.newest, 240, self.newest, FQRN, some_digest("x"), 5000)


def history_of(*tags: Tag) -> History:
    return History(FQRN, {each.name: each for each in tags})


def test_a_tag_is_found_by_its_name_without_a_look_at_catalogs() -> None:
    roots = Roots(1, 2, 3)
    assert find_revision("two", roots.head, history_of(tag("two", 2)), roots.look) == tag("two", 2)
    assert roots.looks == 0


def test_a_tag_named_like_a_number_counts_as_the_tag() -> None:
    roots = Roots(1, 2, 3)
    assert find_revision("3", roots.head, history_of(tag("3", 1)), roots.look).revision == 1
    assert find_number(3, roots.head, history_of(tag("3", 1)), roots.look).revision == 3


@pytest.mark.parametrize(("number", "looks"), [(9, 1), (8, 2), (7, 0), (5, 1 + 2), (1, 1 + 6)])
def test_a_number_is_looked_for_from_the_nearest_newer_one(number: int, looks: int) -> None:
    roots = Roots(*range(1, 10))
    found = find_number(number, roots.head, history_of(tag("seven", 7)), roots.look)
    assert found == Tag("", root(number), number, 1000 + number, "", 10 * number)
    assert roots.looks == looks


def test_a_number_that_no_revision_has() -> None:
    roots = Roots(1, 2, 5, 6)
    for number, why in ((7, "its newest is 6"), (3, "the nearest one is 2"), (0, "the nearest one is 1")):
        with pytest.raises(NotFoundError) as missing:
            find_number(number, roots.head, history_of(), roots.look)
        assert str(missing.value) == f"{FQRN} has no revision {number}: {why}."


def test_a_revision_that_was_collected() -> None:
    roots = Roots(1, 2, 3)
    del roots.facts[root(2)]
    with pytest.raises(NotFoundError) as missing:
        find_revision("1", roots.head, history_of(), roots.look)
    assert str(missing.value) == f"Revision 1 of {FQRN} is not there any more: {root(2)} is gone."
    assert [each.revision for each in all_revisions(roots.head, roots.look)] == [3]
    assert find_revision("1", roots.head, history_of(tag("one", 1)), roots.look).root_catalog == root(1)


def test_a_digest() -> None:
    roots = Roots(1, 2, 3)
    assert find_revision(root(1).text, roots.head, history_of(), roots.look).revision == 1
    with pytest.raises(NotFoundError, match=f"Revision with the root catalog {root(8)} of {FQRN} is not there"):
        find_revision(root(8).text, roots.head, history_of(), roots.look)


def test_what_is_none_of_them() -> None:
    roots = Roots(1)
    with pytest.raises(NotFoundError, match="has no tag 'release'"):
        find_revision("release", roots.head, history_of(), roots.look)


def test_all_of_them() -> None:
    roots = Roots(1, 4, 5)
    assert [each.revision for each in all_revisions(roots.head, roots.look)] == [5, 4, 1]


def test_catalogs_that_name_each_other_in_a_circle() -> None:
    roots = Roots(1, 2, 3)
    roots.facts[root(1)] = RootFacts(1, 0, root(3), 0)
    with pytest.raises(IntegrityError, match=f"Revision 3 of {FQRN} is said to be older than 1"):
        list(all_revisions(roots.head, roots.look))
    with pytest.raises(IntegrityError, match="is said to be older"):
        find_revision("0", roots.head, history_of(), roots.look)
