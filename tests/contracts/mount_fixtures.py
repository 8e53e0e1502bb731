"""What the contracts of mounts share: one writable and one read-only mount for all tests of a class, by fixtures.

The mounts start with empty caches, so what a test touches first is fetched for it. Who damages anything or needs a
mount to begin or end makes one of its own, in `disk_path`: what lies in memory is mounted by a loop device alone. A
test module imports the fixtures, and parametrizes `path` in class scope.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.disks import on_disk
from tests.support.mountpaths import MountPath
from tests.support.publishedimages import PublishedImage
from tests.support.suiteimage import Supplies


@pytest.fixture(scope="class")
def mounted(path: MountPath, suite_image: PublishedImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A writable mount of the suite's image."""
    with (
        on_disk(tmp_path_factory.mktemp(path.name)) as place,
        path.open(suite_image, place / "mount", cache=place / "cache") as root,
    ):
        yield root


@pytest.fixture(scope="class")
def pristine(path: MountPath, suite_image: PublishedImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A read-only mount of it."""
    with (
        on_disk(tmp_path_factory.mktemp(path.name)) as place,
        path.open(suite_image, place / "mount", cache=place / "cache", writable=False) as root,
    ):
        yield root


@pytest.fixture(scope="class")
def supplies(mounted: Path) -> Supplies:
    return Supplies(mounted)
