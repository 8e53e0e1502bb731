"""The history database (tags, object class H) and the reflog (schemas in docs/format/history.md).

Both are small SQLite files that are read whole, changed as values, and written again: the same content gives the same
bytes. Hostile input: bounded size, plain tables only, checked types. Pure besides SQLite in memory; any thread.
"""

import contextlib
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mica.digest import Digest, Suffix
from mica.errors import IntegrityError, NotFoundError, UserError
from mica.repo.catalog import configured, is_plain_schema

TRUNK = "trunk"
TRUNK_PREVIOUS = "trunk-previous"
MAGIC_TAGS = {TRUNK: "current HEAD", TRUNK_PREVIOUS: "default undo target"}
SIZE_LIMIT = 256 << 20
_TAG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:-]{0,254}")

_HISTORY_SQL = """
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE branches (branch TEXT, parent TEXT, initial_revision INTEGER, CONSTRAINT pk_branch PRIMARY KEY (branch),
    FOREIGN KEY (parent) REFERENCES branches (branch),
    CHECK ((branch <> '' AND parent IS NOT NULL) OR (branch = '' AND parent IS NULL)));
CREATE TABLE tags (name TEXT, hash TEXT, revision INTEGER, timestamp INTEGER, channel INTEGER, description TEXT,
    size INTEGER, branch TEXT, CONSTRAINT pk_tags PRIMARY KEY (name),
    FOREIGN KEY (branch) REFERENCES branches (branch));
CREATE TABLE recycle_bin (hash TEXT, flags INTEGER, CONSTRAINT pk_hash PRIMARY KEY (hash));
"""
_REFLOG_SQL = """
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE refs (hash TEXT, type INTEGER, timestamp INTEGER, CONSTRAINT pk_refs PRIMARY KEY (hash));
"""


class Tag(NamedTuple):
    """A named revision. `timestamp` is the catalog's `last_modified`, `size` the bytes of its SQLite file."""

    name: str
    root_catalog: Digest
    revision: int
    timestamp: int
    description: str
    size: int
    branch: str = ""


class Branch(NamedTuple):
    name: str
    parent: str | None
    initial_revision: int


_MAIN_BRANCH = Branch("", None, 0)


