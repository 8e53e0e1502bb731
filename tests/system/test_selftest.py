"""The self-test of the kernel: what it says of a method is what a run by that method finds."""

import contextlib
import io
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from tests.support.cli import mica
from tests.support.nodes import Publication, publish_tars
from tests.support.tars import by_tarfile
from tests.support.tools import need, need_fuse
from tests.support.waiting import eventually
from tests.unit.oci.samples import make_tar

from mica.dataplane.keptfacts import kernel_facts
from mica.dataplane.kernelfacts import KernelFacts
from mica.layers.stack import Method

pytestmark = pytest.mark.system
IMAGES = [method for method in Method if method.uses_images]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> KernelFacts:
    need_fuse()
    place = tmp_path_factory.mktemp("facts")
    return kernel_facts(place / "cache", place / "kernel.json")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Publication:
    """Busybox, and a layer that the image has twice."""
    need_fuse()
    busybox = Path(need("busybox", "busybox-static")).read_bytes()

    def shell(archive: tarfile.TarFile) -> None:
        member = tarfile.TarInfo("bin/sh")
        member.size, member.mode = len(busybox), 0o755
        archive.addfile(member, io.BytesIO(busybox))

    twice = make_tar({"twice": b"2\n"})
    layers = [by_tarfile(shell), twice, make_tar({"x": b"1\n"}), twice]
    return publish_tars(tmp_path_factory.mktemp("image"), layers)


def test_something_works(facts: KernelFacts) -> None:
    assert facts.best.uses_images, facts.against


def test_only_old_kernels_are_called_old(facts: KernelFacts) -> None:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert found
    reasons = " ".join(facts.against.values())
    needed = {int(number) for number in re.findall(r"needs Linux 6\.(\d+)", reasons)}
    assert all((int(found[1]), int(found[2])) < (6, minor) for minor in needed)
    assert facts.resends == ((int(found[1]), int(found[2])) >= (6, 9))


@pytest.mark.parametrize("method", IMAGES)
def test_a_method_runs_containers_where_the_test_says_so(
    facts: KernelFacts, published: Publication, tmp_path: Path, method: Method
) -> None:
    need("runc", "runc")
    options = ("--method", method.value, "--cache", str(tmp_path / "cache"))
    script = "read x < /x; read y < /twice; echo $x $y"
    done = mica(published.state, "run", *options, published.thin, "/bin/sh", "-c", script)
    if facts.reason_against(method) and method is not Method.ORDINARY:
        assert done.code == 1
        assert f"cannot mount by method '{method}'" in done.stderr
    else:
        assert (done.code, done.stdout.strip()) == (0, "1 2"), done.stderr


@pytest.mark.parametrize("delay_s", [0.15 + 0.02 * number for number in range(12)])
def test_a_self_test_that_is_killed_leaves_no_process(tmp_path: Path, delay_s: float) -> None:
    """What waits for an answer of a file system that its own process serves cannot be killed."""
    need_fuse()
    command = [sys.executable, "-m", "mica", "doctor", "--state", os.fspath(tmp_path / "state")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(delay_s)
    process.kill()
    process.wait()
    mark = os.fsencode(tmp_path)

    def nobody_is_left() -> bool:
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "cmdline").read_bytes():
                    return False
        return True

    assert eventually(nobody_is_left)
