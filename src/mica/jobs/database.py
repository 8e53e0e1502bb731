"""The database that workers share: opened by its URL, its errors as ours, its tables made once.

It is mica's alone: SQLite in a file, for the processes of one machine, or PostgreSQL. Any thread.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from firm._core.config import Runtime
from firm.queue import schema
from firm.queue.config import QueueSettings
from sqlalchemy import URL, Connection, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from mica.errors import TemporaryError, UserError
from mica.files import mapped_os_errors
from mica.jobs.tables import LAYERS, METADATA

_BUSY_MS: Final = 30_000
_MAKING_LOCK: Final = 0x6D696361
"""Number of the PostgreSQL advisory lock under which tables are made."""
_HINT = "It is sqlite:///PATH or postgresql://[USER@]HOST[:PORT]/DATABASE."
_KINDS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgresql+psycopg": "postgresql+psycopg"}


class Database:
    """Use as a context manager, or close it."""

    def __init__(self, url: str) -> None:
        """Raises UserError for a wrong URL, TemporaryError if the server does not answer."""
        parsed = _parse(url)
        self.where = parsed.set(query={}).render_as_string(hide_password=True)
        settings = QueueSettings(
            database_url=parsed.render_as_string(hide_password=False),
            busy_timeout_ms=_BUSY_MS,
            preserve_finished_jobs=False,
        )
        if parsed.drivername == "sqlite":
            _make_private(Path(parsed.database or ""))
        self.runtime = Runtime(settings)
        try:
            self._make_tables()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.runtime.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """The border to the database: a server that is away, or a file that is locked for long, may be there later."""
        try:
            yield
        except DBAPIError as error:
            reason = str(error.orig).strip().splitlines()
            raise TemporaryError(
                f"The queue {self.where} cannot be used now: {reason[0] if reason else type(error.orig).__name__}.",
                hint="Is its server running, and may this user log in?" if "postgresql" in self.where else "",
            ) from error
        except SQLAlchemyError as error:
            raise TemporaryError(f"The queue {self.where} cannot be used now: {error}.") from error

    @contextlib.contextmanager
    def changing(self) -> Iterator[Connection]:
        """A transaction that may write; on SQLite one at a time."""
        with self.explained(), self.runtime.dialect.begin_claim_tx(self.runtime.engine) as connection:
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        with self.explained(), self.runtime.engine.connect() as connection:
            yield connection

    def _make_tables(self) -> None:
        """Ours come last: where they are, all are."""
        with self.explained():
            if inspect(self.runtime.engine).has_table(LAYERS.name):
                return
        with self.changing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MAKING_LOCK})
            schema.create_all(connection)
            METADATA.create_all(connection)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        # Not the text itself: it may have a password in it.
        raise UserError("The URL of the queue cannot be read.", hint=_HINT) from error
    kind = _KINDS.get(parsed.drivername)
    if kind is None:
        raise UserError(f"A queue cannot be of the kind {parsed.drivername!r}.", hint=_HINT)
    if not parsed.database or (kind == "sqlite" and not parsed.database.startswith("/")):
        raise UserError("The URL of the queue names no database.", hint=f"{_HINT} A path has to be absolute.")
    return parsed.set(drivername=kind)


def _make_private(path: Path) -> None:
    """The file names images and their registries: it is its user's alone."""
    with mapped_os_errors(f"make the queue {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
