"""What the kernel uses of a cache by itself stays, through real unions, mappings, programs and mounted images; and what
it only remembers is let go."""

import contextlib
import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.caches import NOTHING_FRESH, disk_usage, let_age, put
from tests.support.cli import mica
from tests.support.disks import disk_path
from tests.support.imagetrees import CHUNK_LISTS, everything
from tests.support.metadirs import make_metadata_directory
from tests.support.noise import noise
from tests.support.repositories import FQRN, ingest, make_repository
from tests.support.tars import END, member
from tests.support.tools import LINUX, need_fuse, need_linux, need_root
from tests.support.waiting import eventually

from mica import linux
from mica.cache.cache import Cache
from mica.cache.eviction import Taken
from mica.cache.inventory import Item, Kind, take_inventory
from mica.cache.ledger import Limits
from mica.cache.overlays import let_go
from mica.cache.removedfiles import RemovedFiles
from mica.cache.remover import Remover
from mica.cache.shown import ShownNames
from mica.dataplane.erofsmount import mount_image
from mica.errors import UserError
from mica.metaimage.writer import write_image
from mica.publish.rules import ObjectRules
from mica.repo.cutting import ChunkRule
from mica.repo.localname import LocalName
from mica.union.overlay import OverlayOptions, open_overlay, plan_overlay

pytestmark = pytest.mark.system
__all__ = ["disk_path"]
KIB = 1 << 10


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    need_root()
    with Cache(tmp_path / "cache", fresh_s=NOTHING_FRESH) as cache:
        yield cache


@contextlib.contextmanager
def union(cache: Cache, work: Path, files: dict[str, LocalName], *, writable: bool = False) -> Iterator[Path]:
    """Files whose content is in the cache and nowhere else."""
    need_linux(6, 5, "data-only layers")
    lower = make_metadata_directory(work / "meta", files)
    for name in ("merged", "upper", "work"):
        (work / name).mkdir()
    scratch = (work / "upper", work / "work") if writable else (None, None)
    options = OverlayOptions(data=(cache.root / "objects",))
    with open_overlay(plan_overlay([lower], *scratch, work / "merged", options)) as merged:
        yield merged


def the_item(cache: Cache, name: LocalName) -> Item:
    (item,) = [item for item in take_inventory(cache.root).items if item.name == f"objects/{name}"]
    return item


def take(cache: Cache, name: LocalName) -> Taken:
    return Remover(cache.root, ShownNames(cache.root), RemovedFiles(cache.root)).take(the_item(cache, name))


def soon(cache: Cache, name: LocalName, taken: Taken) -> bool:
    """Whether it comes to that: the kernel closes files a moment after a program has ended."""
    return eventually(lambda: take(cache, name) is taken)


@pytest.fixture
def cache_on_disk(disk_path: Path) -> Iterator[Cache]:
    with Cache(disk_path / "cache-on-disk", fresh_s=NOTHING_FRESH) as cache:
        yield cache


def test_what_is_open_in_a_union_stays(cache: Cache, tmp_path: Path) -> None:
    name = put(cache, b"x" * 5000)
    with union(cache, tmp_path, {"file": name}) as merged:
        (merged / "file").stat()
        with (merged / "file").open("rb"):
            assert take(cache, name) is Taken.IN_USE
        (merged / "file").read_bytes()
        let_go(cache.root)
        assert soon(cache, name, Taken.FREED)
        with pytest.raises(FileNotFoundError):
            (merged / "file").read_bytes()


def test_what_is_mapped_stays(cache: Cache, tmp_path: Path) -> None:
    name = put(cache, b"x" * 5000)
    with union(cache, tmp_path, {"file": name}) as merged:
        with (merged / "file").open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert take(cache, name) is Taken.IN_USE
        assert mapping[:3] == b"xxx"
        mapping.close()
        let_go(cache.root)
        assert soon(cache, name, Taken.FREED)


def test_a_running_program_stays(cache: Cache, tmp_path: Path) -> None:
    name = put(cache, Path(shutil.which("sleep") or "/bin/sleep").read_bytes())
    with union(cache, tmp_path, {"sleep": name}) as merged:
        (tmp_path / "meta/sleep").chmod(0o755)
        program = subprocess.Popen([merged / "sleep", "60"])
        try:
            assert take(cache, name) is Taken.IN_USE
        finally:
            program.kill()
            program.wait()
        let_go(cache.root)
        assert soon(cache, name, Taken.FREED)


def test_a_mounted_image_stays(cache_on_disk: Cache, tmp_path: Path) -> None:
    """From a file: the kernel does that on a disk, and not on a tmpfs."""
    cache = cache_on_disk
    image = cache.root / "images/one"
    with image.open("wb") as file:
        write_image(everything(), file, CHUNK_LISTS)
    target = tmp_path / "mounted"
    target.mkdir()
    mount_image(image, target, by_loop=LINUX < (6, 12))
    remover = Remover(cache.root, ShownNames(cache.root), RemovedFiles(cache.root))
    (item,) = take_inventory(cache.root).items
    try:
        assert remover.take(item) is Taken.IN_USE
    finally:
        linux.umount2(target)
    assert remover.take(item) is Taken.FREED


