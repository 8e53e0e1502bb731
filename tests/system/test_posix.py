"""The POSIX table on every way to mount an image: every system call gives what it gives on plain overlayfs."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tests.contracts.posix_suite import Case, Seen, differences, plant_kits, run_table, unmet
from tests.support.disks import disk_path, on_disk
from tests.support.mountpaths import CLASSIC, METACOPY, PATHS, MountPath, Options, PlainOverlay
from tests.support.publishedimages import PublishedImage, publish_layers
from tests.support.tools import need_fuse

__all__ = ["disk_path"]
pytestmark = pytest.mark.system
_TOLD = 40

Judge = Callable[[Options, bool], dict[Case, Seen]]
both_ways = pytest.mark.parametrize("writable", [True, False], ids=["writable", "read-only"])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> PublishedImage:
    need_fuse()
    place = tmp_path_factory.mktemp("posix")
    layers = [place / name for name in ("bottom", "middle", "top")]
    plant_kits(layers)
    return publish_layers(place, layers)


@pytest.fixture(scope="module")
def judge(image: PublishedImage, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """What plain overlayfs gives with certain options, found out once."""

    @cache
    def observe(overlay: Options, writable: bool) -> dict[Case, Seen]:
        with (
            on_disk(tmp_path_factory.mktemp("judge")) as place,
            PlainOverlay(overlay).open(image, place, cache=place / "cache", writable=writable) as root,
        ):
            return run_table(root, writable=writable)

    return observe


@both_ways
@pytest.mark.parametrize("path", [PlainOverlay(CLASSIC), PlainOverlay(METACOPY)], ids=lambda path: path.name)
def test_the_table_says_what_plain_overlayfs_does(path: PlainOverlay, writable: bool, judge: Judge) -> None:
    seen = judge(path.overlay, writable)
    assert sum(len(one.steps) for one in seen.values()) > (4000 if writable else 100)
    told = unmet(seen, moves_directories=path.traits.moves_directories)
    assert not told, _list(told)


@both_ways
@pytest.mark.parametrize(
    "path", [path for path in PATHS if not isinstance(path, PlainOverlay)], ids=lambda path: path.name
)
def test_every_row_gives_what_plain_overlayfs_gives(
    path: MountPath, writable: bool, image: PublishedImage, judge: Judge, disk_path: Path
) -> None:
    with path.open(image, disk_path / "mount", cache=disk_path / "cache", writable=writable) as root:
        found = run_table(root, writable=writable)
    told = differences(judge(path.traits.overlay, writable), found, path.traits.deviations if writable else ())
    assert not told, _list(told)


def _list(sentences: list[str]) -> str:
    return "\n".join([f"{len(sentences)} differences:", *sentences[:_TOLD]])
