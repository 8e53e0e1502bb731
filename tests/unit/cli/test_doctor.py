"""What `mica doctor` says of a kernel by what that can mount."""

import pytest

from mica.cli.doctor import filesystem_checks


@pytest.mark.parametrize(
    ("known", "has_modules", "works"),
    [
        ({"overlay", "erofs"}, False, {"overlayfs", "EROFS"}),
        ({"ext4"}, True, {"overlayfs", "EROFS"}),
        ({"ext4"}, False, set()),
        ({"aufs"}, False, {"AUFS"}),
        ({"aufs", "overlay"}, False, {"AUFS", "overlayfs"}),
    ],
)
def test_what_a_kernel_can_mount(known: set[str], works: set[str], *, has_modules: bool) -> None:
    checks = [*filesystem_checks(known, has_modules=has_modules)]
    assert {check.what for check in checks if check.works} == works
    assert all(check.reason for check in checks if not check.works)
