"""A tree with everything in it, archived, published, served, mounted: the same entry by entry, byte by byte."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.tools import need, need_fuse
from tests.support.trees import archive, differences, make_everything, snapshot

from mica import linux

pytestmark = pytest.mark.system
FQRN = "everything.example.org"


def mica(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "mica", *arguments], env={**os.environ, "MICA_STATE": str(state)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(params=["sha1", "rmd160", "shake128"])
def published(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """State directory of a repository whose objects use one of the three algorithms."""
    need_fuse()
    options = ["--hash", request.param, "--compression", "none" if request.param == "rmd160" else "zlib"]
    mica(tmp_path / "state", "repo", "create", FQRN, "--storage", str(tmp_path / "storage"), *options)
    return tmp_path / "state"


def mounted_snapshot(state: Path, target: Path, below: bytes) -> dict:
    """What the kernel shows of a path in the mounted repository."""
    target.mkdir()
    mica(state, "mount", FQRN, str(target))
    try:
        return snapshot(os.fsencode(target) + below)
    finally:
        linux.umount2(target, linux.MNT_DETACH)


def test_everything_comes_back(published: Path, tmp_path: Path) -> None:
    make_everything(tmp_path / "tree")
    archive(tmp_path / "tree", tmp_path / "tree.tar")
    mica(published, "repo", "ingest", FQRN, str(tmp_path / "tree.tar"), "/data")
    mica(published, "repo", "check", FQRN, "--hash")
    expected = snapshot(os.fsencode(tmp_path / "tree"))
    found = mounted_snapshot(published, tmp_path / "mnt", b"/data")
    assert differences(expected, found) == []
    assert len(found) > 100


def test_sparse_archives_of_gnu_tar_come_back(published: Path, tmp_path: Path) -> None:
    tar = need("tar", "tar")
    make_everything(tmp_path / "tree")
    files = ["plain/sparse", "plain/chunked", "plain/empty", "links/a", "links/b"]
    subprocess.run(
        [tar, "--format=pax", "--sparse", "-cf", tmp_path / "sparse.tar", "-C", tmp_path / "tree", *files], check=True
    )
    mica(published, "repo", "ingest", FQRN, str(tmp_path / "sparse.tar"), "/data", "--catalog")
    expected = snapshot(os.fsencode(tmp_path / "tree"))
    found = mounted_snapshot(published, tmp_path / "mnt", b"/data")
    for name in (f"/{file}".encode() for file in files):
        assert (found[name].sha256, found[name].mtime_ns) == (expected[name].sha256, expected[name].mtime_ns), name


def test_what_the_format_cannot_hold_is_listed(published: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "one").mkdir(parents=True)
    (tree / "two").mkdir()
    (tree / "one/file").write_text("x")
    os.link(tree / "one/file", tree / "two/file")
    os.setxattr(tree / "one/file", "user.long", b"v" * 300)
    archive(tree, tmp_path / "tree.tar")
    done = mica(published, "repo", "ingest", FQRN, str(tmp_path / "tree.tar"), "/data", "--json")
    import json

    facts = json.loads(done.stdout)
    assert facts["split_hardlinks"]["total"] == 1
    assert facts["dropped_xattrs"]["items"] == []
    found = mounted_snapshot(published, tmp_path / "mnt", b"/data")
    assert found[b"/one/file"].sha256 == found[b"/two/file"].sha256
    assert found[b"/one/file"].links == (b"/one/file",)
    assert (b"user.long", b"v" * 300) in found[b"/one/file"].xattrs
