"""Values of options."""

import os
from pathlib import Path

import pytest

from mica.cli.options import default_state, repository_path
from mica.errors import UserError


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", b""),
        ("/", b""),
        (".", b""),
        ("a", b"/a"),
        ("/a/b", b"/a/b"),
        ("//a///b//", b"/a/b"),
        ("./a/./b/.", b"/a/b"),
        ("/...", b"/..."),
        ("/a b\n", b"/a b\n"),
        ("/ü", "/ü".encode()),
        (os.fsdecode(b"/\xff"), b"/\xff"),
    ],
)
def test_paths_in_a_repository(text: str, path: bytes) -> None:
    assert repository_path(text) == path


@pytest.mark.parametrize("text", ["..", "/..", "/a/../b", "a/..", "../../etc"])
def test_paths_with_parents_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"has '\.\.' in it"):
        repository_path(text)


def test_state_of_root_and_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_state() == Path("/var/lib/mica")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_state() == tmp_path / "mica"
    monkeypatch.setenv("XDG_DATA_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_state() == tmp_path / ".local/share/mica"
