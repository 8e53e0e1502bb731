"""Directories that a layer's archive did not bring are like those of below, by every method; judged by umoci."""

import stat
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.disks import disk_path
from tests.support.mountpaths import PATHS, MountPath, PlainOverlay
from tests.support.publishedimages import PublishedImage, publish_layout, unpack
from tests.support.tars import by_tarfile
from tests.support.tools import need_fuse
from tests.unit.oci.samples import make_sample, make_tar, write_layout

from mica.oci.models import REF_NAME

__all__ = ["disk_path"]
pytestmark = pytest.mark.system
OURS = [path for path in PATHS if not isinstance(path, PlainOverlay)]
DIRECTORIES = {
    ".": 0o711, "tmp": 0o1777, "srv": 0o2750, "srv/deep": 0o700, "gone": 0o1777, "explicit": 0o1777,
    "private": 0o700, "private/inner": 0o700,
}  # fmt: skip


def base(archive: tarfile.TarFile) -> None:
    for name, mode in DIRECTORIES.items():
        member = tarfile.TarInfo(name)
        member.type, member.mode, member.uid, member.gid = tarfile.DIRTYPE, mode, 1000, 2000
        member.pax_headers = {"SCHILY.xattr.user.kept": name}
        archive.addfile(member)


def explicit(archive: tarfile.TarFile) -> None:
    """Looks like what is implied, and is not."""
    member = tarfile.TarInfo("explicit")
    member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o755, 0
    archive.addfile(member)


def publish(place: Path, *layers: bytes) -> PublishedImage:
    need_fuse()
    sample = make_sample(list(layers))
    tagged = replace(sample.manifest, annotations={REF_NAME: "t"})
    return publish_layout(place, write_layout(place / "layout", sample, tagged), "t")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> PublishedImage:
    return publish(
        tmp_path_factory.mktemp("image"),
        by_tarfile(base),
        make_tar({"srv/.wh.nothing": b"", ".wh.gone": b"", "only/here": b"1"}),
        by_tarfile(explicit),
        make_tar({"tmp/x": b"1", "srv/deep/x": b"2", "gone/x": b"3"}),
        make_tar({"private/.wh..wh..opq": b"", "private/inner/x": b"4"}),
    )


def attributes(root: Path) -> dict[str, tuple[int, int, int]]:
    names = [*DIRECTORIES, "only"]
    found = {name: (root / name).stat() for name in names}
    return {name: (stat.S_IMODE(one.st_mode), one.st_uid, one.st_gid) for name, one in found.items()}


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
@pytest.mark.parametrize("is_writable", [True, False])
def test_a_mounted_image_has_the_attributes_that_umoci_unpacks(
    image: PublishedImage, disk_path: Path, path: MountPath, is_writable: bool
) -> None:
    expected = attributes(unpack(image, disk_path / "unpacked"))
    assert expected["tmp"] == (0o1777, 1000, 2000)
    assert expected["explicit"] == (0o755, 0, 0)
    assert expected["gone"] == (0o755, 0, 0)
    assert expected["private"] == (0o700, 1000, 2000), (
        "an opaque mark takes its directory's content, not its attributes"
    )
    assert expected["private/inner"] == (0o755, 0, 0)
    with path.open(image, disk_path / "place", cache=disk_path / "cache", writable=is_writable) as root:
        assert attributes(root) == expected
        assert (root / "tmp/x").read_bytes() == b"1"
        assert sorted(name.name for name in root.iterdir()) == sorted(
            path for path in ("only", *DIRECTORIES) if "/" not in path and path != "."
        )
        if is_writable:
            (root / "tmp/new").touch()


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_an_opaque_root_hides_all_that_is_below(disk_path: Path, path: MountPath) -> None:
    layers = ({"old": b"1", "d/old": b"1"}, {".wh..wh..opq": b"", "d/new": b"2"}, {"x": b"3"})
    image = publish(disk_path / "image", *map(make_tar, layers))
    expected = names(unpack(image, disk_path / "unpacked"))
    assert expected == ["d", "d/new", "x"]
    with path.open(image, disk_path / "place", cache=disk_path / "cache") as root:
        assert names(root) == expected


def names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))
