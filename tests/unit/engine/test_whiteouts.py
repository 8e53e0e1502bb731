"""The signs of both kinds of unions, there and back."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.tools import need_root
from tests.support.uppers import signs

from mica.engine.whiteouts import AufsWhiteouts, OverlayWhiteouts, Whiteouts
from mica.files import owned_fd

__all__ = ["signs"]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    with owned_fd(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        yield fd


def removed(signs: Whiteouts, directory: int) -> list[bytes | None]:
    names = sorted(map(os.fsencode, os.listdir(directory)))
    return [signs.removed_name(name, os.stat(name, dir_fd=directory, follow_symlinks=False)) for name in names]


def test_a_name_is_taken_away_and_given_back(signs: Whiteouts, directory: int) -> None:
    assert not signs.restore(directory, b"gone")
    signs.remove(directory, b"gone")
    assert removed(signs, directory) == [b"gone"]
    assert [signs.meant_name(os.fsencode(name)) for name in os.listdir(directory)] == [b"gone"]
    assert signs.restore(directory, b"gone")
    assert os.listdir(directory) == []


def test_an_entry_is_no_sign(signs: Whiteouts, directory: int) -> None:
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
    assert removed(signs, directory) == [None]
    assert not signs.restore(directory, b"file")
    assert os.listdir(directory) == ["file"]


def test_a_directory_that_hides(signs: Whiteouts, directory: int) -> None:
    assert not signs.hides_below(directory)
    signs.hide_below(directory)
    assert signs.hides_below(directory)
    assert all(signs.is_own(os.fsencode(name)) for name in os.listdir(directory))


def test_what_aufs_keeps_for_itself() -> None:
    signs, status = AufsWhiteouts(), os.lstat(__file__)
    for name in (b".wh..wh..opq", b".wh..wh.aufs", b".wh..wh.plnk", b".wh..wh.orph", b".wh..wh.name.0a1b"):
        assert signs.is_own(name)
        assert signs.removed_name(name, status) is None
    assert not signs.is_own(b".wh.name")


def test_a_device_is_a_sign_for_overlayfs_alone(tmp_path: Path) -> None:
    need_root()
    os.mknod(tmp_path / "device", stat.S_IFCHR, os.makedev(0, 0))
    status = os.lstat(tmp_path / "device")
    assert OverlayWhiteouts().removed_name(b"device", status) == b"device"
    assert AufsWhiteouts().removed_name(b"device", status) is None
