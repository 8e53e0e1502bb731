"""Directories on a disk and in memory, wherever a test's own one is: Debian 13 has /tmp in memory. A test module
imports the fixtures."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.tools import missing

from mica import linux

_DISKS = (Path("/var/tmp"), Path(__file__).parent.parent.parent)
_MEMORY = Path("/dev/shm")


def lies_in_memory(path: Path) -> bool:
    return linux.filesystem_type(path) == linux.TMPFS_MAGIC


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """This directory, or one on a disk in its place: where the kernel mounts images without a loop device."""
    if not lies_in_memory(path):
        yield path
        return
    disk = next((path for path in _DISKS if not lies_in_memory(path)), None)
    if disk is None:
        missing(f"a directory on a disk is missing: {' and '.join(map(str, _DISKS))} lie in memory")
    with tempfile.TemporaryDirectory(prefix="mica-test-", dir=disk) as other:
        yield Path(other)


@pytest.fixture
def disk_path(tmp_path: Path) -> Iterator[Path]:
    """Where files can be on the disk and not in memory."""
    with on_disk(tmp_path) as path:
        yield path


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """Where files are nowhere but in memory."""
    if lies_in_memory(tmp_path):
        yield tmp_path
        return
    if not lies_in_memory(_MEMORY):
        missing(f"{_MEMORY} is no tmpfs")
    with tempfile.TemporaryDirectory(prefix="mica-test-", dir=_MEMORY) as path:
        yield Path(path)
