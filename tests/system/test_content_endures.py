"""What programs read through a union is right to the last byte, and never an error, whatever becomes of the node and
its cache meanwhile: content leaves, comes back, becomes whole; servers are killed and follow each other."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.disks import disk_path
from tests.support.nodes import Publication, Published, publish, running_node, served
from tests.support.tools import LINUX, need_fuse, need_linux
from tests.support.waiting import PATIENCE_S, eventually

from mica.cache.cache import Cache
from mica.cache.eviction import Eviction
from mica.cache.inventory import Kind
from mica.errors import TemporaryError

__all__ = ["disk_path"]
pytestmark = pytest.mark.system

ROUNDS = {"kernel": 200, "ordinary": 80}
SMALL, LARGE = 150, 24
FRESH_S = 3.0
"""Content that came within this time stays: between its download and the kernel's open it must not leave."""


def content(name: str) -> bytes:
    """As `PROGRAM` makes it too."""
    draw = random.Random(name)
    size = draw.randrange(200_000, 900_000) if name.startswith("large") else draw.randrange(1, 9_000)
    return draw.randbytes(size)


# Reads, maps, keeps open and opens again; each byte is compared. Ends when the flag is there; fails with the first
# error or wrong byte.
PROGRAM = """
import contextlib, json, mmap, os, random, sys, time
root, flag, seed, names = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
draw = random.Random(seed)
def content(name):
    draw = random.Random(name)
    size = draw.randrange(200_000, 900_000) if name.startswith("large") else draw.randrange(1, 9_000)
    return draw.randbytes(size)
whole = {name: content(name) for name in names}
kept, read, opened = [], 0, 0
def compare(name, got, offset):
    global read
    read += len(got)
    right = whole[name][offset:offset + len(got)]
    assert got == right, f"{name}: wrong bytes at {offset}: {got[:16].hex()} and not {right[:16].hex()}"
def look(name, fd, mapped):
    size = len(whole[name])
    offset, length = draw.randrange(size), draw.choice((1, 5000, 70_000))
    if mapped is not None:
        compare(name, mapped[offset:offset + length], offset)
    else:
        got = os.pread(fd, length, offset)
        assert len(got) == min(length, size - offset), f"{name}: {len(got)} of {length} bytes at {offset}"
        compare(name, got, offset)
while not os.path.exists(flag):
    name = draw.choice(names)
    fd = os.open(f"{root}/{name}", os.O_RDONLY)
    opened += 1
    mapped = mmap.mmap(fd, 0, access=mmap.ACCESS_READ) if draw.random() < 0.5 else None
    look(name, fd, mapped)
    kept.append((name, fd, mapped))
    for each in draw.sample(kept, min(len(kept), 3)):
        look(*each)
    if draw.random() < 0.2:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if draw.random() < 0.05:
        compare(name, os.pread(fd, len(whole[name]), 0), 0)
    while len(kept) > 12:
        name, fd, mapped = kept.pop(draw.randrange(len(kept)))
        if mapped is not None:
            mapped.close()
        os.close(fd)
    time.sleep(0.002)
print(json.dumps({"opened": opened, "read": read}))
"""


