"""What differs between two trees of catalogs: against a plain comparison, and in hostile catalogs."""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.catalogs import a_file, a_link, run_sql, some_digest, write_catalog
from tests.support.memorystore import MemoryStore

from mica.digest import Algorithm
from mica.errors import IntegrityError
from mica.publish.catalogtree import CatalogTree, directory_entry
from mica.publish.rootcatalog import opened_catalog
from mica.repo.catalog import Catalog, NestedCatalog
from mica.repo.catalogwriter import Stamp
from mica.repo.difference import Change, differences
from mica.repo.entry import MARKER, Chunk, Entry, Flag

Rows = dict[bytes, Entry]
NAMES = st.sampled_from([b"a", b"b", b"B", b"a.", b"a-", b"\xff"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda names: b"".join(b"/" + name for name in names))


class Trees:
    """Revisions in a store in memory, and which of their catalogs were opened."""

    def __init__(self, work: Path) -> None:
        self.store = MemoryStore()
        self.work = work
        self.opened: list[bytes] = []
        self._numbers = itertools.count()

    def publish(self, rows: Rows, nested: Sequence[bytes] = (), *, bound: Sequence[bytes] = ()) -> NestedCatalog:
        """The root of a revision with these rows and the missing directories."""
        work = self.work / f"tree-{next(self._numbers)}"
        work.mkdir()
        catalogs = CatalogTree(self.store, work, Algorithm.SHA1)
        catalogs.begin(directory_entry(b""))
        for path, entry in sorted(rows.items()):
            above = path[: path.rfind(b"/")]
            catalogs.make_directories(above, directory_entry(b""))
            catalogs.put(path, entry._replace(name=path[len(above) + 1 :]))
        for path in nested:
            catalogs.nest(path, a_file(MARKER))
        for path in bound:
            catalogs.bind(path, directory_entry(b""), NestedCatalog(path, some_digest("old"), 1))
        return catalogs.commit(Stamp(1, 0, None, 240)).nested

    @contextlib.contextmanager
    def open(self, reference: NestedCatalog) -> Iterator[Catalog]:
        self.opened.append(reference.path)
        with opened_catalog(self.store, self.work, reference) as catalog:
            yield catalog

    def compare(self, before: NestedCatalog, after: NestedCatalog) -> list[tuple[bytes, str, tuple[str, ...]]]:
        return [_told(change) for change in differences(before, after, self.open)]


def _told(change: Change) -> tuple[bytes, str, tuple[str, ...]]:
    kind = "added" if change.before is None else "removed" if change.after is None else "changed"
    return change.path, kind, change.differs


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path)


def test_each_kind_of_change(trees: Trees) -> None:
    before = trees.publish({
        b"/content": a_file(b""), b"/d/gone": a_file(b""), b"/d/same": a_file(b""), b"/link": a_link(b"", b"a"),
        b"/mode": a_file(b""), b"/type": a_file(b""), b"/was/deep/x": a_file(b""), b"/time": a_file(b""),
        b"/becomes/x": a_file(b""), b"/both": a_file(b""),
    })  # fmt: skip
    after = trees.publish({
        b"/content": a_file(b"", digest=some_digest("new")), b"/d/new": a_file(b""), b"/d/same": a_file(b""),
        b"/link": a_link(b"", b"bb"), b"/mode": a_file(b"", mode=0o100755), b"/type": a_link(b"", b"a"),
        b"/time": a_file(b"", mtime_ns=None), b"/becomes": a_file(b""), b"/is/deep/x": a_file(b""),
        b"/both": a_file(b"", size=9, uid=7),
    })  # fmt: skip
    assert trees.compare(before, after) == [
        (b"/becomes", "changed", ("type",)),
        (b"/becomes/x", "removed", ()),
        (b"/both", "changed", ("content", "metadata")),
        (b"/content", "changed", ("content",)),
        (b"/d/gone", "removed", ()),
        (b"/d/new", "added", ()),
        (b"/is", "added", ()),
        (b"/is/deep", "added", ()),
        (b"/is/deep/x", "added", ()),
        (b"/link", "changed", ("content",)),
        (b"/mode", "changed", ("metadata",)),
        (b"/time", "changed", ("metadata",)),
        (b"/type", "changed", ("type",)),
        (b"/was", "removed", ()),
        (b"/was/deep", "removed", ()),
        (b"/was/deep/x", "removed", ()),
    ]


def test_equal_nested_catalogs_are_not_opened(trees: Trees) -> None:
    rows = {b"/same/x": a_file(b""), b"/other/deep/x": a_file(b""), b"/other/y": a_file(b"")}
    nested = [b"/same", b"/other/deep", b"/other"]
    before = trees.publish(rows, nested)
    after = trees.publish({**rows, b"/other/y": a_file(b"", uid=9)}, nested)
    assert trees.compare(before, after) == [(b"/other/y", "changed", ("metadata",))]
    assert trees.opened == [b"", b"", b"/other", b"/other"]


def test_equal_revisions_are_not_opened_at_all(trees: Trees) -> None:
    root = trees.publish({b"/x": a_file(b"")})
    assert trees.compare(root, root) == []
    assert trees.opened == []


def test_where_catalogs_begin_is_no_difference(trees: Trees) -> None:
    rows = {b"/a/b/x": a_file(b""), b"/a/y": a_file(b"")}
    before, after = trees.publish(rows), trees.publish(rows, [b"/a/b", b"/a"])
    assert trees.compare(before, after) == [
        (b"/a/" + MARKER, "added", ()), (b"/a/b/" + MARKER, "added", ()),
    ]  # fmt: skip
    assert [kind for _, kind, _ in trees.compare(after, before)] == ["removed", "removed"]


