"""External files through the commands and the kernel."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli import mica
from tests.support.externals import add_external
from tests.support.repositories import FQRN, Repository, ingest, make_repository
from tests.support.tars import END, member
from tests.support.tools import need_fuse
from tests.support.webserver import WebServer, serving

from mica import linux

pytestmark = pytest.mark.system
PIECES = bytes(range(256)) * 1024


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = make_repository(tmp_path / "repository")
    ingest(repository, member(b"a/inside", b"x") + END)
    add_external(repository, tmp_path / "data", b"/a/whole", b"whole\n")
    add_external(repository, tmp_path / "data", b"/a/pieces", PIECES, chunk_bytes=65536)
    return repository


@pytest.fixture
def server(repository: Repository, tmp_path: Path) -> Iterator[WebServer]:
    del repository
    with serving(tmp_path / "data") as server:
        yield server


def test_repo_cat(repository: Repository, server: WebServer) -> None:
    state = repository.state
    assert mica(state, "repo", "cat", FQRN, "/a/whole", "--external-url", server.url).stdout == "whole\n"
    elsewhere = {"CVMFS_EXTERNAL_URL": f"http://127.0.0.1:1/;{server.url}"}
    read = mica(state, "repo", "cat", FQRN, "/a/pieces", "--cache", state / "other", **elsewhere)
    assert read.stdout == PIECES.decode("utf-8", "replace")
    through = {"CVMFS_EXTERNAL_HTTP_PROXY": server.url}
    server.requests.clear()
    read = mica(
        state, "repo", "cat", FQRN, "/a/whole", "--cache", state / "third", "--external-url", "http://far.invalid",
        **through,
    )  # fmt: skip
    assert (read.stdout, server.requests) == ("whole\n", ["/a/whole"])
    missing = mica(state, "repo", "cat", FQRN, "/a/whole", "--cache", state / "fourth")
    assert (missing.code, "is an external file" in missing.stderr) == (1, True)
    assert "Give its server with --external-url" in missing.stderr
    assert "external True" in " ".join(mica(state, "repo", "stat", FQRN, "/a/whole").stdout.split())


def test_the_configuration_tells_where_they_are(repository: Repository, server: WebServer, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"""
[repositories."{FQRN}"]
urls = ["{repository.storage}"]
keys = ["{repository.keys}/{FQRN}.pub"]
external_urls = ["{server.url}/@fqrn@/.."]
""")
    (tmp_path / "data" / FQRN).mkdir()
    done = mica(tmp_path / "node", "repo", "cat", FQRN, "/a/whole", "--config", config)
    assert done.stdout == "whole\n"


def test_mounted(repository: Repository, server: WebServer, tmp_path: Path) -> None:
    need_fuse()
    target = tmp_path / "mnt"
    target.mkdir()
    command = [
        sys.executable, "-m", "mica", "mount", FQRN, str(target), "--state", str(repository.state),
        "--external-url", server.url,
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=60)
    try:
        with (target / "a/pieces").open("rb", buffering=0) as file:
            file.seek(70_000)
            assert file.read(10) == PIECES[70_000:70_010]
            assert ("/a/pieces", 65536, 65536) in server.pieces
        assert (target / "a/pieces").read_bytes() == PIECES
        assert (target / "a/whole").read_bytes() == b"whole\n"
        (tmp_path / "data/a/whole").unlink()
        assert (target / "a/whole").read_bytes() == b"whole\n"
    finally:
        linux.umount2(target, linux.MNT_DETACH)
