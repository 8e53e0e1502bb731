"""Catalog files for tests: written by our writer, or by SQL where nobody should have written them."""

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from mica.digest import Algorithm, Digest, digest_of
from mica.publish.catalogtree import directory_entry
from mica.repo.catalogwriter import CatalogWriter, Stamp
from mica.repo.entry import Entry, Flag, content_flags
from mica.repo.objects import Compression

STAMP = Stamp(1, 1_700_000_000, None, 240)


def some_digest(text: str, algorithm: Algorithm = Algorithm.SHA1) -> Digest:
    return digest_of(text.encode(), algorithm)


def a_file(name: bytes, **changes: object) -> Entry:
    flags = int(Flag.FILE) | content_flags(Algorithm.SHA1, Compression.ZLIB)
    entry = Entry(name, 0o100644, 5, 1_600_000_000, 123, 1, 2, flags, some_digest("content"))
    return entry._replace(**changes)  # type: ignore[arg-type]


def a_link(name: bytes, target: bytes) -> Entry:
    return Entry(name, 0o120777, len(target), 0, None, 0, 0, int(Flag.FILE | Flag.LINK), target=target)


def write_catalog(path: Path, rows: Iterable[tuple[bytes, Entry]] = (), *, mountpoint: bytes = b"") -> Path:
    """A sealed catalog with a root directory and these rows."""
    name = mountpoint[mountpoint.rfind(b"/") + 1 :]
    writer = CatalogWriter.create(path, mountpoint, directory_entry(name))
    for row in rows:
        writer.put(*row)
    writer.seal(STAMP if not mountpoint else STAMP._replace(ttl_s=None))
    return path


def run_sql(path: Path, *statements: str) -> Path:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        for statement in statements:
            database.execute(statement)
    return path
