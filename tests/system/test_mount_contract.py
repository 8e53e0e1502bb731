"""The contract of mounts, for every way to mount an image."""

import pytest
from tests.contracts.mount_fixtures import mounted, pristine, supplies
from tests.contracts.mount_suite import LazyMountContract, MountContract
from tests.support.disks import disk_path
from tests.support.mountpaths import PATHS
from tests.support.suiteimage import suite_image, unpacked_suite

pytestmark = pytest.mark.system
__all__ = ["disk_path", "mounted", "pristine", "suite_image", "supplies", "unpacked_suite"]
LAZY = [path for path in PATHS if path.traits.is_lazy]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name, scope="class")
class TestMounts(MountContract):
    pass


@pytest.mark.parametrize(
    "path", [path for path in PATHS if path.traits.is_lazy], ids=lambda path: path.name, scope="class"
)
class TestLazyMounts(LazyMountContract):
    pass
