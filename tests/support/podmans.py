"""A Podman of the test's own: nothing of it is where another one would look."""

import contextlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.tools import need, need_root

LIBRARIES = Path(__file__).resolve().parents[2] / "build/debian/usr/lib/x86_64-linux-gnu"


class Podman:
    """Pulls, and tells what it has."""

    def __init__(self, work: Path, run_directory: Path) -> None:
        need("conmon", "conmon")
        policy = work / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self._policy = f"--signature-policy={policy}"
        places = [f"--root={work}/podman", f"--runroot={run_directory}/run", f"--tmpdir={run_directory}/tmp"]
        options = ["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=none"]
        self._command = [need("podman", "podman"), *places, f"--runtime={need('runc', 'runc')}", *options]

    def __call__(self, *arguments: str) -> str:
        """Standard output of a command that has to succeed."""
        environment = {**os.environ, "LD_LIBRARY_PATH": str(LIBRARIES)}
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, timeout=120, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tried(self, image: str, **environment: str) -> list[str]:
        """The full names by which it looks for an image that it does not get; nothing where it refuses to look."""
        libraries = {"LD_LIBRARY_PATH": str(LIBRARIES)}
        done = subprocess.run(
            [*self._command, "pull", self._policy, image],
            capture_output=True, text=True, timeout=120, env={**os.environ, **libraries, **environment}, check=False,
        )  # fmt: skip
        assert done.returncode != 0, done.stdout
        return re.findall(r"^Trying to pull (\S+)\.\.\.$", done.stderr, re.MULTILINE)

    def pull(self, image: str, *options: str) -> dict[str, Any]:
        """What it then says of the image."""
        self("pull", "--tls-verify=false", self._policy, *options, image)
        (told,) = json.loads(self("image", "inspect", image))
        return dict(told)


@contextlib.contextmanager
def podman_in(work: Path) -> Iterator[Podman]:
    """Its images are gone at the end."""
    need_root()
    with tempfile.TemporaryDirectory(prefix="pod-") as short:  # podman takes no more than 50 characters
        podman = Podman(work, Path(short))
        try:
            yield podman
        finally:
            podman("rmi", "--all", "--force")
