"""Writing catalogs: counts, link groups, the same bytes for the same entries; SQLite's own tool judges the files."""

import subprocess
from pathlib import Path

import pytest
from tests.support.catalogs import STAMP, a_file, a_link, some_digest, write_catalog
from tests.support.tools import need

from mica.digest import path_hash
from mica.errors import UserError
from mica.publish.catalogtree import directory_entry
from mica.repo.catalog import COUNTERS, Catalog, NestedCatalog
from mica.repo.catalogwriter import NO_COUNTS, CatalogWriter, Counters, Stamp, add_counts, file_size, tree_below
from mica.repo.entry import Chunk, Entry, Flag

CHUNKS = [Chunk(0, 3, some_digest("1")), Chunk(3, 2, some_digest("2"))]


def special(name: bytes, mode: int, device: int = 0) -> Entry:
    return Entry(name, mode, device, 0, None, 0, 0, int(Flag.FILE | Flag.SPECIAL))


def fill(writer: CatalogWriter) -> None:
    writer.put(b"/dir", directory_entry(b"dir"))
    writer.put(b"/dir/sub", directory_entry(b"sub"))
    writer.put(b"/dir/file", a_file(b"file", xattrs=b"\x01\x01\x01\x00k"))
    writer.put(b"/large", a_file(b"large", digest=None, flags=68), CHUNKS)
    writer.put(b"/link", a_link(b"link", b"target"))
    writer.put(b"/pipe", special(b"pipe", 0o010644))
    writer.put(b"/null", special(b"null", 0o020666, 259))
    writer.put(b"/outside", a_file(b"outside", size=7, flags=4 + 128))
    writer.put(b"/nested", directory_entry(b"nested")._replace(flags=3, links=5))
    writer.put_nested(NestedCatalog(b"/nested", some_digest("nested"), 4096))


def links(path: Path) -> dict[bytes, tuple[int, int]]:
    with Catalog.open(path, "C") as catalog:
        return {row.entry.name: (row.entry.links, row.entry.group) for row, _ in catalog.all_rows()}


def test_every_counter(tmp_path: Path) -> None:
    writer = CatalogWriter.create(tmp_path / "c", b"", directory_entry(b""))
    fill(writer)
    below = tuple(range(12))
    sealed = writer.seal(STAMP, below)
    expected = {
        "regular": 3, "symlink": 1, "special": 2, "dir": 4, "nested": 1, "chunked": 1, "chunks": 2,
        "file_size": 17, "chunked_size": 5, "xattr": 1, "external": 1, "external_file_size": 7,
    }  # fmt: skip
    assert dict(zip(COUNTERS, sealed.counters.own, strict=True)) == expected
    with Catalog.open(tmp_path / "c", "C") as catalog:
        stated = catalog.counters()
    assert {name: stated[f"self_{name}"] for name in COUNTERS} == expected
    assert tuple(stated[f"subtree_{name}"] for name in COUNTERS) == below
    assert sealed.counters.total == tuple(own + more for own, more in zip(sealed.counters.own, below, strict=True))


def test_sums_of_counts() -> None:
    assert add_counts([]) == NO_COUNTS
    assert add_counts([range(12), range(12)]) == tuple(range(0, 24, 2))
    assert Counters(tuple(range(12)), tuple(range(12))).total == tuple(range(0, 24, 2))


def test_link_counts_of_directories_but_not_of_mountpoints(tmp_path: Path) -> None:
    writer = CatalogWriter.create(tmp_path / "c", b"", directory_entry(b""))
    fill(writer)
    assert writer.seal(STAMP).root.links == 4
    found = links(tmp_path / "c")
    assert {name: found[name][0] for name in (b"", b"dir", b"sub", b"nested")} == {
        b"": 4, b"dir": 3, b"sub": 2, b"nested": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("put", "after"),
    [
        ([(b"a", 3, 1), (b"b", 3, 1), (b"c", 3, 1)], {b"a": (3, 1), b"b": (3, 1), b"c": (3, 1)}),
        ([(b"a", 3, 1), (b"b", 3, 1)], {b"a": (2, 1), b"b": (2, 1)}),
        ([(b"a", 3, 1)], {b"a": (1, 0)}),
        ([(b"a", 1, 1), (b"b", 2, 1)], {b"a": (2, 1), b"b": (2, 1)}),
        ([(b"a", 2, 1), (b"b", 2, 1), (b"c", 2, 9)], {b"a": (2, 1), b"b": (2, 1), b"c": (1, 0)}),
    ],
)
def test_link_groups_are_mended(
    tmp_path: Path, put: list[tuple[bytes, int, int]], after: dict[bytes, tuple[int, int]]
) -> None:
    rows = [(b"/" + name, a_file(name, links=count, group=group)) for name, count, group in put]
    found = links(write_catalog(tmp_path / "c", rows))
    del found[b""]
    assert found == after


def test_free_group_numbers(tmp_path: Path) -> None:
    writer = CatalogWriter.create(tmp_path / "c", b"", directory_entry(b""))
    assert writer.next_group() == 1
    writer.put(b"/a", a_file(b"a", links=2, group=41))
    assert writer.next_group() == 42
    writer.discard()
    assert not (tmp_path / "c").exists()


def test_the_same_entries_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        writer = CatalogWriter.create(tmp_path / name, b"", directory_entry(b""))
        fill(writer)
        writer.seal(STAMP)
    content = (tmp_path / "one").read_bytes()
    assert content == (tmp_path / "two").read_bytes()
    assert int.from_bytes(content[96:100], "big") == 3_040_000
    assert file_size(tmp_path / "one") == len(content)


