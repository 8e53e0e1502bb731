"""Publishing an archive beside unpacking it."""

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Pair, row
from benchmarks.support import FQRN, make_tree, mica, peak_rss_mb, remove, timed, workspace

_FILES = 10_000
_FILE_BYTES = 5_000


def _tar_of(work: Path, files: int, size: int) -> Path:
    make_tree(work / "tree", files, size)
    subprocess.run(["tar", "-cf", work / "tree.tar", "-C", work / "tree", "."], check=True)
    return work / "tree.tar"


@row("ingest.small10k", "entries/s")
@contextlib.contextmanager
def small_files() -> Iterator[Pair]:
    """10,000 small files into a repository, each time into a fresh one; `tar -x` of the same archive."""
    with workspace() as work:
        tar = _tar_of(work, _FILES, _FILE_BYTES)
        turns = itertools.count()

        def ours() -> float:
            turn = work / f"turn-{next(turns)}"
            mica(turn / "state", "repo", "create", FQRN, "--storage", turn / "storage")
            seconds = mica(turn / "state", "repo", "ingest", FQRN, tar, "/data", "--catalog")
            remove(turn)
            return _FILES / seconds

        def baseline() -> float:
            target = work / f"turn-{next(turns)}"
            target.mkdir()
            seconds = timed(["tar", "-xf", tar, "-C", target])
            remove(target)
            return _FILES / seconds

        yield Pair(ours, baseline)


@row("ingest.rss_mb", "MB")
@contextlib.contextmanager
def memory() -> Iterator[Pair]:
    """Peak memory of publishing an archive of 1 GB: large files and 50,000 small ones."""
    with workspace() as work:
        make_tree(work / "tree" / "small", 50_000, 4_000)
        block = (work / "tree" / "small" / "d00000" / "f0000000").read_bytes()
        for number in range(4):
            with (work / "tree" / f"large-{number}").open("wb") as file:
                for part in range(50_000):
                    file.write(b"%d" % (part * 7919) + block)
        subprocess.run(["tar", "-cf", work / "tree.tar", "-C", work / "tree", "."], check=True)
        remove(work / "tree")
        turns = itertools.count()

        def ours() -> float:
            turn = work / f"turn-{next(turns)}"
            mica(turn / "state", "repo", "create", FQRN, "--storage", turn / "storage")
            command = [sys.executable, "-m", "mica", "repo", "ingest", FQRN, work / "tree.tar", "/data", "--catalog"]
            peak = peak_rss_mb(command, MICA_STATE=str(turn / "state"))
            remove(turn)
            return peak

        yield Pair(ours, repeats=2)
