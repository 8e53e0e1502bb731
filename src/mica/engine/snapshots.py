"""The records of an engine's snapshots, in SQLite (`snapshots.sql` describes them). Knows no directory and no mount.

A change that has returned survives kill -9; a loss of power may undo the last ones. Any thread: one connection, one
lock, and no call takes longer than a statement.
"""

import contextlib
import re
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from mica.errors import NotFoundError, UserError

_SCHEMA = Path(__file__).with_name("snapshots.sql")
_VERSION = 1
# Docker: 64 hex digits, the same with -init, 25 characters of base 36; a path component in any case.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
READ_ONLY, READ_WRITE = "ro", "rw"


class Snapshot(NamedTuple):
    """A row; see `snapshots.sql`."""

    id: str
    parent: str | None
    kind: str
    label: str
    size_bytes: int | None
    mounts: int
    is_rooted: bool


def check_id(text: object) -> str:
    """Raises UserError for what cannot be the name of a snapshot."""
    if not isinstance(text, str) or _ID.fullmatch(text) is None:
        raise UserError(f"{str(text)[:120]!r} is not the id of a layer.")
    return text


class SnapshotStore:
    """Use it as a block."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(path)
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise UserError(f"{path} is not a database of layers: {error}.") from error
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._database.close()

    def _prepare(self, path: Path) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            self._database.execute(f"PRAGMA {pragma}")
        with self._changing() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.read_text("utf-8").split(";\n"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise UserError(f"{path} has version {version}, this program knows {_VERSION}.")

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    # Reading

    def find(self, snapshot_id: str) -> Snapshot | None:
        with self._lock:
            row = self._database.execute("SELECT * FROM snapshot WHERE id = ?", (snapshot_id,)).fetchone()
        return None if row is None else _snapshot(row)

    def get(self, snapshot_id: str) -> Snapshot:
        """Raises NotFoundError if there is none."""
        found = self.find(snapshot_id)
        if found is None:
            raise NotFoundError(f"There is no layer {snapshot_id}.")
        return found

    def chain(self, snapshot_id: str) -> list[Snapshot]:
        """It and its ancestors, top first. Raises NotFoundError if there is none of that name."""
        with self._lock:
            rows = self._database.execute(
                """
                WITH RECURSIVE line AS (
                    SELECT 0 AS depth, snapshot.* FROM snapshot WHERE id = ?
                    UNION ALL
                    SELECT depth + 1, s.* FROM snapshot AS s JOIN line ON s.id = line.parent
                )
                SELECT * FROM line ORDER BY depth
                """,
                (snapshot_id,),
            ).fetchall()
        if not rows:
            raise NotFoundError(f"There is no layer {snapshot_id}.")
        return [_snapshot(row[1:]) for row in rows]

    def all(self) -> list[Snapshot]:
        with self._lock:
            return [*map(_snapshot, self._database.execute("SELECT * FROM snapshot ORDER BY id"))]

    def children(self, snapshot_id: str) -> list[Snapshot]:
        with self._lock:
            return [*map(_snapshot, self._database.execute("SELECT * FROM snapshot WHERE parent = ?", (snapshot_id,)))]

    def has_children(self, snapshot_id: str) -> bool:
        with self._lock:
            found = self._database.execute("SELECT 1 FROM snapshot WHERE parent = ? LIMIT 1", (snapshot_id,))
            return found.fetchone() is not None

    def setting(self, name: str) -> str | None:
        with self._lock:
            row = self._database.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    # Changing

    def add(self, snapshot_id: str, parent: str | None, kind: str, label: str) -> None:
        """Raises UserError if there is one of that name already, NotFoundError if there is no such parent."""
        if parent is not None:
            self.get(parent)
        try:
            with self._changing() as database:
                database.execute(
                    "INSERT INTO snapshot (id, parent, kind, label, rooted) VALUES (?, ?, ?, ?, ?)",
                    (snapshot_id, parent, kind, label, parent is None),
                )
        except sqlite3.IntegrityError as error:
            raise UserError(f"There is a layer {snapshot_id} already.") from error

    def remove(self, snapshot_id: str) -> None:
        """Raises UserError as long as others are made on it."""
        try:
            with self._changing() as database:
                database.execute("DELETE FROM snapshot WHERE id = ?", (snapshot_id,))
        except sqlite3.IntegrityError as error:
            raise UserError(f"Layer {snapshot_id} is the parent of others.", hint="Remove those first.") from error

    def set_size(self, snapshot_id: str, size_bytes: int) -> None:
        with self._changing() as database:
            database.execute("UPDATE snapshot SET size = ? WHERE id = ?", (size_bytes, snapshot_id))

    def set_rooted(self, snapshot_id: str) -> None:
        with self._changing() as database:
            database.execute("UPDATE snapshot SET rooted = 1 WHERE id = ?", (snapshot_id,))

    def count_mount(self, snapshot_id: str, change: int) -> int:
        """Add to the count, which never gets below 0, and return it."""
        with self._changing() as database:
            (count,) = database.execute(
                "UPDATE snapshot SET mounts = max(mounts + ?, 0) WHERE id = ? RETURNING mounts", (change, snapshot_id)
            ).fetchone()
        return int(count)

    def forget_mounts(self, snapshot_id: str) -> None:
        with self._changing() as database:
            database.execute("UPDATE snapshot SET mounts = 0 WHERE id = ?", (snapshot_id,))

    def set_setting(self, name: str, value: str) -> None:
        with self._changing() as database:
            database.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))


def _snapshot(row: tuple[str, str | None, str, str, int | None, int, int]) -> Snapshot:
    return Snapshot(*row[:6], is_rooted=bool(row[6]))
