"""The node of a host: containers survive whatever happens to it, and nobody is ever given wrong bytes."""

import contextlib
import ctypes
import errno
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.support.cli import mica
from tests.support.disks import disk_path
from tests.support.nodes import Publication, Published, RunningNode, publish, running_node, served
from tests.support.tools import LINUX, need, need_fuse
from tests.support.waiting import PATIENCE_S, eventually
from tests.support.webserver import Answer

from mica import linux
from mica.daemon.client import open_layers, open_node
from mica.errors import NodeAwayError, NotFoundError, UserError
from mica.files import is_locked
from mica.fuse.session import abort_connection
from mica.providers.node import NodeProvider
from mica.thin.descriptor import parse_descriptor

pytestmark = pytest.mark.system
__all__ = ["disk_path"]

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


class HeldDownloads:
    """From now on a server answers only when it is released."""

    def __init__(self, image: Published) -> None:
        self._server = image.server
        self._before = len(image.server.requests)
        self._released = threading.Event()
        image.server.default = Answer(until=self._released)

    def have_begun(self) -> bool:
        """Whether content was asked for, and so is on its way still."""
        return any("/data/" in path for path in self._server.requests[self._before :])

    def release(self) -> None:
        self._released.set()


GIVES_OUT_AGAIN = LINUX >= (6, 9)
needs_resend = pytest.mark.skipif(not GIVES_OUT_AGAIN, reason="requests are given out again since Linux 6.9")


