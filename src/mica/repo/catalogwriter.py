"""Catalogs, writing: rows of one catalog file are added, replaced and removed, then the file is sealed.

Values that depend on other rows (link counts of directories, sizes of hard link groups, the counters) are computed
once, at `seal`. The same entries in the same order give the same file, byte for byte. One thread.
"""

import contextlib
import importlib.resources
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mica.digest import NULL_PATH_HASH, Digest, PathHash, path_hash
from mica.errors import UserError
from mica.repo.catalog import COUNTERS, SCHEMA, SCHEMA_REVISION, Catalog, NestedCatalog, Row, configured
from mica.repo.entry import Chunk, Entry, Flag

_SCHEMA_SQL = importlib.resources.files(__package__).joinpath("catalog.sql").read_text("utf-8")
_PAGE_BYTES = 4096

# The SQLite header records the version of the library that wrote the file; a constant there keeps catalogs equal
# between machines (bytes 96-99, https://www.sqlite.org/fileformat.html#database_header; informative only).
_SQLITE_VERSION_OFFSET = 96
_SQLITE_VERSION = (3_040_000).to_bytes(4, "big")

_INSERT = """
INSERT OR REPLACE INTO catalog (md5path_1, md5path_2, parent_1, parent_2, hardlinks, hash, size, mode, mtime, mtimens,
    flags, name, symlink, uid, gid, xattr)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?)
"""
_INSERT_CHUNK = "INSERT INTO chunks (md5path_1, md5path_2, offset, size, hash) VALUES (?, ?, ?, ?, ?)"
_INSERT_BIND = "INSERT OR REPLACE INTO bind_mountpoints (path, sha1, size) VALUES (CAST(? AS TEXT), ?, ?)"
_INSERT_NESTED = "INSERT OR REPLACE INTO nested_catalogs (path, sha1, size) VALUES (CAST(? AS TEXT), ?, ?)"

_COUNT_LINKS = """
UPDATE catalog SET hardlinks = 2 + (
    SELECT count(*) FROM catalog AS child
    WHERE child.parent_1 = catalog.md5path_1 AND child.parent_2 = catalog.md5path_2 AND child.flags & 1
) WHERE flags & 1 AND NOT flags & 0x4002
"""
_WRONG_GROUPS = """
SELECT hardlinks >> 32 AS link_group, count(*) AS members FROM catalog WHERE hardlinks >> 32 > 0
GROUP BY link_group HAVING members != max(hardlinks & 0xffffffff) OR members != min(hardlinks & 0xffffffff)
"""


class Counters(NamedTuple):
    """The counters of a catalog, in the order of `COUNTERS`: its own rows and those of all catalogs below."""

    own: tuple[int, ...]
    subtree: tuple[int, ...]

    @property
    def total(self) -> tuple[int, ...]:
        return tuple(own + below for own, below in zip(self.own, self.subtree, strict=True))


NO_COUNTS = (0,) * len(COUNTERS)


def add_counts(counts: Iterable[Sequence[int]]) -> tuple[int, ...]:
    return tuple(sum(column) for column in zip(NO_COUNTS, *counts, strict=True))


class Stamp(NamedTuple):
    """Properties of a catalog that a commit writes; `ttl_s` only into a root catalog."""

    revision: int
    last_modified: int
    previous: Digest | None = None
    ttl_s: int | None = None


class Sealed(NamedTuple):
    """Facts of a finished catalog for its parent: its counters, and its root entry with the final link count."""

    counters: Counters
    root: Entry


