"""Somebody removes the cache under programs that use it: those that run may get errors, new ones do not."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli import mica
from tests.support.dockers import base_layers
from tests.support.nodes import FQRN, Published, publish_tars, running_node, served
from tests.support.tools import need, need_fuse
from tests.support.waiting import eventually
from tests.unit.oci.samples import make_tar

from mica.cache.shown import ShownNames

pytestmark = pytest.mark.system
LARGE = random.Random(3).randbytes(3 << 20)
FILES = {f"few/{number}": b"content %d\n" % number for number in range(9)} | {"large": LARGE}
TOLD = "the cache was removed while it is used"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    need_fuse()
    with served(publish_tars(tmp_path_factory.mktemp("published"), [*base_layers(), make_tar(FILES)])) as image:
        yield image


def read_or_fail(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def test_a_node_goes_on(image: Published, tmp_path: Path) -> None:
    with running_node(tmp_path, image) as node, node.union(label="before") as before:
        assert (before / "few/0").read_bytes() == FILES["few/0"]
        with (before / "few/0").open("rb") as small, (before / "large").open("rb", buffering=0) as large:
            assert large.read(10) == LARGE[:10]
            shutil.rmtree(node.cache)
            assert small.read() == FILES["few/0"]
            assert read_or_fail(before / "few/1") in {None, FILES["few/1"]}
            with node.union(label="after") as after:
                for name, content in FILES.items():
                    assert (after / name).read_bytes() == content
                with (after / "large").open("rb"), ShownNames(node.cache) as shown:
                    assert eventually(lambda: bool(shown.names())), "what is open is known"
                assert large.read(10) == LARGE[10:20]
            assert eventually(lambda: "its journal begins again" in node.log.read_text())
        done = mica(tmp_path / "state", "run", "--node", node.directory, image.publication.thin, "cat", "/few/5")
        assert (done.code, done.stdout) == (0, "content 5\n"), done.stderr
        # The successor finds what its predecessor's unions show.
        node.kill()
        node.start()
        with node.union(label="later") as later:
            assert (later / "large").read_bytes() == LARGE
        assert TOLD in node.log.read_text()
        assert "Traceback" not in node.log.read_text()
        assert "the journal of open files is missing" not in node.log.read_text()


def test_a_mounted_repository_goes_on(image: Published, tmp_path: Path) -> None:
    target, cache, state = tmp_path / "mounted", tmp_path / "cache", tmp_path / "state"
    target.mkdir()
    places = ("--url", image.url, "--key", image.publication.key, "--cache", cache)
    assert mica(state, "mount", FQRN, target, *places).code == 0
    try:
        (layer,) = (target / ".layers").glob("*/*/layerfs/few")
        assert (layer / "0").read_bytes() == FILES["few/0"]
        shutil.rmtree(cache)
        for name, content in FILES.items():
            assert (layer.parent / name).read_bytes() == content
    finally:
        assert mica(state, "umount", target).code == 0
    assert TOLD in (state / "log" / f"mount-{FQRN}.log").read_text()


def test_a_run_without_a_node_goes_on(image: Published, tmp_path: Path) -> None:
    """Its program gets errors, not less than all without one; the next run has all of it."""
    need("runc", "runc")
    places = ["--url", image.url, "--key", str(image.publication.key), "--cache", str(tmp_path / "cache")]
    # The shell itself has to be there whole: where the kernel maps it from the cache's server, a page is lost with it.
    script = (
        "cat /bin/busybox >/dev/null; dd if=/large bs=1000 count=1 2>/dev/null | wc -c; read line; "
        "cat /large >/dev/null || echo failed"
    )
    command = [sys.executable, "-m", "mica", "run", "-i", *places, image.publication.thin, "sh", "-c", script]
    environment = {**os.environ, "MICA_STATE": str(tmp_path / "state")}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "1000\n"
        shutil.rmtree(tmp_path / "cache")
        out, told = program.communicate("go on\n")
    assert (program.returncode, out) == (0, "failed\n")
    assert "mica: ERROR: The chunk list" in told
    assert "Traceback" not in told
    done = mica(tmp_path / "state", "run", *places, image.publication.thin, "sh", "-c", "cat /few/* /large | wc -c")
    assert (done.code, done.stdout) == (0, f"{sum(map(len, FILES.values()))}\n"), done.stderr
