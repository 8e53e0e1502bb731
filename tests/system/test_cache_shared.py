"""Several processes fill one small cache at once, and some are killed: it never outgrows its quota, nor loses room."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support.caches import NOTHING_FRESH, disk_usage, put

from mica.cache.cache import Cache, set_limits
from mica.cache.inventory import take_inventory
from mica.cache.ledger import Account
from mica.cache.proof import Verdict
from mica.cache.removedfiles import RemovedFiles
from mica.errors import UserError
from mica.fetch.cachecheck import Verifier
from mica.files import locked_in_turn

pytestmark = pytest.mark.system
LIMIT = 2 << 20

# Downloads objects and large files over and over, until it is killed or has done so many; compares what it reads.
CHILD = """
import json, os, random, sys, threading
from pathlib import Path
from tests.support.caches import NOTHING_FRESH
from tests.support.memoryfetcher import MemoryFetcher, object_name
from mica.errors import UserError
from mica.cache.cache import Cache
from mica.fetch.client import RepositoryClient
root, seed, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(5)
fetcher = MemoryFetcher()
contents = [chance.randbytes(chance.choice([100, 5000, 60_000, 200_000])) for _ in range(60)]
names = [fetcher.publish(content) for content in contents]
large = chance.randbytes(500_000)
chunks = fetcher.publish_in_chunks(large, 90_000).chunks
result = {"done": 0, "refused": 0, "wrong": 0}
def work(cache, chance):
    with RepositoryClient("some.example.org", fetcher, cache, []) as client:
        for _ in range(rounds):
            n = chance.randrange(len(names) + 6)
            try:
                if n < len(names):
                    fd = client.open_object(object_name(names[n]))
                    with open(fd, "rb") as file:
                        found = file.read() == contents[n]
                else:
                    with client.open_part(chunks, names[0].compression) as part:
                        offset = chance.randrange(400_000)
                        client.fetch_chunks(part, part.missing(offset, 90_000))
                        found = os.pread(part.fd, 90_000, offset) == large[offset:offset + 90_000]
                result["wrong"] += not found
                result["done"] += 1
            except UserError as error:
                assert "no room" in str(error), error
                result["refused"] += 1
with Cache(root, fresh_s=NOTHING_FRESH) as cache:
    print("ready", flush=True)
    threads = [threading.Thread(target=work, args=(cache, random.Random(seed * 10 + k))) for k in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print(json.dumps(result), flush=True)
"""


def start(root: Path, seed: int, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(root), str(seed), str(rounds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def watch(root: Path, processes: list[subprocess.Popen[str]], until: float = float("inf")) -> int:
    """The most that the cache takes while they run and at the end. Each time it is looked at, nothing leaves: it
    would be counted together with what came instead."""
    most = 0
    is_over = False
    while not is_over:
        is_over = all(process.poll() is not None for process in processes) or time.monotonic() > until
        with locked_in_turn(root / "txn"):
            most = max(most, disk_usage(root))
        time.sleep(0.005)
    return most


def check_settled(root: Path) -> None:
    """Nobody runs any more: the record tells what is there, all of it is right, and all of the room can be had."""
    with Cache(root, fresh_s=NOTHING_FRESH) as cache:
        with cache.quota.sweeper.alone():
            cache.quota.sweeper.count()
        assert cache.quota.account() == Account(disk_usage(root), 0, is_counted=True)
        found = Verifier(root).verify(take_inventory(root))
        assert [finding for finding in found if finding.verdict is not Verdict.RIGHT] == []
        assert RemovedFiles(root).total() == 0
        put(cache, bytes(LIMIT - (64 << 10)))


def test_two_processes_never_outgrow_a_small_quota(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    set_limits(root, LIMIT, None)
    processes = [start(root, seed, 150) for seed in (1, 2)]
    most = watch(root, processes)
    results = [json.loads(process.communicate()[0]) for process in processes]
    assert LIMIT // 2 < most <= LIMIT
    assert sum(result["wrong"] for result in results) == 0
    # Of 900. Six who download at once into two megabytes are refused now and then: all of it is in use.
    assert sum(result["done"] for result in results) > 300
    check_settled(root)


def test_the_quota_holds_when_processes_are_killed(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    set_limits(root, LIMIT, None)
    chance = random.Random(3)
    lasting = start(root, 1, 150)
    most = 0
    for seed in range(2, 8):
        victim = start(root, seed, 100_000)
        most = max(most, watch(root, [victim], time.monotonic() + chance.uniform(0.05, 0.5)))
        os.kill(victim.pid, signal.SIGKILL)
        victim.communicate()
    most = max(most, watch(root, [lasting]))
    result = json.loads(lasting.communicate()[0])
    assert most <= LIMIT
    assert (result["wrong"], result["done"] > 100) == (0, True)
    check_settled(root)


def test_two_caches_of_one_process_are_two_users(tmp_path: Path) -> None:
    """As in a node's service, where each repository has its own."""
    root = tmp_path / "cache"
    set_limits(root, LIMIT, None)
    with Cache(root, fresh_s=NOTHING_FRESH) as one, Cache(root, fresh_s=NOTHING_FRESH) as two:
        with one.quota.reserving(LIMIT // 2), two.quota.reserving(LIMIT // 2), pytest.raises(UserError):
            two.quota.reserving(1)
        time.sleep(1.1)  # nobody looks again for a second
        with two.quota.reserving(LIMIT):
            pass
