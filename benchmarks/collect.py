"""Garbage collection of a large repository."""

import contextlib
import functools
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Pair, row
from benchmarks.support import FQRN, mica, timed_peak, workspace
from mica.digest import Algorithm, Digest, Suffix
from mica.publish.catalogtree import directory_entry
from mica.publish.manager import ReleaseManager
from mica.repo.entry import Entry, content_flags
from mica.repo.history import format_reflog, parse_reflog
from mica.repo.objects import Compression
from mica.store.base import read_limited

_OBJECTS = 1_000_000
_CATALOGS = 100
_DAYS_OLD_S = 30 * 86400


def _publish(manager: ReleaseManager, name: bytes, first: int, count: int) -> None:
    """A revision with so many files, in nested catalogs, instead of all that was there. Their objects are tiny, and
    have any name: collecting garbage does not read them."""
    flags = content_flags(Algorithm.SHA1, Compression.ZLIB)
    each = count // _CATALOGS
    with manager.transaction() as transaction:
        catalogs = transaction.catalogs
        for old in list(catalogs.children(b"")):
            catalogs.remove(b"/" + old.name)
        catalogs.put(b"/" + name, directory_entry(name))
        for number in range(_CATALOGS):
            place = b"/%s/%d" % (name, number)
            catalogs.put(place, directory_entry(b"%d" % number))
            catalogs.nest(place, transaction.marker())
            rows = []
            for file in range(first + number * each, first + (number + 1) * each):
                digest = _digest(file)
                rows.append((place + b"/%d" % file, Entry(b"%d" % file, 0o100644, 1, 0, 0, 0, 0, flags, digest)))
            catalogs.put_rows(place, rows)


def _digest(number: int) -> Digest:
    return Digest(hashlib.sha1(b"%d" % number).digest(), Algorithm.SHA1)


def _make_old(storage: Path, manager: ReleaseManager) -> None:
    at = time.time() - _DAYS_OLD_S
    for number in range(_OBJECTS):
        path = storage / _digest(number).object_path(Suffix.FILE)
        with open(path, "wb") as file:
            file.write(b"x")
        os.utime(path, (at, at))
    for entry in (path for path in storage.glob("data/??/*") if path.name.endswith(("C", "H"))):
        os.utime(entry, (at, at))
    reflog = parse_reflog(read_limited(manager.store, ".cvmfsreflog", 1 << 20), "reflog")
    reflog.refs = {digest: (kind, int(at)) for digest, (kind, _) in reflog.refs.items()}
    manager.store.replace(".cvmfsreflog", format_reflog(reflog))


@functools.cache
def _collected() -> tuple[float, float]:
    """Seconds and peak memory, of one run: to make the repository takes longer."""
    with workspace() as work:
        mica(work / "state", "repo", "create", FQRN, "--storage", work / "storage")
        with ReleaseManager.open(work / "state", FQRN) as manager:
            _publish(manager, b"old", 0, _OBJECTS // 2)
            _publish(manager, b"new", _OBJECTS // 2, _OBJECTS // 2)
            with manager.transaction():
                pass  # the revision before the newest one has a tag
            _make_old(work / "storage", manager)
        os.sync()
        command = [sys.executable, "-m", "mica", "repo", "gc", FQRN, "--keep-revisions", "1", "--keep-days", "0"]
        figures = timed_peak(command, MICA_STATE=str(work / "state"))
        left = sum(len(os.listdir(place)) for place in (work / "storage" / "data").iterdir())
        assert left < _OBJECTS // 2 + 1000, left
        return figures


@row("server.gc_1m_objects_s", "s")
@contextlib.contextmanager
def million_objects() -> Iterator[Pair]:
    """`mica repo gc` of a repository of a million objects, half of which only an old revision needs."""
    yield Pair(lambda: _collected()[0], repeats=1)


@row("server.gc_rss_mb", "MB")
@contextlib.contextmanager
def memory() -> Iterator[Pair]:
    """Its peak memory."""
    yield Pair(lambda: _collected()[1], repeats=1)
