"""The rules for one catalog: each is broken once by SQL in a catalog of ours, and named."""

import contextlib
import shutil
import sqlite3
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.catalogs import a_file, a_link, run_sql, some_digest

from mica.digest import Algorithm, Suffix, path_hash
from mica.errors import IntegrityError
from mica.publish import checkcatalog
from mica.publish.catalogtree import directory_entry
from mica.publish.checkcatalog import CatalogCheck, Mountpoint, check_subtree
from mica.publish.checkobjects import Finding, Wanted
from mica.repo.catalog import COUNTERS, Catalog, NestedCatalog
from mica.repo.catalogwriter import NO_COUNTS, CatalogWriter, Stamp
from mica.repo.entry import MARKER, Chunk, Entry, Flag, content_flags, format_xattrs
from mica.repo.objects import Compression

CHUNKS = (Chunk(0, 3, some_digest("one")), Chunk(3, 4, some_digest("two")))
CHUNKED_FLAGS = int(Flag.FILE) | content_flags(Algorithm.SHA1, Compression.NONE, chunked=True)
FIFO = Entry(b"fifo", stat.S_IFIFO | 0o600, 0, 0, None, 0, 0, int(Flag.FILE | Flag.SPECIAL))
MOUNTED = directory_entry(b"nested")._replace(flags=Flag.DIRECTORY | Flag.MOUNTPOINT)
NESTED = NestedCatalog(b"/nested", some_digest("catalog"), 4096)


class Checked(NamedTuple):
    faults: list[tuple[str, str]]
    warnings: list[tuple[str, str]]
    wanted: list[Wanted]
    mountpoints: list[Mountpoint]
    entries: int


def checked(path: Path, mounted: Mountpoint | None = None) -> Checked:
    with Catalog.open(path, "of the test") as catalog:
        check = CatalogCheck(catalog, mounted)
        found = list(check.run())
        findings = [one for one in found if isinstance(one, Finding)]
        return Checked(
            [(one.where, one.sentence) for one in findings if one.severity == "error"],
            [(one.where, one.sentence) for one in findings if one.severity == "warning"],
            [one for one in found if isinstance(one, Wanted)],
            check.mountpoints,
            check.entries,
        )


def faults(path: Path, *statements: str, mounted: Mountpoint | None = None) -> list[tuple[str, str]]:
    return checked(run_sql(path, *statements), mounted).faults


def at(path: bytes) -> str:
    """The condition that selects one row."""
    return "md5path_1 = {} AND md5path_2 = {}".format(*path_hash(path))


