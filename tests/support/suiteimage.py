"""The image that the contract of mounts is tested with, published once in a test run.

Three layers: `bottom` has one of everything and plenty of files for tests to use up, `middle` and `top` add, hide and
replace. A test that changes something takes files that no other test has touched: see `Supplies`.
"""

import ctypes
import itertools
import os
import random
import shutil
import stat
from pathlib import Path
from typing import Final

import pytest
from tests.support.publishedimages import OPAQUE, PublishedImage, publish_layers, unpack
from tests.support.tools import need_fuse
from tests.support.trees import CAPABILITY, Seen, make_everything, snapshot

LARGE: Final = "everything/plain/chunked"
SPARSE: Final = "everything/plain/sparse"
LISTED: Final = frozenset(f"{number:05d}-{'n' * (number % 90)}" for number in range(1000))
"""Names in `listed`, which is spread over the layers, and in `listed-in-one`."""

_FILES, _CHUNKED, _DIRECTORIES = 300, 60, 80
_SIZES: Final = (0, 1, 100, 4096, 5000, 12_345)
_CHUNKED_BYTES: Final = 200_000


class Supplies:
    """Hands out paths in lower layers that nobody has touched yet: one for each mount, for all tests on it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files = itertools.count()
        self._chunked = itertools.count()
        self._directories = itertools.count()

    def file(self, *, size: int | None = None) -> Path:
        """A small file, of one object; `size` is one of a few that there are."""
        for number in self._files:
            assert number < _FILES, "make more files"
            if size is None or _SIZES[number % len(_SIZES)] == size:
                return self._root / f"files/{number:03d}"
        raise AssertionError

    def chunked(self) -> Path:
        """A file of several chunks, about 200 kB."""
        number = next(self._chunked)
        assert number < _CHUNKED, "make more files"
        return self._root / f"chunked/{number:03d}"

    def directory(self) -> Path:
        """A directory with a file `a` and a directory `sub`, in which is `b`."""
        number = next(self._directories)
        assert number < _DIRECTORIES, "make more directories"
        return self._root / f"directories/{number:03d}"

    @staticmethod
    def content(path: Path) -> bytes:
        """What is in a file that was handed out."""
        return _content(path.parent.name, int(path.name))


def _content(kind: str, number: int) -> bytes:
    source = random.Random(f"{kind} {number}")
    return source.randbytes(_CHUNKED_BYTES + number if kind == "chunked" else _SIZES[number % len(_SIZES)])


@pytest.fixture(scope="session")
def suite_image(tmp_path_factory: pytest.TempPathFactory) -> PublishedImage:
    need_fuse()
    place = tmp_path_factory.mktemp("suite")
    layers = [place / name for name in ("bottom", "middle", "top")]
    for layer in layers:
        layer.mkdir()
    bottom, middle, top = layers
    _make_supplies(bottom)
    _make_programs(bottom / "bin")
    _make_everything(bottom / "everything")
    _make_listed(bottom, middle, top)
    _make_merged(bottom / "merged", middle / "merged", top / "merged")
    return publish_layers(place, layers)


@pytest.fixture(scope="session")
def unpacked_suite(suite_image: PublishedImage, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, Seen]:
    """What umoci makes of it."""
    return snapshot(os.fsencode(unpack(suite_image, tmp_path_factory.mktemp("umoci") / "suite")))


def _make_supplies(bottom: Path) -> None:
    for kind, count in (("files", _FILES), ("chunked", _CHUNKED)):
        (bottom / kind).mkdir()
        for number in range(count):
            (bottom / kind / f"{number:03d}").write_bytes(_content(kind, number))
    for number in range(_DIRECTORIES):
        directory = bottom / f"directories/{number:03d}"
        (directory / "sub").mkdir(parents=True)
        (directory / "a").write_text(f"a in {number}\n")
        (directory / "sub/b").write_text(f"b in {number}\n")


def _make_programs(place: Path) -> None:
    place.mkdir()
    for name in ("id", "cat", "sleep"):
        shutil.copyfile(_program(name), place / name)
        (place / name).chmod(0o755)
    for name, source in (("id-setuid", "id"), ("cat-capable", "cat")):
        shutil.copyfile(place / source, place / name)
        (place / name).chmod(0o755)
    (place / "id-setuid").chmod(0o4755)
    os.setxattr(place / "cat-capable", "security.capability", CAPABILITY)
    shutil.copyfile(_math_library(), place / "libm.so")
    (place / "script").write_text("#!/bin/sh\necho script $1\n")
    (place / "script").chmod(0o755)


def _program(name: str) -> str:
    found = shutil.which(name)
    assert found is not None
    return found


def _math_library() -> str:
    ctypes.CDLL("libm.so.6")
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next(line.split()[-1] for line in lines if line.endswith("libm.so.6"))


def _make_everything(place: Path) -> None:
    make_everything(place)
    # In a layer the name would be a whiteout.
    (place / "plain/.wh.not-a-whiteout-here").unlink()


def _make_listed(bottom: Path, middle: Path, top: Path) -> None:
    """Half of the names in each of two layers, some in both; and names that the third one hides."""
    for layer in (bottom, middle, top):
        (layer / "listed").mkdir()
    (bottom / "listed-in-one").mkdir()
    for number, name in enumerate(sorted(LISTED)):
        (bottom / "listed-in-one" / name).touch()
        for layer, remainders in ((bottom, {0, 1}), (middle, {1, 2})):
            if number % 3 in remainders:
                (layer / "listed" / name).touch()
    for number in range(200):
        (bottom / f"listed/hidden{number}").touch()
        _whiteout(top / f"listed/hidden{number}")


def _make_merged(bottom: Path, middle: Path, top: Path) -> None:
    """Whiteouts, opaque directories, and every change from one kind of file to another."""
    for name, layers in {
        "from-bottom": [bottom], "from-middle": [middle], "from-top": [top], "changed": [bottom, middle, top],
        "gone": [bottom], "back": [bottom, top], "opaque/below": [bottom], "opaque/below-too": [middle],
        "opaque/deep/below": [bottom], "opaque/above": [top], "opaque/deep/above": [top], "removed/file": [bottom],
        "remade/below": [bottom], "remade/above": [top], "file-to-directory": [bottom], "file-to-directory/file": [top],
        "directory-to-file/below": [bottom], "directory-to-file": [top], "link-to-file": [top],
        "directory-to-link/below": [middle], "nested/a/b/c/bottom": [bottom], "nested/a/b/c/top": [top],
    }.items():  # fmt: skip
        for layer in layers:
            path = layer / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} of {layer.parent.name}\n")
    (bottom / "link-to-file").symlink_to("from-bottom")
    (top / "directory-to-link").symlink_to("nested")
    for directory in ("opaque", "remade"):
        os.setxattr(top / directory, OPAQUE, b"y")
    for path in (middle / "gone", middle / "back", top / "removed", middle / "nested/a/b/gone"):
        _whiteout(path)
    for name, mode in (("nested", 0o711), ("nested/a", 0o2750)):
        for layer in (bottom, middle, top):
            (layer / name).mkdir(exist_ok=True)
            (layer / name).chmod(0o755 if layer is bottom else mode)


def _whiteout(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
