"""A service that nobody needs ends at once and says nothing, whatever it is at."""

import subprocess
import sys

import pytest

CODE = """
import sys, time
from mica.daemon.earlyservice import EarlyService
with EarlyService() as early:
    time.sleep(float(sys.argv[1]))
early.stop()
print("done")
"""


@pytest.mark.parametrize("pause_s", [0.005, 0.02, 0.04, 0.06, 0.09, 0.12, 0.16, 0.5])
def test_it_is_superfluous_without_a_trace(pause_s: float) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(pause_s)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
