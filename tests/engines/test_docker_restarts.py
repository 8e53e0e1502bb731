"""Engine and driver end and come back, politely or not, and what was there goes on."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.dockers import Host, add_member, base_layers, image_archive, running_host, short_directory
from tests.support.noise import noise
from tests.support.tars import by_tarfile
from tests.support.tools import need, need_root
from tests.support.waiting import eventually

pytestmark = pytest.mark.engines
ORDINARY, THIN = "base/ordinary:1", "base/thin:1"


@pytest.fixture
def work() -> Iterator[Path]:
    need_root()
    with short_directory() as work:
        yield work


def load(host: Host) -> None:
    host.docker("load", stdin=image_archive(base_layers(), ORDINARY))
    archive = host.docker.work / "thin.tar"
    copy = [
        need("skopeo", "skopeo"),
        "copy",
        "--quiet",
        host.image.publication.thin,
        f"docker-archive:{archive}:{THIN}",
    ]
    subprocess.run(copy, check=True, capture_output=True)
    host.docker("load", "--input", archive)


def start_counter(host: Host, image: str, name: str) -> None:
    loop = "i=0; while true; do i=$((i+1)); echo $i > /counter; cat /data/3 > /dev/null || exit 3; sleep 0.05; done"
    host.docker("run", "-d", "--name", name, "--network", "none", image, "sh", "-c", loop)
    # The engine does not wait for the program's first steps.
    assert eventually(lambda: host.docker.raw("exec", name, "cat", "/counter").stdout != b"")


def counts_on(host: Host, name: str) -> bool:
    """Whether the container still runs, reads and writes."""
    state = host.docker.inspect(name, "{{json .State}}")
    assert '"Running":true' in state, state + host.node.log.read_text()
    first = host.docker("exec", name, "cat", "/counter")
    return eventually(lambda: host.docker("exec", name, "cat", "/counter") != first)


def kill_driver(host: Host) -> None:
    """And wait until another one answers."""
    before = host.node.servers()["driver"]
    os.kill(before, signal.SIGKILL)
    assert eventually(lambda: host.node.servers().get("driver", before) != before)


def mounts_of(host: Host) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    home = str(host.docker.data / host.plugin.stem)
    return [line for line in lines if line.split(" ")[4].startswith(home)]


def test_the_engine_restarts_and_its_containers_come_back(work: Path) -> None:
    with running_host(work) as host:
        load(host)
        for image, name in ((ORDINARY, "one"), (THIN, "two")):
            start_counter(host, image, name)
            host.docker("exec", name, "sh", "-c", "echo kept > /kept; rm /data/1")
        for number in (signal.SIGTERM, signal.SIGKILL):
            host.docker.restart(number)
            for name in ("one", "two"):
                if host.docker.inspect(name, "{{.State.Running}}") == "false":
                    host.docker("start", name)
                assert counts_on(host, name)
                assert host.docker("exec", name, "sh", "-c", "cat /kept; ls /data/1 2>/dev/null; true") == "kept"
        host.docker("rm", "-f", "one", "two")
        assert mounts_of(host) == []


def test_live_restore_leaves_containers_running(work: Path) -> None:
    with running_host(work, "--live-restore") as host:
        load(host)
        for image, name in ((ORDINARY, "one"), (THIN, "two")):
            start_counter(host, image, name)
        pids = [host.docker.inspect(name, "{{.State.Pid}}") for name in ("one", "two")]
        for number in (signal.SIGTERM, signal.SIGKILL):
            host.docker.restart(number)
            assert [host.docker.inspect(name, "{{.State.Pid}}") for name in ("one", "two")] == pids
            for name in ("one", "two"):
                assert counts_on(host, name)
                assert Path(host.docker.inspect(name, "{{.GraphDriver.Data.MergedDir}}"), "counter").exists()
        host.docker("rm", "-f", "one", "two")
        assert mounts_of(host) == []


def test_a_killed_driver_is_followed_by_one_that_goes_on(work: Path) -> None:
    with running_host(work) as host:
        load(host)
        for image, name in ((ORDINARY, "one"), (THIN, "two")):
            start_counter(host, image, name)
        kill_driver(host)
        for image, name in ((ORDINARY, "one"), (THIN, "two")):
            assert counts_on(host, name)
            assert host.docker.run(image, "cat", "/data/1") == "replaced"
            host.docker("cp", f"{name}:/data/3", host.docker.work / name)
            host.docker("commit", name, f"{name}:1")
            assert host.docker.run(f"{name}:1", "cat", "/data/1") == "replaced"
            host.docker("rm", "-f", name)
            host.docker("rmi", f"{name}:1")
        assert mounts_of(host) == []


def test_the_whole_node_is_killed_and_comes_back(work: Path) -> None:
    with running_host(work) as host:
        load(host)
        start_counter(host, THIN, "one")
        host.node.kill()
        host.node.start()
        assert counts_on(host, "one")
        assert host.docker.run(THIN, "cat", "/data/4", "/data/1").endswith("replaced")
        host.docker("rm", "-f", "one")
        assert mounts_of(host) == []


def new_image() -> bytes:
    """One whose layers no engine has seen."""
    content = noise(4 << 20)
    return image_archive([by_tarfile(lambda tar: add_member(tar, "big", data=content))], "loaded:1")


BUSY = {
    "load": lambda host, image: host.docker.raw("load", stdin=new_image()),
    "run": lambda host, image: host.docker.raw("run", "--rm", "--network", "none", image, "sh", "-c", "echo 1 > /x"),
    "commit": lambda host, image: host.docker.raw("commit", "busy", "busy:1"),
    "export": lambda host, image: host.docker.raw("export", "busy"),
    "save": lambda host, image: host.docker.raw("save", image),
    "diff": lambda host, image: host.docker.raw("diff", "busy"),
    "build": lambda host, image: host.docker.raw(
        "build", "--no-cache", "--network", "none", "-", stdin=f"FROM {image}\nRUN echo 1 > /1\nRUN rm /1\n".encode()
    ),
}


@pytest.mark.parametrize("image", [ORDINARY, THIN], ids=["ordinary", "thin"])
def test_the_driver_dies_in_the_middle_of_everything(work: Path, image: str) -> None:
    """Whatever fails says so, nothing is half there afterwards, and the same thing succeeds then."""
    with running_host(work) as host:
        load(host)
        start_counter(host, image, "busy")
        for name, call in BUSY.items():
            for delay_s in (0.05, 0.2):
                done: list[subprocess.CompletedProcess[bytes]] = []
                thread = threading.Thread(target=lambda call=call, done=done: done.append(call(host, image)))
                thread.start()
                time.sleep(delay_s)
                kill_driver(host)
                thread.join()
                assert not done[0].returncode or done[0].stderr, name
            again = call(host, image)
            assert again.returncode == 0, (name, again.stderr)
        assert counts_on(host, "busy")
        host.docker("rm", "-f", "busy")
        # What the engine was not told of goes with the images that it was made on.
        for container in host.docker("ps", "-aq").split():
            host.docker("rm", container)
        host.docker("system", "prune", "--force", "--all")
        home = host.docker.data / host.plugin.stem
        assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []
        assert [path for path in home.iterdir() if (path / "diff" / "bin").exists()] == []
        assert mounts_of(host) == []
