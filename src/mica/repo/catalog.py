"""Catalogs, reading: the SQLite file of one directory subtree (schema in catalog.sql, page docs/format/catalog.md).

A catalog may come from a hostile publisher: only plain tables and indexes are accepted, values are type-checked,
lengths are bounded. Everything wrong with the file itself is an IntegrityError that names the catalog. One connection
and one lock for each catalog: any thread.
"""

import contextlib
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from mica.digest import DIGEST_SIZE, Digest, PathHash, Suffix, path_hash
from mica.errors import IntegrityError
from mica.repo.chunklist import CHUNKS_MAX, ChunkList
from mica.repo.entry import Entry, Flag, algorithm_of
from mica.texts import quoted

SCHEMA = "2.5"
SCHEMA_REVISION = 7
DEFAULT_TTL_S = 240

COUNTERS = (
    "regular",
    "symlink",
    "special",
    "dir",
    "nested",
    "chunked",
    "chunks",
    "file_size",
    "chunked_size",
    "xattr",
    "external",
    "external_file_size",
)
"""The twelve counters; each is stored once with `self_` and once with `subtree_` before its name."""
COUNTERS_SINCE = {"xattr": 2, "external": 3, "external_file_size": 3, "special": 5}
"""Schema revisions that brought counters; the others were always there."""

_S_IFMT = 0o170000
COUNT_ROWS = f"""
SELECT
    total(mode & {_S_IFMT} = 0x8000),
    total(mode & {_S_IFMT} = 0xa000),
    total(mode & {_S_IFMT} NOT IN (0x8000, 0xa000, 0x4000)),
    total(mode & {_S_IFMT} = 0x4000),
    (SELECT count(*) FROM nested_catalogs),
    total(flags & 64 = 64),
    (SELECT count(*) FROM chunks),
    total(CASE WHEN mode & {_S_IFMT} = 0x8000 THEN size ELSE 0 END),
    total(CASE WHEN flags & 64 THEN size ELSE 0 END),
    total({{xattrs}}),
    total(flags & 128 = 128),
    total(CASE WHEN flags & 128 THEN size ELSE 0 END)
FROM catalog
"""  # noqa: S608 - constants only
"""The counters of a catalog itself, in the order of COUNTERS."""

_MAX_VALUE_BYTES = 1 << 20
_ROWS_AT_ONCE = 256
_CHUNKS = "SELECT offset, size, hash FROM chunks WHERE md5path_1 = ? AND md5path_2 = ? ORDER BY offset LIMIT ?"
_OBJECTS = """
    SELECT hash, flags, size, 0 FROM catalog WHERE hash IS NOT NULL AND NOT flags & 128
    UNION ALL
    SELECT chunks.hash, catalog.flags, chunks.size, 1 FROM chunks
    CROSS JOIN catalog ON catalog.md5path_1 = chunks.md5path_1 AND catalog.md5path_2 = chunks.md5path_2
    WHERE NOT catalog.flags & 128
"""
"""128 is Flag.EXTERNAL. CROSS JOIN makes SQLite look up the file of each chunk by its key."""
_COLUMNS = (
    "rowid, md5path_1, md5path_2, hardlinks, hash, size, mode, mtime, {mtimens}, flags, name, symlink, uid, gid, "
    "{xattr}"
)


CATALOG_LIMIT = 4 << 30
"""Most bytes of a catalog file, and of its object."""


class NestedCatalog(NamedTuple):
    """A child catalog: mountpoint, object, and size in bytes of its SQLite file."""

    path: bytes
    digest: Digest
    size: int


class NamedObject(NamedTuple):
    """An object that a catalog names, and the size in bytes of its content."""

    digest: Digest
    suffix: Suffix
    size: int


class Row(NamedTuple):
    """An entry with its keys inside one catalog."""

    rowid: int
    key: PathHash
    entry: Entry


class RawRow:
    """A row that is not parsed yet, for walks that look at few of the rows they pass. `columns` are all but its number
    in this catalog."""

    __slots__ = ("_catalog", "_values", "columns", "name")

    def __init__(self, catalog: "Catalog", values: tuple[Any, ...]) -> None:
        self._catalog = catalog
        self._values = values
        self.columns = values[1:]
        self.name: bytes = values[10]
        if type(self.name) is not bytes or type(values[9]) is not int:
            self.row()  # raises

    @property
    def is_directory(self) -> bool:
        return bool(self._values[9] & Flag.DIRECTORY)

    @property
    def is_chunked(self) -> bool:
        return bool(self._values[9] & Flag.CHUNKED)

    def row(self) -> "Row":
        """Raises IntegrityError for a row that cannot be a file."""
        return self._catalog.parsed(self._values)


