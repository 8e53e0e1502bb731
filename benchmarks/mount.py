"""Looking through a mount beside looking at the same tree on the local disk."""

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.harness import Pair, row
from benchmarks.support import (
    FQRN,
    drop_caches,
    loop_pair,
    make_large_file,
    make_tree,
    mica,
    mounted,
    read_all,
    remove,
    served,
    workspace,
)

_FILES = 10_000
_FILE_BYTES = 5_000
_MANY = 100_000


def _find(tree: Path) -> None:
    subprocess.run(["find", tree, "-ls"], check=True, stdout=subprocess.DEVNULL)


def _make_text(tree: Path) -> None:
    make_tree(tree, _FILES, _FILE_BYTES)


def published_text() -> contextlib.AbstractContextManager[tuple[Path, str]]:
    """A workspace with a repository of 10,000 small files, and its URL."""
    return _published(_make_text)


def _make_gigabyte(tree: Path) -> None:
    tree.mkdir()
    make_large_file(tree / "large", 1 << 30)


@contextlib.contextmanager
def _published(make: Callable[[Path], None]) -> Iterator[tuple[Path, str]]:
    """A repository with the tree that `make` makes below `/data`, and its URL."""
    with workspace() as work:
        make(work / "tree")
        subprocess.run(["tar", "-cf", work / "tree.tar", "-C", work / "tree", "."], check=True)
        mica(work / "state", "repo", "create", FQRN, "--storage", work / "storage")
        mica(work / "state", "repo", "ingest", FQRN, work / "tree.tar", "/data", "--catalog")
        (work / "tree.tar").unlink()
        with served(work) as url:
            yield work, url


def _seconds(look: Callable[[Path], None], tree: Path) -> float:
    start = time.perf_counter()
    look(tree)
    return time.perf_counter() - start


@contextlib.contextmanager
def _looking(look: Callable[[Path], None], *, again: bool) -> Iterator[Pair]:
    """A fresh mount with an empty cache each time; `again` measures the second look."""
    with _published(_make_text) as (work, url):

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


@row("mount.read_cached", "s")
@contextlib.contextmanager
def read_cached() -> Iterator[Pair]:
    """Reading every file through a new mount, all of them in the node's cache."""
    with _published(_make_text) as (work, url):
        with mounted(work, url, cache="cache") as (target, _):
            read_all(target / "data")

        def ours() -> float:
            with mounted(work, url, cache="cache") as (target, _):
                return _seconds(read_all, target / "data")

        yield Pair(ours, lambda: _seconds(read_all, work / "tree"), warm_ups=1)


@contextlib.contextmanager
def _looping(loop: str, make: Callable[[Path], None], *, cold: bool) -> Iterator[Pair]:
    """One mount whose files were read before, so that all of them are in the node's cache."""
    with _published(make) as (work, url), mounted(work, url, cache="cache") as (target, _):
        read_all(target / "data")
        yield loop_pair(loop, target / "data", work / "tree", _FILES, cold=cold)


@row("mount.seq_1g", "s")
@contextlib.contextmanager
def sequential() -> Iterator[Pair]:
    """Reading a file of 1 GiB from the node's cache, nothing of it in memory."""
    with _looping("seq", _make_gigabyte, cold=True) as pair:
        yield pair


@row("mount.mmap_1g", "s")
@contextlib.contextmanager
def mapped() -> Iterator[Pair]:
    """One byte of every page of the same file through mmap(2), nothing of it in memory."""
    with _looping("mmap", _make_gigabyte, cold=True) as pair:
        yield pair


@row("mount.open_read_small", "s")
@contextlib.contextmanager
def open_read_small() -> Iterator[Pair]:
    """Opening, reading and closing each of 10,000 files of 5 kB, all of them in memory."""
    with _looping("open_read", _make_text, cold=False) as pair:
        yield pair


@row("mount.rss_mb", "MB")
@contextlib.contextmanager
def memory() -> Iterator[Pair]:
    """Resident memory of the server after `find -ls` over 100,000 files."""
    with _published(lambda tree: make_tree(tree, _MANY, 600)) as (work, url):

        def ours() -> float:
            with mounted(work, url, cache="cache") as (target, pid):
                _find(target)
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))

        yield Pair(ours, repeats=1)
