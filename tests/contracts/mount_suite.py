"""What every way to mount an image promises. A test module subclasses `MountContract`, and `LazyMountContract` for
paths that fetch, and provides `path` in class scope; images come from `tests/support/suiteimage.py`.
"""

import errno
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.contracts.mount_access import AccessContract, allowing
from tests.contracts.mount_changes import ChangesContract
from tests.support.fidelity import differences_from_unpacked
from tests.support.mountpaths import MountPath
from tests.support.publishedimages import PublishedImage
from tests.support.suiteimage import Supplies
from tests.support.trees import Seen, differences, snapshot


class MountContract(ChangesContract, AccessContract):
    def test_the_tree_is_what_umoci_unpacks(
        self, path: MountPath, suite_image: PublishedImage, unpacked_suite: dict[bytes, Seen], disk_path: Path
    ) -> None:
        """When everything has to be fetched, and again when everything is here."""
        everything = snapshot(os.fsencode(suite_image.unpacked[0] / "everything"))
        cache = disk_path / "cache"
        for attempt in ("cold", "warm"):
            with path.open(suite_image, disk_path / attempt, cache=cache, writable=False) as root:
                assert differences_from_unpacked(suite_image, unpacked_suite, root, disk_path / "own") == []
                # The files that were archived know more than umoci: attributes without a value.
                assert differences(everything, snapshot(os.fsencode(root / "everything"))) == []

    def test_nothing_is_left(self, path: MountPath, suite_image: PublishedImage, disk_path: Path) -> None:
        """Not even when files are in use at the end (processes and mounts are looked for after every test)."""
        with path.open(suite_image, disk_path / "mount", cache=disk_path / "cache") as root:
            content = (root / "files/002").read_bytes()
            used = (root / "files/002").open("rb")
            written = (root / "files/003").open("r+b")
        with used, written:
            assert os.pread(used.fileno(), len(content), 0) in {content, b""}
            written.write(b"late")
        assert os.listdir(root) == []
        assert os.fsencode(disk_path) not in Path("/proc/self/mountinfo").read_bytes()

    def test_what_was_written_is_there_next_time(
        self, path: MountPath, suite_image: PublishedImage, disk_path: Path
    ) -> None:
        with path.open(suite_image, disk_path / "mount", cache=disk_path / "cache") as root:
            supplies = Supplies(root)
            changed, touched, moved, removed = (supplies.chunked() for _ in range(4))
            directory, emptied = supplies.directory(), supplies.directory()
            with changed.open("ab") as file:
                file.write(b"more")
            touched.chmod(0o600)
            moved.rename(root / "moved")
            removed.unlink()
            shutil.rmtree(directory)
            directory.mkdir()
            shutil.rmtree(emptied)
        with path.open(suite_image, disk_path / "mount", cache=disk_path / "other-cache") as root:
            assert changed.read_bytes() == supplies.content(changed) + b"more"
            assert touched.stat().st_mode & 0o7777 == 0o600
            assert touched.read_bytes() == supplies.content(touched)
            assert (root / "moved").read_bytes() == supplies.content(moved)
            assert os.listdir(directory) == []
            assert not any(path.exists() for path in (moved, removed, emptied))

    def test_mounts_of_one_image_are_apart(self, path: MountPath, suite_image: PublishedImage, disk_path: Path) -> None:
        cache = disk_path / "cache"
        with (
            path.open(suite_image, disk_path / "one", cache=cache) as one,
            path.open(suite_image, disk_path / "other", cache=cache) as other,
        ):
            (one / "files/002").write_text("changed")
            (one / "files/003").unlink()
            assert (other / "files/002").read_bytes() == Supplies.content(other / "files/002")
            assert (other / "files/003").read_bytes() == Supplies.content(other / "files/003")


def _remove(stored: Path) -> None:
    stored.unlink()