class Catalog:
    """A catalog file opened for reading. Use as a context manager or call `close`."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        """Take over a connection whose text_factory is bytes; `name` is what error messages call this catalog."""
        self._connection = connection
        self.name = name
        self.lock = threading.RLock()
        self._finds_chunks = False
        try:
            self._refuse_odd_schema()
            self.properties = self._read_properties()
            revision = self.schema_revision
        except BaseException:
            connection.close()
            raise
        columns = _COLUMNS.format(
            mtimens="mtimens" if revision >= 7 else "NULL", xattr="xattr" if revision >= 2 else "NULL"
        )
        self._by_key = f"SELECT {columns} FROM catalog WHERE md5path_1 = ? AND md5path_2 = ?"  # noqa: S608 - constants only
        self._by_parent = f"SELECT {columns} FROM catalog WHERE parent_1 = ? AND parent_2 = ? ORDER BY rowid"  # noqa: S608 - constants only
        self._by_name = f"SELECT {columns} FROM catalog WHERE parent_1 = ? AND parent_2 = ? ORDER BY CAST(name AS BLOB)"  # noqa: S608 - constants only
        self._by_rowid = f"SELECT {columns} FROM catalog WHERE rowid = ?"  # noqa: S608 - constants only
        self._all = f"SELECT {columns}, parent_1, parent_2 FROM catalog ORDER BY rowid"  # noqa: S608 - constants only

    @classmethod
    def open(cls, path: Path, name: str) -> Self:
        """Open a file that does not change any more. Raises IntegrityError if it is not an acceptable catalog.

        `close` closes it, or the end of the last reference to it.
        """
        with _database_errors(name):
            connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)
        catalog = cls(configured(connection), name)
        weakref.finalize(catalog, connection.close)
        return catalog

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with self.lock:
            self._connection.close()

    def find(self, path: bytes) -> Row | None:
        return self.find_key(path_hash(path))

    def find_key(self, key: PathHash) -> Row | None:
        rows = self._select(self._by_key, key)
        return self._row(rows[0]) if rows else None

    def find_rowid(self, rowid: int) -> Row | None:
        rows = self._select(self._by_rowid, (rowid,))
        return self._row(rows[0]) if rows else None

    def children(self, directory: PathHash) -> list[Row]:
        """Rows whose parent is this directory, hidden ones included."""
        return [self._row(row) for row in self._select(self._by_parent, directory)]

    def children_by_name(self, directory: PathHash) -> Iterator[Row]:
        """The same by the bytes of their names, a few at a time."""
        return map(self._row, self._raw_children(directory))

    def raw_children_by_name(self, directory: PathHash) -> Iterator[RawRow]:
        """The same, not parsed."""
        return (RawRow(self, values) for values in self._raw_children(directory))

    def parsed(self, values: tuple[Any, ...]) -> Row:
        """Raises IntegrityError for a row that cannot be a file."""
        return self._row(values)

    def _raw_children(self, directory: PathHash) -> Iterator[tuple[Any, ...]]:
        with self.lock, _database_errors(self.name):
            cursor = self._connection.execute(self._by_name, directory)
        while True:
            with self.lock, _database_errors(self.name):
                rows = cursor.fetchmany(_ROWS_AT_ONCE)
            if not rows:
                return
            yield from rows

    def names_with_prefix(self, directory: PathHash, prefix: bytes) -> list[bytes]:
        """Names in a directory that begin so, sorted."""
        statement = """
            SELECT CAST(name AS BLOB) FROM catalog
            WHERE parent_1 = ? AND parent_2 = ? AND substr(CAST(name AS BLOB), 1, ?) = ? ORDER BY 1
        """
        return [name for (name,) in self._select(statement, (*directory, len(prefix), prefix))]

    def has_prefix(self, prefix: bytes) -> bool:
        """Whether any name begins so; looks at all rows."""
        statement = "SELECT EXISTS (SELECT 1 FROM catalog WHERE substr(CAST(name AS BLOB), 1, ?) = ?)"
        ((found,),) = self._select(statement, (len(prefix), prefix))
        return bool(found)

    def has_groups(self) -> bool:
        """Whether there is any hard link group; looks at all rows."""
        ((found,),) = self._select("SELECT EXISTS (SELECT 1 FROM catalog WHERE hardlinks >> 32 > 0)", ())
        return bool(found)

    def group_sizes(self, directory: PathHash) -> dict[int, int]:
        """Number of members, in this directory, of its hard link groups."""
        statement = """
            SELECT hardlinks >> 32, count(*) FROM catalog WHERE parent_1 = ? AND parent_2 = ? AND hardlinks >> 32 > 0
            GROUP BY 1
        """
        return dict(self._select(statement, directory))

    def parent_of(self, rowid: int) -> PathHash | None:
        rows = self._select("SELECT parent_1, parent_2 FROM catalog WHERE rowid = ?", (rowid,))
        return PathHash(*rows[0]) if rows else None

    def all_rows(self) -> Iterator[tuple[Row, PathHash]]:
        """Every row with the key of its parent, in order of rowid; the catalog stays locked while iterating."""
        with self.lock, _database_errors(self.name):
            for row in self._connection.execute(self._all):
                yield self._row(row[:-2]), PathHash(*row[-2:])

    def objects(self) -> Iterator[NamedObject]:
        """What the files of this catalog are made of, but for external ones, in no order; what several files have may
        come several times. The catalog stays locked while iterating."""
        with self.lock, _database_errors(self.name):
            for raw, flags, size, is_chunk in self._connection.execute(_OBJECTS):
                if not (_is_digest(raw) and type(flags) is int and type(size) is int and size >= 0):
                    raise IntegrityError(f"Catalog {self.name} has a file with a malformed digest or size.")
                try:
                    algorithm = algorithm_of(flags)
                except ValueError as error:
                    raise IntegrityError(f"Catalog {self.name} uses an unknown hash algorithm.") from error
                yield NamedObject(Digest(raw, algorithm), Suffix.CHUNK if is_chunk else Suffix.FILE, size)

    def group_members(self, directory: PathHash, group: int) -> list[int]:
        """Rowids of a hard link group, all of which lie in one directory."""
        statement = """
            SELECT rowid FROM catalog WHERE parent_1 = ? AND parent_2 = ? AND hardlinks >> 32 = ? ORDER BY rowid
        """
        return [rowid for (rowid,) in self._select(statement, (*directory, group))]

    def chunks(self, row: Row) -> ChunkList:
        """Pieces of a chunked file in order. Raises IntegrityError unless they cover the file without a gap, there is
        one at least, and there are no more than a file can have."""
        name = quoted(row.entry.name)
        chunks = ChunkList(_algorithm(row.entry, self.name))
        end = 0
        with self.lock, _database_errors(self.name):
            self._refuse_slow_chunks()
            for offset, size, raw in self._connection.execute(_CHUNKS, (*row.key, CHUNKS_MAX + 1)):
                if offset != end or type(size) is not int or size <= 0 or not _is_digest(raw):
                    raise IntegrityError(f"Catalog {self.name} has broken chunks for {name}.")
                if len(chunks) == CHUNKS_MAX:
                    raise IntegrityError(f"Catalog {self.name} has more than {CHUNKS_MAX} chunks for {name}.")
                end += size
                if end > row.entry.size:
                    break
                chunks.append(size, raw)
        if not chunks or end != row.entry.size:
            raise IntegrityError(f"Catalog {self.name} has chunks of {end} bytes for {name} of {row.entry.size}.")
        return chunks

    def _refuse_slow_chunks(self) -> None:
        """Without the index that the format demands, each file would cost a look at the chunks of all files."""
        if self._finds_chunks:
            return
        plan = self._connection.execute(f"EXPLAIN QUERY PLAN {_CHUNKS}", (0, 0, 1)).fetchall()
        if len(plan) != 1 or not plan[0][3].startswith(b"SEARCH "):
            raise IntegrityError(f"Catalog {self.name} has no primary key for its chunks.")
        self._finds_chunks = True

    def link_targets(self, part: bytes) -> list[tuple[bytes, PathHash]]:
        """Targets of links that have these bytes in them, at any place, with the directories that the links are in."""
        statement = "SELECT symlink, parent_1, parent_2 FROM catalog WHERE instr(CAST(symlink AS BLOB), ?)"
        return [
            (target, PathHash(*parent))
            for target, *parent in self._select(statement, (part,))
            if isinstance(target, bytes)
        ]

    def nested(self) -> list[NestedCatalog]:
        size = "size" if self.schema_revision >= 1 else "0"
        return self._references(f"SELECT path, sha1, {size} FROM nested_catalogs ORDER BY path")  # noqa: S608 - constants only

    def bind_mountpoints(self) -> list[NestedCatalog]:
        if self.schema_revision < 4:
            return []
        return self._references("SELECT path, sha1, size FROM bind_mountpoints ORDER BY path")

    def directories(self) -> list[tuple[PathHash, PathHash, bytes, bool, int]]:
        """Every directory: its key, its parent's, its name, whether its entries are in this catalog, and how many they
        are."""
        statement = """
            SELECT md5path_1, md5path_2, parent_1, parent_2, CAST(name AS BLOB), flags & 0x4002, (
                SELECT count(*) FROM catalog AS child
                WHERE child.parent_1 = catalog.md5path_1 AND child.parent_2 = catalog.md5path_2
            ) FROM catalog WHERE flags & 1
        """
        return [
            (PathHash(key_1, key_2), PathHash(parent_1, parent_2), name, not transition, entries)
            for key_1, key_2, parent_1, parent_2, name, transition, entries in self._select(statement, ())
        ]

    def row_counts(self) -> tuple[int, int]:
        """Number of entries and of chunks."""
        ((entries, chunks),) = self._select("SELECT (SELECT count(*) FROM catalog), (SELECT count(*) FROM chunks)", ())
        return entries, chunks

    @property
    def size(self) -> int:
        """Bytes of the file."""
        ((pages, page_bytes),) = self._select(
            "SELECT page_count, page_size FROM pragma_page_count, pragma_page_size", ()
        )
        return int(pages) * int(page_bytes)

    def count(self) -> tuple[int, ...]:
        """What the counters of the catalog itself have to be, in the order of COUNTERS; looks at all rows."""
        xattrs = "xattr IS NOT NULL" if self.schema_revision >= 2 else "0"
        (row,) = self._select(COUNT_ROWS.format(xattrs=xattrs), ())
        return tuple(map(int, row))

    def damage(self) -> str:
        """The faults that SQLite itself finds in the file, empty if none; reads all of it."""
        ((finding,),) = self._select("PRAGMA integrity_check(1)", ())
        return "" if finding == b"ok" else str(finding.decode("utf-8", "replace"))

    def counters(self) -> dict[str, int]:
        """Counters as stored, for example `self_regular` and `subtree_dir`."""
        rows = self._select("SELECT counter, value FROM statistics", ())
        return {counter.decode("ascii", "replace"): value for counter, value in rows if isinstance(value, int)}

    @property
    def root_prefix(self) -> bytes:
        """Path at which the catalog is mounted; empty for a root catalog."""
        return self.properties.get("root_prefix", b"").rstrip(b"/")

    @property
    def revision(self) -> int:
        return self._integer_property("revision", 0)

    @property
    def last_modified(self) -> int:
        return self._integer_property("last_modified", 0)

    @property
    def ttl_s(self) -> int:
        return self._integer_property("TTL", DEFAULT_TTL_S)

    @property
    def previous_revision(self) -> Digest | None:
        text = self.properties.get("previous_revision", b"")
        return _parse_digest(text, self.name) if text else None

    def _integer_property(self, key: str, default: int) -> int:
        text = self.properties.get(key)
        if text is None:
            return default
        if not text.isdigit() or len(text) > 18:
            raise IntegrityError(f"Catalog {self.name} has a {key} that is not a number.")
        return int(text)

    def _references(self, statement: str) -> list[NestedCatalog]:
        found = []
        for path, digest, size in self._select(statement, ()):
            if not isinstance(path, bytes) or not path.startswith(b"/") or not isinstance(size, int):
                raise IntegrityError(f"Catalog {self.name} has a nested catalog without a proper path or size.")
            found.append(NestedCatalog(path, _parse_digest(digest, self.name), size))
        return found

    def _select(self, statement: str, values: Sequence[object]) -> list[Any]:
        with self.lock, _database_errors(self.name):
            return self._connection.execute(statement, values).fetchall()

    def _row(self, row: tuple[Any, ...]) -> Row:
        (rowid, key_1, key_2, hardlinks, raw, size, mode, mtime, mtimens, flags, name, target, uid, gid, xattrs) = row
        # SQLite columns have no type, so a hostile catalog can hold anything: one expression checks it, once a row.
        integers = (hardlinks, size, mode, mtime, flags, uid, gid)
        if (
            [type(value) for value in integers] != [int] * 7
            or type(name) is not bytes
            or type(target) is not bytes
            or not (raw is None or _is_digest(raw))
            or not (mtimens is None or (type(mtimens) is int and 0 <= mtimens < 1_000_000_000))
            or not (xattrs is None or type(xattrs) is bytes)
            or b"/" in name
            or b"\0" in name
            or b"\0" in target
            or len(name) > 255
            or name in (b".", b"..")
            or size < 0
            or not 0 <= mode <= 0o177777
            or not (0 <= uid < 1 << 32 and 0 <= gid < 1 << 32)
            or not (0 <= flags < 1 << 31)
        ):
            raise IntegrityError(f"Catalog {self.name} has a malformed entry in row {rowid}.")
        entry = Entry(
            name, mode, size, mtime, mtimens, uid, gid, flags, None,
            hardlinks & 0xFFFFFFFF, hardlinks >> 32, target, xattrs,
        )  # fmt: skip
        if raw is not None:
            entry = entry._replace(digest=Digest(raw, _algorithm(entry, self.name)))
        return Row(rowid, PathHash(key_1, key_2), entry)

    def _refuse_odd_schema(self) -> None:
        for kind, sql in self._select("SELECT type, sql FROM sqlite_master", ()):
            if not is_plain_schema(kind, sql):
                raise IntegrityError(f"Catalog {self.name} holds more than tables and indexes.")

    def _read_properties(self) -> dict[str, bytes]:
        rows = self._select("SELECT key, value FROM properties", ())
        if not all(isinstance(key, bytes) and isinstance(value, bytes) for key, value in rows):
            raise IntegrityError(f"Catalog {self.name} has properties that are not text.")
        return {key.decode("utf-8", "replace"): value for key, value in rows}

    @property
    def schema_revision(self) -> int:
        """Raises IntegrityError for a schema that this version cannot read."""
        schema = self.properties.get("schema", b"1.0")
        if schema not in {b"2.5", b"2.4"} and not schema.startswith((b"0.", b"1.")):
            raise IntegrityError(f"Catalog {self.name} has schema {quoted(schema)}; 2.5 is what this version reads.")
        return self._integer_property("schema_revision", 0)


_PLAIN_STATEMENTS = (b"CREATE TABLE ", b"CREATE INDEX ", b"CREATE UNIQUE INDEX ")


def is_plain_schema(kind: object, sql: object) -> bool:
    """Whether a line of `sqlite_master` is a table or an index.

    SQLite itself writes these beginnings. Any other, even `CREATE  VIRTUAL TABLE`, was made by hand, and SQLite's
    parser would accept it. Indexes that come with a constraint have no statement.
    """
    if kind == b"index" and sql is None:
        return True
    return kind in {b"table", b"index"} and isinstance(sql, bytes) and sql.startswith(_PLAIN_STATEMENTS)


def configured(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Settings common to all connections to repository databases: bytes for text, bounded values."""
    connection.text_factory = bytes
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
    return connection


@contextlib.contextmanager
def _database_errors(name: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a closed catalog: a fault of the caller
    except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
        # A damaged file can put any bytes into SQLite's own message, which Python then fails to decode.
        raise IntegrityError(f"Catalog {name} is not a readable catalog ({error}).") from error


def _is_digest(raw: object) -> bool:
    return type(raw) is bytes and len(raw) == DIGEST_SIZE


def _algorithm(entry: Entry, name: str) -> Any:
    try:
        return entry.algorithm
    except ValueError as error:
        raise IntegrityError(f"Catalog {name} uses an unknown hash algorithm for {quoted(entry.name)}.") from error


def _parse_digest(text: object, name: str) -> Digest:
    try:
        return Digest.parse(text.decode("ascii") if isinstance(text, bytes) else "")
    except ValueError as error:
        raise IntegrityError(f"Catalog {name} has a malformed digest.") from error


def is_transition(entry: Entry) -> bool:
    """Whether the subtree of this directory is in another catalog."""
    return bool(entry.flags & (Flag.MOUNTPOINT | Flag.BIND_MOUNTPOINT))