class CatalogWriter:
    """A catalog file being written. `seal` or `discard` ends it; the file belongs to the caller."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, fresh: bool) -> None:
        self.path = path
        self._mountpoint = b""
        self._fresh = fresh
        self._connection = configured(connection)
        # Not before the first table: it would leave another number of changes in the file.
        self._connection.executescript(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA cache_size = -16384; PRAGMA temp_store = MEMORY;"
        )

    @classmethod
    def create(cls, path: Path, mountpoint: bytes, root: Entry) -> "CatalogWriter":
        """A new catalog with its root row; an empty mountpoint makes a root catalog."""
        connection = _connect(path, f"PRAGMA page_size = {_PAGE_BYTES};")
        connection.executescript(_SCHEMA_SQL)
        writer = cls(path, connection, fresh=True)
        writer._mountpoint = mountpoint
        writer._connection.execute("BEGIN")
        writer._set_properties({"schema": SCHEMA, "schema_revision": str(SCHEMA_REVISION)})
        if mountpoint:
            writer._set_properties({"root_prefix": mountpoint})
        nested = Flag.NESTED_ROOT if mountpoint else 0
        writer.put(mountpoint, root._replace(flags=root.flags | nested))
        return writer

    @classmethod
    def edit(cls, path: Path, name: str) -> "CatalogWriter":
        """Change a copy of an existing catalog file, brought to the current schema revision first."""
        connection = _connect(path)
        writer = cls(path, connection, fresh=False)
        catalog = writer.view(name)
        writer._mountpoint = catalog.root_prefix
        revision = catalog.schema_revision
        writer._connection.execute("BEGIN")
        if revision < SCHEMA_REVISION:
            writer._upgrade(revision)
        return writer

    def put(self, path: bytes, entry: Entry, chunks: Sequence[Chunk] = ()) -> None:
        """Add or replace one entry. The root of the repository has the empty path and no parent."""
        self._forget_chunks(path_hash(path))
        self.put_rows([(path, entry)])
        self.put_chunks(path, chunks)

    def put_rows(self, rows: Iterable[tuple[bytes, Entry]]) -> None:
        """Add many entries that have no chunks, quickly. Existing rows of the same paths are replaced."""
        self._connection.executemany(_INSERT, map(_row_values, rows))

    def put_chunks(self, path: bytes, chunks: Sequence[Chunk]) -> None:
        key = path_hash(path)
        self._connection.executemany(_INSERT_CHUNK, [(*key, c.offset, c.size, c.digest.raw) for c in chunks])

    def put_nested(self, nested: NestedCatalog) -> None:
        self._connection.execute(_INSERT_NESTED, (nested.path, nested.digest.text, nested.size))

    def forget_nested(self, path: bytes) -> None:
        self._connection.execute("DELETE FROM nested_catalogs WHERE path = CAST(? AS TEXT)", (path,))

    def put_bind(self, bound: NestedCatalog) -> None:
        self._connection.execute(_INSERT_BIND, (bound.path, bound.digest.text, bound.size))

    def forget_bind(self, path: bytes) -> None:
        self._connection.execute("DELETE FROM bind_mountpoints WHERE path = CAST(? AS TEXT)", (path,))

    def forget(self, path: bytes) -> None:
        """Remove one row. The caller removes the rows below it."""
        key = path_hash(path)
        self._forget_chunks(key)
        self._connection.execute("DELETE FROM catalog WHERE md5path_1 = ? AND md5path_2 = ?", key)

    def forget_rows(self, paths: Iterable[bytes]) -> None:
        """Remove many rows that have no chunks, quickly."""
        statement = "DELETE FROM catalog WHERE md5path_1 = ? AND md5path_2 = ?"
        self._connection.executemany(statement, map(path_hash, paths))

    def next_group(self) -> int:
        (highest,) = self._connection.execute("SELECT coalesce(max(hardlinks >> 32), 0) FROM catalog").fetchone()
        return int(highest) + 1

    def view(self, name: str) -> Catalog:
        """A view of the rows so far. It is invalid after `seal` and must not be closed."""
        return Catalog(self._connection, name)

    def seal(self, stamp: Stamp, below: Sequence[int] = NO_COUNTS) -> Sealed:
        """Compute the values that depend on other rows, write properties and counters, and close the file.

        `below` has the sums of the own and subtree counters of the direct child catalogs.
        """
        self._connection.execute(_COUNT_LINKS)
        self._mend_groups()
        view = self.view("(sealing)")
        root = view.find(self._mountpoint)
        assert root is not None, "every catalog has the row of its root"
        counters = Counters(view.count(), tuple(below))
        self._write_counters(counters)
        self._set_properties({"revision": str(stamp.revision), "last_modified": str(stamp.last_modified)})
        if stamp.previous is not None:
            self._set_properties({"previous_revision": stamp.previous.text})
        if stamp.ttl_s is not None:
            self._set_properties({"TTL": str(stamp.ttl_s)})
        self._connection.execute("COMMIT")
        if not self._fresh:
            self._connection.execute("VACUUM")
        self._connection.close()
        _write_constant_version(self.path)
        return Sealed(counters, root.entry)

    def discard(self) -> None:
        self._connection.close()
        self.path.unlink(missing_ok=True)

    def _forget_chunks(self, key: PathHash) -> None:
        self._connection.execute("DELETE FROM chunks WHERE md5path_1 = ? AND md5path_2 = ?", key)

    def _mend_groups(self) -> None:
        for group, members in self._connection.execute(_WRONG_GROUPS).fetchall():
            value = group << 32 | members if members > 1 else 1
            self._connection.execute("UPDATE catalog SET hardlinks = ? WHERE hardlinks >> 32 = ?", (value, group))

    def _write_counters(self, counters: Counters) -> None:
        rows = [(f"self_{name}", value) for name, value in zip(COUNTERS, counters.own, strict=True)]
        rows += [(f"subtree_{name}", value) for name, value in zip(COUNTERS, counters.subtree, strict=True)]
        self._connection.executemany("INSERT OR REPLACE INTO statistics (counter, value) VALUES (?, ?)", rows)

    def _set_properties(self, properties: dict[str, str | bytes]) -> None:
        statement = "INSERT OR REPLACE INTO properties (key, value) VALUES (?, CAST(? AS TEXT))"
        self._connection.executemany(statement, properties.items())

    def _upgrade(self, revision: int) -> None:
        """Columns and tables that younger schema revisions added, in the order they came."""
        statements = {
            1: "ALTER TABLE nested_catalogs ADD COLUMN size INTEGER DEFAULT 0",
            2: "ALTER TABLE catalog ADD COLUMN xattr BLOB",
            4: """CREATE TABLE bind_mountpoints (path TEXT, sha1 TEXT, size INTEGER,
                CONSTRAINT pk_bind_mountpoints PRIMARY KEY (path))""",
            7: "ALTER TABLE catalog ADD COLUMN mtimens INTEGER",
        }
        for introduced, statement in statements.items():
            if revision < introduced:
                self._connection.execute(statement)
        self._set_properties({"schema": SCHEMA, "schema_revision": str(SCHEMA_REVISION)})


class _Connection(sqlite3.Connection):
    """The border to SQLite for writers: maps a full or failing disk to a UserError."""

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        with _explained_errors():
            return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        with _explained_errors():
            return super().executemany(*arguments)

    def executescript(self, *arguments: Any) -> sqlite3.Cursor:
        with _explained_errors():
            return super().executescript(*arguments)


@contextlib.contextmanager
def _explained_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        full = error.sqlite_errorcode in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE}
        hint = "Free some space in the repository's work directory; nothing was published." if full else ""
        raise UserError(f"Cannot write a catalog: {error}.", hint=hint) from error


def _connect(path: Path, first: str = "") -> sqlite3.Connection:
    """The file is nobody's until it is sealed, so nothing is ever flushed to disk: not even the first table."""
    with _explained_errors():
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=_Connection)
    connection.executescript(f"{first} PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
    return connection


def _row_values(row: tuple[bytes, Entry]) -> tuple[Any, ...]:
    path, entry = row
    parent = path_hash(path[: path.rfind(b"/")]) if path else NULL_PATH_HASH
    digest = entry.digest
    return (
        *path_hash(path), *parent, entry.group << 32 | entry.links, None if digest is None else digest.raw,
        entry.size, entry.mode, entry.mtime_s, entry.mtime_ns, int(entry.flags), entry.name, entry.target,
        entry.uid, entry.gid, entry.xattrs,
    )  # fmt: skip


def _write_constant_version(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(_SQLITE_VERSION_OFFSET)
        file.write(_SQLITE_VERSION)


def tree_below(catalog: Catalog, directory: bytes) -> Iterator[tuple[bytes, Row]]:
    """All rows below a directory within one catalog, parents before children."""
    pending = [directory]
    while pending:
        path = pending.pop()
        for row in catalog.children(path_hash(path)):
            child = path + b"/" + row.entry.name
            yield child, row
            if row.entry.is_directory:
                pending.append(child)


def file_size(path: Path) -> int:
    return os.stat(path).st_size
