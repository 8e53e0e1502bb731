"""A real S3 server: SeaweedFS, with everything below one directory and on loopback. It ends itself.

    with real_s3(directory) as server:
        storage = server.new_storage()
        options = server.options(WRITER)

`WRITER` may do everything; `READER` may only read; whoever has no key may read too, as web clients of a repository do.
"""

import contextlib
import hashlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from tests.support.s3signature import REGION, Credentials, signed
from tests.support.tools import missing

from mica.store.s3access import S3Options

_START_DEADLINE_S: Final = 90.0
BUCKET: Final = "repositories"


WRITER: Final = Credentials("WRITERKEYID", "the-secret-of-the-writer")
READER: Final = Credentials("READERKEYID", "the-secret-of-the-reader")
_IDENTITIES: Final = {
    "identities": [
        {
            "name": "writer",
            "credentials": [{"accessKey": WRITER.key_id, "secretKey": WRITER.secret}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READER.key_id, "secretKey": READER.secret}],
            "actions": ["Read", "List"],
        },
        {"name": "anonymous", "actions": ["Read"]},
    ]
}

_numbers = itertools.count(1)


class S3Server(NamedTuple):
    """`endpoint` is its URL; `pid` the process. Tests share a bucket, because each bucket takes files of its own."""

    endpoint: str
    pid: int
    directory: Path

    def new_storage(self, name: str = "images.example.org") -> str:
        """Nothing is there yet."""
        return f"s3://{BUCKET}/{next(_numbers)}/{name}"

    def url(self, storage: str) -> str:
        """Where anybody reads it."""
        return f"{self.endpoint}/{storage.removeprefix('s3://')}"

    def make_bucket(self, name: str) -> None:
        host = self.endpoint.partition("//")[2]
        headers = signed(WRITER, "PUT", f"/{name}", host, hashlib.sha256(b"").hexdigest())
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT", headers=headers)
        with urllib.request.urlopen(request, timeout=_START_DEADLINE_S):
            pass

    def options(self, who: Credentials = WRITER, *, endpoint: str | None = None) -> S3Options:
        """Of a client that comes by another URL, such as that of a proxy."""
        file = self.directory / f"credentials-{who.key_id}"
        file.write_text(f"[default]\naws_access_key_id = {who.key_id}\naws_secret_access_key = {who.secret}\n")
        return S3Options(endpoint=endpoint or self.endpoint, region=REGION, credentials=file)


def weed_program() -> str:
    """It comes with the Python package that is named in requirements/dev.in."""
    path = Path(sys.executable).with_name("weed")
    return str(path) if path.exists() else missing("weed is missing: make setup")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One for all tests of a run: each has buckets of its own."""
    with real_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@contextlib.contextmanager
def real_s3(directory: Path) -> Iterator[S3Server]:
    program = weed_program()
    data = directory / "data"
    data.mkdir(parents=True)
    config = directory / "s3.json"
    config.write_text(json.dumps(_IDENTITIES))
    # By default seven volumes are made one after the other before the first object can be written.
    (directory / ".seaweedfs").mkdir()
    (directory / ".seaweedfs" / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
    # Nothing else listens between the choice and the start, but another server of the same kind may: hence the retries.
    for attempt in range(5):
        ports = _free_ports(8)
        with open(directory / f"log-{attempt}", "wb") as log:
            process = subprocess.Popen(
                _command(program, directory, data, config, ports), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={"PATH": os.environ["PATH"], "HOME": str(directory), "GOMAXPROCS": str(os.cpu_count() or 1)},
                start_new_session=True,
            )  # fmt: skip
        try:
            endpoint = f"http://127.0.0.1:{ports[3]}"
            if not _answers(endpoint, process):
                continue
            server = S3Server(endpoint, process.pid, directory)
            server.make_bucket(BUCKET)
            yield server
            return
        finally:
            _end(process)
    raise AssertionError(f"no S3 server: {(directory / f'log-{attempt}').read_text()[-3000:]}")


def _command(program: str, directory: Path, data: Path, config: Path, ports: list[int]) -> list[str]:
    master, volume, filer, s3, *rpc = ports
    return [
        program, "-alsologtostderr=true", "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", f"-master.port.grpc={rpc[0]}", "-master.telemetry=false",
        "-master.volumeSizeLimitMB=1024", "-master.electionTimeout=1s",
        f"-volume.port={volume}", f"-volume.port.grpc={rpc[1]}", "-volume.max=100", "-volume.preStopSeconds=0",
        "-filer", f"-filer.port={filer}", f"-filer.port.grpc={rpc[2]}", f"-filer.localSocket={directory}/filer.sock",
        "-s3", f"-s3.port={s3}", f"-s3.port.grpc={rpc[3]}", f"-s3.config={config}", "-s3.port.iceberg=0",
        "-s3.port.lance=0", "-s3.autoCreateBucket=false", f"-s3.localSocket={directory}/s3.sock",
    ]  # fmt: skip


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _answers(endpoint: str, process: "subprocess.Popen[bytes]") -> bool:
    """It answers at all, and then it can also write: the volumes are known a little later than the gateway."""
    deadline = time.monotonic() + _START_DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{endpoint}/status", timeout=5):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            time.sleep(0.05)
    return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Asked to end it takes ten seconds, and its files are of no use any more."""
    process.kill()
    process.wait()
