"""`mica status` in words: it fits a terminal, and one thing does not run into the next."""

import sys
from pathlib import Path

import pytest

from mica.cli import status
from mica.cli.main import run_command
from mica.cli.statussections import Section, Thing

THINGS = [Thing("Node /run/mica", {"process": "1, method kernel", "server": "", "cache": "/c\x1b[2J"}), Thing("B", {})]


@pytest.fixture
def sections(monkeypatch: pytest.MonkeyPatch) -> list[Section]:
    sections: list[Section] = []
    monkeypatch.setattr(status, "providers", lambda node, state, count: [lambda directory: sections])
    return sections


def test_a_few_lines_for_each_thing(sections: list[Section], capsys: pytest.CaptureFixture[str]) -> None:
    sections += [Section("nodes", THINGS, [{"a": 1}]), Section("images", [], [])]
    assert run_command(["status"]) == 0
    assert capsys.readouterr().out == "Node /run/mica\n  process  1, method kernel\n  cache    /c\\x1b[2J\n\nB\n"
    assert run_command(["status", "--json"]) == 0
    assert capsys.readouterr().out == '{\n "nodes": [\n  {\n   "a": 1\n  }\n ],\n "images": []\n}\n'


def test_nothing_at_all(
    sections: list[Section], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run_command(["status"]) == 0
    assert capsys.readouterr().out == "Nothing is mounted, and no container runs.\n"
    assert run_command(["status", str(tmp_path)]) == 1
    assert "is in no mounted repository" in capsys.readouterr().err


def test_a_quick_answer_needs_no_library_that_is_slow_to_import() -> None:
    """A table takes 60 ms, signatures and connections a quarter of a second: neither is needed to say what is there."""
    import subprocess

    program = """
import sys
from pathlib import Path
from mica.cli.main import run_command
run_command(["status", "--node", "/nonexistent"])
print(sorted(sys.modules.keys() & {"rich", "cryptography", "urllib3", "mica.fetch.client", "sqlite3"}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
