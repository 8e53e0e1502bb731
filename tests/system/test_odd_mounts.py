"""A mount that is called oddly, which any user can make, disturbs nobody who reads the mount table."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.caches import NOTHING_FRESH, put
from tests.support.metadirs import make_metadata_directory
from tests.support.tools import need_fuse, need_linux, need_root

from mica import linux
from mica.cache.cache import Cache
from mica.cache.overlays import let_go
from mica.files import owned_fd
from mica.mountinfo import find_mount, read_mounts
from mica.run.cgroups import read_hierarchies
from mica.union.overlay import OverlayOptions, open_overlay, plan_overlay

pytestmark = pytest.mark.system
# Line ends of text that the kernel writes as they are, a line end that it escapes, and bytes that are no UTF-8.
ODD = b"\v\f\r\x1c\x1d\x1e\x85\xff\n - overlay "


@pytest.fixture
def odd_mount(tmp_path: Path) -> Iterator[bytes]:
    """A FUSE mount whose path, type and source are all odd; nobody answers for it."""
    need_root()
    need_fuse()
    target = os.fsencode(tmp_path) + b"/" + ODD
    os.mkdir(target)
    with owned_fd(os.open("/dev/fuse", os.O_RDWR)) as device, owned_fd(linux.fsopen("fuse")) as context:
        for key, value in ((b"subtype", ODD), (b"source", ODD), (b"rootmode", b"40000")):
            linux.fsconfig_string(context, key.decode(), value)
        for key, number in (("user_id", 0), ("group_id", 0), ("fd", device)):
            linux.fsconfig_string(context, key, str(number))
        linux.fsconfig_create(context)
        with owned_fd(linux.fsmount(context)) as mount:
            linux.move_mount(mount, target)
        try:
            yield target
        finally:
            linux.umount2(target, linux.MNT_DETACH)


def test_the_mount_table_is_read_through_it(odd_mount: bytes, tmp_path: Path) -> None:
    mounts = read_mounts()
    (mount,) = [mount for mount in mounts if mount.target == odd_mount]
    assert (mount.fstype, mount.source) == (b"fuse." + ODD, ODD)
    assert linux.mounted_device(odd_mount) == mount.device
    assert find_mount(tmp_path) is None
    assert all(hierarchy.path.is_dir() for hierarchy in read_hierarchies())


def test_unions_are_found_behind_it(odd_mount: bytes, tmp_path: Path) -> None:
    need_linux(6, 5, "data-only layers")
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(Cache(tmp_path / "cache", fresh_s=NOTHING_FRESH))
        lower = make_metadata_directory(tmp_path / "meta", {"file": put(cache, b"x")})
        (tmp_path / "merged").mkdir()
        options = OverlayOptions(data=(cache.root / "objects",))
        stack.enter_context(open_overlay(plan_overlay([lower], None, None, tmp_path / "merged", options)))
        assert [mount for mount in read_mounts() if mount.target == odd_mount]
        assert let_go(cache.root) == 1
