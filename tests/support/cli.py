"""The real command as a subprocess, with a state directory of the test's own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def sentence(self) -> str:
        """The one sentence of a failure, without its hint. Fails if there is a traceback or no sentence."""
        assert "Traceback" not in self.stderr, self.stderr
        lines = [line for line in self.stderr.splitlines() if line.startswith("mica: ")]
        assert len(lines) == 1, self.stderr
        return lines[0].removeprefix("mica: ")


def mica(
    state: Path,
    *arguments: str | Path,
    stdin: bytes = b"",
    timeout_s: float = 60,
    module: str = "mica",
    **environment: str,
) -> Outcome:
    """`module` instead of the command `mica`; `environment` beside ours."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        env={**os.environ, "MICA_STATE": str(state), **environment},
        timeout=timeout_s,
        check=False,
    )
    return Outcome(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


def docker2cvmfs(state: Path, *arguments: str | Path, **environment: str) -> Outcome:
    return mica(state, *arguments, module="mica.cli.docker2cvmfs", **environment)