@dataclass(slots=True)
class History:
    """Tags by name. Unknown branches of a foreign history are kept."""

    fqrn: str
    tags: dict[str, Tag] = field(default_factory=dict)
    branches: list[Branch] = field(default_factory=lambda: [_MAIN_BRANCH])
    previous: Digest | None = None

    def advance(self, head: Tag) -> None:
        """Let `trunk` point at a new head and `trunk-previous` at the former one."""
        former = self.tags.get(TRUNK)
        if former is not None:
            description = MAGIC_TAGS[TRUNK_PREVIOUS]
            self.tags[TRUNK_PREVIOUS] = former._replace(name=TRUNK_PREVIOUS, description=description)
        self.tags[TRUNK] = head._replace(name=TRUNK, description=MAGIC_TAGS[TRUNK])

    def tag(self, name: str) -> Tag:
        """Raises NotFoundError."""
        if name not in self.tags:
            raise NotFoundError(f"{self.fqrn} has no tag {name!r}.", hint=f"Its tags: mica repo tag ls {self.fqrn}")
        return self.tags[name]

    def add(self, tag: Tag, *, move: bool = False) -> None:
        """Name a revision; with `move` also by a name that another one has, which keeps its branch, and its description
        if there is no new one. Raises UserError for a name that cannot be given."""
        if tag.name in MAGIC_TAGS:
            raise UserError(f"{tag.name!r} always follows the newest revisions: it cannot be set.")
        if not is_tag_name(tag.name):
            raise UserError(
                f"{tag.name!r} cannot be the name of a tag.", hint="Letters, digits and '-_./:', at most 255 of them."
            )
        former = self.tags.get(tag.name)
        if former is None:
            if tag.name.isdecimal():
                raise UserError(
                    f"{tag.name!r} cannot be the name of a tag: commands would take it for the revision of that "
                    "number.",
                    hint=f"v{tag.name} can.",
                )
            self.tags[tag.name] = tag
            return
        if former.root_catalog == tag.root_catalog:
            raise UserError(f"Tag {tag.name!r} names revision {former.revision} already.")
        if not move:
            raise UserError(
                f"Tag {tag.name!r} names revision {former.revision}.", hint="With --move it names another one."
            )
        self.tags[tag.name] = tag._replace(description=tag.description or former.description, branch=former.branch)

    def remove(self, name: str) -> Tag:
        """Forget a name, and branches that nothing else needs. Raises NotFoundError, UserError."""
        if name in MAGIC_TAGS:
            raise UserError(f"{name!r} always follows the newest revisions: it cannot be removed.")
        removed = self.tag(name)
        del self.tags[name]
        self._prune_branches()
        return removed

    def drop_newer(self, revision: int) -> list[Tag]:
        """Forget the tags of the main branch above a revision, and the two that follow the newest ones. Returns the
        others among them, the newest first: what a rollback takes away."""
        newer = [tag for tag in self.tags.values() if tag.revision > revision and not tag.branch]
        for tag in newer:
            del self.tags[tag.name]
        for name in MAGIC_TAGS:
            self.tags.pop(name, None)
        return sorted((tag for tag in newer if tag.name not in MAGIC_TAGS), key=lambda tag: (-tag.revision, tag.name))

    def _prune_branches(self) -> None:
        """Branches without tags go, as with the stock server; those that came from them then come from the next one."""
        used = {tag.branch for tag in self.tags.values()} | {""}
        parents = {branch.name: branch.parent or "" for branch in self.branches}

        def origin(branch: Branch) -> str | None:
            passed: set[str] = set()
            name = branch.parent
            while name is not None and name not in used:
                passed.add(name)
                name = parents.get(name, "")
                name = "" if name in passed else name
            return name

        self.branches = [branch._replace(parent=origin(branch)) for branch in self.branches if branch.name in used]

    def newest_before(self, timestamp: int) -> Tag | None:
        """The newest revision of the main branch that was published at a time in seconds or before."""
        fitting = [tag for tag in self.tags.values() if tag.timestamp <= timestamp and not tag.branch]
        return max(fitting, key=lambda tag: tag.revision, default=None)


def is_tag_name(name: str) -> bool:
    return _TAG_NAME.fullmatch(name) is not None and name not in MAGIC_TAGS


