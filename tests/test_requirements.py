"""requirements/debian.txt lists what tests, demo and benchmarks ask for, and nothing else."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALWAYS_THERE = {("tar", "tar"), ("cp", "coreutils"), ("setpriv", "util-linux"), ("unshare", "util-linux")}
NOT_BY_NEED = {("python:ensurepip", "python3-venv"), ("lib:libsubid.so.4", "libsubid4")}


def listed() -> set[tuple[str, str]]:
    """Pairs of what shows that a package is there, and the package."""
    lines = (ROOT / "requirements" / "debian.txt").read_text().splitlines()
    return {(line.split()[1], line.split()[0]) for line in lines if line.strip() and not line.startswith("#")}


def needed() -> set[tuple[str, str]]:
    """Pairs of program and package in the calls of `need`."""
    calls = re.compile(r"\bneed\(\"([^\"]+)\", \"([^\"]+)\"\)")
    sources = [path for place in ("tests", "demo", "benchmarks") for path in (ROOT / place).rglob("*.py")]
    return {pair for path in sources for pair in calls.findall(path.read_text("utf-8"))}


def test_what_tests_need_is_what_setup_installs() -> None:
    assert needed() - ALWAYS_THERE == listed() - NOT_BY_NEED


def test_pinned_packages_name_no_index() -> None:
    for path in (ROOT / "requirements").glob("*.lock"):
        text = path.read_text()
        assert "://" not in text, path.name
        assert "--hash=sha256:" in text, path.name
