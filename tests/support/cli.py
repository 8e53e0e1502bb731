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


def mica(state: Path, *arguments: str | Path, stdin: bytes = b"", timeout_s: float = 60) -> Outcome:
    environment = {**os.environ, "MICA_STATE": str(state)}
    command = [sys.executable, "-m", "mica", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=timeout_s, check=False)
    return Outcome(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))
