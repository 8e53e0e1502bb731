"""A process killed with SIGKILL at many points while it writes into a cache: no torn content is ever served."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.caches import NOTHING_FRESH, disk_usage
from tests.support.memoryfetcher import MemoryFetcher, object_name

from mica.cache.cache import Cache
from mica.cache.inventory import Kind, take_inventory
from mica.cache.ledger import Account, Limits
from mica.cache.proof import Verdict
from mica.fetch.cachecheck import Verifier
from mica.fetch.client import RepositoryClient
from mica.repo.localname import LocalName, chunked_name
from mica.repo.objects import Compression

pytestmark = pytest.mark.system
POINTS = 80
LIMIT = 3 << 20
FIRST_CHUNK, OTHER_CHUNKS = 1_100_000, 40_000  # the first is too large to wait in memory
EVENTS = {"open", "os.link", "os.remove", "os.rename", "os.truncate", "os.mkdir", "os.utime"}


class World:
    """What there is to fetch, the same in every process: two files, and a large one in five chunks."""

    def __init__(self) -> None:
        chance = random.Random(7)
        self.fetcher = MemoryFetcher()
        self.contents: dict[LocalName, bytes] = {}
        for size in (5_000, 700_000):
            content = chance.randbytes(size)
            self.contents[self.fetcher.publish(content)] = content
        first, rest = chance.randbytes(FIRST_CHUNK), chance.randbytes(3 * OTHER_CHUNKS + 10)
        self.chunks = self.fetcher.publish_in_chunks(first, FIRST_CHUNK).chunks
        for chunk in self.fetcher.publish_in_chunks(rest, OTHER_CHUNKS).chunks:
            self.chunks.append(chunk._replace(offset=chunk.offset + FIRST_CHUNK))
        self.large = chunked_name(self.chunks, Compression.ZLIB)
        self.contents[self.large] = first + rest

    def work(self, root: Path) -> None:
        """Everything into the cache, out again, and in once more."""
        with Cache(root, fresh_s=NOTHING_FRESH) as cache:
            cache.quota.set_limits(Limits(LIMIT))
            self.fetch(cache)
            cache.quota.sweeper.prune(0)
            self.fetch(cache)

    def fetch(self, cache: Cache) -> None:
        with RepositoryClient("some.example.org", self.fetcher, cache, []) as client:
            for name in self.contents.keys() - {self.large}:
                os.close(client.open_object(object_name(name)))
            with client.open_part(self.chunks, self.large.compression) as part:
                for number in (1, 0, 4, 3, 2):
                    client.fetch_chunks(part, [number])

    def torn(self, root: Path) -> list[str]:
        """What is not as it should be: content, chunks that a map claims, and what the checker says."""
        wrong = []
        for path in (root / "objects").glob("*/*"):
            name = LocalName.parse(str(path.relative_to(root / "objects")))
            if path.read_bytes() != self.contents[name]:
                wrong.append(f"{name} has other content")
        for path in (root / "parts").glob("*.map"):
            marks, content = path.read_bytes(), path.with_suffix("").read_bytes()
            for chunk in [chunk for chunk, mark in zip(self.chunks, marks, strict=False) if mark]:
                range_of = slice(chunk.offset, chunk.offset + chunk.size)
                if content[range_of] != self.contents[self.large][range_of]:
                    wrong.append(f"the chunk at {chunk.offset} is claimed and not there")
        found = [f for f in Verifier(root).verify(take_inventory(root)) if f.verdict is not Verdict.RIGHT]
        return wrong + [f"{finding.item.name}: {finding.reason}" for finding in found]


def killed_at(world: World, root: Path, n: int) -> tuple[int, int]:
    """Work in a child that kills itself at its n-th step on files of the cache; n = 0: at none.

    Returns how it ended, and how many steps it made if it was not killed.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            steps = _Steps(n, os.fspath(root))
            world.work(root)
            os.writev(writer, [b"%d" % steps.seen])
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        seen = int(pipe.read() or b"0")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen


class _Steps:
    """Counts what this process does to files below a directory, by the interpreter's audit events, and each write of
    content before and after it."""

    def __init__(self, last: int, root: str) -> None:
        self.seen = 0
        self._last = last
        self._root = root
        os.pwrite, os.write = self._counted(os.pwrite), self._counted(os.write)
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: Sequence[Any]) -> None:
        paths = [os.fsdecode(value) for value in arguments if isinstance(value, str | bytes | Path)]
        if event == "mmap.__new__" or (event in EVENTS and any(self._root in path for path in paths)):
            self._step()

    def _counted(self, call: Callable[..., int]) -> Callable[..., int]:
        def around(*arguments: Any) -> int:
            self._step()
            done = call(*arguments)
            self._step()
            return done

        return around

    def _step(self) -> None:
        self.seen += 1
        if self.seen == self._last:
            os.kill(os.getpid(), signal.SIGKILL)


def test_killed_anywhere_leaves_nothing_torn(tmp_path: Path) -> None:
    world = World()
    code, total = killed_at(world, tmp_path / "counted", 0)
    assert code == 0
    assert total >= POINTS, f"only {total} points"
    assert world.torn(tmp_path / "counted") == []

    killed = 0
    for n in sorted({1 + number * (total - 1) // (POINTS - 1) for number in range(POINTS)}):
        root, where = tmp_path / f"cache-{n}", f"killed at {n} of {total}"
        code, _ = killed_at(world, root, n)
        killed += code == -signal.SIGKILL
        assert world.torn(root) == [], where
        with Cache(root, fresh_s=NOTHING_FRESH) as cache:
            cache.quota.set_limits(Limits(LIMIT))
            world.fetch(cache)
            assert world.torn(root) == [], f"{where}, and gone on"
            assert {str(path.relative_to(root / "objects")) for path in (root / "objects").glob("*/*")} == {
                str(name) for name in world.contents
            }, f"{where}: something did not get its name"
            subprocess.run(["sync", "-f", root], check=True)  # before, ext4 counts blocks that a file may need besides
            with cache.quota.sweeper.alone():
                cache.quota.sweeper.count()
            assert cache.quota.account() == Account(disk_usage(root), 0, is_counted=True), where
            cache.quota.sweeper.prune(0)
            assert {item.kind for item in take_inventory(root).items} <= {Kind.LIST}, f"{where}: something cannot leave"
    assert killed >= 20
