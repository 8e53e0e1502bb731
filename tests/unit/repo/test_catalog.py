"""Reading catalogs: good ones, old ones, and those of a hostile publisher."""

import contextlib
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.catalogs import STAMP, a_file, a_link, run_sql, some_digest, write_catalog
from tests.support.fixture import stock_fixture
from tests.support.stockcatalogs import stock_catalogs

from mica.digest import Algorithm, PathHash, Suffix, path_hash
from mica.errors import IntegrityError
from mica.publish.catalogtree import directory_entry
from mica.repo.catalog import COUNTERS, Catalog, NamedObject, NestedCatalog, is_transition
from mica.repo.catalogwriter import CatalogWriter
from mica.repo.entry import Chunk, Flag, content_flags
from mica.repo.objects import Compression


@pytest.fixture
def good(tmp_path: Path) -> Path:
    rows = [
        (b"/file", a_file(b"file")),
        (b"/dir", directory_entry(b"dir")),
        (b"/dir/link", a_link(b"link", b"../file")),
    ]
    return write_catalog(tmp_path / "catalog", rows)


def refusal(path: Path) -> str:
    """Why a catalog cannot be opened, or not be read to its end."""
    with pytest.raises(IntegrityError) as caught:
        read_everything(path)
    assert "Catalog C" in str(caught.value)
    return str(caught.value)


def read_everything(path: Path) -> None:
    with Catalog.open(path, "C") as catalog:
        for row, _parent in list(catalog.all_rows()):
            if row.entry.flags & Flag.CHUNKED:
                catalog.chunks(row)
        catalog.children(path_hash(b""))
        list(catalog.children_by_name(path_hash(b"")))
        catalog.names_with_prefix(path_hash(b""), b"f")
        catalog.has_prefix(b"f")
        catalog.has_groups()
        catalog.group_sizes(path_hash(b""))
        catalog.nested()
        catalog.bind_mountpoints()
        catalog.counters()
        catalog.damage()
        list(catalog.objects())
        _ = catalog.revision, catalog.last_modified, catalog.ttl_s, catalog.previous_revision


def test_rows_are_found_by_path_key_and_parent(good: Path) -> None:
    with Catalog.open(good, "C") as catalog:
        row = catalog.find(b"/dir/link")
        assert row is not None
        assert row.entry.target == b"../file"
        assert catalog.find_key(row.key) == catalog.find_rowid(row.rowid) == row
        assert catalog.parent_of(row.rowid) == path_hash(b"/dir")
        assert [child.entry.name for child in catalog.children(path_hash(b""))] == [b"file", b"dir"]
        assert catalog.find(b"/none") is None
        assert catalog.find_rowid(99) is None
        assert catalog.parent_of(99) is None
        assert [(r.entry.name, parent == PathHash(0, 0)) for r, parent in catalog.all_rows()] == [
            (b"", True), (b"file", False), (b"dir", False), (b"link", False),
        ]  # fmt: skip
        assert catalog.row_counts() == (4, 0)
        assert catalog.damage() == ""


def test_children_come_by_the_bytes_of_their_names(tmp_path: Path) -> None:
    names = [b"b", b"a", b".wh.x", b"-", b"\xff", b"B", *(b"%05d" % number for number in range(700))]
    rows = [(b"/" + name, a_file(name)) for name in names]
    with Catalog.open(write_catalog(tmp_path / "catalog", rows), "C") as catalog:
        found = catalog.children_by_name(path_hash(b""))
        first = next(found)
        assert catalog.find(b"/b") is not None, "the catalog is free between rows"
        assert [first.entry.name, *(row.entry.name for row in found)] == sorted(names)
        assert sorted(catalog.children(path_hash(b""))) == sorted(catalog.children_by_name(path_hash(b"")))
        assert list(catalog.children_by_name(path_hash(b"/b"))) == []
        assert catalog.names_with_prefix(path_hash(b""), b".wh.") == [b".wh.x"]
        assert catalog.names_with_prefix(path_hash(b"/b"), b".wh.") == []
        assert (catalog.has_prefix(b".wh."), catalog.has_prefix(b".wh..wh.")) == (True, False)


