"""The node of a host: containers survive whatever happens to it, and nobody is ever given wrong bytes."""

import ctypes
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.support.cli import mica
from tests.support.nodes import Publication, Published, RunningNode, publish, running_node, served
from tests.support.tools import need_fuse
from tests.support.webserver import Answer

from mica.errors import TemporaryError, UserError
from mica.node.client import open_node

pytestmark = pytest.mark.system

HOT, COLD = 200, 50
FILES: dict[str, bytes | str] = {f"hot/{number}": b"hot %d\n" % number * 50 for number in range(HOT)}
FILES |= {f"cold/{number}": b"cold %d\n" % number * 50 for number in range(COLD)}
LARGE = random.Random(7).randbytes(3 << 20)


@pytest.fixture(scope="module")
def publication(tmp_path_factory: pytest.TempPathFactory) -> Publication:
    need_fuse()
    return publish(tmp_path_factory.mktemp("publication"), FILES, {"large": LARGE, "link": "hot/1"})


@pytest.fixture
def image(publication: Publication) -> Iterator[Published]:
    with served(publication) as image:
        yield image


def read_all(merged: Path, kind: str, count: int) -> None:
    for number in range(count):
        assert (merged / kind / str(number)).read_bytes() == b"%s %d\n" % (kind.encode(), number) * 50


