"""The demo image through every way to mount it equals what umoci makes of it: every entry, byte and attribute."""

import os
from pathlib import Path

import pytest
from demo.image import DemoImage
from tests.support.demoimage import demo_image  # noqa: F401 - a fixture
from tests.support.disks import disk_path
from tests.support.fidelity import differences_from_unpacked
from tests.support.mountpaths import PATHS, MountPath
from tests.support.publishedimages import PublishedImage, publish_layout, unpack
from tests.support.tools import need_fuse
from tests.support.trees import Seen, snapshot

__all__ = ["disk_path"]
pytestmark = pytest.mark.system
LAZY = [path for path in PATHS if path.traits.is_lazy]


@pytest.fixture(scope="module")
def published(demo_image: DemoImage, tmp_path_factory: pytest.TempPathFactory) -> PublishedImage:  # noqa: F811
    need_fuse()
    return publish_layout(tmp_path_factory.mktemp("demo"), demo_image.layout, demo_image.tag)


@pytest.fixture(scope="module")
def unpacked(published: PublishedImage, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, Seen]:
    return snapshot(os.fsencode(unpack(published, tmp_path_factory.mktemp("umoci") / "bundle")))


@pytest.mark.parametrize("path", LAZY, ids=lambda path: path.name)
def test_the_union_equals_what_umoci_unpacks(
    path: MountPath, published: PublishedImage, unpacked: dict[bytes, Seen], disk_path: Path
) -> None:
    assert len(unpacked) > 10_000
    with path.open(published, disk_path / "mount", cache=disk_path / "cache", writable=False) as root:
        assert differences_from_unpacked(published, unpacked, root, disk_path / "cache") == []
