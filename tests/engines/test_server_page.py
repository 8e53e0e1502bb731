"""docs/server.md, line by line: from nothing to a node that mounts, with the real nginx on loopback.

Only places change: directories are the test's own, HOST is loopback, the image is a small local one. systemctl and scp
are scripts that do what theirs do to nginx and to a file.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.tools import need, need_fuse
from tests.support.waiting import eventually
from tests.support.webservers import free_port
from tests.unit.oci.samples import make_sample, make_tar, write_layout

pytestmark = pytest.mark.engines
PAGE = Path(__file__).resolve().parents[2] / "docs/server.md"
FQRN = "images.example.org"
SYSTEMCTL = """#!/bin/sh -e
case $1 in
    reload) kill -HUP "$(cat {work}/nginx/nginx.pid)" ;;
    daemon-reload) ;;
    enable) shift 2; for unit; do test -f "{work}/etc/systemd/system/$(echo "$unit" | sed 's/@.*[.]/@./')"; done ;;
    *) exit 1 ;;
esac
"""


def blocks() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)


class Machine:
    """A server and a node in one directory."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.port = free_port()
        self.state = work / "state"
        self.node = work / "node"
        for directory in ("bin", "etc/nginx/conf.d", "node/mnt", "nginx", "server"):
            (work / directory).mkdir(parents=True)
        nginx = need("nginx", "nginx")
        prefix = f"{nginx} -p {work}/nginx -e error.log -c nginx.conf"
        self._script("mica", f'#!/bin/sh\nexec {sys.executable} -m mica "$@"\n')
        self._script("nginx", f'#!/bin/sh\nexec {prefix} "$@"\n')
        self._script("scp", f'#!/bin/sh\ncp "$1" {self.node}\n')
        self._script("systemctl", SYSTEMCTL.format(work=work))
        temporary = "".join(
            f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (work / "nginx/nginx.conf").write_text(
            f"pid nginx.pid; error_log error.log; user root; worker_processes 1; events {{ worker_connections 64; }}"
            f"http {{ access_log off; {temporary} include {work}/etc/nginx/conf.d/*.conf; }}\n"
        )
        write_layout(work / "image", make_sample([make_tar({"etc/name": b"first"})]))

    def _script(self, name: str, text: str) -> None:
        path = self.work / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def placed(self, line: str) -> str:
        for ours, theirs in (
            ("/srv/cvmfs/", f"{self.work}/www/"),
            ("/var/lib/mica", str(self.state)),
            ("http://server.example.org/", f"http://127.0.0.1:{self.port}/"),
            ("--install nginx", f"--install nginx --etc {self.work}/etc"),
            ("docker://debian:12", f"--tag debian:12 oci:{self.work}/image"),
            ("/mnt", f"{self.node}/mnt"),
        ):
            line = line.replace(ours, theirs)
        return line

    def run(self, block: str, cwd: Path, state: Path) -> str:
        """All lines in one shell; what they print."""
        environment = {**os.environ, "PATH": f"{self.work}/bin:{os.environ['PATH']}", "MICA_STATE": str(state)}
        done = subprocess.run(
            ["sh", "-exc", self.placed(block)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def machine() -> Iterator[Machine]:
    need_fuse()
    with tempfile.TemporaryDirectory(prefix="mica-test-") as place:
        machine = Machine(Path(place))
        machine.run("nginx", machine.work, machine.state)
        try:
            yield machine
        finally:
            machine.run("nginx -s stop", machine.work, machine.state)
            assert eventually(lambda: not (machine.work / "nginx/nginx.pid").exists())


def test_every_line_of_the_page(machine: Machine) -> None:
    server, node, *more = blocks()
    machine.run(server, machine.work / "server", machine.state)
    assert machine.run(node, machine.node, machine.work / "node-state").split() != []
    try:
        assert (machine.node / "mnt/.layers").is_dir()
        # The master key is moved away before its part of the page.
        key = f"{FQRN}.masterkey"
        shutil.move(machine.state / "repositories" / FQRN / "keys" / key, machine.work / "server" / key)
        for block in more:
            machine.run(block.replace("--master-key", "--yes --master-key"), machine.work / "server", machine.state)
        machine.run(f"mica repo ls {FQRN} /", machine.work / "server", machine.state)
    finally:
        machine.run("mica umount /mnt", machine.node, machine.work / "node-state")


def test_the_way_to_a_node_has_ten_lines_at_most() -> None:
    server, node, *_ = blocks()
    assert len((server + node).splitlines()) <= 10
