"""Small files are given once, one at a time, and only if the kernel takes them."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mica.fuse import preload
from mica.fuse.preload import MOST_BYTES, Preloads


class Kernel:
    def __init__(self) -> None:
        self.taken: list[tuple[int, bytes]] = []
        self.error: OSError | None = None

    def store(self, inode: int, content: bytes) -> bool:
        if self.error is not None:
            raise self.error
        self.taken.append((inode, content))
        return True


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def preloads(kernel: Kernel) -> Preloads:
    preloads = Preloads()
    preloads.connect(kernel.store)
    return preloads


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(b"content")
    fd = os.open(tmp_path / "file", os.O_RDWR)
    yield fd
    os.close(fd)


def test_once_for_each_inode(kernel: Kernel, preloads: Preloads, descriptor: int) -> None:
    for inode in (1, 2, 1, 1, 2):
        preloads.offer(inode, descriptor)
    assert kernel.taken == [(1, b"content"), (2, b"content")]


def test_nothing_before_the_handshake(kernel: Kernel, descriptor: int) -> None:
    preloads = Preloads()
    preloads.offer(1, descriptor)
    preloads.connect(kernel.store)
    preloads.offer(1, descriptor)
    assert kernel.taken == [(1, b"content")]


@pytest.mark.parametrize(("size", "is_given"), [(0, False), (1, True), (MOST_BYTES, True), (MOST_BYTES + 1, False)])
def test_sizes(kernel: Kernel, preloads: Preloads, descriptor: int, size: int, is_given: bool) -> None:
    os.truncate(descriptor, size)
    preloads.offer(1, descriptor)
    assert bool(kernel.taken) == is_given


def test_a_second_giver_does_not_wait(kernel: Kernel, preloads: Preloads, descriptor: int) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(inode: int, content: bytes) -> bool:
        inside.set()
        assert go_on.wait(10)
        return kernel.store(inode, content)

    preloads.connect(slow)
    thread = threading.Thread(target=preloads.offer, args=(1, descriptor))
    thread.start()
    assert inside.wait(10)
    preloads.offer(2, descriptor)
    assert kernel.taken == []
    go_on.set()
    thread.join(10)
    preloads.offer(2, descriptor)
    assert [inode for inode, _ in kernel.taken] == [1, 2]


def test_a_kernel_that_refuses_is_not_asked_again(kernel: Kernel, preloads: Preloads, descriptor: int) -> None:
    kernel.error = OSError(errno.EINVAL, "refused")
    preloads.offer(1, descriptor)
    kernel.error = None
    preloads.offer(2, descriptor)
    assert kernel.taken == []


def test_what_was_given_long_ago_is_forgotten(
    kernel: Kernel, preloads: Preloads, descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preload, "_REMEMBERED", 3)
    for inode in (1, 2, 3, 4, 1, 5, 6, 4, 1):
        preloads.offer(inode, descriptor)
    assert [inode for inode, _ in kernel.taken] == [1, 2, 3, 4, 5, 6, 1]