MARKER_KEY = "md5path_1 = {}, md5path_2 = {}".format(*path_hash(b"/dir/.cvmfscatalog"))
IN_NESTED = "parent_1 = {}, parent_2 = {}".format(*path_hash(b"/nested"))
ROWS: tuple[tuple[bytes, Entry, Sequence[Chunk]], ...] = (
    (b"/dir", directory_entry(b"dir"), ()),
    (b"/dir/a", a_file(b"a", links=2, group=1), ()),
    (b"/dir/b", a_file(b"b", links=2, group=1), ()),
    (b"/dir/sub", directory_entry(b"sub"), ()),
    (b"/external", a_file(b"external", flags=a_file(b"").flags | Flag.EXTERNAL), ()),
    (b"/fifo", FIFO, ()),
    (b"/large", a_file(b"large", size=7, flags=CHUNKED_FLAGS, digest=None), CHUNKS),
    (b"/link", a_link(b"link", b"dir"), ()),
    (b"/nested", MOUNTED, ()),
    (b"/small", a_file(b"small", xattrs=format_xattrs({b"user.x": b"1"})), ()),
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root catalog with an entry of each kind and one nested catalog, and that nested catalog."""
    place = tmp_path_factory.mktemp("sound")
    writer = CatalogWriter.create(place / "root.sqlite", b"", directory_entry(b""))
    for row in ROWS:
        writer.put(*row)
    writer.put_nested(NESTED)
    writer.seal(Stamp(1, 1_700_000_000, None, 240))
    writer = CatalogWriter.create(place / "nested.sqlite", b"/nested", directory_entry(b"nested"))
    writer.put(b"/nested/" + MARKER, a_file(MARKER, size=0))
    writer.put(b"/nested/file", a_file(b"file"))
    writer.seal(Stamp(1, 1_700_000_000))
    return place


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(sound / "root.sqlite", tmp_path))


@pytest.fixture
def nested(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(sound / "nested.sqlite", tmp_path))


HERE = Mountpoint(NESTED, MOUNTED)


def test_a_sound_root_catalog_has_no_fault(root: Path) -> None:
    result = checked(root)
    assert (result.faults, result.warnings) == ([], [])
    assert result.entries == len(ROWS) + 1
    assert result.mountpoints == [HERE]


def test_a_sound_nested_catalog_has_no_fault(nested: Path) -> None:
    result = checked(nested, HERE)
    assert (result.faults, result.warnings, result.mountpoints) == ([], [], [])


def test_all_objects_of_files_are_wanted_except_external_ones(root: Path) -> None:
    wanted = {(one.where, one.name.digest, one.name.suffix, one.name.size) for one in checked(root).wanted}
    assert wanted == {
        ("/dir/a", some_digest("content"), Suffix.FILE, 5),
        ("/dir/b", some_digest("content"), Suffix.FILE, 5),
        ("/large", some_digest("one"), Suffix.CHUNK, 3),
        ("/large", some_digest("two"), Suffix.CHUNK, 4),
        ("/small", some_digest("content"), Suffix.FILE, 5),
    }
    compressions = {one.where: one.name.compression for one in checked(root).wanted}
    assert compressions["/large"] is Compression.NONE
    assert compressions["/small"] is Compression.ZLIB


def test_totals_are_those_that_the_catalog_states(root: Path) -> None:
    run_sql(root, "UPDATE statistics SET value = 40 WHERE counter = 'subtree_dir'")
    with Catalog.open(root, "of the test") as catalog:
        check = CatalogCheck(catalog, None)
        assert check.below == tuple(40 if name == "dir" else 0 for name in COUNTERS)
        assert check.total[COUNTERS.index("dir")] == 44
        assert check.total[COUNTERS.index("file_size")] == 5 * 4 + 7


# The root of a catalog


def test_a_catalog_of_another_place_is_named_and_not_walked(root: Path, nested: Path) -> None:
    for path, mounted, sentence in (
        (nested, None, "Its catalog says it belongs to /nested."),
        (root, HERE, "Its catalog says it belongs to /."),
    ):
        result = checked(path, mounted)
        assert [found for _, found in result.faults] == [sentence]
        assert (result.wanted, result.entries) == ([], 0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("parent_1 = 1", "The root of its catalog has a wrong parent."),
        ("name = 'other'", "The root of its catalog has the name other."),
        ("flags = flags & ~32", "The root of its catalog has wrong flags 0x1."),
        ("flags = flags | 2", "The root of its catalog has wrong flags 0x23."),
    ],
)
def test_a_wrong_root_of_a_nested_catalog_is_named(nested: Path, change: str, sentence: str) -> None:
    found = faults(nested, f"UPDATE catalog SET {change} WHERE {at(b'/nested')}", mounted=HERE)
    assert ("/nested", sentence) in found


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("parent_1 = 1", "The root of its catalog has a wrong parent."),
        ("name = 'x'", "The root of its catalog has the name x."),
        ("flags = 33", "The root of its catalog has wrong flags 0x21."),
        ("mode = 33188, flags = 4", "The root of its catalog has wrong flags 0x4."),
    ],
)
def test_a_wrong_root_of_the_repository_is_named(root: Path, change: str, sentence: str) -> None:
    assert ("/", sentence) in faults(root, f"UPDATE catalog SET {change} WHERE {at(b'')}")


def test_a_catalog_without_its_root_is_named(root: Path) -> None:
    found = faults(root, f"DELETE FROM catalog WHERE {at(b'')}")
    assert found == [("/", "Its catalog has no entry for its own root.")]


@pytest.mark.parametrize(
    ("field", "value"), [("mode", 0o040700), ("uid", 7), ("gid", 7), ("mtime_s", 1), ("mtime_ns", 9), ("links", 3)]
)
def test_a_mountpoint_that_differs_from_the_root_below_is_named(nested: Path, field: str, value: int) -> None:
    other = Mountpoint(NESTED, MOUNTED._replace(**{field: value}))  # type: ignore[arg-type]
    (fault,) = checked(nested, other).faults
    ours = getattr(MOUNTED, field)
    assert fault == (
        "/nested",
        f"Its mountpoint and the root of its catalog differ in {field}: {value!r}, {ours!r}.",
    )


# Entries in their places


@pytest.mark.parametrize(
    ("statement", "where", "sentence"),
    [
        (
            f"UPDATE catalog SET name = '' WHERE {at(b'/small')}",
            "/", "It holds an entry without a name.",
        ),
        (
            f"UPDATE catalog SET md5path_1 = 1 WHERE {at(b'/small')}",
            "/small", "Its key is not the hash of its path.",
        ),
        (
            f"UPDATE catalog SET hardlinks = 2 WHERE {at(b'/dir')}",
            "/dir", "It has 2 links but 1 subdirectories.",
        ),
        (
            f"UPDATE catalog SET hardlinks = 7 WHERE {at(b'')}",
            "/", "It has 7 links but 2 subdirectories.",
        ),
        (
            f"UPDATE catalog SET flags = flags | 32 WHERE {at(b'/dir')}",
            "/dir", "It is flagged as the root of a catalog but lies inside one.",
        ),
        (
            f"UPDATE catalog SET symlink = 'x' WHERE {at(b'/small')}",
            "/small", "It has a link target but is no symbolic link.",
        ),
        (
            f"UPDATE catalog SET flags = flags | 0x1000 WHERE {at(b'/small')}",
            "/small", "It names an unknown compression in its flags 0x1004.",
        ),
        (
            f"UPDATE catalog SET name = 'a/b' WHERE {at(b'/dir/a')}",
            "/dir", "malformed entry",
        ),
        (
            f"UPDATE catalog SET flags = flags | 64 WHERE {at(b'/small')}",
            "/small", "has chunks of 0 bytes for 'small' of 5",
        ),
        (
            f"UPDATE chunks SET offset = 4 WHERE offset = 3 AND {at(b'/large')}",
            "/large", "has broken chunks for 'large'",
        ),
        (
            f"UPDATE chunks SET size = 3 WHERE offset = 3 AND {at(b'/large')}",
            "/large", "has chunks of 6 bytes for 'large' of 7",
        ),
        (
            f"DELETE FROM chunks WHERE {at(b'/large')}",
            "/large", "has chunks of 0 bytes for 'large' of 7",
        ),
        (
            f"UPDATE catalog SET flags = flags & ~64, hash = zeroblob(20) WHERE {at(b'/large')}",
            "/", "Its catalog has 2 chunks that belong to no chunked file.",
        ),
        (
            f"UPDATE catalog SET parent_1 = 1 WHERE {at(b'/small')}",
            "/", "Its catalog has 1 entries that no directory holds.",
        ),
        (
            f"UPDATE catalog SET name = '.cvmfscatalog', {MARKER_KEY} WHERE {at(b'/dir/a')}",
            "/dir/.cvmfscatalog", "It is a marker of a nested catalog where there is none.",
        ),
    ],
)  # fmt: skip
def test_an_entry_in_a_wrong_place_is_named(root: Path, statement: str, where: str, sentence: str) -> None:
    found = faults(root, statement)
    assert [place for place, text in found if sentence in text] == [where], found


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE catalog SET hardlinks = 1 << 32 | 3 WHERE {a}", "Hard link group 1 has 2 members and says 3."),
        ("UPDATE catalog SET hardlinks = 1 << 32 | 3 WHERE {b}", "Hard link group 1 has 2 members and says 2."),
        ("UPDATE catalog SET size = 6 WHERE {b}", "The members of hard link group 1 differ."),
        ("UPDATE catalog SET mode = 33261 WHERE {a}", "The members of hard link group 1 differ."),
    ],
)
def test_a_broken_hard_link_group_is_named(root: Path, statement: str, sentence: str) -> None:
    assert ("/dir", sentence) in faults(root, statement.format(a=at(b"/dir/a"), b=at(b"/dir/b")))


def test_a_hard_link_group_over_two_directories_is_named(root: Path) -> None:
    found = faults(root, f"UPDATE catalog SET hardlinks = 1 << 32 | 1 WHERE {at(b'/small')}")
    assert ("/dir", "It shares hard link group 1 with another directory.") in found


def test_a_marker_at_the_top_is_only_a_warning(root: Path) -> None:
    writer = CatalogWriter.edit(root, "of the test")
    writer.put(b"/" + MARKER, a_file(MARKER))
    writer.seal(Stamp(2, 1_700_000_000, None, 240))
    result = checked(root)
    assert result.faults == []
    assert result.warnings == [("/.cvmfscatalog", "A marker of a nested catalog means nothing at the top.")]


@pytest.mark.parametrize("marker", [directory_entry(MARKER), a_link(MARKER, b"x"), FIFO._replace(name=MARKER)])
def test_whatever_has_a_marker_s_name_counts(nested: Path, marker: Entry) -> None:
    writer = CatalogWriter.edit(nested, "of the test")
    writer.put(b"/nested/" + MARKER, marker)
    sealed = writer.seal(Stamp(2, 1_700_000_000))
    assert checked(nested, HERE._replace(entry=MOUNTED._replace(links=sealed.root.links))).faults == []


def test_a_nested_catalog_without_a_marker_is_named(nested: Path) -> None:
    found = faults(
        nested,
        f"DELETE FROM catalog WHERE {at(b'/nested/.cvmfscatalog')}",
        "UPDATE statistics SET value = value - 1 WHERE counter = 'self_regular'",
        mounted=HERE,
    )
    assert found == [("/nested", "Its nested catalog has no .cvmfscatalog.")]


# Two rows for one path, which the primary key forbids and a hostile publisher may leave out


def without_keys(path: Path) -> Path:
    return run_sql(
        path,
        "CREATE TABLE plain AS SELECT * FROM catalog",
        "DROP TABLE catalog",
        "ALTER TABLE plain RENAME TO catalog",
        "CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2)",
    )


@pytest.mark.parametrize("twice", [b"/small", b"/dir/sub", b"/nested"])
def test_two_entries_of_one_name_are_named(root: Path, twice: bytes) -> None:
    found = faults(without_keys(root), f"INSERT INTO catalog SELECT * FROM catalog WHERE {at(twice)}")
    assert found == [(twice.decode(), "It is in its directory twice.")]


def test_a_tree_of_double_directories_is_walked_once(tmp_path: Path) -> None:
    """Each directory was in the one above it twice: 2 to the power of 64 ways down."""
    writer = CatalogWriter.create(tmp_path / "deep.sqlite", b"", directory_entry(b""))
    depth = 64
    for number in range(1, depth + 1):
        writer.put(b"/d" * number, directory_entry(b"d"))
    writer.seal(Stamp(1, 1_700_000_000, None, 240))
    run_sql(without_keys(writer.path), f"INSERT INTO catalog SELECT * FROM catalog WHERE NOT ({at(b'')})")
    assert {sentence for _, sentence in checked(writer.path).faults} == {"It is in its directory twice."}
    assert checked(writer.path).entries == depth + 1


# Mountpoints


@pytest.mark.parametrize(
    ("statements", "where", "sentence"),
    [
        (
            ["DELETE FROM nested_catalogs"],
            "/nested", "It is a mountpoint but its catalog is not listed.",
        ),
        (
            [f"UPDATE catalog SET flags = 0x4001 WHERE {at(b'/nested')}"],
            "/nested", "It is a mountpoint but its catalog is not listed.",
        ),
        (
            ["INSERT INTO nested_catalogs SELECT '/dir', sha1, size FROM nested_catalogs"],
            "/dir", "A catalog is listed for it but it is no mountpoint.",
        ),
        (
            ["INSERT INTO bind_mountpoints SELECT '/dir', sha1, size FROM nested_catalogs"],
            "/dir", "A catalog is listed for it but it is no mountpoint.",
        ),
        (
            ["INSERT INTO bind_mountpoints SELECT * FROM nested_catalogs"],
            "/", "Its catalog has a nested catalog and a bind mountpoint at one path.",
        ),
        (
            [
                f"UPDATE catalog SET {IN_NESTED} WHERE {at(b'/small')}",
            ],
            "/nested", "It is a mountpoint but its parent's catalog has entries below it.",
        ),
    ],
)  # fmt: skip
def test_a_broken_mountpoint_is_named(root: Path, statements: list[str], where: str, sentence: str) -> None:
    assert (where, sentence) in faults(root, *statements)


def test_a_bind_mountpoint_is_sound_and_not_walked(root: Path) -> None:
    result = checked(
        run_sql(
            root,
            f"UPDATE catalog SET flags = 0x4001 WHERE {at(b'/nested')}",
            "INSERT INTO bind_mountpoints SELECT * FROM nested_catalogs",
            "DELETE FROM nested_catalogs",
            "UPDATE statistics SET value = 0 WHERE counter = 'self_nested'",
        )
    )
    assert (result.faults, result.mountpoints) == ([], [])


@pytest.mark.parametrize("column", ["path = 'nested'", "size = 'x'", "sha1 = 'x'", "sha1 = NULL", "path = NULL"])
def test_a_malformed_list_of_catalogs_is_refused(root: Path, column: str) -> None:
    run_sql(root, f"UPDATE nested_catalogs SET {column}")
    with pytest.raises(IntegrityError, match="of the test"):
        checked(root)


# Counters, limits, the file itself


@pytest.mark.parametrize("name", COUNTERS)
def test_each_wrong_counter_is_named(root: Path, name: str) -> None:
    with sqlite3.connect(root) as database:
        (right,) = database.execute("SELECT value FROM statistics WHERE counter = ?", (f"self_{name}",)).fetchone()
    database.close()
    assert right > 0, "the catalog of this test has one of each"
    found = faults(root, f"UPDATE statistics SET value = 1234 WHERE counter = 'self_{name}'")
    assert found == [("/", f"Its catalog counts 1234 {name}, there are {right}.")]


@pytest.mark.parametrize("name", COUNTERS)
@pytest.mark.parametrize("scope", ["self", "subtree"])
def test_each_missing_counter_is_named(root: Path, name: str, scope: str) -> None:
    found = faults(root, f"DELETE FROM statistics WHERE counter = '{scope}_{name}'")
    assert found == [("/", f"Its catalog lacks the counter {name}.")]


@pytest.mark.parametrize(
    ("revision", "missing"),
    [(1, {"xattr", "external", "external_file_size", "special"}), (4, {"special"}), (5, set()), (7, set())],
)
def test_counters_of_younger_schemas_are_not_missed(root: Path, revision: int, missing: set[str]) -> None:
    """Of the counters that the schema has, one is missed, to show that they are looked for."""
    names = ", ".join(f"'self_{name}', 'subtree_{name}'" for name in (*missing, "dir"))
    found = faults(
        root,
        f"UPDATE properties SET value = '{revision}' WHERE key = 'schema_revision'",
        f"DELETE FROM statistics WHERE counter IN ({names})",
    )
    assert ("/", "Its catalog lacks the counter dir.") in found
    assert not [sentence for _, sentence in found if "lacks" in sentence and "dir" not in sentence]


def test_counters_are_not_compared_when_entries_were_left_out(root: Path) -> None:
    found = faults(root, f"UPDATE catalog SET name = '' WHERE {at(b'/small')}")
    assert found == [("/", "It holds an entry without a name.")]


def test_counters_below_are_compared_with_the_sums(root: Path) -> None:
    assert list(check_subtree(b"/nested", NO_COUNTS, NO_COUNTS)) == []
    for number, name in enumerate(COUNTERS):
        stated = tuple(3 if place == number else 0 for place in range(len(COUNTERS)))
        assert list(check_subtree(b"/nested", stated, NO_COUNTS)) == [
            Finding("error", "/nested", f"Its catalog counts 3 {name} in the catalogs below it, they say 0.")
        ]


def test_a_catalog_with_many_entries_is_a_warning(root: Path, nested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = len(ROWS) + 1
    monkeypatch.setattr(checkcatalog, "ROOT_ENTRIES", entries)
    monkeypatch.setattr(checkcatalog, "NESTED_ENTRIES", 3)
    assert checked(root).warnings == checked(nested, HERE).warnings == []
    monkeypatch.setattr(checkcatalog, "ROOT_ENTRIES", entries - 1)
    monkeypatch.setattr(checkcatalog, "NESTED_ENTRIES", 2)
    assert checked(root).warnings == [("/", f"Its catalog has {entries} entries, more than {entries - 1}.")]
    assert checked(nested, HERE).warnings == [("/nested", "Its catalog has 3 entries, more than 2.")]


@pytest.mark.parametrize(("more", "is_warned"), [(0, False), (1, True)])
def test_a_large_file_in_one_piece_is_a_warning(root: Path, more: int, *, is_warned: bool) -> None:
    size = checkcatalog.FILE_BYTES + more
    run_sql(
        root,
        f"UPDATE catalog SET size = {size} WHERE {at(b'/small')}",
        f"UPDATE statistics SET value = value + {size - 5} WHERE counter = 'self_file_size'",
    )
    result = checked(root)
    assert result.faults == []
    sentence = f"It has {size} bytes, more than {checkcatalog.FILE_BYTES}."
    assert result.warnings == ([("/small", sentence)] if is_warned else [])


def test_a_damaged_file_is_named(root: Path) -> None:
    """An index that lacks a row: SQLite's own check sees it."""
    run_sql(root, "CREATE INDEX extra ON catalog (uid)")
    data = bytearray(root.read_bytes())
    with sqlite3.connect(root) as database:
        (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'extra'").fetchone()
        (page_bytes,) = database.execute("PRAGMA page_size").fetchone()
    database.close()
    start = (page - 1) * page_bytes
    cells = int.from_bytes(data[start + 3 : start + 5], "big")
    data[start + 3 : start + 5] = (cells - 1).to_bytes(2, "big")
    root.write_bytes(data)
    found = checked(root).faults
    assert [where for where, text in found if text.startswith("Its catalog of the test is damaged: ")] == ["/"], found


@pytest.mark.parametrize("offset", range(0, 4096 * 4, 509))
def test_damage_anywhere_gives_findings_and_no_other_error(root: Path, offset: int) -> None:
    data = bytearray(root.read_bytes())
    data[offset : offset + 24] = b"\xff" * len(data[offset : offset + 24])
    root.write_bytes(data)
    with contextlib.suppress(IntegrityError):  # the walk passes it on as a finding
        assert all(sentence.endswith(".") for _, sentence in checked(root).faults)


def test_names_that_are_no_text_are_printable(tmp_path: Path) -> None:
    writer = CatalogWriter.create(tmp_path / "odd.sqlite", b"", directory_entry(b""))
    writer.put(b"/\xff\n\x1b[31m", a_file(b"\xff\n\x1b[31m", links=2))
    writer.seal(Stamp(1, 1_700_000_000, None, 240))
    ((where, _),) = checked(writer.path).faults
    assert where.isprintable()