def test_groups_are_counted_in_each_directory(tmp_path: Path) -> None:
    rows = [(b"/d", directory_entry(b"d"))]
    rows += [(b"/" + name, a_file(name, group=1, links=3)) for name in (b"a", b"b", b"c")]
    rows += [(b"/d/" + name, a_file(name, group=2, links=2)) for name in (b"e", b"f")]
    rows += [(b"/d/g", a_file(b"g"))]
    with Catalog.open(write_catalog(tmp_path / "catalog", rows), "C") as catalog:
        assert catalog.has_groups()
        assert catalog.group_sizes(path_hash(b"")) == {1: 3}
        assert catalog.group_sizes(path_hash(b"/d")) == {2: 2}
    with Catalog.open(write_catalog(tmp_path / "other", rows[:1]), "C") as catalog:
        assert not catalog.has_groups()


def test_properties_have_defaults(good: Path) -> None:
    run_sql(good, "DELETE FROM properties WHERE key IN ('TTL', 'last_modified', 'previous_revision')")
    with Catalog.open(good, "C") as catalog:
        assert (catalog.ttl_s, catalog.last_modified, catalog.previous_revision) == (240, 0, None)
        assert (catalog.revision, catalog.root_prefix, catalog.schema_revision) == (1, b"", 7)


def test_stock_catalogs_are_read() -> None:
    stock = stock_fixture()
    entries = 0
    for catalog in stock_catalogs(stock.store):
        rows = list(catalog.all_rows())
        entries += len(rows)
        assert catalog.schema_revision == 7
        assert set(catalog.counters()) == {f"{scope}_{name}" for scope in ("self", "subtree") for name in COUNTERS}
        assert catalog.counters()["self_dir"] == sum(row.entry.is_directory for row, _ in rows)
        assert catalog.damage() == ""
        assert all(is_transition(catalog.find(n.path).entry) for n in catalog.nested())  # type: ignore[union-attr]
    assert entries > len(stock.expected())


