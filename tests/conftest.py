"""What holds for every test: nothing is left behind (threads, mounts, processes, namespaces' files), and no program is
started from or in what the same process serves."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mica.mountinfo import read_mounts

pytest.register_assert_rewrite("tests.contracts", "tests.support")

# A shell without job control ignores SIGINT and SIGQUIT for what it starts in the background, nohup SIGHUP; all that is
# started below inherits that, and could not be interrupted. A handler is not inherited.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)

_OURS = (b"fuse.mica", b"overlay", b"aufs", b"erofs")


def pytest_configure(config: pytest.Config) -> None:
    """Each process that runs tests has a mount table of its own: it neither sees nor disturbs what others mount."""
    from tests.support.sharing import own_mount_table  # after the registration above

    if os.geteuid() == 0 and not config.option.collectonly:
        own_mount_table()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Tests of one module, or that share an engine, a node or something of the whole machine, run one after the other,
    in one process. (Marks of pytest-xdist 3.8 do not reach its scheduler from pytest 9.2 on.)"""
    from tests.support.sharing import GroupScheduling  # after the registration above

    return GroupScheduling(config, log)


def pytest_collection_finish() -> None:
    """The tests themselves stay: whoever looks for garbage, here or in a process that a test forks, need not look at
    thousands of them each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def same_noise(request: pytest.FixtureRequest) -> None:
    """Each test gets the same incompressible bytes in every run."""
    from tests.support import noise  # after the registration above

    noise.begin(request.node.nodeid)


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """After a test there is no thread that was not there before: the next test could not fork a server process. Threads
    that a product ends without waiting for them get time to end. Connections end with their server, which may serve a
    whole module."""
    from tests.support.waiting import eventually  # after the registration above

    before = set(threading.enumerate())

    def left() -> list[str]:
        names = (thread.name for thread in set(threading.enumerate()) - before)
        return sorted(name for name in names if name != "connection" and "process_request" not in name)

    yield
    nothing_is_left = eventually(lambda: not left(), patience_s=30)
    assert nothing_is_left, f"threads left behind: {', '.join(left())}"


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test of the upper tiers there is no mount and no child process that was not there before."""
    from tests.support.waiting import eventually  # after the registration above

    marks = {mark.name for mark in request.node.iter_markers()}
    # Docker 26 keeps what it exported mounted until it ends, on overlay2 too.
    if not marks & {"system", "engines"} or "newer" in marks:
        yield
        return
    mounts, children = _mounts(), _children()
    yield
    nothing_is_left = eventually(lambda: not _left(mounts, children), patience_s=30)
    assert nothing_is_left, f"left behind: {', '.join(_left(mounts, children))}"


def _refuse_what_waits_for_itself(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook (PEP 578). Until a child of vfork(2) has entered its directory and its program, this process stands
    still, in Python before 3.11.4 with all its threads: a server among them would never answer."""
    if event != "subprocess.Popen" or not any(thread.name.startswith("fuse-") for thread in threading.enumerate()):
        return
    program, _, directory, _ = arguments
    for path in (program, directory):
        if path and b"/" in os.fsencode(path):
            whole = os.path.abspath(os.fsencode(path))
            inside = [mount for mount in _mounts() - _FOREIGN if os.path.commonpath([whole, mount]) == mount]
            assert not inside, f"{os.fsdecode(whole)} is served by this process: enter it with env(1)"


sys.addaudithook(_refuse_what_waits_for_itself)


def _left(mounts: set[bytes], children: set[int]) -> list[str]:
    processes = [f"process {_described(pid)}" for pid in sorted(_children() - children)]
    return [*sorted(map(os.fsdecode, _mounts() - mounts)), *processes]


def _mounts() -> set[bytes]:
    """Where something is mounted that can be ours."""
    return {mount.target for mount in read_mounts() if mount.fstype in _OURS}


_FOREIGN = _mounts()
"""What was there before: in a container the root is an overlay."""


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
