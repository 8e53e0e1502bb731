"""requirements/debian.txt lists what tests, demo and benchmarks ask for, and nothing else."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALWAYS_THERE = {("tar", "tar"), ("cp", "coreutils"), ("setpriv", "util-linux"), ("unshare", "util-linux")}
NOT_BY_NEED = {
    ("initdb|lib:15/bin/initdb|lib:17/bin/initdb", "postgresql-15|postgresql-17"),  # out of the path: support/queues.py
    ("lib:libpq.so.5", "libpq5"),  # initdb's
    ("python:ensurepip", "python3-venv"),
    ("lib:libsubid.so.4|lib:libsubid.so.5", "libsubid4|libsubid5"),  # podman's
    ("lib:libglib-2.0.so.0", "libglib2.0-0|libglib2.0-0t64"),  # conmon's
}
FOR_KERNELS = {("qemu-system-x86_64", "qemu-system-x86"), ("depmod", "kmod"), ("mkfs.ext4", "e2fsprogs")}


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
    assert needed() - ALWAYS_THERE == listed() - NOT_BY_NEED - FOR_KERNELS


def test_pinned_packages_name_no_index() -> None:
    for path in (ROOT / "requirements").glob("*.lock"):
        text = path.read_text()
        assert "://" not in text, path.name
        assert "--hash=sha256:" in text, path.name