@pytest.mark.parametrize(
    ("statements", "sentence"),
    [
        (["CREATE VIEW v AS SELECT 1"], "more than tables and indexes"),
        (["ALTER TABLE catalog RENAME TO c", "CREATE VIEW catalog AS SELECT * FROM c"], "more than tables and indexes"),
        (["CREATE TRIGGER t AFTER INSERT ON catalog BEGIN SELECT 1; END"], "more than tables and indexes"),
        (["CREATE VIRTUAL TABLE v USING fts5(x)"], "more than tables and indexes"),
        (["UPDATE properties SET value = '3.0' WHERE key = 'schema'"], "schema '3.0'"),
        (["UPDATE properties SET value = 'x' WHERE key = 'schema_revision'"], "not a number"),
        (["UPDATE properties SET value = '-1' WHERE key = 'revision'"], "not a number"),
        (["UPDATE properties SET value = '²' WHERE key = 'revision'"], "not a number"),
        (["UPDATE properties SET value = '9999999999999999999' WHERE key = 'revision'"], "not a number"),
        (["UPDATE properties SET value = NULL WHERE key = 'revision'"], "not text"),
        (["INSERT INTO properties VALUES ('previous_revision', 'abc')"], "a malformed digest"),
        (["DROP TABLE properties"], "no such table"),
        (["DROP TABLE catalog"], "no such table"),
        (["DROP TABLE statistics"], "no such table"),
        (["ALTER TABLE catalog DROP COLUMN mtimens"], "no such column"),
        (["ALTER TABLE catalog DROP COLUMN xattr"], "no such column"),
        (["INSERT INTO nested_catalogs VALUES ('relative', 'x', 1)"], "without a proper path"),
        (["INSERT INTO nested_catalogs VALUES ('/dir', 'x', 1)"], "a malformed digest"),
        (["INSERT INTO nested_catalogs VALUES ('/dir', '', 1)"], "a malformed digest"),
        (["INSERT INTO nested_catalogs VALUES ('/dir', NULL, 1)"], "a malformed digest"),
        (["INSERT INTO nested_catalogs VALUES ('/dir', '" + "a" * 40 + "', 'big')"], "without a proper path or size"),
        (["INSERT INTO bind_mountpoints VALUES (7, '" + "a" * 40 + "', 1)"], "without a proper path"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused(good: Path, statements: list[str], sentence: str) -> None:
    assert sentence in refusal(run_sql(good, *statements))


@pytest.mark.parametrize(
    "change",
    [
        "name = 'a/b'",
        "name = '..'",
        "name = '.'",
        "name = CAST(x'610062' AS TEXT)",
        "name = printf('%256s', 'x')",
        "name = NULL",
        "symlink = NULL",
        "symlink = CAST(x'610062' AS TEXT)",
        "size = -1",
        "size = 'many'",
        "size = NULL",
        "size = 1.5",
        "mode = NULL",
        "mode = -1",
        "mode = 262144",
        "mtime = 'now'",
        "mtimens = 1000000000",
        "mtimens = -1",
        "mtimens = 'x'",
        "uid = -1",
        "gid = 4294967296",
        "flags = -4",
        "flags = 1 << 31",
        "flags = NULL",
        "flags = 4 + 7 * 256",
        "hardlinks = NULL",
        "hardlinks = 'x'",
        "hash = x'00'",
        "hash = zeroblob(21)",
        "hash = 'aaaaaaaaaaaaaaaaaaaaa'",
        "hash = 12",
        "xattr = 5",
        "xattr = 1.5",
    ],
)
def test_malformed_entries_are_refused(good: Path, change: str) -> None:
    """Columns have an affinity but no type: anything can be in them."""
    sentence = refusal(run_sql(good, f"UPDATE catalog SET {change} WHERE name = 'file'"))
    assert "malformed entry in row 2" in sentence or "unknown hash algorithm" in sentence


def test_a_huge_value_is_refused_without_reading_it(good: Path) -> None:
    run_sql(good, "UPDATE catalog SET xattr = zeroblob(64000000) WHERE name = 'file'")
    assert "not a readable catalog" in refusal(good)


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE  VIRTUAL TABLE v USING fts5(x)",
        "create virtual table v using fts5(x)",
        "CREATE/**/VIRTUAL TABLE v USING fts5(x)",
        "CREATE\tVIEW v AS SELECT 1",
        None,
    ],
)
def test_schemas_made_by_hand_are_refused(good: Path, sql: str | None) -> None:
    """SQLite writes the beginning of a statement itself, but reads any."""
    with contextlib.closing(sqlite3.connect(good, isolation_level=None)) as database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute("INSERT INTO sqlite_master VALUES ('table', 'v', 'v', 0, ?)", (sql,))
    assert "Catalog C" in refusal(good)


def test_a_generated_column_cannot_hurt(good: Path) -> None:
    """A value computed while reading is bounded like any other."""
    run_sql(
        good, "ALTER TABLE catalog DROP COLUMN xattr",
        "ALTER TABLE catalog ADD COLUMN xattr BLOB AS (zeroblob(1000000000)) VIRTUAL",
    )  # fmt: skip
    assert "not a readable catalog" in refusal(good)


def test_a_schema_that_is_no_text_is_refused(good: Path) -> None:
    """SQLite quotes it in a message that Python cannot decode."""
    good.write_bytes(good.read_bytes().replace(b"CREATE TABLE catalog (", b"CREATE TABLE catalog \xff"))
    assert "not a readable catalog" in refusal(good)


@pytest.mark.parametrize("keep", [0, 1, 15, 100, 4095, 4096, 9000])
def test_truncated_files_are_refused(good: Path, keep: int) -> None:
    good.write_bytes(good.read_bytes()[:keep])
    refusal(good)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog"
    path.write_bytes(b"\x7fELF" + bytes(8000))
    assert "not a database" in refusal(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="unable to open"):
        Catalog.open(tmp_path / "none", "C")


def test_a_file_in_write_ahead_mode_is_read_without_files_beside_it(good: Path) -> None:
    """The checker complains of it; a reader of an immutable file need not."""
    run_sql(good, "PRAGMA journal_mode = WAL", "DELETE FROM catalog WHERE name = 'file'")
    assert good.read_bytes()[18:20] == b"\2\2"
    with Catalog.open(good, "C") as catalog:
        assert catalog.find(b"/file") is None
    assert [path.name for path in good.parent.iterdir()] == ["catalog"]


def test_rows_without_rowids_are_refused(good: Path) -> None:
    run_sql(
        good, "CREATE TABLE c (md5path_1, md5path_2, parent_1, parent_2, hardlinks, hash, size, mode, mtime, mtimens,"
        " flags, name, symlink, uid, gid, xattr, PRIMARY KEY (md5path_1, md5path_2)) WITHOUT ROWID",
        "DROP TABLE catalog", "ALTER TABLE c RENAME TO catalog",
    )  # fmt: skip
    assert "no such column: rowid" in refusal(good)


@pytest.mark.parametrize(
    "chunks",
    [
        [(1, 4)],
        [(0, 2), (3, 2)],
        [(0, 3), (2, 2)],
        [(0, 4)],
        [(0, 6)],
        [(0, 5), (5, 0)],
        [(0, -5), (-5, 10)],
        [],
    ],
)
def test_chunks_that_do_not_cover_the_file_are_refused(good: Path, chunks: list[tuple[int, int]]) -> None:
    key = path_hash(b"/file")
    run_sql(
        good, "UPDATE catalog SET flags = 68, hash = NULL WHERE name = 'file'",
        *(f"INSERT INTO chunks VALUES ({key[0]}, {key[1]}, {at}, {size}, zeroblob(20))" for at, size in chunks),
    )  # fmt: skip
    assert "chunks" in refusal(good)


@pytest.mark.parametrize("column", ["offset", "size", "hash"])
def test_chunks_of_wrong_types_are_refused(good: Path, column: str) -> None:
    key = path_hash(b"/file")
    run_sql(
        good, "UPDATE catalog SET flags = 68, hash = NULL WHERE name = 'file'",
        f"INSERT INTO chunks VALUES ({key[0]}, {key[1]}, 0, 5, zeroblob(20))", f"UPDATE chunks SET {column} = 'x'",
    )  # fmt: skip
    assert "broken chunks" in refusal(good)


def test_more_chunks_than_a_file_can_have_are_refused(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is reached in memory and time of the limit, not of the catalog."""
    monkeypatch.setattr("mica.repo.catalog.CHUNKS_MAX", 4)
    key = path_hash(b"/file")
    run_sql(
        good, "UPDATE catalog SET flags = 68, hash = NULL, size = 5 WHERE name = 'file'",
        *(f"INSERT INTO chunks VALUES ({key[0]}, {key[1]}, {at}, 1, zeroblob(20))" for at in range(5)),
    )  # fmt: skip
    assert "more than 4 chunks for 'file'" in refusal(good)


def test_chunks_that_cannot_be_found_quickly_are_refused(good: Path) -> None:
    """Each open of a file would read those of all files."""
    key = path_hash(b"/file")
    run_sql(
        good, "UPDATE catalog SET flags = 68, hash = NULL WHERE name = 'file'", "DROP TABLE chunks",
        "CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB)",
        f"INSERT INTO chunks VALUES ({key[0]}, {key[1]}, 0, 5, zeroblob(20))",
    )  # fmt: skip
    assert "no primary key for its chunks" in refusal(good)


def test_chunks_come_in_order_with_the_algorithm_of_their_file(tmp_path: Path) -> None:
    chunks = [Chunk(at, 5, some_digest(str(at), Algorithm.SHAKE128)) for at in range(0, 50, 5)]
    writer = CatalogWriter.create(tmp_path / "c", b"", directory_entry(b""))
    writer.put(b"/f", a_file(b"f", size=50, digest=None, flags=4 + 64 + 512), chunks[::-1])
    writer.seal(STAMP)
    with Catalog.open(tmp_path / "c", "C") as catalog:
        row = catalog.find(b"/f")
        assert row is not None
        assert catalog.chunks(row) == chunks


def old_catalog(good: Path, revision: int) -> Path:
    """What a publisher of an older schema revision would have left."""
    statements = [f"UPDATE properties SET value = '{revision}' WHERE key = 'schema_revision'"]
    if revision < 7:
        statements.append("ALTER TABLE catalog DROP COLUMN mtimens")
    if revision < 4:
        statements.append("DROP TABLE bind_mountpoints")
    if revision < 2:
        statements.append("ALTER TABLE catalog DROP COLUMN xattr")
    if revision < 1:
        statements.append("ALTER TABLE nested_catalogs DROP COLUMN size")
    return run_sql(good, *statements, f"INSERT INTO nested_catalogs (path, sha1) VALUES ('/n', '{'a' * 40}')")


@pytest.mark.parametrize("revision", range(8))
def test_older_schema_revisions_are_read(good: Path, revision: int) -> None:
    with Catalog.open(old_catalog(good, revision), "C") as catalog:
        row = catalog.find(b"/file")
        assert row is not None
        assert row.entry.mtime_ns == (123 if revision >= 7 else None)
        assert row.entry.xattrs is None
        assert catalog.bind_mountpoints() == []
        if revision < 1:
            assert catalog.nested() == [NestedCatalog(b"/n", some_digest("")._replace(raw=b"\xaa" * 20), 0)]


@pytest.mark.parametrize("revision", range(8))
def test_older_schema_revisions_are_brought_up_to_date(good: Path, revision: int) -> None:
    old_catalog(good, revision)
    run_sql(good, "DELETE FROM nested_catalogs")
    writer = CatalogWriter.edit(good, "C")
    writer.put(b"/new", a_file(b"new", xattrs=b"\x01\x01\x01\x00k"))
    writer.put_nested(NestedCatalog(b"/dir", some_digest("n"), 4096))
    writer.seal(STAMP)
    with Catalog.open(good, "C") as catalog:
        assert catalog.schema_revision == 7
        row = catalog.find(b"/new")
        assert row is not None
        assert (row.entry.xattrs, row.entry.mtime_ns) == (b"\x01\x01\x01\x00k", 123)
        assert catalog.nested() == [NestedCatalog(b"/dir", some_digest("n"), 4096)]
        assert catalog.counters()["self_xattr"] == 1
        assert len(catalog.counters()) == 24


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_files_give_rows_or_a_refusal(good: Path, changes: list[tuple[int, int]]) -> None:
    """Whatever bytes are in the file: an IntegrityError or values, soon, and never anything else."""
    copy = shutil.copy(good, good.with_name("damaged"))
    data = bytearray(copy.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    copy.write_bytes(data)
    began = time.monotonic()
    with contextlib.suppress(IntegrityError):
        read_everything(copy)
    assert time.monotonic() - began < 5


def test_objects_are_those_of_files_and_chunks_but_not_external_ones(tmp_path: Path) -> None:
    chunks = [Chunk(at, 5, some_digest(str(at), Algorithm.SHAKE128)) for at in range(0, 15, 5)]
    in_chunks = content_flags(Algorithm.SHAKE128, Compression.NONE, chunked=True) | Flag.FILE
    writer = CatalogWriter.create(tmp_path / "catalog", b"", directory_entry(b""))
    writer.put(b"/file", a_file(b"file"))
    writer.put(b"/link", a_link(b"link", b"file"))
    writer.put(b"/large", a_file(b"large", flags=in_chunks, digest=None, size=15), chunks)
    outside = a_file(b"outside", digest=some_digest("outside"))
    writer.put(b"/outside", outside._replace(flags=outside.flags | Flag.EXTERNAL))
    writer.put(
        b"/outside-large", a_file(b"outside-large", flags=in_chunks | Flag.EXTERNAL, digest=None, size=15), chunks
    )
    writer.seal(STAMP)
    with Catalog.open(tmp_path / "catalog", "C") as catalog:
        assert sorted(catalog.objects()) == sorted(
            [
                NamedObject(some_digest("content"), Suffix.FILE, 5),
                *(NamedObject(chunk.digest, Suffix.CHUNK, chunk.size) for chunk in chunks),
            ]
        )


def test_objects_of_the_stock_server_are_all_there() -> None:
    fixture = stock_fixture()
    named = 0
    for catalog in stock_catalogs(fixture.store):
        for found in catalog.objects():
            named += 1
            assert (fixture.storage / found.digest.object_path(found.suffix)).exists()
    assert named > 100


@pytest.mark.parametrize("column", ["hash", "flags", "size"])
def test_malformed_objects_are_refused(good: Path, column: str) -> None:
    run_sql(good, f"UPDATE catalog SET {column} = 'x' WHERE name = 'file'")
    with Catalog.open(good, "C") as catalog, pytest.raises(IntegrityError, match="Catalog C"):
        list(catalog.objects())


def test_flags_of_later_versions_are_kept(good: Path) -> None:
    """CernVM-FS 2.14 marks the triggers of file bundles."""
    run_sql(good, "UPDATE catalog SET flags = flags | 0x60000 WHERE name = 'file'")
    with Catalog.open(good, "C") as catalog:
        row = catalog.find(b"/file")
        assert row is not None
        assert row.entry.flags == a_file(b"file").flags | 0x60000
        assert row.entry.is_regular
        assert [found.digest for found in catalog.objects()] == [some_digest("content")]
