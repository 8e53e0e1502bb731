"""Checkers say what the check says, many at a time, and a dead one is done without."""

import io
import os
import signal
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from mica.dataplane.imagecheck import Check, check_image, open_checkers
from mica.errors import IntegrityError
from mica.metaimage.inode import Inode
from mica.metaimage.writer import write_image

DIRECTORY = Inode(stat.S_IFDIR | 0o755)


@pytest.fixture
def check() -> Iterator[Check]:
    with open_checkers(2) as check:
        yield check


def image_file(directory: Path, name: str, *, broken: bool = False) -> BinaryIO:
    image = io.BytesIO()
    write_image([(b"", DIRECTORY), *((b"/%04d" % number, DIRECTORY) for number in range(200))], image)
    data = bytearray(image.getvalue())
    if broken:
        data[-1] ^= 0x55
        data[1024] ^= 1
    (directory / name).write_bytes(data)
    return (directory / name).open("rb")


def children() -> set[int]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def test_a_checker_says_what_the_check_says(check: Check, tmp_path: Path) -> None:
    with image_file(tmp_path, "good") as good, image_file(tmp_path, "bad", broken=True) as bad:
        check(good, "the image")
        with pytest.raises(IntegrityError) as here:
            check_image(bad, "the \u00efmage")
        with pytest.raises(IntegrityError) as there:
            check(bad, "the \u00efmage")
        assert str(there.value) == str(here.value)
        check(good, "the image")


def test_many_are_checked_at_a_time(check: Check, tmp_path: Path) -> None:
    def attempt(number: int) -> bool:
        with image_file(tmp_path, f"{number}", broken=number % 3 == 0) as file:
            try:
                check(file, f"image {number}")
            except IntegrityError as error:
                return f"image {number} " not in str(error)
            return True

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(attempt, range(40))) == [number % 3 != 0 for number in range(40)]


def test_a_dead_checker_is_done_without(tmp_path: Path) -> None:
    before = children()
    with open_checkers(2) as check:
        for pid in children() - before:
            os.kill(pid, signal.SIGKILL)
        for number in range(4):
            with image_file(tmp_path, "image", broken=number == 2) as file:
                if number == 2:
                    with pytest.raises(IntegrityError):
                        check(file, "it")
                else:
                    check(file, "it")
    assert children() == before


def test_checkers_end_with_who_opened_them() -> None:
    before = children()
    with open_checkers(3):
        assert len(children() - before) == 3
    assert children() == before