def test_changing_a_catalog_leaves_no_holes(tmp_path: Path) -> None:
    """Rows that were removed must not stay in the file: their space would be downloaded by everyone."""
    path = write_catalog(tmp_path / "c", [(b"/%d" % n, a_file(b"%d" % n, target=b"secret" * 20)) for n in range(500)])
    before = file_size(path)
    writer = CatalogWriter.edit(path, "C")
    for number in range(500):
        writer.forget(b"/%d" % number)
    writer.seal(Stamp(2, 5, some_digest("before"), 60))
    assert file_size(path) < before / 3
    assert b"secretsecret" not in path.read_bytes()
    with Catalog.open(path, "C") as catalog:
        assert (catalog.revision, catalog.last_modified, catalog.ttl_s) == (2, 5, 60)
        assert catalog.previous_revision == some_digest("before")


def test_rows_are_replaced_with_their_chunks(tmp_path: Path) -> None:
    writer = CatalogWriter.create(tmp_path / "c", b"", directory_entry(b""))
    fill(writer)
    writer.put(b"/large", a_file(b"large"))
    writer.put(b"/dir/file", a_file(b"file", digest=None, flags=68), CHUNKS)
    writer.put(b"/dir/file", a_file(b"file", digest=None, flags=68), CHUNKS[:1])
    writer.forget_nested(b"/nested")
    view = writer.view("view")
    assert view.row_counts() == (10, 1)
    assert view.nested() == []
    writer.seal(STAMP)


def test_a_nested_catalog_knows_its_place(tmp_path: Path) -> None:
    path = write_catalog(tmp_path / "c", [(b"/a/b/file", a_file(b"file"))], mountpoint=b"/a/b")
    with Catalog.open(path, "C") as catalog:
        assert catalog.root_prefix == b"/a/b"
        root = catalog.find(b"/a/b")
        assert root is not None
        assert (root.entry.name, root.entry.flags) == (b"b", 33)
        assert catalog.parent_of(root.rowid) == path_hash(b"/a")
        assert b"TTL" not in catalog.properties


@pytest.mark.parametrize("name", [b"with\nnewline", b"\xff\xfe", b"x" * 255, "ä".encode(), b"' OR 1", b"%s"])
def test_names_are_bytes(tmp_path: Path, name: bytes) -> None:
    link = a_link(b"link", name * 3)
    path = write_catalog(tmp_path / "c", [(b"/" + name, a_file(name)), (b"/link", link)])
    with Catalog.open(path, "C") as catalog:
        row = catalog.find(b"/" + name)
        assert row is not None
        assert row.entry == a_file(name)
        target = catalog.find(b"/link")
        assert target is not None
        assert target.entry == link


def test_numbers_at_their_limits(tmp_path: Path) -> None:
    entry = a_file(
        b"f", size=2**62, mtime_s=-(2**62), mtime_ns=999_999_999, uid=2**32 - 1, gid=2**32 - 1, links=1, mode=0o107777
    )
    path = write_catalog(tmp_path / "c", [(b"/f", entry)])
    with Catalog.open(path, "C") as catalog:
        row = catalog.find(b"/f")
        assert row is not None
        assert row.entry == entry


def test_trees_come_parents_first(tmp_path: Path) -> None:
    rows = [(b"/d", directory_entry(b"d")), (b"/d/e", directory_entry(b"e")), (b"/d/e/f", a_file(b"f"))]
    with Catalog.open(write_catalog(tmp_path / "c", rows), "C") as catalog:
        assert [path for path, _ in tree_below(catalog, b"")] == [b"/d", b"/d/e", b"/d/e/f"]
        assert [path for path, _ in tree_below(catalog, b"/d/e")] == [b"/d/e/f"]


def test_sqlite_judges(tmp_path: Path) -> None:
    program = need("sqlite3", "sqlite3")
    writer = CatalogWriter.create(tmp_path / "c", b"", directory_entry(b""))
    fill(writer)
    writer.seal(STAMP)
    query = (
        "PRAGMA integrity_check; PRAGMA foreign_key_check; PRAGMA journal_mode; PRAGMA encoding; PRAGMA page_size;"
        "SELECT DISTINCT typeof(name) || typeof(symlink) || typeof(md5path_1) || typeof(hardlinks) FROM catalog;"
        "SELECT DISTINCT typeof(key) || typeof(value) FROM properties; SELECT value FROM properties WHERE key='schema';"
        "SELECT count(*), max(rowid) FROM catalog; SELECT typeof(path), typeof(sha1), size FROM nested_catalogs"
    )
    done = subprocess.run([program, tmp_path / "c", query], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "ok", "delete", "UTF-8", "4096", "texttextintegerinteger", "texttext", "2.5", "10|10", "text|text|4096",
    ]  # fmt: skip


def test_a_disk_that_is_full_is_told_in_a_sentence(tmp_path: Path) -> None:
    """SQLite's own limit of a file's pages gives the error of a full disk."""
    writer = CatalogWriter.create(tmp_path / "catalog", b"/x", directory_entry(b"x"))
    writer._connection.execute("PRAGMA max_page_count = 20")
    with pytest.raises(UserError, match=r"Cannot write a catalog: .* full") as caught:
        writer.put_rows((b"/x/%d" % number, directory_entry(b"%d" % number)) for number in range(10_000))
    assert "nothing was published" in caught.value.hint
    writer.discard()
