"""Programs that tests need from outside."""

import os
import shutil
from typing import NoReturn

import pytest


def need(program: str, package: str) -> str:
    """Path of a program; without it the test fails under CI and is skipped elsewhere, naming the Debian package."""
    return shutil.which(program) or missing(f"{program} is missing: apt-get install {package}")


LINUX = tuple(map(int, os.uname().release.split(".")[:2]))
"""Major and minor number of the running kernel."""


def need_linux(major: int, minor: int, what: str) -> None:
    """No tool that could be installed: without it the test is skipped, under CI too."""
    if (major, minor) > LINUX:
        pytest.skip(f"{what}: Linux {major}.{minor}")


def need_root() -> None:
    if os.geteuid() != 0:
        missing("needs root")


def need_fuse() -> None:
    need_root()
    if not os.path.exists("/dev/fuse"):
        missing("/dev/fuse is missing: modprobe fuse")


def missing(message: str) -> NoReturn:
    """Fail under CI, skip elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