@needs_resend
def test_a_killed_node_is_followed_by_one_that_takes_over(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node, node.union() as merged, ThreadPoolExecutor(COLD) as pool:
        read_all(merged, "hot", HOT)
        reader = HotReader(merged, tmp_path / "flag")
        with (merged / "large").open("rb") as large:
            assert os.pread(large.fileno(), 10, 0) == LARGE[:10]
            # Some are on their way when it dies: the kernel has to give them out again.
            held = HeldDownloads(image)
            first = [pool.submit((merged / "cold" / str(number)).read_bytes) for number in range(COLD // 2)]
            assert eventually(held.have_begun)
            node.kill()
            second = [pool.submit((merged / "cold" / str(number)).read_bytes) for number in range(COLD // 2, COLD)]
            part = pool.submit(os.pread, large.fileno(), 1 << 20, 2 << 20)
            time.sleep(1)
            assert not any(future.done() for future in second)
            read_all(merged, "hot", HOT)
            held.release()
            node.start()
            for number, future in enumerate([*first, *second]):
                assert future.result(PATIENCE_S) == b"cold %d\n" % number * 50
            assert part.result(PATIENCE_S) == LARGE[2 << 20 :]
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


@pytest.mark.parametrize("victim", ["service", pytest.param("session", marks=needs_resend)])
def test_a_server_that_dies_is_started_again(image: Published, tmp_path: Path, victim: str) -> None:
    with running_node(tmp_path, image) as node, node.union() as merged, ThreadPoolExecutor(COLD) as pool:
        held = HeldDownloads(image)
        before = node.servers()
        waiting = [pool.submit((merged / "cold" / str(number)).read_bytes) for number in range(COLD)]
        assert eventually(held.have_begun)
        os.kill(before[victim], signal.SIGKILL)
        held.release()
        for number, future in enumerate(waiting):
            assert future.result(PATIENCE_S) == b"cold %d\n" % number * 50
        assert node.servers()[victim] != before[victim]
        assert "is started again" in node.log.read_text()


def test_programs_wait_for_the_next_node_where_the_service_dies_just_before_a_planned_end(
    image: Published, tmp_path: Path
) -> None:
    with running_node(tmp_path, image) as node, node.union() as merged, ThreadPoolExecutor(COLD) as pool:
        held = HeldDownloads(image)
        service = node.servers()["service"]
        waiting = [pool.submit((merged / "cold" / str(number)).read_bytes) for number in range(COLD)]
        assert eventually(held.have_begun)
        os.kill(service, signal.SIGKILL)
        os.kill(node.supervisor, signal.SIGTERM)
        held.release()
        node.reap()
        node.start()
        for number, future in enumerate(waiting):
            assert future.result(PATIENCE_S) == b"cold %d\n" % number * 50


def test_a_session_that_dies_while_nobody_waits_is_followed(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node, node.union() as merged:
        read_all(merged, "hot", HOT)
        with (merged / "large").open("rb") as large:
            assert large.read(10) == LARGE[:10]
            before = node.servers()
            os.kill(before["session"], signal.SIGKILL)
            # Before it has ended it can still take a request with it, which older kernels do not give out again.
            assert eventually(lambda: node.servers()["session"] != before["session"])
            assert large.read() == LARGE[10:]
        read_all(merged, "cold", COLD)
        assert node.servers()["session"] != before["session"]


@pytest.mark.skipif(GIVES_OUT_AGAIN, reason="this kernel gives out again what a killed session had taken")
def test_where_requests_are_lost_nobody_waits_for_ever(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node, node.union() as merged, ThreadPoolExecutor(COLD) as pool:
        image.server.default = Answer(hang_s=2.0)
        waiting = [pool.submit((merged / "cold" / str(number)).read_bytes) for number in range(COLD)]
        time.sleep(1)
        os.kill(node.servers()["session"], signal.SIGKILL)
        errors = [future.exception(120) for future in waiting]
        assert any(isinstance(error, OSError) for error in errors)
        assert "requests were lost" in node.log.read_text()


def test_an_upgrade_leaves_containers_alone(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node, node.union() as merged:
        read_all(merged, "hot", 10)
        node.terminate()
        read_all(merged, "hot", 10)
        node.start()
        read_all(merged, "hot", HOT)


def has_told(node: RunningNode, sentence: str, times: int = 1) -> bool:
    return node.log.read_text().count(sentence) == times


def kill_holder(node: RunningNode) -> int:
    holder = node.holder()
    assert holder is not None
    os.kill(holder, signal.SIGKILL)
    return holder


def has_other_holder(node: RunningNode, killed: int) -> bool:
    return node.holder() not in {None, killed}


def has_other_service(node: RunningNode, killed: int) -> bool:
    try:
        return node.servers()["service"] != killed
    except NodeAwayError:
        return False


def test_a_holder_that_dies_is_replaced(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node, node.union() as merged:
        for turn in range(2):
            assert eventually(partial(has_other_holder, node, kill_holder(node)))
            read_all(merged, "cold", 1 + turn)
        assert "the holder of the object filesystem died and is started again" in node.log.read_text()
        node.terminate()
        node.start()
        read_all(merged, "cold", COLD)
        # The one that was taken over is looked after too.
        assert eventually(partial(has_other_holder, node, kill_holder(node)))
        node.kill()
        node.start()
        assert (merged / "large").read_bytes() == LARGE


def force_unmount(objects: Path) -> None:
    linux.umount2(objects, linux.MNT_FORCE | linux.MNT_DETACH)


def abort(objects: Path) -> None:
    device = linux.mounted_device(objects)
    assert device is not None
    abort_connection(device)


@pytest.mark.parametrize("end", [force_unmount, abort])
def test_a_node_whose_file_system_is_gone_says_so_and_the_next_mounts_again(
    image: Published, tmp_path: Path, end: Callable[[Path], None]
) -> None:
    with running_node(tmp_path, image) as node, node.union(label="before") as before:
        read_all(before, "hot", HOT)
        end(node.directory / "objects")
        assert node.wait() == 4
        (sentence,) = (line for line in node.log.read_text().splitlines() if line.startswith("mica: "))
        assert f"The object filesystem on {node.directory / 'objects'} was unmounted or aborted" in sentence
        node.start()
        with node.union(label="after") as after:
            read_all(after, "cold", COLD)
        read_all(before, "hot", HOT)
        with pytest.raises(OSError, match="not connected"):
            (before / "large").read_bytes()


def run_nothing(node: RunningNode, image: Published) -> tuple[int, str]:
    """`mica run` of a program that the image does not have."""
    config = node.directory.parent / "node.toml"
    done = mica(
        node.directory.parent / "run", "run", "--node", node.directory, "--config", config, image.publication.thin, "no"
    )
    return done.code, done.stderr


@pytest.mark.parametrize("end", [force_unmount, abort])
def test_layers_without_their_file_system_are_not_given(
    image: Published, tmp_path: Path, end: Callable[[Path], None]
) -> None:
    """Until the supervisor has seen that it is gone the service still answers."""
    descriptor = parse_descriptor(json.dumps(image.publication.descriptor).encode(), "it")

    def ask() -> None:
        with open_layers(node.directory / "service.sock", descriptor):
            pass

    with running_node(tmp_path, image) as node, ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        with (  # noqa: PT012 - the error is that of the block
            pytest.raises(NodeAwayError, match=f"{node.directory / 'objects'} of the node is not there"),
            NodeProvider(node.directory / "service.sock").layers(descriptor),
        ):
            os.kill(node.supervisor, signal.SIGSTOP)
            stack.callback(os.kill, node.supervisor, signal.SIGCONT)
            end(node.directory / "objects")
            raise UserError("Cannot mount a union.")
        asked = pool.submit(ask)
        wait([asked], timeout=2)
        stack.close()
        assert node.wait() == 4
        with pytest.raises(NodeAwayError, match="No node answers"):
            asked.result()


def test_a_directory_of_another_name(image: Published, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "node").symlink_to("real")
    with running_node(tmp_path, image) as node:
        for turn in range(2):
            os.kill(node.holder() or 0, signal.SIGKILL)  # for which the supervisor looks after its mounts
            assert eventually(partial(has_told, node, "the holder of the object filesystem died", turn + 1))
            with node.union(label=f"union{turn}") as merged:
                read_all(merged, "hot", 10)
        assert "is put back" not in node.log.read_text()
        assert run_nothing(node, image)[0] == 127
        node.stop()
        (tmp_path / "node").unlink()


def test_a_run_waits_for_the_file_system_that_is_put_back(image: Published, tmp_path: Path) -> None:
    need("runc", "runc")
    with running_node(tmp_path, image) as node:
        for _ in range(3):
            linux.umount2(node.directory / "objects", linux.MNT_DETACH)
            code, told = run_nothing(node, image)
            assert code == 127, told


@pytest.mark.parametrize("end", [force_unmount, abort, linux.umount2])
def test_a_file_system_that_went_while_no_node_ran_is_mounted_again(
    image: Published, tmp_path: Path, end: Callable[[Path], None]
) -> None:
    with running_node(tmp_path, image) as node, node.union(label="before") as before:
        read_all(before, "hot", HOT)
        node.terminate()
        end(node.directory / "objects")
        node.start()
        assert "the object filesystem of the last node was unmounted or aborted" in node.log.read_text()
        with node.union(label="after") as after:
            read_all(after, "cold", COLD)
        read_all(before, "hot", HOT)
        node.terminate()
        node.start()


def test_a_file_system_that_is_unmounted_while_it_is_used_is_put_back(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node, node.union(label="before") as before:
        for turn in range(3):
            linux.umount2(node.directory / "objects", linux.MNT_DETACH)
            assert eventually(partial(has_told, node, "was unmounted while it was in use and is put back", turn + 1))
            assert linux.mounted_device(node.directory / "objects") is not None
            with node.union(label=f"after{turn}") as after:
                assert (after / f"cold/{turn}").read_bytes() == b"cold %d\n" % turn * 50
        read_all(before, "cold", COLD)
        node.terminate()
        node.start()
        assert (before / "large").read_bytes() == LARGE


def test_nobody_kept_the_file_system(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node:
        node.kill()
        kill_holder(node)
        node.start()
        assert "no process kept the object filesystem of the last node" in node.log.read_text()
        with node.union() as merged:
            read_all(merged, "cold", COLD)


def test_stopping_undoes_what_servers_that_died_left_mounted(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node:
        with contextlib.ExitStack() as held:
            for _ in range(3):
                client = held.enter_context(open_node(node.directory / "service.sock"))
                assert client.ask("layers", descriptor=image.publication.descriptor)["lower"]
                killed = node.servers()["service"]
                os.kill(killed, signal.SIGKILL)
                assert eventually(partial(has_other_service, node, killed))
        node.stop()
        assert not node.directory.exists()


def test_a_layer_that_somebody_unmounted_is_mounted_again(image: Published, tmp_path: Path) -> None:
    """An empty directory in its place would be a container without files."""
    with running_node(tmp_path, image) as node:
        with open_node(node.directory / "service.sock") as client:
            client.ask("layers", descriptor=image.publication.descriptor)
            for layer in (node.directory / "layers").iterdir():
                linux.umount2(layer, linux.MNT_DETACH)
            with node.union() as merged:
                read_all(merged, "hot", HOT)
                assert (merged / "large").read_bytes() == LARGE
        assert eventually(lambda: not os.listdir(node.directory / "layers"))
        assert node.log.read_text() == ""


def unmounted(path: Path) -> bool:
    try:
        linux.umount2(path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def test_stopping_leaves_a_directory_that_somebody_mounted(image: Published, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    linux.mount("none", tmp_path / "node", "tmpfs")
    try:
        with running_node(tmp_path, image) as node:
            node.stop()
            assert os.listdir(node.directory) == []
            assert eventually(lambda: unmounted(node.directory)), "no process of the node stays in it"
            node.directory.rmdir()
    finally:
        with contextlib.suppress(OSError):
            linux.umount2(tmp_path / "node", linux.MNT_DETACH)


def test_signals_that_all_processes_get_do_no_harm(image: Published, tmp_path: Path) -> None:
    """As a service manager or a batch system sends them: to the whole group at once."""
    with running_node(tmp_path, image) as node, node.union() as merged:
        read_all(merged, "hot", 10)
        before = node.servers()
        for pid in before.values():
            os.kill(pid, signal.SIGTERM)
        read_all(merged, "cold", COLD)
        assert node.servers() == before
        for pid in (*before.values(), node.supervisor):
            os.kill(pid, signal.SIGTERM)
        assert node.wait() == 0
        assert node.log.read_text() == ""
        node.start()
        assert (merged / "large").read_bytes() == LARGE


@pytest.mark.parametrize("delay_s", [0.05, 0.15, 0.25, 0.4, 0.6, 0.8, 1.1])
def test_a_node_can_be_ended_at_any_moment_of_its_start(image: Published, tmp_path: Path, delay_s: float) -> None:
    node = RunningNode(tmp_path, image, "")
    node.launch()
    time.sleep(delay_s)
    node.terminate()
    assert "Traceback" not in node.log.read_text()
    node.start()
    try:
        with node.union() as merged:
            read_all(merged, "cold", 3)
    finally:
        node.stop()


def test_a_node_that_is_killed_as_soon_as_it_is_ready_is_followed(image: Published, tmp_path: Path) -> None:
    """Its first use of its own file system may be under way then, which waits for the next node's answer."""
    with running_node(tmp_path, image) as node:
        for _ in range(12):
            os.kill(node.supervisor, signal.SIGKILL)
            node.reap()
            node.start()
        with node.union() as merged:
            read_all(merged, "cold", 3)


def test_reads_and_lookups_of_what_is_cached_never_reach_the_node(image: Published, tmp_path: Path) -> None:
    def asked(node: RunningNode) -> dict[str, int]:
        with open_node(node.directory / "service.sock") as connection:
            counts: dict[str, int] = connection.ask("status")["session"]
            return counts

    with running_node(tmp_path, image) as node:
        if not node.method.has_data_layers:
            pytest.skip(f"by method {node.method} all content comes through the node")
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
        # By the ordinary methods the kernel tries to read ahead first, and then the page alone.
        assert len(set(log.splitlines())) == 1
        assert "has other content" in log
        assert image.server.host in log
        read_all(merged, "hot", HOT)
        del image.server.answers[path]
        assert (merged / "cold/7").read_bytes() == b"cold 7\n" * 50


def test_status_names_a_node_that_is_gone_and_its_mounts(image: Published, tmp_path: Path) -> None:
    elsewhere = ("status", "--node", tmp_path / "other")

    def facts(*options: str | Path) -> dict[str, Any]:
        nodes = json.loads(mica(tmp_path / "none", *options, "--json").stdout)["nodes"]
        (found,) = (one for one in nodes if one["directory"] == str(node.directory))
        return dict(found)

    with running_node(tmp_path, image) as node, node.union():
        assert facts(*elsewhere)["state"] == "serving"
        pid = node.supervisor
        node.kill()
        # Its checkers of images end with it, a moment later, and have the lock until then.
        assert eventually(lambda: not is_locked(node.directory / "lock"))
        for options in (elsewhere, ("status", "--node", node.directory)):
            found = facts(*options)
            assert (found["state"], found["pid"], found["cache"]) == ("gone", pid, str(node.cache))
            assert found["mounts"] >= 2
        text = mica(tmp_path / "none", *elsewhere).stdout
        assert "its process is gone" in text
        assert f"mica node --stop --node {node.directory}" in text


def test_a_second_node_in_one_directory_is_refused(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node:
        config = tmp_path / "node.toml"
        done = mica(tmp_path / "none", "node", "--config", config, "--node", node.directory)
        assert done.code == 4
        assert done.sentence == f"A node runs in {node.directory} already: process {node.supervisor}."
        assert f"mica node --stop --node {node.directory}" in done.stderr


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


@pytest.mark.parametrize("moment_s", [0.0, 0.15])
def test_a_service_that_dies_while_it_is_asked_is_asked_again(
    image: Published, tmp_path: Path, moment_s: float
) -> None:
    image.server.default = Answer(hang_s=0.3)
    with running_node(tmp_path, image) as node, ThreadPoolExecutor(1) as pool:
        victim = node.servers()["service"]
        command = ("run", "--node", node.directory, image.publication.thin, "/nothing")
        if not moment_s:  # it is away already when it is asked
            os.kill(victim, signal.SIGKILL)
        done = pool.submit(mica, tmp_path / "runner", *command)
        if moment_s:
            assert eventually(lambda: any("cvmfspublished" in path for path in image.server.requests))
            time.sleep(moment_s)
            os.kill(victim, signal.SIGKILL)
        assert done.result().code == 127, done.result().stderr
        # It was the node that served, and no private one.
        assert "cache" not in os.listdir(tmp_path / "runner")


def test_errors_of_the_node_keep_their_class(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node, open_node(node.directory / "service.sock") as connection:
        layer = {**image.publication.descriptor["layers"][0], "url": "cvmfs://node.example.org/.layers/00/00/layerfs"}
        with pytest.raises(NotFoundError):
            connection.ask("layers", descriptor={**image.publication.descriptor, "layers": [layer]})
        os.kill(node.servers()["service"], signal.SIGKILL)
        with pytest.raises(NodeAwayError):
            connection.ask("status")


def test_status_tells_what_is_held_and_how_much_of_it_is_local(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node:

        def told() -> dict[str, Any]:
            done = mica(tmp_path / "none", "status", "--local", "--node", node.directory, "--json")
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
            for options, local in (("--local",), f"{HOT} of {HOT + COLD + 1} files"), ((), "not counted"):
                shown = mica(tmp_path / "none", "status", *options, "--node", node.directory).stdout
                assert f"Image {held['origin']}\n" in shown
                assert local in shown
        document = told()
        (facts,) = document["nodes"]
        assert (facts["method"], facts["files_opened"]) == (node.method, HOT)
        assert str(node.directory) not in str(document["repositories"])
        assert f"method {node.method}" in mica(tmp_path / "none", "status", "--node", node.directory).stdout


def test_completion_brings_the_rest_of_an_image_that_is_in_use(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image, "complete_mb_s = 1000") as node, node.union() as merged:
        assert eventually(lambda: len(objects(node)) >= HOT + COLD + 1)
        needs_node = not node.method.has_data_layers
        node.terminate()
        if needs_node:
            node.start()
        read_all(merged, "cold", COLD)
        assert (merged / "large").read_bytes() == LARGE
        if not needs_node:
            node.start()


def objects(node: RunningNode) -> list[Path]:
    return [path for path in (node.cache / "objects").rglob("*") if path.is_file() and path.stat().st_size < 1 << 22]


def test_two_containers_have_a_file_in_memory_once(image: Published, disk_path: Path) -> None:
    with running_node(disk_path, image) as node, node.union(label="one") as one:
        assert (one / "large").read_bytes() == LARGE
    # The last byte can be read a moment before the file is put among the whole ones: the node's end waits for that.
    (cached,) = (path for path in (node.cache / "objects").rglob("*.parts") if path.stat().st_size == len(LARGE))
    with (
        running_node(disk_path, image) as node,
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
    with pytest.raises(NodeAwayError, match="No node answers"), open_node(tmp_path / "service.sock"):
        pass
    done = mica(tmp_path / "none", "node", "--stop", "--node", tmp_path / "nowhere")
    assert done.code == 1
    assert "There is no node" in done.sentence
