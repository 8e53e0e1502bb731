"""Looking through a mount beside looking at the same tree on the local disk."""

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.harness import Pair, row
from benchmarks.support import FQRN, drop_caches, make_tree, mica, mounted, read_all, remove, served, workspace

_FILES = 10_000
_FILE_BYTES = 5_000
_MANY = 100_000


def _find(tree: Path) -> None:
    subprocess.run(["find", tree, "-ls"], check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def _published(files: int, size: int) -> Iterator[tuple[Path, str]]:
    with workspace() as work:
        make_tree(work / "tree", files, size)
        subprocess.run(["tar", "-cf", work / "tree.tar", "-C", work / "tree", "."], check=True)
        mica(work / "state", "repo", "create", FQRN, "--storage", work / "storage")
        mica(work / "state", "repo", "ingest", FQRN, work / "tree.tar", "/data", "--catalog")
        with served(work) as url:
            yield work, url


def _seconds(look: Callable[[Path], None], tree: Path) -> float:
    start = time.perf_counter()
    look(tree)
    return time.perf_counter() - start


@contextlib.contextmanager
def _looking(look: Callable[[Path], None], *, again: bool) -> Iterator[Pair]:
    """A fresh mount with an empty cache each time; `again` measures the second look."""
    with _published(_FILES, _FILE_BYTES) as (work, url):

        def ours() -> float:
            remove(work / "cache")
            drop_caches()
            with mounted(work, url, cache="cache") as (target, _):
                first = _seconds(look, target / "data")
                return _seconds(look, target / "data") if again else first

        def baseline() -> float:
            drop_caches()
            first = _seconds(look, work / "tree")
            return _seconds(look, work / "tree") if again else first

        yield Pair(ours, baseline)


@row("mount.find_first", "s")
@contextlib.contextmanager
def find_first() -> Iterator[Pair]:
    """`find -ls` over 10,000 files right after mounting."""
    with _looking(_find, again=False) as pair:
        yield pair


@row("mount.find_second", "s")
@contextlib.contextmanager
def find_second() -> Iterator[Pair]:
    """The same once more."""
    with _looking(_find, again=True) as pair:
        yield pair


@row("mount.read_first", "s")
@contextlib.contextmanager
def read_first() -> Iterator[Pair]:
    """Reading every file, each fetched from a server on loopback."""
    with _looking(read_all, again=False) as pair:
        yield pair


@row("mount.read_second", "s")
@contextlib.contextmanager
def read_second() -> Iterator[Pair]:
    """Reading every file once more."""
    with _looking(read_all, again=True) as pair:
        yield pair


@row("mount.rss_mb", "MB")
@contextlib.contextmanager
def memory() -> Iterator[Pair]:
    """Resident memory of the server after `find -ls` over 100,000 files."""
    with _published(_MANY, 600) as (work, url):

        def ours() -> float:
            with mounted(work, url, cache="cache") as (target, pid):
                _find(target)
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))

        yield Pair(ours, repeats=1)