def test_a_nested_catalog_that_comes_or_goes_is_told_with_all_that_is_in_it(trees: Trees) -> None:
    before, after = trees.publish({}), trees.publish({b"/a/b/x": a_file(b"")}, [b"/a/b"])
    added = [b"/a", b"/a/b", b"/a/b/" + MARKER, b"/a/b/x"]
    assert trees.compare(before, after) == [(path, "added", ()) for path in added]
    assert trees.compare(after, before) == [(path, "removed", ()) for path in added]


def test_old_revisions_that_are_shown_are_left_out(trees: Trees) -> None:
    before = trees.publish({b"/x": a_file(b"")})
    after = trees.publish({b"/.cvmfs/snapshots/a": a_file(b"")}, bound=[b"/old"])
    assert trees.compare(before, after) == [(b"/old", "added", ()), (b"/x", "removed", ())]


def test_chunks_are_content(trees: Trees) -> None:
    def root(*chunks: Chunk) -> NestedCatalog:
        catalogs = CatalogTree(trees.store, trees.work, Algorithm.SHA1)
        catalogs.begin(directory_entry(b""))
        plain = a_file(b"x")
        chunked = plain._replace(digest=None, size=6, flags=plain.flags | Flag.CHUNKED)
        catalogs.put(b"/x", chunked, chunks)
        return catalogs.commit(Stamp(1, 0, None, 240)).nested

    one = root(Chunk(0, 4, some_digest("1")), Chunk(4, 2, some_digest("2")))
    other = root(Chunk(0, 4, some_digest("1")), Chunk(4, 2, some_digest("3")))
    assert trees.compare(one, other) == [(b"/x", "changed", ("content",))]
    assert trees.compare(one, root(Chunk(0, 4, some_digest("1")), Chunk(4, 2, some_digest("2")))) == []


def revisions() -> st.SearchStrategy[Rows]:
    """Files, some of them with other attributes; what would be both a file and a directory is only the directory."""
    kinds = [a_file(b""), a_file(b"", uid=9), a_file(b"", digest=some_digest("new")), a_link(b"", b"t")]

    def without_files_above(rows: Rows) -> Rows:
        return {path: entry for path, entry in rows.items() if not any(other.startswith(path + b"/") for other in rows)}

    return st.dictionaries(PATHS, st.sampled_from(kinds), max_size=12).map(without_files_above)


def _plain(rows: Rows) -> Rows:
    """All paths, with the directories."""
    directories = {path[:at]: directory_entry(b"") for path in rows for at in range(1, len(path)) if path[at] == 0x2F}
    return {**directories, **{path: entry._replace(name=b"") for path, entry in rows.items()}}


@settings(max_examples=40, deadline=None)
@given(revisions(), revisions(), st.data())
def test_as_a_plain_comparison(before: Rows, after: Rows, data: st.DataObject) -> None:
    one, other = _plain(before), _plain(after)
    same = sorted(path for path, entry in one.items() if entry.is_directory and other.get(path) == entry)
    nested = [path for path in reversed(same) if data.draw(st.booleans())]
    expected = dict.fromkeys(one.keys() - other.keys(), "removed")
    expected |= dict.fromkeys(other.keys() - one.keys(), "added")
    expected |= {path: "changed" for path in one.keys() & other.keys() if one[path] != other[path]}
    with tempfile.TemporaryDirectory() as work:
        trees = Trees(Path(work))
        found = trees.compare(trees.publish(before, nested), trees.publish(after, nested))
    assert {path: kind for path, kind, _ in found} == expected
    assert [path for path, _, _ in found] == sorted(expected, key=lambda path: path.split(b"/"))


def opener(**catalogs: Path) -> tuple[NestedCatalog, NestedCatalog, object]:
    references = {name: NestedCatalog(b"", some_digest(name), 1) for name in catalogs}

    @contextlib.contextmanager
    def opened(reference: NestedCatalog) -> Iterator[Catalog]:
        name = next(name for name, each in references.items() if each.digest == reference.digest)
        with Catalog.open(catalogs[name], name) as catalog:
            yield catalog

    return references["before"], references["after"], opened


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE catalog SET name = 'a' WHERE name = 'b'", "a directory with the name 'a' twice"),
        ("UPDATE catalog SET name = '' WHERE name = 'b'", "a directory with the name '' twice"),
        ("UPDATE catalog SET name = NULL WHERE name = 'b'", "malformed entry"),
        ("UPDATE catalog SET flags = 'x' WHERE name = 'b'", "malformed entry"),
        ("UPDATE catalog SET flags = 3 WHERE name = 'd'", "does not list its mountpoint '/d'"),
        ("DELETE FROM catalog WHERE name = ''", "no entry for its own root"),
        ("INSERT INTO properties VALUES ('root_prefix', '/d')", "says it belongs to '/d'"),
    ],
)
def test_a_hostile_catalog_is_named(tmp_path: Path, statement: str, sentence: str) -> None:
    rows = [(b"/a", a_file(b"a")), (b"/b", a_file(b"b")), (b"/d", directory_entry(b"d"))]
    before = write_catalog(tmp_path / "before", rows)
    after = run_sql(write_catalog(tmp_path / "after", rows), statement)
    one, other, opened = opener(before=before, after=after)
    with pytest.raises(IntegrityError, match=sentence):
        list(differences(one, other, opened))  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match=sentence):
        list(differences(other, one, opened))  # type: ignore[arg-type]
