"""What holds for every test: nothing is left behind (mounts, processes, namespaces' files)."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.contracts", "tests.support")

_PATIENCE_S = 5.0
_OURS = ("fuse.mica", "overlay", "erofs")


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test of the upper tiers there is no mount and no child process that was not there before."""
    marks = {mark.name for mark in request.node.iter_markers()}
    # Docker 26 keeps what it exported mounted until it ends, on overlay2 too.
    if not marks & {"system", "engines"} or "newer" in marks:
        yield
        return
    mounts, children = _mounts(), _children()
    yield
    deadline = time.monotonic() + _PATIENCE_S
    while (left := _left(mounts, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"left behind: {', '.join(left)}"


def _left(mounts: set[str], children: set[int]) -> list[str]:
    return sorted(_mounts() - mounts) + [f"process {_described(pid)}" for pid in sorted(_children() - children)]


def _mounts() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    return {line for line in lines if line.partition(" - ")[2].startswith(_OURS)}


def _children() -> set[int]:
    """Processes that descend from us, by walking parents, and servers of mounts that left our session."""
    parents = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text("utf-8", "replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            state, parent = stat.rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    return {pid for pid in parents if _descends(pid, parents)}


def _descends(pid: int, parents: dict[int, int]) -> bool:
    while (pid := parents.get(pid, 0)) > 1:
        if pid == os.getpid():
            return True
    return False


def _described(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(bytes(1), b" ")
    except (FileNotFoundError, ProcessLookupError):
        return str(pid)
    return f"{pid} {command[:120].decode('utf-8', 'replace')}"