class HotReader:
    """Reads all hot files again and again, in a process of its own; what goes wrong ends it."""

    CODE = """
import sys, os
root = sys.argv[1]
turns = 0
while not os.path.exists(sys.argv[2]):
    for number in range(%d):
        with open(f"{root}/hot/{number}", "rb") as file:
            assert file.read() == b"hot %%d\\n" %% number * 50
    turns += 1
print(turns)
"""

    def __init__(self, merged: Path, flag: Path) -> None:
        self._flag = flag
        command = [sys.executable, "-c", self.CODE % HOT, str(merged), str(flag)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end(self) -> int:
        """How often it read everything."""
        self._flag.touch()
        out, err = self._process.communicate(timeout=30)
        assert self._process.returncode == 0, err
        return int(out)


def test_a_killed_node_is_followed_by_one_that_takes_over(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node, node.union() as merged, ThreadPoolExecutor(COLD) as pool:
        read_all(merged, "hot", HOT)
        reader = HotReader(merged, tmp_path / "flag")
        # Some are on their way when it dies: the kernel has to give them out again.
        image.server.default = Answer(hang_s=0.3)
        with (merged / "large").open("rb") as large:
            assert os.pread(large.fileno(), 10, 0) == LARGE[:10]
            first = [pool.submit((merged / "cold" / str(number)).read_bytes) for number in range(COLD // 2)]
            time.sleep(0.2)
            node.kill()
            second = [pool.submit((merged / "cold" / str(number)).read_bytes) for number in range(COLD // 2, COLD)]
            part = pool.submit(os.pread, large.fileno(), 1 << 20, 2 << 20)
            time.sleep(1)
            assert not any(future.done() for future in second)
            read_all(merged, "hot", HOT)
            node.start()
            for number, future in enumerate([*first, *second]):
                assert future.result(20) == b"cold %d\n" % number * 50
            assert part.result(20) == LARGE[2 << 20 :]
        assert reader.end() > 0


def test_without_a_successor_opens_fail_when_the_deadline_is_over(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image, "deadline_s = 1.0") as node, node.union() as merged:
        read_all(merged, "hot", HOT)
        node.kill()
        with pytest.raises(OSError, match="Input/output error"):
            (merged / "cold/1").read_bytes()
        with pytest.raises(OSError, match="Input/output error"):
            (merged / "cold/2").read_bytes()
        read_all(merged, "hot", HOT)
        node.start()
        read_all(merged, "cold", COLD)


@pytest.mark.parametrize("victim", ["service", "session"])
def test_a_server_that_dies_is_started_anew(image: Published, tmp_path: Path, victim: str) -> None:
    with running_node(tmp_path, image) as node, node.union() as merged, ThreadPoolExecutor(COLD) as pool:
        image.server.default = Answer(hang_s=0.3)
        before = node.servers()
        waiting = [pool.submit((merged / "cold" / str(number)).read_bytes) for number in range(COLD)]
        time.sleep(0.2)
        os.kill(before[victim], signal.SIGKILL)
        for number, future in enumerate(waiting):
            assert future.result(20) == b"cold %d\n" % number * 50
        assert node.servers()[victim] != before[victim]
        assert "is started anew" in node.log.read_text()


def test_an_upgrade_leaves_containers_alone(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node, node.union() as merged:
        read_all(merged, "hot", 10)
        node.terminate()
        read_all(merged, "hot", 10)
        node.start()
        read_all(merged, "hot", HOT)


def test_reads_and_lookups_of_what_is_cached_never_reach_the_node(image: Published, tmp_path: Path) -> None:
    def asked(node: RunningNode) -> dict[str, int]:
        with open_node(node.directory / "service.sock") as connection:
            counts: dict[str, int] = connection.ask("status")["session"]
            return counts

    with running_node(tmp_path, image) as node:
        with node.union(label="first") as merged:
            read_all(merged, "hot", HOT)
            assert (merged / "large").read_bytes() == LARGE
        before = asked(node)
        assert before["lookups"] >= HOT
        with node.union(label="second") as merged:
            read_all(merged, "hot", HOT)
            assert (merged / "large").read_bytes() == LARGE
            assert subprocess.run(["find", merged, "-ls"], check=True, capture_output=True).stdout
        assert asked(node) == before


def test_a_damaged_object_fails_alone(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node, node.union() as merged:
        paths = {path for path in image.server.root.rglob("data/*/*") if path.is_file()}
        requested = set(image.server.requests)
        (merged / "cold/7").read_bytes()
        (path,) = set(image.server.requests) - requested
        assert any(str(found).endswith(path) for found in paths)
    (tmp_path / "other").mkdir()
    with running_node(tmp_path / "other", image) as node, node.union() as merged:
        image.server.answers[path] = Answer(body=b"nonsense")
        with pytest.raises(OSError, match="Input/output error"):
            (merged / "cold/7").read_bytes()
        log = node.log.read_text()
        assert len(log.splitlines()) == 1
        assert "has other content" in log
        assert image.server.host in log
        read_all(merged, "hot", HOT)
        del image.server.answers[path]
        assert (merged / "cold/7").read_bytes() == b"cold 7\n" * 50


def test_a_second_node_in_one_directory_is_refused(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node:
        config = tmp_path / "node.toml"
        done = mica(tmp_path / "none", "node", "--config", config, "--node", node.directory)
        assert done.code == 4
        assert "is in use by another process" in done.sentence


def test_what_a_node_is_not_configured_for_it_refuses(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node, open_node(node.directory / "service.sock") as connection:
        layer = {**image.publication.descriptor["layers"][0], "url": "cvmfs://other.example.org/.layers/x"}
        with pytest.raises(UserError, match=r"not configured for repository other\.example\.org"):
            connection.ask("layers", descriptor={**image.publication.descriptor, "layers": [layer]})
        for descriptor in (None, [], {"version": "9"}, {"version": "1.0", "layers": []}):
            with pytest.raises(UserError, match="The descriptor"):
                connection.ask("layers", descriptor=descriptor)
        with pytest.raises(UserError, match="no operation 'nonsense'"):
            connection.ask("nonsense")
        assert connection.ask("layers", descriptor=image.publication.descriptor)["lower"]


def test_mica_run_uses_the_node(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node:
        done = mica(tmp_path / "runner", "run", "--node", node.directory, image.publication.thin, "/nothing")
        assert done.code == 127, done.stderr
        assert "cache" not in os.listdir(tmp_path / "runner")
        with open_node(node.directory / "service.sock") as connection:
            traffic = connection.ask("status")["repositories"][0]["traffic"]
        assert traffic["requests"] > 0


def test_status_tells_what_is_held_and_how_much_of_it_is_local(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node:

        def told() -> dict[str, Any]:
            done = mica(tmp_path / "none", "status", "--node", node.directory, "--json")
            assert done.code == 0, done.stderr
            document: dict[str, Any] = json.loads(done.stdout)
            return document

        assert told()["images"] == []
        with node.union() as merged:
            size = sum(len(content) for content in FILES.values()) + len(LARGE)
            (held,) = told()["images"]
            assert (held["origin"], held["layers"], held["files"]) == ("test/image:1", 2, HOT + COLD + 1)
            assert (held["size_bytes"], held["local_bytes"], held["local_files"]) == (size, 0, 0)
            read_all(merged, "hot", HOT)
            (held,) = told()["images"]
            assert held["local_files"] == HOT
            assert held["local_bytes"] == size - len(LARGE) - sum(len(FILES[f"cold/{n}"]) for n in range(COLD))
        (facts,) = told()["nodes"]
        assert (facts["method"], facts["files_opened"]) == ("kernel", HOT)
        assert "kernel" in mica(tmp_path / "none", "status", "--node", node.directory).stdout


def test_completion_brings_the_rest_of_an_image_that_is_in_use(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image, "complete_mb_s = 1000") as node, node.union() as merged:
        wanted = HOT + COLD + 1
        deadline = time.monotonic() + 30
        while len(objects(node)) < wanted and time.monotonic() < deadline:
            time.sleep(0.1)
        node.terminate()
        read_all(merged, "cold", COLD)
        assert (merged / "large").read_bytes() == LARGE
        node.start()


def objects(node: RunningNode) -> list[Path]:
    return [path for path in (node.cache / "objects").rglob("*") if path.is_file() and path.stat().st_size < 1 << 22]


def test_two_containers_have_a_file_in_memory_once(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node, node.union(label="one") as one:
        assert (one / "large").read_bytes() == LARGE
        (cached,) = (path for path in (node.cache / "objects").rglob("*.parts") if path.stat().st_size == len(LARGE))
    with (
        running_node(tmp_path, image) as node,
        node.union(label="a") as one,
        node.union(label="b") as two,
        (two / "large").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as second,
        cached.open("rb") as content,
    ):
        os.fsync(content.fileno())
        os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert resident_pages(second) == 0
        assert (one / "large").read_bytes() == LARGE
        assert resident_pages(second) == len(LARGE) // mmap.PAGESIZE


def resident_pages(mapping: mmap.mmap) -> int:
    """How many pages of a mapping are in memory, whoever brought them there (mincore(2))."""
    pages = (ctypes.c_ubyte * (len(mapping) // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    # A read-only mapping gives no buffer to ctypes: its address is looked up.
    address = next(
        int(line.split("-")[0], 16)
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("/large") and "/b/" in line
    )
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapping)), pages) == 0
    return sum(page & 1 for page in pages)


def test_more_layers_than_fit_into_a_page_of_options(tmp_path: Path) -> None:
    need_fuse()
    layers: list[dict[str, bytes | str]] = [{f"layer/{n}": b"%d" % n, "top": b"%d" % n} for n in range(140)]
    with (
        served(publish(tmp_path, *layers)) as image,
        running_node(tmp_path, image) as node,
        node.union(writable=True) as merged,
    ):
        assert sorted(os.listdir(merged / "layer"), key=int) == [str(number) for number in range(140)]
        assert (merged / "top").read_bytes() == b"139"
        assert (merged / "layer/0").read_bytes() == b"0"
        (merged / "layer/70").unlink()
        assert len(os.listdir(merged / "layer")) == 139


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(TemporaryError, match="No node answers"), open_node(tmp_path / "service.sock"):
        pass
    done = mica(tmp_path / "none", "node", "--stop", "--node", tmp_path / "nowhere")
    assert done.code == 1
    assert "There is no node" in done.sentence