def test_a_file_that_the_kernel_reads_for_a_mounted_repository_stays(cache: Cache, tmp_path: Path) -> None:
    """By passthrough where that works, else because its server has it open."""
    need_fuse()
    rules = ObjectRules(chunking=ChunkRule(1 << 20, 1 << 21, 1 << 22))
    repository = make_repository(tmp_path, rules=rules)
    ingest(repository, member(b"file", noise(300_000)) + END)
    target = tmp_path / "mounted"
    target.mkdir()
    assert mica(repository.state, "mount", FQRN, target, "--cache", cache.root).code == 0
    try:
        with (target / "file").open("rb") as file:
            file.read(1)
            (item,) = [item for item in take_inventory(cache.root).items if item.name.endswith(".300000")]
            remover = Remover(cache.root, ShownNames(cache.root), RemovedFiles(cache.root))
            assert remover.take(item) is Taken.IN_USE
            assert len(file.read()) == 299_999
    finally:
        assert mica(repository.state, "umount", target).code == 0


def test_what_a_union_remembers_holds_its_space_until_it_is_let_go(cache: Cache, tmp_path: Path) -> None:
    """The reason for `let_go`: nobody has the file open, and still removing it frees nothing."""
    name = put(cache, b"x" * 50_000)
    held = RemovedFiles(cache.root)
    with union(cache, tmp_path, {"file": name}, writable=True) as merged:
        (merged / "file").read_bytes()
        assert soon(cache, name, Taken.HELD)
        assert held.total() == 52 * KIB
        assert (merged / "file").read_bytes() == b"x" * 50_000, "the union goes on with what it remembers"
        assert let_go(cache.root) == 1
        assert held.total() == 0
        assert (cache.root / "held").read_text() == ""


@pytest.mark.parametrize("writable", [False, True])
def test_letting_go_harms_nobody_who_reads(cache: Cache, tmp_path: Path, writable: bool) -> None:
    names = {f"f{number}": put(cache, b"%d" % number) for number in range(20)}
    with union(cache, tmp_path, names, writable=writable) as merged:
        if writable:
            (merged / "f3").write_bytes(b"written")
        opened = [(merged / name).open("rb") for name in names]
        for _ in range(3):
            assert let_go(cache.root) == 1
        contents = [file.read() for file in opened]
        for file in opened:
            file.close()
        assert contents == [b"written" if writable and n == 3 else b"%d" % n for n in range(20)]
        assert (merged / "f4").read_bytes() == b"4"


def test_a_union_over_another_cache_is_left_alone(cache: Cache, tmp_path: Path) -> None:
    name = put(cache, b"x")
    with union(cache, tmp_path, {"file": name}), Cache(tmp_path / "cache" / "objects-of-another") as other:
        assert let_go(other.root) == 0
        assert let_go(tmp_path) == 0


CONTAINER = """
import os, sys, time
from mica import linux
linux.unshare(linux.CLONE_NEWNS)
linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
merged, options, is_root = sys.argv[1:]
linux.mount("overlay", merged, "overlay", data=options)
if is_root == "yes":
    os.chroot(merged)
    merged = "/"
open(f"{merged}/file", "rb").read()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("is_root", [True, False])
def test_a_container_s_root_is_reached_and_nothing_else_of_it(cache: Cache, tmp_path: Path, is_root: bool) -> None:
    """A path in a mount namespace of somebody else may lead anywhere."""
    need_linux(6, 5, "data-only layers")
    name = put(cache, b"x")
    lower = make_metadata_directory(tmp_path / "meta", {"file": name})
    (tmp_path / "merged").mkdir()
    options = f"metacopy=on,redirect_dir=follow,lowerdir={lower}::{cache.root}/objects"
    command = [sys.executable, "-c", CONTAINER, str(tmp_path / "merged"), options, "yes" if is_root else "no"]
    container = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert container.stdout is not None
        assert container.stdout.readline() == b"ready\n"
        assert let_go(cache.root) == int(is_root)
        assert soon(cache, name, Taken.FREED if is_root else Taken.HELD)
    finally:
        os.kill(container.pid, signal.SIGKILL)
        container.communicate()
    assert RemovedFiles(cache.root).total() == 0


def test_a_quota_with_running_containers(cache: Cache, tmp_path: Path) -> None:
    """A union has read everything, and has some of it open: exactly that stays, and the space of the rest is there."""
    names = {f"f{number}": put(cache, b"%03d" % number * (20 * KIB), age_s=1000 - number) for number in range(10)}
    cache.quota.set_limits(Limits(600 * KIB))
    with union(cache, tmp_path, names) as merged:
        for name in names:
            (merged / name).read_bytes()
        with (merged / "f0").open("rb") as first, (merged / "f1").open("rb") as second:
            put(cache, bytes(400 * KIB))
            assert disk_usage(cache.root) <= 600 * KIB
            assert RemovedFiles(cache.root).total() == 0
            assert os.path.exists(cache.path(names["f0"]))
            assert os.path.exists(cache.path(names["f1"]))
            with pytest.raises(UserError, match="There is no room"):
                cache.quota.reserving(560 * KIB)
            assert first.read() == b"000" * (20 * KIB)
            assert second.read() == b"001" * (20 * KIB)


def test_what_the_kernel_read_lately_has_a_second_chance(cache_on_disk: Cache, tmp_path: Path) -> None:
    cache = cache_on_disk
    names = {f"f{number}": put(cache, b"%03d" % number * (20 * KIB), age_s=1000 - number) for number in range(10)}
    cache.quota.set_limits(Limits(600 * KIB))
    for name in names.values():
        let_age(Path(cache.path(name)), 500)
    with union(cache, tmp_path, names) as merged:
        (merged / "f0").read_bytes()
        let_go(cache.root)
        put(cache, bytes(100 * KIB))
        assert os.path.exists(cache.path(names["f0"])), "read by the kernel, which nobody was told"
        assert len(take_inventory(cache.root).items) < 11
        assert Kind.OBJECT in {item.kind for item in take_inventory(cache.root).items}
