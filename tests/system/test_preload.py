"""Files that a real kernel is given before it asks: every byte is right, and it does not ask."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.memorytree import MemoryTree
from tests.support.noise import noise
from tests.support.tools import need_fuse

from mica.fuse.abi import Buffer
from mica.fuse.dispatch import Request
from mica.fuse.preload import MOST_BYTES, Preloads
from mica.fuse.session import open_session
from mica.fuse.treefs import TreeFileSystem

pytestmark = pytest.mark.system
SIZES = (0, 1, 4095, 4096, 4097, 5000, 12288, MOST_BYTES - 1, MOST_BYTES, MOST_BYTES + 1, 200_000)


class Counting(TreeFileSystem):
    """Counts what the kernel asks for."""

    reads = 0

    def _read(self, request: Request) -> Buffer:
        self.reads += 1
        return super()._read(request)


class Place:
    def __init__(self, source: Path, target: Path, filesystem: Counting) -> None:
        self.source = source
        self.target = target
        self.filesystem = filesystem

    def reads_of(self, name: str) -> int:
        """How often the kernel asks when a whole file is read, which has to be right."""
        before = self.filesystem.reads
        assert (self.target / name).read_bytes() == (self.source / name).read_bytes()
        return self.filesystem.reads - before


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    need_fuse()
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for size in SIZES:
        (source / f"file-{size}").write_bytes(noise(size))
    for number in range(200):
        (source / f"many-{number}").write_bytes(noise(100 + 37 * number))
    preloads = Preloads()
    filesystem = Counting(MemoryTree.of_directory(source), entry_timeout_s=60, attr_timeout_s=60, preloads=preloads)
    with contextlib.closing(filesystem), open_session(target, filesystem, name="test") as session:
        preloads.connect(session.store)
        yield Place(source, target, filesystem)


def test_small_files_are_read_without_being_asked_for(place: Place) -> None:
    for size in SIZES:
        asked = place.reads_of(f"file-{size}")
        assert (asked > 0) == (size > MOST_BYTES), size
        assert place.reads_of(f"file-{size}") == 0


def test_pages_that_the_kernel_let_go_are_asked_for(place: Place) -> None:
    for size in (1, 4097, MOST_BYTES):
        assert place.reads_of(f"file-{size}") == 0
        with (place.target / f"file-{size}").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert place.reads_of(f"file-{size}") > 0


def test_what_is_mapped_is_the_same(place: Place) -> None:
    """By another process: ours would wait for itself."""
    program = """
import mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
    sys.stdout.write(content[:].hex())
"""
    for size in (1, 4097, 5000):
        path = place.target / f"file-{size}"
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
        assert bytes.fromhex(done.stdout) == (place.source / path.name).read_bytes()
    assert place.filesystem.reads == 0


def test_many_readers_of_the_same_files(place: Place) -> None:
    names = [f"many-{number}" for number in range(200)] * 4

    def is_right(name: str) -> bool:
        return (place.target / name).read_bytes() == (place.source / name).read_bytes()

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(is_right, names))
