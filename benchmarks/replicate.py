"""Replicas beside copies by rsync."""

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.tools import need

from benchmarks.harness import Pair, rows
from benchmarks.support import (
    FQRN,
    make_large_file,
    make_tree,
    make_weights,
    mica,
    nginx_served,
    public_key,
    remove,
    timed,
    workspace,
)

_LARGE_BYTES = 384 << 20
_WEIGHTS_BYTES = 256 << 20


@contextlib.contextmanager
def _published(work: Path) -> Iterator[str]:
    """A mixed tree in a repository; yields its URL at a web server."""
    make_tree(work / "tree" / "small", 10_000, 5_000)
    make_large_file(work / "tree" / "large", _LARGE_BYTES)
    make_weights(work / "tree" / "weights", _WEIGHTS_BYTES)
    subprocess.run(["tar", "-cf", work / "tree.tar", "-C", work / "tree", "."], check=True)
    remove(work / "tree")
    mica(work / "state", "repo", "create", FQRN, "--storage", work / "storage")
    mica(work / "state", "repo", "ingest", FQRN, work / "tree.tar", "/data", "--catalog")
    (work / "tree.tar").unlink()
    with nginx_served(work) as url:
        yield url


@rows(("server.replicate_first", "server.replicate_again_s"), "s")
@contextlib.contextmanager
def replication() -> Iterator[Mapping[str, Pair]]:
    """Into an empty directory, and once more; `rsync -a` of the storage into an empty directory."""
    rsync = need("rsync", "rsync")
    with workspace() as work, _published(work) as url:
        turns = itertools.count()

        def replicate(place: Path) -> float:
            key = public_key(work)
            return mica(place / "state", "repo", "replicate", url, place / "replica", "--key", key)

        def first() -> float:
            place = work / f"turn-{next(turns)}"
            os.sync()
            seconds = replicate(place)
            remove(place)
            return seconds

        def copied() -> float:
            place = work / f"turn-{next(turns)}"
            os.sync()
            seconds = timed([rsync, "-a", f"{work}/storage/", place])
            remove(place)
            return seconds

        kept = work / "kept"
        replicate(kept)
        yield {
            "server.replicate_first": Pair(first, copied),
            "server.replicate_again_s": Pair(lambda: replicate(kept)),
        }
