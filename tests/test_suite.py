"""What `conftest.py` promises about the suite itself."""

import re
import signal
import subprocess
import sys
from pathlib import Path

ENDING = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)


def test_what_a_test_starts_can_be_interrupted() -> None:
    status = subprocess.run(["cat", "/proc/self/status"], check=True, capture_output=True, text=True).stdout
    (ignored,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn:"))
    assert [number.name for number in ENDING if ignored >> (number - 1) & 1] == []


def test_that_is_so_in_the_background_too() -> None:
    """As a shell script starts what ends with `&`, and nohup all it starts."""
    ignoring = ["env", f"--ignore-signal={','.join(number.name[3:] for number in ENDING)}"]
    suite = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    name = f"{Path(__file__)}::{test_what_a_test_starts_can_be_interrupted.__name__}"
    done = subprocess.run([*ignoring, *suite, name], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stdout


def test_content_is_the_same_in_every_run() -> None:
    """A failure that depends on random bytes would not come back: `support/noise.py` makes them from a test's name."""
    chance = re.compile(r"urandom\(|random\.Random\(\)|[^_a-z.]random\.(random|rand[a-z]+|choice|shuffle)\(")
    here = Path(__file__).parent
    files = [path for path in here.rglob("*.py") if path.name not in {"noise.py", Path(__file__).name}]
    assert len(files) > 100
    assert [str(path.relative_to(here)) for path in files if chance.search(path.read_text())] == []
