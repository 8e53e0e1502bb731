"""Commands that run until a signal comes end by it in good order, at once and with exit code 0."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.cli import mica
from tests.support.tools import need_fuse
from tests.support.waiting import PATIENCE_S, eventually

from mica import linux

pytestmark = pytest.mark.system
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
FQRN = "ending.example.org"
RECIPE = f"""\
version: 1
user: ""
cvmfs_repo: {FQRN}
output_format: ""
input: [nonsense]
"""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("ending")
    assert mica(base / "state", "repo", "create", FQRN, "--storage", base / "storage").code == 0
    (base / "recipe.yaml").write_text(RECIPE)
    (base / "portal.toml").write_text(f"[portal]\nrepository = '{FQRN}'\nallow = ['*']\nlisten = '127.0.0.1:0'\n")
    return base / "state"


def start(state: Path, *arguments: str | Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "MICA_STATE": str(state)}
    command = [sys.executable, "-m", "mica", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


@BOTH
@pytest.mark.parametrize("command", ["serve", "portal"])
def test_servers(state: Path, command: str, number: signal.Signals) -> None:
    arguments = {
        "serve": ["repo", "serve", FQRN, "--listen", "127.0.0.1:0"],
        "portal": ["portal", "--config", str(state.parent / "portal.toml")],
    }[command]
    with start(state, *arguments) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, errors) == (0, "")


@BOTH
def test_a_loop(state: Path, number: signal.Signals) -> None:
    with start(state, "sync", "--loop", "--json", state.parent / "recipe.yaml") as process:
        assert process.stdout is not None
        while process.stdout.readline() != "}\n":
            assert process.poll() is None, process.communicate()
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, errors) == (0, "")


@BOTH
def test_a_mount(state: Path, tmp_path: Path, number: signal.Signals) -> None:
    need_fuse()
    target, stats = tmp_path / "mnt", tmp_path / "stats"
    target.mkdir()
    with start(state, "mount", "-f", FQRN, target, "--stats", stats, "--cache", tmp_path / "cache") as process:
        assert eventually(lambda: linux.mounted_device(target) is not None)
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, errors) == (0, "")
    assert linux.mounted_device(target) is None
    assert stats.exists()
