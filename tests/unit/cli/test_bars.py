"""Bars are for terminals, and count as messages do."""

import io
import sys

import pytest

from mica.cli.bars import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("work", 10) as done:
        done(5)
    assert capsys.readouterr() == ("", "")


def test_bar_counts_in_the_units_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with progress("work", 4 << 20) as done:
        done(1 << 20)
        done(3 << 20)
    shown = terminal.getvalue()
    assert "4.0/4.0 MiB" in shown
    assert "iB/s" in shown
    assert " MB" not in shown
