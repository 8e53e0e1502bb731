"""Checking a repository of a million entries, and comparing two of its revisions."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.harness import Pair, rows
from benchmarks.support import FQRN, mica, peak_rss_mb, timed, workspace
from mica.publish.catalogtree import directory_entry
from mica.publish.manager import ReleaseManager
from mica.publish.transaction import Transaction

_CATALOGS = 20
_DIRECTORIES = 500
_FILES = 99
_CONTENTS = 2000


def _fill(transaction: Transaction) -> None:
    """A million entries in 20 nested catalogs, their contents from 2,000 files."""
    contents = [transaction.store_file(b"content", b"%d" % number) for number in range(_CONTENTS)]
    for catalog in range(_CATALOGS):
        top = b"/c%02d" % catalog
        transaction.catalogs.put(top, directory_entry(top[1:]))
        transaction.catalogs.nest(top, transaction.marker())
        entries = []
        for number in range(_DIRECTORIES):
            name = b"d%03d" % number
            entries.append((top + b"/" + name, directory_entry(name)))
            for file in range(_FILES):
                entry = contents[(number * _FILES + file) % _CONTENTS]._replace(name=b"f%02d" % file, mtime_s=number)
                entries.append((top + b"/" + name + b"/" + entry.name, entry))
        transaction.catalogs.put_rows(top, entries)


def _change(transaction: Transaction) -> None:
    """One file of each catalog."""
    for catalog in range(_CATALOGS):
        path = b"/c%02d/d007/f07" % catalog
        found = transaction.catalogs.find(path)
        assert found is not None
        transaction.catalogs.put(path, found._replace(mtime_s=0))


@contextlib.contextmanager
def _million() -> Iterator[Path]:
    """The state directory of a repository whose revisions 2 and 3 have the entries."""
    with workspace() as work:
        mica(work / "state", "repo", "create", FQRN, "--storage", work / "storage")
        with ReleaseManager.open(work / "state", FQRN) as manager:
            for act in (_fill, _change):
                with manager.transaction() as transaction:
                    act(transaction)
        yield work / "state"


@rows(("server.check_1m_s", "server.diff_1m_s"), "s")
@contextlib.contextmanager
def durations() -> Iterator[Mapping[str, Pair]]:
    """The checker over all entries and objects; the differences of two revisions of which every catalog differs."""
    with _million() as state:
        command = [sys.executable, "-m", "mica", "repo"]
        check, diff = [*command, "check", FQRN], [*command, "diff", FQRN, "2", "3"]
        yield {
            "server.check_1m_s": Pair(lambda: timed(check, MICA_STATE=str(state)), repeats=3),
            "server.diff_1m_s": Pair(lambda: timed(diff, MICA_STATE=str(state)), repeats=3),
        }


@rows(("server.check_1m_rss_mb", "server.diff_1m_rss_mb"), "MB")
@contextlib.contextmanager
def memory() -> Iterator[Mapping[str, Pair]]:
    """Peak memory of the same."""
    with _million() as state:
        command = [sys.executable, "-m", "mica", "repo"]
        check, diff = [*command, "check", FQRN], [*command, "diff", FQRN, "2", "3"]
        yield {
            "server.check_1m_rss_mb": Pair(lambda: peak_rss_mb(check, MICA_STATE=str(state)), repeats=2),
            "server.diff_1m_rss_mb": Pair(lambda: peak_rss_mb(diff, MICA_STATE=str(state)), repeats=2),
        }
