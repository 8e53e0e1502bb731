"""The network that benchmarks measure over: it carries and counts what it should, and nothing of it stays."""

import os
import subprocess
from pathlib import Path

import pytest
from benchmarks.link import Shape, open_link, served_over
from benchmarks.support import FQRN, nginx_command
from tests.support.tools import need, need_root

pytestmark = pytest.mark.system
SHAPES = (Shape(1000), Shape(1000, rtt_ms=2))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_program_at_the_near_end_reads_what_the_far_end_serves(shape: Shape, tmp_path: Path) -> None:
    need_root()
    need("nginx", "nginx")
    content = os.urandom(3_000_000)
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "object").write_bytes(content)
    with served_over(shape, nginx_command(tmp_path, 8080), 8080) as (link, url):
        before = link.received_bytes()
        fetch = "import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(sys.argv[1]).read())"
        command = link.at("client", "python3", "-c", fetch, f"{url}/cvmfs/{FQRN}/object")
        done = subprocess.run(command, capture_output=True, check=True)
        received = link.received_bytes() - before
    assert done.stdout == content
    # Headers of frames of 1500 bytes and less, answers to ARP; never twice the same bytes.
    assert len(content) < received < len(content) * 1.1


def test_nothing_of_a_link_stays() -> None:
    need_root()
    with open_link(Shape(100)) as link:
        inside = subprocess.run(link.at("server", "readlink", "/proc/self/ns/net"), capture_output=True, check=True)
        assert inside.stdout.decode().strip() in _namespaces()
    assert inside.stdout.decode().strip() not in _namespaces()


def _namespaces() -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(os.readlink(path))
        except OSError:
            continue
    return found
