"""Sockets for one user, whatever the length of their path."""

import os
import stat
from pathlib import Path

import pytest

from mica.dataplane.sockets import connect, listening


def test_a_message_passes_at_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    path = directory / "service.sock"
    with listening(path) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with connect(path) as here, server.accept()[0] as there:
            here.send(b"one")
            here.send(b"two")
            assert [there.recv(100), there.recv(100)] == [b"one", b"two"]
    assert os.listdir(directory) == []


def test_what_a_killed_predecessor_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with listening(path, is_kept=True):
        pass
    assert path.exists()
    with pytest.raises(ConnectionRefusedError):
        connect(path)
    with listening(path) as server, connect(path), server.accept()[0]:
        pass


def test_the_socket_of_a_successor_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with listening(path, is_kept=True), listening(path, is_kept=True) as successor:
        inode = path.stat().st_ino
        with connect(path), successor.accept()[0]:
            pass
    assert path.stat().st_ino == inode


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect(tmp_path / "sock")
