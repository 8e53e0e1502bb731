"""The order in which the virtual machine's first stage loads its modules."""

import pytest
from tests.kernels.package import modules_in_order

DEPENDENCIES = """\
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/net/9p/9pnet_virtio.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/crypto/crc32c-generic.ko:
"""


def test_what_a_module_needs_is_loaded_before_it_and_once() -> None:
    order = modules_in_order(DEPENDENCIES, "", ("virtio_pci", "9pnet_virtio", "crc32c_generic"))
    assert [path.rpartition("/")[2] for path in order] == [
        "virtio.ko", "virtio_ring.ko", "virtio_pci.ko.xz", "9pnet_virtio.ko", "crc32c-generic.ko",
    ]  # fmt: skip


def test_what_is_built_in_is_not_loaded() -> None:
    assert modules_in_order(DEPENDENCIES, "kernel/fs/ext4/ext4.ko\n", ("ext4",)) == []


def test_a_module_that_the_kernel_lacks_is_named() -> None:
    with pytest.raises(SystemExit, match="no module erofs"):
        modules_in_order(DEPENDENCIES, "", ("erofs",))
