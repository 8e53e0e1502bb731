"""Changes of the table of layers. Each is one transaction and names the state that it expects: who comes too late
changes nothing (docs/design/workers.md lists the races). Any thread.
"""

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from firm.queue import schema
from sqlalchemy import ColumnElement, Connection, Update, and_, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from mica.convert.staging import STAGED_FOR_S, StagedLayer, format_staged, parse_staged
from mica.errors import MicaError, format_error, parse_error
from mica.jobs.database import Database
from mica.jobs.tables import LAYERS, RowState
from mica.jobs.wishes import Wish, format_wish, parse_wish

_LOST_AFTER_S: Final = 10.0
"""A row without a job that is so old was left by a process that died before it could put the job."""
_AT_ONCE: Final = 500
_UNDER_WAY: Final = (RowState.WANTED, RowState.MAKING)
_own = LAYERS.c


class LayerRow(NamedTuple):
    """What the table says of a layer. `since_s`: of this state, in seconds since 1970. `error`: of the last try."""

    repository: str
    digest: str
    state: RowState
    since_s: float
    worker: str
    tries: int
    error: MicaError | None
    revision: int | None


class Begun(NamedTuple):
    """A layer that is to be made now, for the `tries`-th time."""

    wish: Wish
    tries: int


class LayerTable:
    """The layers of all repositories."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def want(self, wish: Wish, *, seen_revision: int) -> bool:
        """Ask for a layer that is not in a revision; whether a job has to be put for it (`put` tells its number).

        A layer that somebody else asked for is not asked for again, unless it failed, or was published no later than
        in the revision that was seen, and is gone from it.
        """
        fresh = {
            "state": RowState.WANTED, "since_s": time.time(), "worker": "", "tries": 0, "error": "",
            "source": format_wish(wish), "job_id": None, "revision": None, "document": None,
        }  # fmt: skip
        key = {"repository": wish.repository, "digest": wish.digest}
        again = or_(
            _own.state == RowState.FAILED,
            and_(_own.state == RowState.PUBLISHED, _own.revision <= seen_revision),
            and_(_own.state == RowState.STAGED, _own.since_s < time.time() - STAGED_FOR_S),
            and_(_own.state.in_(_UNDER_WAY), _has_no_job(), _own.since_s < time.time() - _LOST_AFTER_S),
        )
        with self._database.changing() as connection:
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            statement = insert(LAYERS).values(**key, **fresh)
            statement = statement.on_conflict_do_update(
                index_elements=[_own.repository, _own.digest], set_=fresh, where=again
            )
            return connection.execute(statement.returning(_own.digest)).first() is not None

    def put(self, repository: str, digest: str, job_id: int) -> bool:
        """The job of a wanted layer is in the queue; False if it has another one already."""
        return self._change(
            update(LAYERS)
            .where(*_key(repository, digest), _own.state == RowState.WANTED, _own.job_id.is_(None))
            .values(job_id=job_id)
        )

    def begin(self, repository: str, digest: str, *, job_id: int, worker: str) -> Begun | None:
        """Begin to make a layer; None if there is nothing to make, or it is another job's."""
        statement = (
            update(LAYERS)
            .where(
                *_key(repository, digest),
                _own.state.in_(_UNDER_WAY),
                or_(_own.job_id == job_id, _own.job_id.is_(None)),
            )
            .values(
                state=RowState.MAKING, since_s=time.time(), worker=worker, job_id=job_id, tries=_own.tries + 1
            )
            .returning(_own.source, _own.tries)
        )  # fmt: skip
        with self._database.changing() as connection:
            row = connection.execute(statement).first()
        return None if row is None else Begun(parse_wish(row.source, repository, digest), row.tries)

    def finish(self, repository: str, layer: StagedLayer) -> None:
        """A layer whose objects are all stored, and last. Whoever made it: it is the same."""
        self._change(
            update(LAYERS)
            .where(*_key(repository, layer.digest), _own.state.in_(_UNDER_WAY))
            .values(state=RowState.STAGED, since_s=time.time(), error="", document=format_staged(layer).decode())
        )

    def put_back(self, repository: str, digest: str, *, worker: str, error: MicaError | None = None) -> None:
        """This worker makes the layer no more; another one will. Without an error the try does not count."""
        values = {"state": RowState.WANTED, "since_s": time.time(), "error": _format(error)}
        if error is None:
            values["tries"] = _own.tries - 1
        self._change(update(LAYERS).where(*_key(repository, digest), *_made_by(worker)).values(values))

    def fail(self, repository: str, digest: str, *, worker: str, error: MicaError) -> None:
        """The layer cannot be made."""
        self._change(
            update(LAYERS)
            .where(*_key(repository, digest), *_made_by(worker))
            .values(state=RowState.FAILED, since_s=time.time(), error=_format(error), job_id=None)
        )

    def settle(self, repository: str, digests: Collection[str], revision: int) -> None:
        """Layers that a revision has."""
        for some in _portions(digests):
            self._change(
                update(LAYERS)
                .where(_own.repository == repository, _own.digest.in_(some), _own.state != RowState.PUBLISHED)
                .values(
                    state=RowState.PUBLISHED, since_s=time.time(), error="", job_id=None, document=None,
                    revision=revision,
                )
            )  # fmt: skip

    def forget(self, repository: str, digests: Collection[str] | None = None) -> None:
        """Forget staged layers, these or all: before objects are removed that no revision has, or when they are gone.
        Whoever waits for one asks for it again."""
        with self._database.changing() as connection:
            statement = delete(LAYERS).where(_own.repository == repository, _own.state == RowState.STAGED)
            if digests is None:
                connection.execute(statement)
            else:
                for some in _portions(digests):
                    connection.execute(statement.where(_own.digest.in_(some)))

    def forget_published(self, *, before_s: float) -> None:
        """Drop rows of layers that were published before a time; what is in a repository, its catalogs tell."""
        self._change(delete(LAYERS).where(_own.state == RowState.PUBLISHED, _own.since_s < before_s))

    def staged(self, repository: str, digests: Collection[str] | None = None) -> list[StagedLayer]:
        """Layers that wait to be attached: of these, or the oldest ones."""
        statement = (
            select(_own.digest, _own.document)
            .where(
                _own.repository == repository,
                _own.state == RowState.STAGED,
                _own.since_s >= time.time() - STAGED_FOR_S,
            )
            .order_by(_own.since_s)
        )
        found: list[StagedLayer | None] = []
        with self._database.reading() as connection:
            chosen = [_own.digest.in_(some) for some in _portions(digests)] if digests is not None else [None]
            for condition in chosen:
                limited = statement.limit(_AT_ONCE) if condition is None else statement.where(condition)
                found += [parse_staged(row.document, row.digest) for row in connection.execute(limited)]
        return [layer for layer in found if layer is not None]

    def repositories_with_staged(self) -> list[str]:
        with self._database.reading() as connection:
            statement = select(_own.repository).where(_own.state == RowState.STAGED).distinct()
            return [row.repository for row in connection.execute(statement)]

    def rows(self, repository: str, digests: Collection[str]) -> dict[str, LayerRow]:
        """What the table says of some layers, by digest."""
        found: dict[str, LayerRow] = {}
        for some in _portions(digests):
            found |= {row.digest: row for row in self._rows(_own.repository == repository, _own.digest.in_(some))}
        return found

    def job_ids(self, repository: str, digests: Collection[str]) -> list[int]:
        """The jobs of some layers that are still to be made."""
        found: list[int] = []
        with self._database.reading() as connection:
            for some in _portions(digests):
                statement = select(_own.job_id).where(
                    _own.repository == repository, _own.digest.in_(some), _own.state.in_(_UNDER_WAY)
                )
                found += [row.job_id for row in connection.execute(statement) if row.job_id is not None]
        return found

    def all_rows(self, repositories: Collection[str] = (), states: Collection[RowState] = ()) -> list[LayerRow]:
        """All layers, or those of some repositories and in some states; the ones that changed last come last."""
        conditions = [_own.repository.in_(repositories)] if repositories else []
        conditions += [_own.state.in_(states)] if states else []
        return self._rows(*conditions)

    def counts(self, repository: str) -> Mapping[RowState, int]:
        """How many layers are in each state."""
        statement = select(_own.state, func.count()).where(_own.repository == repository).group_by(_own.state)
        with self._database.reading() as connection:
            return {RowState(state): count for state, count in connection.execute(statement)}

    def _rows(self, *conditions: ColumnElement[bool]) -> list[LayerRow]:
        statement = select(
            _own.repository, _own.digest, _own.state, _own.since_s, _own.worker, _own.tries, _own.error, _own.revision
        ).where(*conditions)
        with self._database.reading() as connection:
            return [
                LayerRow(
                    row.repository, row.digest, RowState(row.state), row.since_s, row.worker, row.tries,
                    parse_error(json.loads(row.error)) if row.error else None, row.revision,
                )
                for row in connection.execute(statement.order_by(_own.since_s, _own.digest))
            ]  # fmt: skip

    def _change(self, statement: Any) -> bool:
        with self._database.changing() as connection:
            return _changed(connection, statement)


def _changed(connection: Connection, statement: Update) -> bool:
    return bool(connection.execute(statement).rowcount)


def _key(repository: str, digest: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return _own.repository == repository, _own.digest == digest


def _made_by(worker: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return _own.state == RowState.MAKING, _own.worker == worker


def _has_no_job() -> ColumnElement[bool]:
    """None was put, or what was put is gone from the queue."""
    job = select(schema.jobs.c.id).where(schema.jobs.c.id == _own.job_id).correlate(LAYERS)
    return or_(_own.job_id.is_(None), ~job.exists())


def _format(error: MicaError | None) -> str:
    return "" if error is None else json.dumps(format_error(error))


def _portions(digests: Iterable[str]) -> Iterable[Sequence[str]]:
    """A statement has room for a limited number of values."""
    every = list(digests)
    return (every[start : start + _AT_ONCE] for start in range(0, len(every), _AT_ONCE))
