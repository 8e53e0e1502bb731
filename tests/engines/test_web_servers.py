"""The files that `mica server init` writes, in the real nginx and the real Apache; a node reads through them."""

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.cli import mica
from tests.support.noise import noise
from tests.support.repositories import Repository, ingest
from tests.support.seaweed import S3Server, s3_server
from tests.support.tars import END, member
from tests.support.tools import need_fuse, need_root
from tests.support.webservers import WEB_SERVERS, free_port

from mica.digest import Suffix
from mica.repo.manifest import parse_manifest

pytestmark = pytest.mark.engines
__all__ = ["s3_server"]
FQRN = "web-1.example.org"
IMMUTABLE = "max-age=259200, immutable"


class Site(NamedTuple):
    """A repository that is served at the port. `directory` is what init has made; `work` is for servers."""

    work: Path
    state: Path
    storage: Path
    directory: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/cvmfs/{FQRN}"

    def config(self, server: str) -> Path:
        return self.directory / server / f"mica-127.0.0.1-{self.port}.conf"


@pytest.fixture
def work() -> Iterator[Path]:
    """A directory that everybody may read, as a server does that gave up its rights; pytest's own are private."""
    need_root()
    with tempfile.TemporaryDirectory(prefix="mica-test-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture
def site(work: Path) -> Site:
    site = Site(work, work / "state", work / "www dir" / FQRN, work / "state/server", free_port())
    done = mica(site.state, "server", "init", FQRN, "--storage", site.storage, "--url", site.url)
    assert done.code == 0, done.stderr
    keys = site.state / "repositories" / FQRN / "keys"
    ingest(Repository(FQRN, site.state, site.storage, keys), archive())
    return site


def archive() -> bytes:
    return member(b"small", b"hello") + member(b"large", noise(3_000_000)) + END


@pytest.fixture(params=sorted(WEB_SERVERS))
def served(site: Site, request: pytest.FixtureRequest) -> Iterator[Site]:
    with WEB_SERVERS[request.param](site.work / "server", site.config(request.param), site.port):
        yield site


@pytest.fixture(params=sorted(WEB_SERVERS))
def proxied(work: Path, s3_server: S3Server, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A repository in a bucket, through a web server."""
    storage, s3 = s3_server.new_storage(FQRN), s3_server.options()
    site = Site(work, work / "state", work / "none", work / "state/server", free_port())
    done = mica(
        site.state, "server", "init", FQRN, "--storage", storage, "--url", site.url, "--s3-endpoint", s3.endpoint,
        "--s3-region", s3.region, "--s3-credentials", str(s3.credentials),
    )  # fmt: skip
    assert done.code == 0, done.stderr
    (work / "tar").write_bytes(archive())
    done = mica(site.state, "repo", "ingest", FQRN, work / "tar", "/")
    assert done.code == 0, done.stderr
    with WEB_SERVERS[request.param](work / "server", site.config(request.param), site.port):
        yield site


class Got(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@contextlib.contextmanager
def connected(site: Site) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)) as connection:
        yield connection


def get(connection: http.client.HTTPConnection, path: str, method: str = "GET", **headers: str) -> Got:
    connection.request(method, f"/cvmfs/{FQRN}/{path}", headers={n.replace("_", "-"): v for n, v in headers.items()})
    response = connection.getresponse()
    return Got(response.status, response.headers, response.read())


def an_object(site: Site) -> str:
    """The largest."""
    files = [path for path in (site.storage / "data").rglob("*") if path.is_file()]
    return str(max(files, key=lambda path: path.stat().st_size).relative_to(site.storage))


def test_answers_are_as_the_format_wants(served: Site) -> None:
    path = an_object(served)
    content = (served.storage / path).read_bytes()
    with connected(served) as connection:
        whole = get(connection, path, Accept_Encoding="gzip")
        socket = connection.sock
        assert (whole.status, whole.body) == (200, content)
        assert whole.headers["Content-Type"] == "application/octet-stream"
        assert whole.headers["Cache-Control"] == IMMUTABLE
        for pointer in (".cvmfspublished", ".cvmfswhitelist", ".cvmfsreflog", ".cvmfs_master_replica"):
            got = get(connection, pointer, If_Modified_Since="Fri, 01 Jan 2038 00:00:00 GMT")
            assert (got.status, got.body) == (200, (served.storage / pointer).read_bytes()), pointer
            assert got.headers["Content-Type"] == "application/x-cvmfs"
            assert got.headers["Cache-Control"] == "max-age=61"
            for header in ("ETag", "Last-Modified", "Content-Encoding"):
                assert got.headers[header] is None, header
        for header in ("ETag", "Last-Modified", "Content-Encoding"):
            assert whole.headers[header] is None, header
        part = get(connection, path, Range="bytes=1000-1999")
        assert (part.status, part.body) == (206, content[1000:2000])
        assert part.headers["Content-Range"] == f"bytes 1000-1999/{len(content)}"
        head = get(connection, path, "HEAD")
        assert (head.status, head.headers["Content-Length"], head.body) == (200, str(len(content)), b"")
        assert connection.sock is socket, "all of it on one connection"


def test_nothing_else_is_there(served: Site) -> None:
    (served.storage / "data/txn/left").write_bytes(b"half")
    (served.storage / "notes").write_bytes(b"private")
    for path in (
        "", "data", "data/", "data/00/", "data/txn/left", "notes", ".cvmfs", "../../etc/passwd", ".cvmfs/../notes",
        "data/00/../../notes", f"data/00/{'0' * 38}", f"data/00/{'0' * 38}/x", ".cvmfspublished/", "%2e%2e/notes",
    ):  # fmt: skip
        with connected(served) as connection:
            status = get(connection, path).status
        assert status in ({400, 403, 404} if path.startswith(("../", "%2e")) else {400, 404}), path
    for method in ("PUT", "POST", "DELETE"):
        with connected(served) as connection:
            assert get(connection, ".cvmfspublished", method).status in {403, 405}, method
    assert (served.storage / ".cvmfspublished").exists()


def read_by_a_node(site: Site, node: Path) -> None:
    """By the lines that init has printed."""
    shown = mica(site.state, "server", "bundle", FQRN)
    assert shown.code == 0, shown.stderr
    node.mkdir()
    shutil.copy(site.directory / "clients" / f"{FQRN}.tar", node)
    lines = shown.stdout.partition("On a node, at once:\n")[2].partition("\n\n")[0].splitlines()
    (node / "mounted").mkdir()
    script = "\n".join(lines).replace("mica mount", f"{mica_command()} mount").replace("/mnt", f"{node}/mounted")
    subprocess.run(
        ["sh", "-ec", script], cwd=node, check=True, env={**os.environ, "MICA_STATE": f"{node}/state"}, timeout=60
    )
    try:
        assert (node / "mounted/small").read_bytes() == b"hello"
        assert len((node / "mounted/large").read_bytes()) == 3_000_000
    finally:
        assert mica(node / "state", "umount", node / "mounted").code == 0


def mica_command() -> str:
    return f"{sys.executable} -m mica"


def test_a_node_reads_through_it(served: Site, tmp_path: Path) -> None:
    need_fuse()
    read_by_a_node(served, tmp_path / "node")


def test_a_node_reads_a_bucket_through_it(proxied: Site, tmp_path: Path) -> None:
    need_fuse()
    read_by_a_node(proxied, tmp_path / "node")
    with connected(proxied) as connection:
        pointer = get(connection, ".cvmfspublished")
        assert pointer.headers.get_all("Cache-Control") == ["max-age=61"]
        assert pointer.headers.get_all("Content-Type") == ["application/x-cvmfs"]
        catalog = parse_manifest(pointer.body, "it")[0].root_catalog.object_path(Suffix.CATALOG)
        whole = get(connection, catalog)
        part = get(connection, catalog, Range="bytes=100-199")
        assert (part.status, part.body) == (206, whole.body[100:200])
        assert part.headers.get_all("Cache-Control") == [IMMUTABLE]
        assert part.headers.get_all("Content-Type") == ["application/octet-stream"]
        for header in ("ETag", "Last-Modified"):
            assert whole.headers[header] is None, header
        for path in (f"data/00/{'0' * 38}", "data/00/", "", "other"):
            assert get(connection, path).status == 404, path
    done = mica(proxied.state, "server", "status", "--json")
    assert done.code == 0, done.stdout
    assert json.loads(done.stdout)[0]["replicas"][0]["lag_s"] == 0
