"""Looking through a mount beside looking at the same tree on the local disk."""

import contextlib
import mmap
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.harness import Pair, row
from benchmarks.support import (
    FQRN,
    drop_caches,
    make_random_file,
    make_tree,
    mica,
    mounted,
    remove,
    served,
    workspace,
)

_FILES = 10_000
_FILE_BYTES = 5_000
_MANY = 100_000
_GIGABYTE = 1 << 30
_BLOCK = 1 << 20
_PAGE = 4096


def _find(tree: Path) -> None:
    subprocess.run(["find", tree, "-ls"], check=True, stdout=subprocess.DEVNULL)


def _read(tree: Path) -> None:
    command = f"find {tree} -type f -print0 | xargs -0 cat > /dev/null"
    subprocess.run(["sh", "-c", command], check=True)


def _read_in_blocks(file: Path) -> None:
    buffer = bytearray(_BLOCK)
    with open(file, "rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


def _touch_pages(file: Path) -> None:
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as content:
        for offset in range(0, len(content), _PAGE):
            content[offset]


def _open_and_read(tree: Path) -> None:
    for directory in filter(os.DirEntry.is_dir, os.scandir(tree)):
        for entry in os.scandir(directory.path):
            fd = os.open(entry.path, os.O_RDONLY)
            os.read(fd, _BLOCK)
            os.close(fd)


def _make_text(tree: Path) -> None:
    make_tree(tree, _FILES, _FILE_BYTES)


def _make_gigabyte(tree: Path) -> None:
    tree.mkdir()
    make_random_file(tree / "file", _GIGABYTE)


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
    with _looking(_read, again=False) as pair:
        yield pair


@row("mount.read_second", "s")
@contextlib.contextmanager
def read_second() -> Iterator[Pair]:
    """Reading every file once more."""
    with _looking(_read, again=True) as pair:
        yield pair


@contextlib.contextmanager
def _looking_into_cache(
    look: Callable[[Path], None], make: Callable[[Path], None], inside: str, *, is_in_memory: bool
) -> Iterator[Pair]:
    """One mount whose files were read before, so that all of them are in the node's cache."""
    with _published(make) as (work, url), mounted(work, url, cache="cache") as (target, _):

        def measure(tree: Path) -> float:
            if not is_in_memory:
                drop_caches()
            return _seconds(look, tree / inside)

        look(target / "data" / inside)
        look(work / "tree" / inside)
        yield Pair(lambda: measure(target / "data"), lambda: measure(work / "tree"))


@row("mount.seq_1g", "s")
@contextlib.contextmanager
def sequential() -> Iterator[Pair]:
    """Reading a file of 1 GiB from the node's cache, block by block, nothing of it in memory."""
    with _looking_into_cache(_read_in_blocks, _make_gigabyte, "file", is_in_memory=False) as pair:
        yield pair


@row("mount.mmap_1g", "s")
@contextlib.contextmanager
def mapped() -> Iterator[Pair]:
    """Touching every page of the same file in a mapping, nothing of it in memory."""
    with _looking_into_cache(_touch_pages, _make_gigabyte, "file", is_in_memory=False) as pair:
        yield pair


@row("mount.open_read_small", "s")
@contextlib.contextmanager
def open_read_small() -> Iterator[Pair]:
    """Opening, reading and closing each of 10,000 files of 5 kB, all of them in memory."""
    with _looking_into_cache(_open_and_read, _make_text, ".", is_in_memory=True) as pair:
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
