"""Tags: which names can be given and taken away, what a rollback forgets, how the database looks to others."""

import sqlite3
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.catalogs import some_digest
from tests.support.tools import need

from mica.errors import IntegrityError, NotFoundError, UserError
from mica.repo.history import Branch, History, Tag, format_history, is_tag_name, parse_history

FQRN = "small.example.org"
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_./:-]{0,20}", fullmatch=True)


def tag(name: str, revision: int, *, description: str = "", branch: str = "") -> Tag:
    root = some_digest(f"root {revision}{branch}")
    return Tag(name, root, revision, 1_700_000_000 + revision, description, 4096, branch)


def history_of(*tags: Tag, branches: tuple[Branch, ...] = ()) -> History:
    history = History(FQRN, {each.name: each for each in tags})
    history.branches += branches
    return history


@given(
    st.dictionaries(
        NAMES, st.tuples(st.integers(0, 1 << 60), st.integers(-(1 << 40), 1 << 40), TEXTS, st.integers(0, 1 << 40))
    )
)
def test_a_history_comes_back_as_it_was_written(values: dict[str, tuple[int, int, str, int]]) -> None:
    tags = {
        name: Tag(name, some_digest(name), revision, timestamp, description, size)
        for name, (revision, timestamp, description, size) in values.items()
    }
    history = History(FQRN, tags, previous=some_digest("before"))
    data = format_history(history)
    assert parse_history(data, "It") == history
    assert format_history(parse_history(data, "It")) == data


def test_sqlite_reads_the_tags(tmp_path: Path) -> None:
    sqlite = need("sqlite3", "sqlite3")
    path = tmp_path / "history"
    path.write_bytes(format_history(history_of(tag("release", 3, description="it's"))))
    query = "SELECT name, revision, channel, description, branch FROM tags"
    done = subprocess.run([sqlite, path, query], capture_output=True, text=True, check=True)
    assert done.stdout == "release|3|0|it's|\n"


@pytest.mark.parametrize("name", ["v1", "2024-01-01", "a/b:c_d.e", "A" * 255])
def test_a_name_that_the_stock_server_allows(name: str) -> None:
    history = history_of()
    history.add(tag(name, 1))
    assert history.tag(name) == tag(name, 1)
    assert is_tag_name(name)


def test_the_number_of_a_revision_is_no_new_name() -> None:
    history = history_of()
    with pytest.raises(UserError, match="'12' cannot be the name of a tag: commands would take it") as refusal:
        history.add(tag("12", 1))
    assert refusal.value.hint == "v12 can."


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "ä", "-a", "../a", "A" * 256, "a;b", "a'b"])
def test_a_name_that_cannot_be(name: str) -> None:
    history = history_of()
    with pytest.raises(UserError) as refusal:
        history.add(tag(name, 1))
    assert str(refusal.value) == f"{name!r} cannot be the name of a tag."
    assert history.tags == {}


@pytest.mark.parametrize("name", ["trunk", "trunk-previous"])
def test_the_names_that_follow_the_newest_revisions(name: str) -> None:
    history = history_of(tag(name, 3))
    with pytest.raises(UserError, match=f"'{name}' always follows .* cannot be set"):
        history.add(tag(name, 1), move=True)
    with pytest.raises(UserError, match=f"'{name}' always follows .* cannot be removed"):
        history.remove(name)
    assert history.tags == {name: tag(name, 3)}


def test_a_name_moves_only_when_that_is_wanted() -> None:
    history = history_of(tag("release", 1, description="first"))
    with pytest.raises(UserError) as refusal:
        history.add(tag("release", 2))
    assert (str(refusal.value), refusal.value.hint) == (
        "Tag 'release' names revision 1.", "With --move it names another one.",
    )  # fmt: skip
    history.add(tag("release", 2), move=True)
    assert history.tag("release") == tag("release", 2, description="first"), "the text stays"
    history.add(tag("release", 3, description="third"), move=True)
    assert history.tag("release").description == "third"
    with pytest.raises(UserError, match="names revision 3 already"):
        history.add(tag("release", 3), move=True)


def test_a_moved_name_keeps_its_branch() -> None:
    history = history_of(tag("side", 1, branch="b"), branches=(Branch("b", "", 1),))
    history.add(tag("side", 2), move=True)
    assert history.tag("side").branch == "b"


def test_a_name_that_is_not_there() -> None:
    history = history_of(tag("a", 1))
    with pytest.raises(NotFoundError) as missing:
        history.remove("b")
    assert (str(missing.value), missing.value.hint) == (
        f"{FQRN} has no tag 'b'.", f"Its tags: mica repo tag ls {FQRN}",
    )  # fmt: skip


def test_branches_without_tags_go_with_their_last_tag() -> None:
    branches = (Branch("a", "", 1), Branch("b", "a", 2), Branch("c", "b", 3))
    history = history_of(tag("one", 2, branch="b"), tag("two", 3, branch="c"), branches=branches)
    history.remove("one")
    assert history.branches == [Branch("", None, 0), Branch("c", "", 3)]
    history.remove("two")
    assert history.branches == [Branch("", None, 0)]


def test_branches_in_a_circle() -> None:
    """As only a hostile history has them."""
    branches = (Branch("a", "b", 1), Branch("b", "a", 2), Branch("c", "a", 3))
    history = history_of(tag("one", 2), tag("two", 3, branch="c"), branches=branches)
    history.remove("one")
    assert history.branches == [Branch("", None, 0), Branch("c", "", 3)]


def test_what_a_rollback_forgets() -> None:
    side = tag("side", 9, branch="b")
    kept = [tag("old", 2), tag("same", 4), side]
    gone = [tag("new", 6), tag("newer", 7), tag("trunk", 7), tag("trunk-previous", 3)]
    history = history_of(*kept, *gone)
    assert [each.name for each in history.drop_newer(4)] == ["newer", "new"]
    assert set(history.tags.values()) == set(kept)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tags SET hash = 'no digest'",
        "UPDATE tags SET revision = 'many'",
        "UPDATE tags SET size = NULL",
        "CREATE VIEW v AS SELECT * FROM tags",
        "DROP TABLE tags",
    ],
)
def test_a_hostile_history_is_named(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "history"
    path.write_bytes(format_history(history_of(tag("a", 1))))
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()
    with pytest.raises(IntegrityError, match="The history"):
        parse_history(path.read_bytes(), "The history")
