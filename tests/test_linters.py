"""Linters are tests: the same everywhere. Under CI a missing tool is a failure, elsewhere a skip."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.tools import missing

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("src", "tests", "demo", "benchmarks", "docs")


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("ruff", ["check", *PLACES]),
        ("ruff", ["format", "--check", *PLACES]),
        ("mypy", ["src/mica"]),
    ],
    ids=["ruff check", "ruff format", "mypy"],
)
def test_linter_has_no_complaint(tool: str, arguments: list[str]) -> None:
    if importlib.util.find_spec(tool) is None:
        missing(f"{tool} is missing: make setup")
    done = subprocess.run([sys.executable, "-m", tool, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
