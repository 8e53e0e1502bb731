"""A cache whose disk is full: programs get errors for what there is no room for, and nobody dies of it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli import mica
from tests.support.dockers import base_layers
from tests.support.nodes import publish_tars, served
from tests.support.noise import noise
from tests.support.tools import need, need_fuse
from tests.unit.oci.samples import make_tar

from mica import linux
from mica.cache.cache import set_limits

pytestmark = pytest.mark.system

SCRIPT = "cat /bin/busybox >/dev/null; for file in /large/*; do cat $file >/dev/null || echo failed; done; echo end"
LARGE = {f"large/{number}": noise(6 << 20) for number in range(3)}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    linux.mount("mica-test", place, "tmpfs", data="size=8m,mode=0700")
    try:
        yield place
    finally:
        linux.umount2(place, linux.MNT_DETACH)


@pytest.mark.parametrize("filled_bytes", [0, 5 << 20])
def test_a_program_gets_an_error_and_goes_on(tmp_path: Path, small_disk: Path, filled_bytes: int) -> None:
    """Mapped files (the record of the quota, the maps of parts) have their space before they are written to: a process
    that writes to a mapping without space ends by SIGBUS, and would be started again for ever."""
    need_fuse()
    need("runc", "runc")
    (tmp_path / "published").mkdir()
    with served(publish_tars(tmp_path / "published", [*base_layers(), make_tar(LARGE)])) as image:
        with contextlib.suppress(OSError):
            (small_disk / "other").write_bytes(bytes(filled_bytes))
        done = mica(
            tmp_path / "state", "run", "--url", image.url, "--key", image.publication.key, "--cache",
            small_disk / "cache", image.publication.thin,
            "sh", "-c", SCRIPT,
        )  # fmt: skip
    assert done.stdout.endswith("failed\nend\n"), done.stderr
    assert "No space left on device" in done.stderr
    assert "mica: ERROR: Cannot write to the cache" in done.stderr
    assert "died" not in done.stderr


def test_a_full_quota_is_told_with_what_can_be_done(tmp_path: Path) -> None:
    need_fuse()
    need("runc", "runc")
    (tmp_path / "published").mkdir()
    set_limits(tmp_path / "cache", 4 << 20, None)
    with served(publish_tars(tmp_path / "published", [*base_layers(), make_tar(LARGE)])) as image:
        done = mica(
            tmp_path / "state", "run", "--url", image.url, "--key", image.publication.key, "--cache",
            tmp_path / "cache", image.publication.thin,
            "sh", "-c", SCRIPT,
        )  # fmt: skip
    assert done.stdout == "failed\nfailed\nfailed\nend\n", done.stderr
    told = [line for line in done.stderr.splitlines() if not line.startswith("cat: ")]
    assert told
    for line in told:
        assert line.startswith("mica: ERROR: ")
        assert "mica cache prune --quota 20G" in line
