"""`mica cache …` and quotas as users meet them: the real commands, a real node."""

import errno
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.caches import disk_usage, put
from tests.support.cli import Outcome, mica
from tests.support.nodes import Published, publish, running_node, served
from tests.support.repositories import FQRN, Repository, ingest, make_repository, read_back
from tests.support.tars import END, member
from tests.support.tools import need_fuse
from tests.support.waiting import eventually

from mica.cache.cache import Cache, set_limits
from mica.cache.ledger import Limits

pytestmark = pytest.mark.system
KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as cache:
        yield cache


def run(cache: Cache, *arguments: str) -> Outcome:
    return mica(cache.root.parent / "state", "cache", *arguments, "--cache", cache.root)


def facts(cache: Cache, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = run(cache, *arguments, "--json")
    assert done.code == code, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def fill(cache: Cache, number: int) -> list[Path]:
    return [
        Path(cache.path(put(cache, b"%06d" % n + bytes(40 * KIB - 6), age_s=86400 * (number - n))))
        for n in range(number)
    ]


def test_a_cache_is_shown(cache: Cache) -> None:
    paths = fill(cache, 3)
    cache.quota.set_limits(Limits(20 << 30, 1 << 30))
    with paths[1].open("rb"):
        shown = facts(cache, "ls")
        table = run(cache, "ls", "--all").stdout
        listed = facts(cache, "ls", "--all")["files"]
    assert (shown["bytes"], shown["quota_bytes"], shown["keep_free_bytes"]) == (120 * KIB, 20 << 30, 1 << 30)
    objects = shown["kinds"]["objects"]
    assert (objects["files"], objects["bytes"], objects["in_use"], objects["in_use_bytes"]) == (
        3,
        120 * KIB,
        1,
        40 * KIB,
    )
    assert objects["oldest"] < objects["newest"]
    assert [f["name"] for f in listed] == [str(path.relative_to(cache.root)) for path in reversed(paths)]
    assert [f["in_use"] for f in listed] == [False, True, False]
    assert "120.0 KiB of 20.0 GiB" in table
    assert all(path.name in table for path in paths)


def test_a_cache_that_is_none(tmp_path: Path) -> None:
    done = mica(tmp_path / "state", "cache", "ls", "--cache", tmp_path)
    assert (done.code, done.sentence) == (1, f"There is no cache in {tmp_path}.")
    assert list(tmp_path.iterdir()) == []


def test_pruning(cache: Cache) -> None:
    paths = fill(cache, 10)
    would = facts(cache, "prune", "--to", "280K", "--dry-run", "--fresh-s", "0")
    assert all(path.exists() for path in paths)
    with paths[0].open("rb"):
        did = facts(cache, "prune", "--to", "280K", "--fresh-s", "0")
    assert [path.exists() for path in paths] == [True] + [False] * 3 + [True] * 6
    assert did["in_use"] == [str(paths[0].relative_to(cache.root))]
    assert (would["removed_bytes"], did["removed_bytes"], did["bytes"]) == (120 * KIB, 120 * KIB, 280 * KIB)
    done = run(cache, "prune", "--older-than", "108h", "--fresh-s", "0")
    assert "removed  2 files, 80.0 KiB" in done.stdout, "the one that was in use counts as used"
    assert [path.exists() for path in paths[6:]] == [True] * 4


def test_pruning_to_the_quota_and_what_cannot_go(cache: Cache) -> None:
    fill(cache, 5)
    done = run(cache, "prune")
    assert (done.code, done.sentence) == (2, "The cache has no quota, so the size to prune to is not known.")
    cache.quota.set_limits(Limits(100 * KIB))
    done = run(cache, "prune", "--fresh-s", "3600")  # a slow machine outlasts the default
    assert (done.code, done.sentence) == (1, "The cache cannot be made as small as that now.")
    assert run(cache, "prune", "--fresh-s", "0").code == 0
    assert disk_usage(cache.root) == 80 * KIB


@pytest.mark.parametrize(
    "arguments", [("prune", "--to", "much"), ("prune", "--older-than", "7"), ("prune", "--to", "1G", "--fresh-s", "x")]
)
def test_wrong_arguments_are_named(cache: Cache, arguments: tuple[str, ...]) -> None:
    done = run(cache, *arguments)
    assert done.code == 2
    assert arguments[-2] in done.stderr
    assert "Traceback" not in done.stderr


def test_verifying_and_repairing(cache: Cache) -> None:
    paths = fill(cache, 4)
    assert facts(cache, "verify") == {"right": 4, "unproven": [], "wrong": [], "repaired": []}
    paths[0].write_bytes(b"short")
    content = bytearray(paths[1].read_bytes())
    content[-1] ^= 1
    paths[1].write_bytes(content)
    done = run(cache, "verify")
    assert done.code == 3
    assert f"wrong: {paths[0].relative_to(cache.root)}: it has 5 bytes and not 40960" in done.stdout
    assert f"unproven: {paths[1].relative_to(cache.root)}" in done.stdout
    repaired = facts(cache, "verify", "--repair", code=3)
    assert repaired["repaired"] == [str(paths[0].relative_to(cache.root))]
    assert [path.exists() for path in paths] == [False, True, True, True]
    assert facts(cache, "verify")["right"] == 2


def test_verifying_against_the_server(tmp_path: Path, cache: Cache) -> None:
    repository = make_repository(tmp_path)
    ingest(repository, b"".join(member(b"f%d" % n, b"content %d" % n) for n in range(5)) + END)
    read_back(repository, cache.root)
    victim = next(path for path in (cache.root / "objects").rglob("*") if path.is_file() and path.stat().st_size < 50)
    victim.write_bytes(victim.read_bytes()[::-1])
    state = repository.state
    offline = mica(state, "cache", "verify", "--cache", cache.root)
    assert (offline.code, f"unproven: {victim.relative_to(cache.root)}" in offline.stdout) == (0, True)
    settled = mica(state, "cache", "verify", "--fetch", "--repair", "--cache", cache.root)
    assert (settled.code, f"wrong: {victim.relative_to(cache.root)}" in settled.stdout) == (3, True)
    assert not victim.exists()
    assert mica(state, "cache", "verify", "--fetch", "--cache", cache.root).code == 0


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = make_repository(tmp_path)
    files = {f"f{number}".encode(): random.Random(number).randbytes(50 * KIB) for number in range(12)}
    ingest(repository, b"".join(member(name, content) for name, content in files.items()) + END)
    return repository


def test_a_quota_given_to_a_command_stays_in_force(repository: Repository, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert mica(repository.state, "repo", "ls", FQRN, "--cache", cache, "--quota", "40M").code == 0
    with Cache(cache) as opened:
        assert opened.quota.limits == Limits(40 * MIB)
    assert mica(repository.state, "repo", "cat", FQRN, "/f1", "--cache", cache).code == 0
    with Cache(cache) as opened:
        assert opened.quota.account().taken == disk_usage(cache) > 50 * KIB
    set_limits(cache, 40 * KIB, None)
    done = mica(repository.state, "repo", "cat", FQRN, "/f2", "--cache", cache)
    assert done.code == 1
    assert "There is no room for 4.0 KiB" in done.stderr
    assert "KiB of its 40.0 KiB are in use" in done.stderr
    assert "mica cache prune --quota 20G" in done.stderr
    assert mica(repository.state, "repo", "cat", FQRN, "/f2", "--cache", cache, "--quota", "none").code == 0
    done = mica(repository.state, "repo", "ls", FQRN, "--cache", cache, "--quota", "lots")
    assert (done.code, done.sentence) == (2, "--quota: 'lots' is not a size, such as 20G or 500M.")
    done = mica(repository.state, "repo", "ls", FQRN, "--cache", cache, "--quota", "1K")
    assert (done.code, "'1K' is too small for a cache: it needs at least 32.0 MiB" in done.stderr) == (2, True)


def test_pruning_with_a_quota_puts_it_in_force(cache: Cache) -> None:
    paths = fill(cache, 4)
    cache.quota.set_limits(Limits(100 * KIB))
    assert facts(cache, "prune", "--quota", "40M", "--dry-run")["removed_bytes"] == 0
    assert cache.quota.limits == Limits(100 * KIB)
    assert run(cache, "prune", "--quota", "40M").code == 0
    assert cache.quota.limits == Limits(40 * MIB)
    assert run(cache, "prune", "--quota", "none").code == 0
    assert cache.quota.limits == Limits()
    assert all(path.exists() for path in paths)
    assert run(cache, "prune", "--quota", "1K").code == 2


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    need_fuse()
    chance = random.Random(1)
    files = {f"f{number}": chance.randbytes(300 * KIB) for number in range(16)}
    files["large"] = chance.randbytes(5 * MIB)
    with served(publish(tmp_path_factory.mktemp("image"), files)) as image:
        yield image


def test_a_node_keeps_its_quota_while_containers_read(image: Published, tmp_path: Path) -> None:
    """More than the quota is read, twice; what is open all the time stays readable; what does not fit is an error."""
    set_limits(tmp_path / "cache", 3 * MIB, None)
    with running_node(tmp_path, image) as node, node.union() as merged:
        with (merged / "f0").open("rb") as kept:
            content = {}
            for turn in range(2):
                for number in range(1, 16):
                    found = (merged / f"f{number}").read_bytes()
                    assert content.setdefault(number, found) == found, f"turn {turn}"
                    assert disk_usage(node.cache) <= 3 * MIB
            assert len(kept.read()) == 300 * KIB
        with pytest.raises(OSError) as error:
            (merged / "large").read_bytes()
        assert error.value.errno == errno.EIO
        assert disk_usage(node.cache) <= 3 * MIB
    log = node.log.read_text()
    # f0 and the image are in use: they may leave no room for what alone would fit.
    assert "The rest of a file of 5.0 MiB cannot be read" in log or "There is no room for" in log
    with Cache(node.cache) as cache:
        assert facts(cache, "verify")["wrong"] == []


def test_nobody_is_in_use_when_nothing_runs(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node, node.union() as merged:
        for path in merged.iterdir():
            path.read_bytes()
        with Cache(node.cache) as cache, (merged / "f3").open("rb"):
            shown = facts(cache, "ls")["kinds"]
            assert shown["images"]["in_use"] >= 1, "it is mounted"
            assert shown["objects"]["in_use"] >= 1
    with Cache(node.cache) as cache:
        assert eventually(lambda: not sum(kind["in_use"] for kind in facts(cache, "ls")["kinds"].values()))
        facts(cache, "prune", "--to", "0", "--fresh-s", "0")
        assert disk_usage(cache.root) == 0
        assert os.listdir(cache.root / "images") == []


@pytest.mark.parametrize("method", ["ordinary", "ordinary-loop"])
def test_what_a_union_remembers_of_an_object_filesystem_leaves_too(tmp_path: Path, method: str) -> None:
    """Without data-only layers a union remembers files of the object filesystem, and these keep content in use."""
    need_fuse()
    chance = random.Random(2)
    files = {f"file{number}": chance.randbytes(300 * KIB) for number in range(16)}
    (tmp_path / "image").mkdir()
    set_limits(tmp_path / "cache", 3 * MIB, None)
    with (
        served(publish(tmp_path / "image", files)) as image,
        running_node(tmp_path, image, f"method = '{method}'") as node,
        node.union() as merged,
    ):
        for name in [*files, *files]:
            assert (merged / name).read_bytes() == files[name]
            assert disk_usage(node.cache) <= 3 * MIB
