"""What the service manager is told, with a socket in its place."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mica.daemon.systemd import ServiceManager
from mica.files import owned_fd


@pytest.fixture
def manager_socket(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        yield server, path


def test_without_a_manager_nothing_happens() -> None:
    manager = ServiceManager({})
    assert not manager.notify("READY=1")
    assert not manager.keep_descriptors(0, 1)
    assert manager.kept_descriptor() is None


def test_readiness_is_told(manager_socket: tuple[socket.socket, str]) -> None:
    server, path = manager_socket
    assert ServiceManager({"NOTIFY_SOCKET": path}).notify("READY=1")
    assert server.recv(100) == b"READY=1"


def test_descriptors_are_kept_only_where_there_is_a_store_for_both(manager_socket: tuple[socket.socket, str]) -> None:
    server, path = manager_socket
    with owned_fd(os.memfd_create("fuse")) as fuse_fd, owned_fd(os.memfd_create("journal")) as journal_fd:
        for most in ({}, {"FDSTORE": "1"}, {"FDSTORE": "many"}):
            assert not ServiceManager({"NOTIFY_SOCKET": path} | most).keep_descriptors(fuse_fd, journal_fd)
        assert ServiceManager({"NOTIFY_SOCKET": path, "FDSTORE": "4"}).keep_descriptors(fuse_fd, journal_fd)
        for fd, name in ((journal_fd, b"mica-journal"), (fuse_fd, b"mica-fuse")):
            message, descriptors, _, _ = socket.recv_fds(server, 100, 1)
            assert message == b"FDSTORE=1\nFDNAME=" + name
            with owned_fd(descriptors[0]) as copy:
                assert os.fstat(copy).st_ino == os.fstat(fd).st_ino


def test_descriptors_that_are_of_no_use_any_more_are_given_up(manager_socket: tuple[socket.socket, str]) -> None:
    server, path = manager_socket
    ServiceManager({"NOTIFY_SOCKET": path, "FDSTORE": "4"}).forget_descriptors()
    assert {server.recv(100) for _ in range(2)} == {
        b"FDSTOREREMOVE=1\nFDNAME=mica-fuse",
        b"FDSTOREREMOVE=1\nFDNAME=mica-journal",
    }


def test_what_a_predecessor_had_kept_is_found_by_name() -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "other:mica-fuse"}
    assert ServiceManager(environment).kept_descriptor() == 4
    assert ServiceManager(environment | {"LISTEN_PID": "1"}).kept_descriptor() is None
    assert ServiceManager(environment | {"LISTEN_FDNAMES": "other"}).kept_descriptor() is None