def format_history(history: History) -> bytes:
    """The SQLite file."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        database.executescript("BEGIN;" + _HISTORY_SQL)
        _set_properties(database, {"schema": "1.0", "schema_revision": "3", "fqrn": history.fqrn}, history.previous)
        database.executemany("INSERT INTO branches VALUES (?, ?, ?)", history.branches)
        database.executemany(
            "INSERT INTO tags VALUES (?, ?, ?, ?, 0, ?, ?, ?)",
            [
                (tag.name, tag.root_catalog.text, tag.revision, tag.timestamp, tag.description, tag.size, tag.branch)
                for tag in sorted(history.tags.values())
            ],
        )
        database.execute("COMMIT")
        return database.serialize()


def parse_history(data: bytes, what: str) -> History:
    """Raises IntegrityError naming `what`."""
    with _opened(data, what) as database:
        properties = _properties(database)
        branches = [
            Branch(_text(name), None if parent is None else _text(parent), _number(revision))
            for name, parent, revision in database.execute("SELECT branch, parent, initial_revision FROM branches")
        ]
        rows = database.execute("SELECT name, hash, revision, timestamp, description, size, branch FROM tags")
        tags = [
            Tag(
                _text(name), Digest.parse(_text(root)), _number(revision), _number(timestamp),
                _text(description or b""), _number(size), _text(branch or b""),
            )
            for name, root, revision, timestamp, description, size, branch in rows
        ]  # fmt: skip
        previous = properties.get("previous_revision")
        return History(
            properties.get("fqrn", ""),
            {tag.name: tag for tag in tags},
            branches or [_MAIN_BRANCH],
            Digest.parse(previous) if previous else None,
        )


class RefKind:
    """The kind of object that a reflog entry refers to."""

    CATALOG = 0
    CERTIFICATE = 1
    HISTORY = 2
    METAINFO = 3


SUFFIX_OF_KIND: Final = {
    RefKind.CATALOG: Suffix.CATALOG,
    RefKind.CERTIFICATE: Suffix.CERTIFICATE,
    RefKind.HISTORY: Suffix.HISTORY,
    RefKind.METAINFO: Suffix.METAINFO,
}
KIND_OF_SUFFIX: Final = {suffix: kind for kind, suffix in SUFFIX_OF_KIND.items()}
"""The class of the objects of each kind."""


@dataclass(slots=True)
class Reflog:
    """Every root object that was ever published into a storage: `refs[digest] = (kind, seconds of insertion)`."""

    fqrn: str
    refs: dict[Digest, tuple[int, int]] = field(default_factory=dict)


def format_reflog(reflog: Reflog) -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        database.executescript("BEGIN;" + _REFLOG_SQL)
        _set_properties(database, {"schema": "1.0", "schema_revision": "0", "fqrn": reflog.fqrn})
        rows = sorted((digest.text, kind, timestamp) for digest, (kind, timestamp) in reflog.refs.items())
        database.executemany("INSERT INTO refs VALUES (?, ?, ?)", rows)
        database.execute("COMMIT")
        return database.serialize()


def parse_reflog(data: bytes, what: str) -> Reflog:
    with _opened(data, what) as database:
        rows = database.execute("SELECT hash, type, timestamp FROM refs")
        refs = {Digest.parse(_text(text)): (_number(kind), _number(timestamp)) for text, kind, timestamp in rows}
        return Reflog(_properties(database).get("fqrn", ""), refs)


def extend_reflog(data: bytes, refs: Mapping[Digest, tuple[int, int]], what: str) -> bytes:
    """The SQLite file of a reflog with more entries. Those that it has are not looked at: they are as many as ever were
    published. Raises IntegrityError naming `what`."""
    with _opened(data, what) as database:
        rows = [(digest.text, kind, timestamp) for digest, (kind, timestamp) in refs.items()]
        database.executemany("INSERT OR REPLACE INTO refs VALUES (?, ?, ?)", rows)
        database.commit()
        return database.serialize()


@contextlib.contextmanager
def _opened(data: bytes, what: str) -> Iterator[sqlite3.Connection]:
    if not data:
        raise IntegrityError(f"{what} is empty.")
    if len(data) > SIZE_LIMIT:
        raise IntegrityError(f"{what} has {len(data)} bytes, more than is accepted.")
    with contextlib.closing(configured(sqlite3.connect(":memory:"))) as database:
        try:
            database.deserialize(data)
            for kind, sql in database.execute("SELECT type, sql FROM sqlite_master"):
                if not is_plain_schema(kind, sql):
                    raise IntegrityError(f"{what} holds more than tables and indexes.")
            yield database
        except (sqlite3.Error, ValueError) as error:
            raise IntegrityError(f"{what} is not a readable database ({error}).") from error


def _properties(database: sqlite3.Connection) -> dict[str, str]:
    return {_text(key): _text(value) for key, value in database.execute("SELECT key, value FROM properties")}


def _set_properties(database: sqlite3.Connection, properties: dict[str, str], previous: Digest | None = None) -> None:
    rows: Iterable[tuple[str, str]] = properties.items()
    if previous is not None:
        rows = [*rows, ("previous_revision", previous.text)]
    database.executemany("INSERT INTO properties VALUES (?, ?)", rows)


def _text(value: object) -> str:
    if not isinstance(value, bytes):
        raise ValueError("a text is missing")
    return value.decode("utf-8", "surrogateescape")


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError("a number is missing")
    return value
