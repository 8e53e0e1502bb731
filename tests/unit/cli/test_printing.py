"""What is printed can control no terminal, and nothing is cut where no terminal is."""

import json
from pathlib import Path

import pytest

from mica.cli.printing import print_facts, print_json, print_table, show_error, writable
from mica.errors import UserError


def test_errors_are_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(UserError("'a\nb' is \x1b[31mwrong.", hint="Do\nthis."))
    assert capsys.readouterr().err == "mica: 'a\\x0ab' is \\x1b[31mwrong.\n      Do\\x0athis.\n"
    show_error(UserError("It is wrong."))
    assert capsys.readouterr().err == "mica: It is wrong.\n"


def test_facts_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts({"a": 1, "longer": "x\ny\x1b[0m"})
    assert capsys.readouterr().out == "a       1\nlonger  x\\x0ay\\x1b[0m\n"
    print_facts({})
    assert not capsys.readouterr().out


def test_table_in_a_pipe_cuts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    long = "[bold]" + "x" * 5000
    print_table(("name", "size"), [(long, 1), ("\x1b[2J", 2)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "x" in line] == [[long, "1"], ["\\x1b[2J", "2"]]


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"ü": ["\x1b"]})
    out = capsys.readouterr().out
    assert json.loads(out) == {"ü": ["\x1b"]}
    assert "\x1b" not in out


def test_places_to_write_are_judged_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert writable(Path("stats.json")) == tmp_path / "stats.json"
    with pytest.raises(UserError, match="is not a directory"):
        writable(tmp_path / "missing" / "stats.json")
