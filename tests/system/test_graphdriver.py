"""The graph driver as a server: what engines never send, what they send after a crash, how it ends."""

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.dockers import add_member
from tests.support.tars import by_tarfile, contents
from tests.support.tools import need_root
from tests.support.waiting import eventually

pytestmark = pytest.mark.system
SERVER = """
import sys
from pathlib import Path
from mica.drivers.docker.driver import DriverSettings
from mica.drivers.docker.server import graph_driver_of
from mica.serverprocess import open_server_process
work = Path(sys.argv[1])
settings = DriverSettings(work / "none", frozenset({"a.example.org"}), work / "cache", work / "state" / "docker.json")
spec = graph_driver_of(settings, work / "driver.sock")
with open_server_process(spec.make(False)) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""
ARCHIVE = by_tarfile(lambda tar: add_member(tar, "file", data=b"content" * 10_000))


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


class Driver:
    def __init__(self, work: Path) -> None:
        self.work = work
        self.home = work / "home"
        self.socket = work / "driver.sock"
        command = [sys.executable, "-c", SERVER, str(work)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.pid = int(self._process.stdout.readline())

    def raw(self, path: str, body: Any = b"", **more: Any) -> tuple[int, bytes]:
        connection = _Connection(self.socket)
        with contextlib.closing(connection):
            connection.request("POST", path, body, **more)
            response = connection.getresponse()
            return response.status, response.read()

    def __call__(self, call: str, **values: Any) -> dict[str, Any]:
        status, data = self.raw(f"/GraphDriver.{call}", json.dumps(values).encode())
        assert status == 200
        found: dict[str, Any] = json.loads(data)
        return found

    def apply(self, layer_id: str, archive: Any) -> dict[str, Any]:
        _, data = self.raw(f"/GraphDriver.ApplyDiff?id={layer_id}&parent=", archive, encode_chunked=True,
                           headers={"Transfer-Encoding": "chunked"})  # fmt: skip
        found: dict[str, Any] = json.loads(data)
        return found

    def end(self, number: int = signal.SIGTERM) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        self._process.communicate(timeout=30)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    need_root()
    return tmp_path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """For what leaves no layer."""
    need_root()
    driver = Driver(tmp_path_factory.mktemp("driver"))
    try:
        assert driver("Init", Home=str(driver.home)) == {}
        yield driver
    finally:
        driver.end()


@pytest.fixture
def driver(work: Path) -> Iterator[Driver]:
    driver = Driver(work)
    try:
        assert driver("Init", Home=str(driver.home)) == {}
        yield driver
        driver("Cleanup")
    finally:
        driver.end()


def test_the_socket_is_for_root_alone(driver: Driver) -> None:
    assert stat.S_IMODE(driver.socket.stat().st_mode) == 0o600
    assert driver.raw("/Plugin.Activate") == (200, b'{"Implements": ["GraphDriver"]}')
    assert driver("Capabilities") == {"Capabilities": {"ReproducesExactDiffs": False}}


def test_a_layer_there_and_back(driver: Driver) -> None:
    assert driver("Create", ID="a", Parent="") == {}
    assert driver.apply("a", [ARCHIVE[i : i + 1000] for i in range(0, len(ARCHIVE), 1000)]) == {"Size": 70_000}
    assert driver("Exists", ID="a") == {"Exists": True}
    assert driver("Exists", ID="b") == {"Exists": False}
    assert driver("DiffSize", ID="a") == {"Size": 70_000}
    status, data = driver.raw("/GraphDriver.Diff", b'{"ID": "a"}')
    assert status == 200
    assert contents(data) == [(b"file", b"content" * 10_000)]
    assert driver("CreateReadWrite", ID="b", Parent="a") == {}
    merged = Path(driver("Get", ID="b")["Dir"])
    (merged / "file").unlink()
    assert driver("Changes", ID="b", Parent="a") == {"Changes": [{"Path": "/file", "Kind": 2}]}
    assert driver("GetMetadata", ID="b")["Metadata"]["MergedDir"] == str(merged)
    assert ["Layers", "2"] in driver("Status")["Status"]
    assert driver("Put", ID="b") == driver("Remove", ID="b") == driver("Remove", ID="a") == {}
    assert [path.name for path in driver.home.iterdir() if path.is_dir()] == []


CALLS = ("Create", "CreateReadWrite", "Get", "Put", "Remove", "Exists", "GetMetadata", "Changes", "DiffSize", "Diff")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b'{"ID": 7}', b'{"ID": "../x"}', b"{}", b"[" * 100_000])
def test_requests_that_make_no_sense(shared: Driver, call: str, body: bytes) -> None:
    status, data = shared.raw(f"/GraphDriver.{call}", body)
    assert status == (500 if call == "Diff" else 200)
    sentence = json.loads(data)["Err"]
    assert sentence.endswith(".")
    assert "mica failed" not in sentence
    assert not list(shared.home.glob("[a-z]*/diff"))


@pytest.mark.parametrize("call", ["Get", "GetMetadata", "Changes", "DiffSize", "Diff", "ApplyDiff?id=unknown&parent="])
def test_ids_that_nobody_made(shared: Driver, call: str) -> None:
    _, data = shared.raw(f"/GraphDriver.{call}", b'{"ID": "unknown"}')
    assert json.loads(data) == {"Err": "There is no layer unknown."}


def test_calls_that_do_harm_to_nobody(driver: Driver) -> None:
    assert driver("Put", ID="unknown") == driver("Remove", ID="unknown") == {}
    driver("Create", ID="a")
    assert driver("Put", ID="a") == {}
    assert driver.raw("/GraphDriver.Nonsense", b"{}")[1] == b'{"Err": "mica knows no call \'/GraphDriver.Nonsense\'."}'
    assert "mica knows no call" in driver.raw("/VolumeDriver.Get", b"{}")[1].decode()
    assert "There is a layer a already" in driver("Create", ID="a")["Err"]


def test_an_archive_that_is_cut(driver: Driver) -> None:
    driver("Create", ID="a")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(driver.socket))
        head = b"POST /GraphDriver.ApplyDiff?id=a&parent= HTTP/1.1\r\nHost:\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + b"1000\r\n" + ARCHIVE[:0x1000] + b"\r\n1000\r\n" + ARCHIVE[0x1000:0x1800])
        connection.shutdown(socket.SHUT_WR)
        reply = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b'{"Err": "The request ended in the middle."}' in reply
    assert driver.apply("a", []) == {
        "Err": "The request is empty, as it is when it is repeated after a lost connection."
    }
    assert os.listdir(driver.home / "a" / "diff") == []
    assert not list(driver.home.glob(".*"))
    assert driver.apply("a", [ARCHIVE]) == {"Size": 70_000}


def test_an_archive_that_is_wrong_is_heard_to_its_end(driver: Driver) -> None:
    driver("Create", ID="a")
    archive = by_tarfile(lambda tar: (add_member(tar, "../x"), add_member(tar, "big", data=bytes(4 << 20))))  # type: ignore[func-returns-value]
    assert "has '..' in its path" in driver.apply("a", io.BytesIO(archive))["Err"]


def test_labels_and_ids_of_users(driver: Driver) -> None:
    maps = [{"container_id": 0, "host_id": 100_000, "size": 65_536}]
    assert "userns-remap" in driver("Init", Home=str(driver.work / "other"), UIDMaps=maps)["Err"]
    driver("Create", ID="a")
    driver("CreateReadWrite", ID="b", Parent="a", MountLabel="system_u:object_r:container_file_t:s0:c1,c2")
    if not Path("/sys/fs/selinux/enforce").exists():
        assert "Cannot mount" in driver("Get", ID="b")["Err"]


def test_nothing_before_the_engine_said_where(work: Path) -> None:
    driver = Driver(work)
    try:
        assert "has to be restarted" in driver("Get", ID="a")["Err"]
        assert "does not say where" in driver("Init", Home="relative")["Err"]
        assert "is no storage option" in driver("Init", Home=str(driver.home), Opts=["x=1"])["Err"]
    finally:
        driver.end()


def test_a_successor_knows_home_and_mounts(work: Path) -> None:
    first = Driver(work)
    first("Init", Home=str(first.home), Opts=["mica.repositories=b.example.org"])
    first("Create", ID="a")
    first.apply("a", [ARCHIVE])
    first("CreateReadWrite", ID="b", Parent="a")
    merged = Path(first("Get", ID="b")["Dir"])
    first.end(signal.SIGKILL)
    second = Driver(work)
    try:
        assert ["Repositories", "b.example.org"] in second("Status")["Status"]
        assert (merged / "file").exists()
        assert second("Get", ID="b")["Dir"] == str(merged)
        second("Put", ID="b")
        assert (merged / "file").exists()
        second("Put", ID="b")
        assert not (merged / "file").exists()
    finally:
        second.end()


def test_killed_at_any_moment_of_filling(work: Path) -> None:
    """Each round is a crash and a new start: before the first byte, and when more and more of the layer has come."""
    names = [str(number) for number in range(3000)]
    big = by_tarfile(lambda tar: [add_member(tar, f"d/{name}", data=bytes(1000)) for name in names])  # type: ignore[func-returns-value]
    for number in range(4):
        driver = Driver(work)
        driver("Init", Home=str(driver.home))
        driver("Create", ID=f"l{number}")
        with contextlib.suppress(OSError, http.client.HTTPException):  # there is no answer
            driver.apply(f"l{number}", _broken_off(driver, big[: len(big) * number // 4]))
    driver = Driver(work)
    try:
        assert not list(driver.home.glob(".*"))
        for number in range(4):
            assert os.listdir(driver.home / f"l{number}" / "diff") == []
            assert driver("Remove", ID=f"l{number}") == {}
    finally:
        driver.end()


def _broken_off(driver: Driver, begin: bytes) -> Iterator[bytes]:
    """The beginning of an archive; when some of it is unpacked the driver is killed."""
    if begin:
        yield begin
        assert eventually(lambda: list(driver.home.rglob("d/*")))
    driver.end(signal.SIGKILL)


def test_it_ends_at_once(work: Path) -> None:
    driver = Driver(work)
    driver("Init", Home=str(driver.home))
    driver.end(signal.SIGTERM)
    assert not driver.socket.exists()


class _DriverAlone(Driver):
    """`mica node` of a host that cannot serve layers."""

    def __init__(self, work: Path) -> None:
        self.home = work / "home"
        self.socket = work / "driver.sock"
        command = [
            sys.executable, "-m", "mica", "node", "--method", "external", "--docker-socket", str(self.socket),
            "--state", str(work / "state"), "--node", str(work / "node"),
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == f"ready {self.socket}, without layers of a node\n".encode()
        self.pid = self._process.pid


def test_a_host_that_serves_no_layers_has_a_driver_even_so(work: Path) -> None:
    """Such as one whose kernel has AUFS and no overlayfs, to whose engine another client gives layers."""
    layer = f'{{"digest": "{"0" * 64}", "url": "cvmfs://a.example.org/layer"}}'
    document = f'{{"version": "1.0", "origin": "x", "layers": [{layer}]}}'.encode()
    thin = by_tarfile(lambda tar: add_member(tar, "thin.json", data=document))
    add_to = work / "cvmfs" / "a.example.org" / "layer"
    add_to.mkdir(parents=True)
    (add_to / "real").touch()
    driver = _DriverAlone(work)
    try:
        assert driver("Init", Home=str(driver.home)) == {}
        assert ["Layers from", "nowhere"] in driver("Status")["Status"]
        driver("Create", ID="ordinary")
        assert driver.apply("ordinary", [ARCHIVE])["Size"] == 70_000
        driver("Create", ID="thin")
        assert driver.apply("thin", [thin])["Err"] == (
            "Layer cvmfs://a.example.org/layer is not available: no node serves layers on this host."
        )
        options = ["mica.method=external", f"mica.external={work / 'cvmfs'}"]
        assert driver("Init", Home=str(driver.home), Opts=options) == {}
        assert driver.apply("thin", [thin])["Size"] == len(document)
        driver("CreateReadWrite", ID="container", Parent="thin")
        assert os.listdir(driver("Get", ID="container")["Dir"]) == ["real"]
        driver("Cleanup")
    finally:
        driver.end()
    assert driver._process.returncode == 0
    assert not (work / "node").exists()