def _change_a_byte(stored: Path) -> None:
    """Of the content: it unpacks as well as before, and to as many bytes."""
    data = bytearray(zlib.decompress(stored.read_bytes()))
    data[len(data) // 2] ^= 0x41
    stored.write_bytes(zlib.compress(data))


def _cut_short(stored: Path) -> None:
    os.truncate(stored, stored.stat().st_size // 2)


DAMAGES = {"missing": _remove, "changed": _change_a_byte, "cut short": _cut_short}
each_damage = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())


class LazyMountContract:
    """A file whose objects are damaged where they are published cannot be read; all else goes on."""

    @each_damage
    def test_a_damaged_file(
        self, path: MountPath, suite_image: PublishedImage, disk_path: Path, damage: Callable[[Path], None]
    ) -> None:
        image = suite_image.with_own_storage(disk_path / "storage")
        (stored,) = image.stored_files("files/005", disk_path / "own")
        good = stored.read_bytes()
        damage(stored)
        with path.open(image, disk_path / "mount", cache=disk_path / "cache") as root:
            victim, neighbour = root / "files/005", root / "files/004"
            for _ in range(2):
                assert_unreadable(victim)
            assert victim.stat().st_size == len(Supplies.content(victim)) > 10_000
            assert neighbour.read_bytes() == Supplies.content(neighbour)
            assert_unchangeable(victim)
            (root / "files/new").write_text("new")
            stored.write_bytes(good)
            assert victim.read_bytes() == Supplies.content(victim)

    @each_damage
    def test_a_damaged_chunk(
        self, path: MountPath, suite_image: PublishedImage, disk_path: Path, damage: Callable[[Path], None]
    ) -> None:
        image = suite_image.with_own_storage(disk_path / "storage")
        stored = image.stored_files("chunked/005", disk_path / "own")
        assert len(stored) >= 3
        good = stored[1].read_bytes()
        damage(stored[1])
        with path.open(image, disk_path / "mount", cache=disk_path / "cache") as root:
            victim, neighbour = root / "chunked/005", root / "chunked/004"
            content = Supplies.content(victim)
            assert_unreadable(victim)
            assert read_what_can_be_read(victim, content) < len(content)
            assert neighbour.read_bytes() == Supplies.content(neighbour)
            stored[1].write_bytes(good)
            assert victim.read_bytes() == content

    def test_a_damaged_file_can_be_removed_and_replaced(
        self, path: MountPath, suite_image: PublishedImage, disk_path: Path
    ) -> None:
        image = suite_image.with_own_storage(disk_path / "storage")
        names = ["files/005", "chunked/005", "chunked/006"]
        for name in names:
            for stored in image.stored_files(name, disk_path / "own"):
                stored.unlink()
        with path.open(image, disk_path / "mount", cache=disk_path / "cache") as root:
            removed, covered, emptied = (root / name for name in names)
            removed.unlink()
            assert not removed.exists()
            (root / "new").write_text("new")
            (root / "new").rename(covered)
            assert covered.read_text() == "new"
            # A copy of nothing needs no content, but over FUSE the kernel opens the file to ask for its flags.
            with allowing(errno.EIO):
                os.truncate(emptied, 0)
                assert emptied.read_bytes() == b""


def assert_unreadable(path: Path) -> None:
    with pytest.raises(OSError) as caught:
        path.read_bytes()
    assert caught.value.errno == errno.EIO


def assert_unchangeable(path: Path) -> None:
    """What would need its content fails in the same way and leaves it as it was."""
    before = path.stat()
    with pytest.raises(OSError) as caught, path.open("ab") as file:
        file.write(b"x")
    assert caught.value.errno == errno.EIO
    assert path.stat() == before


def read_what_can_be_read(path: Path, content: bytes) -> int:
    """Bytes that come out page by page; none of them may be wrong."""
    right = 0
    with allowing(errno.EIO), path.open("rb") as file:
        for offset in range(0, len(content), 4096):
            with allowing(errno.EIO):
                page = os.pread(file.fileno(), 4096, offset)
                assert page == content[offset : offset + 4096]
                right += len(page)
    return right