class Program:
    """One that reads through a union, in a process of its own."""

    def __init__(self, merged: Path, flag: Path, seed: int) -> None:
        command = [sys.executable, "-c", PROGRAM, os.fspath(merged), os.fspath(flag), str(seed), json.dumps(NAMES)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def check(self) -> None:
        assert self._process.poll() is None, self._process.communicate()[1]

    def end(self) -> dict[str, int]:
        out, err = self._process.communicate(timeout=PATIENCE_S)
        assert self._process.returncode == 0, err
        done: dict[str, int] = json.loads(out)
        return done

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


NAMES = [f"small/{number}" for number in range(SMALL)] + [f"large/{number}" for number in range(LARGE)]


@pytest.fixture(scope="module")
def publication(tmp_path_factory: pytest.TempPathFactory) -> Publication:
    need_fuse()
    return publish(tmp_path_factory.mktemp("publication"), {name: content(name) for name in NAMES})


@pytest.fixture
def image(publication: Publication) -> Iterator[Published]:
    with served(publication) as image:
        yield image


@contextlib.contextmanager
def programs(merged: Path, flag: Path, count: int) -> Iterator[list[Program]]:
    running = [Program(merged, flag, seed) for seed in range(count)]
    try:
        yield running
    finally:
        for program in running:
            program.kill()


def evict(cache: Path) -> Eviction:
    """All that is not in use and not quite new."""
    with Cache(cache, fresh_s=dict.fromkeys(Kind, FRESH_S)) as store:
        return store.quota.sweeper.prune(0)


@pytest.mark.parametrize("method", ["kernel", "ordinary"])
def test_many_rounds_of_eviction_and_death(image: Published, disk_path: Path, method: str) -> None:
    rounds = ROUNDS[method]
    if LINUX < (6, 12):
        method = {"kernel": "loop", "ordinary": "ordinary-loop"}[method]
    if method == "loop":
        need_linux(6, 5, "data-only layers")
    # What waits while its server is killed fails on older kernels: there only the service dies badly.
    is_followed = LINUX >= (6, 9)
    draw = random.Random(method)
    gone: list[Eviction] = []

    with running_node(disk_path, image, f"method = '{method}'") as node, node.union() as merged:

        def kill(server: str) -> None:
            found: dict[str, int] = {}

            def are_there() -> bool:
                with contextlib.suppress(TemporaryError, OSError):  # a service that was just killed is not there yet
                    found.update(node.servers())
                return bool(found)

            assert eventually(are_there)
            with contextlib.suppress(ProcessLookupError):
                os.kill(found[server], signal.SIGKILL)

        def restart(end: int) -> None:
            """Of the whole node: by a signal to its supervisor, with whose end its servers end."""
            os.kill(node.supervisor, end)
            node.reap()
            node.start()

        actions: list[tuple[int, Callable[[], object]]] = [
            (12, lambda: gone.append(evict(node.cache))),
            (3 * is_followed, lambda: kill("session")),
            (3, lambda: kill("service")),
            (1 * is_followed, lambda: restart(signal.SIGKILL)),
            (1, lambda: restart(signal.SIGTERM)),
            (4, lambda: time.sleep(0.2)),
        ]
        weights, calls = zip(*actions, strict=True)
        flag = disk_path / "flag"
        with programs(merged, flag, 3) as running:
            for _ in range(rounds):
                draw.choices(calls, weights)[0]()
                for program in running:
                    program.check()
            flag.touch()
            done = [program.end() for program in running]
    assert all(each["opened"] >= rounds // 4 for each in done)
    freed = {item.kind for outcome in gone for item in outcome.freed}
    assert {Kind.OBJECT, Kind.PART} & freed, "nothing ever left the cache"


def test_programs_wait_while_the_node_is_replaced_in_good_order(image: Published, tmp_path: Path) -> None:
    """Each open is the first of its file, so it is under way in the node when that ends."""
    asker = (
        "import os, sys\n"
        "asked = 0\n"
        "while not os.path.exists(sys.argv[2]):\n"
        "    asked += 1\n"
        "    try: os.stat(f'{sys.argv[1]}/0/ab/none{asked}')\n"
        "    except FileNotFoundError: pass\n"
        "print(asked)\n"
    )
    flag = tmp_path / "flag"
    with running_node(tmp_path, image) as node, node.union() as merged, programs(merged, flag, 2) as running:
        command = [sys.executable, "-c", asker, os.fspath(node.directory / "objects"), os.fspath(flag)]
        askers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"]
        for _ in range(8):
            time.sleep(0.1)
            node.terminate()
            node.start()
        flag.touch()
        for each in askers:
            out, err = each.communicate(timeout=PATIENCE_S)
            assert each.returncode == 0, err
            assert int(out) > 8
        for program in running:
            program.end()
    assert node.log.read_text() == ""
