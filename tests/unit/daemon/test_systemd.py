"""What the service manager is told, with a socket in its place."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mica.files import owned_fd
from mica.node.systemd import ServiceManager


@pytest.fixture
def manager_socket(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        yield server, path


def test_without_a_manager_nothing_happens() -> None:
    manager = ServiceManager({})
    assert not manager.notify("READY=1")
    assert not manager.keep_descriptor(0)
    assert manager.kept_descriptor() is None


def test_readiness_is_told(manager_socket: tuple[socket.socket, str]) -> None:
    server, path = manager_socket
    assert ServiceManager({"NOTIFY_SOCKET": path}).notify("READY=1")
    assert server.recv(100) == b"READY=1"


def test_a_descriptor_is_kept_only_where_there_is_a_store(manager_socket: tuple[socket.socket, str]) -> None:
    server, path = manager_socket
    with owned_fd(os.memfd_create("kept")) as fd:
        assert not ServiceManager({"NOTIFY_SOCKET": path}).keep_descriptor(fd)
        assert ServiceManager({"NOTIFY_SOCKET": path, "FDSTORE": "4"}).keep_descriptor(fd)
        message, descriptors, _, _ = socket.recv_fds(server, 100, 1)
        assert message == b"FDSTORE=1\nFDNAME=mica-fuse"
        with owned_fd(descriptors[0]) as copy:
            assert os.fstat(copy).st_ino == os.fstat(fd).st_ino


def test_what_a_predecessor_had_kept_is_found_by_name() -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "other:mica-fuse"}
    assert ServiceManager(environment).kept_descriptor() == 4
    assert ServiceManager(environment | {"LISTEN_PID": "1"}).kept_descriptor() is None
    assert ServiceManager(environment | {"LISTEN_FDNAMES": "other"}).kept_descriptor() is None
