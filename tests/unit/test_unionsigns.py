"""What is a sign for a union, and what only looks like one."""

import os
import stat

import pytest

from mica.unionsigns import is_overlay_attribute, is_whiteout_device, is_whiteout_name


@pytest.mark.parametrize(
    ("name", "is_sign"),
    [
        (b".wh.name", True), (b".wh..name", True), (b".wh.", True), (b".wh..wh..opq", True),
        (b".wh..wh.plnk", False), (b".wh..wh..opq2", False), (b".wh..wh.", False),
        (b"name.wh.", False), (b".wh", False),
    ],
)  # fmt: skip
def test_names_in_archives(name: bytes, is_sign: bool) -> None:
    assert is_whiteout_name(name) == is_sign


@pytest.mark.parametrize(
    ("mode", "device", "is_sign"),
    [
        (stat.S_IFCHR, os.makedev(0, 0), True), (stat.S_IFCHR, os.makedev(1, 3), False),
        (stat.S_IFBLK, os.makedev(0, 0), False), (stat.S_IFREG, 0, False),
    ],
)  # fmt: skip
def test_devices_of_overlayfs(mode: int, device: int, is_sign: bool) -> None:
    status = os.stat_result((mode, *[0] * 9), {"st_rdev": device})
    assert is_whiteout_device(status) == is_sign


def test_attributes_that_steer_unions() -> None:
    assert is_overlay_attribute(b"trusted.overlay.redirect")
    assert is_overlay_attribute(b"user.overlay.opaque")
    assert not is_overlay_attribute(b"trusted.other")
    assert not is_overlay_attribute(b"trusted.overlay")
