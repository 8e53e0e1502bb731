"""Images as they are in the wild: what mica shows of them by every way equals what umoci unpacks."""

import dataclasses
import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.support.cli import mica
from tests.support.disks import disk_path
from tests.support.fidelity import differences_from_unpacked
from tests.support.mountpaths import PATHS, MountPath
from tests.support.publishedimages import PublishedImage, publish_layout, unpack
from tests.support.tools import need_fuse
from tests.support.trees import Seen, snapshot
from tests.unit.oci.samples import make_sample, write_layout

from mica.oci.models import REF_NAME

__all__ = ["disk_path"]
pytestmark = pytest.mark.system
LAZY = [path for path in PATHS if path.traits.is_lazy]
FILE, DIRECTORY, LINK, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
Member = tuple[str, bytes, bytes, dict[str, object]]


def a_file(name: str, data: bytes = b"content", **fields: object) -> Member:
    return name, FILE, data, fields


def a_directory(name: str, **fields: object) -> Member:
    return name, DIRECTORY, b"", {"mode": 0o755, **fields}


def a_link(name: str, target: str, **fields: object) -> Member:
    return name, LINK, b"", {"linkname": target, "mode": 0o777, **fields}


def a_hard_link(name: str, target: str) -> Member:
    return name, HARD, b"", {"linkname": target}


def xattrs(**values: bytes) -> dict[str, str]:
    return {f"SCHILY.xattr.user.{name}": value.decode() for name, value in values.items()}


def layer(members: Sequence[Member], *, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, kind, data, fields in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.mtime = kind, len(data), 1_600_000_000
            for key, value in fields.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


BASE = layer([
    a_directory("./"), a_directory("app"), a_directory("app/store"), a_directory("usr"), a_directory("usr/lib"),
    a_directory("etc"), a_file("etc/gone"), a_file("etc/kept"), a_directory("owned"), a_directory("described"),
])  # fmt: skip
LAYERS = [
    BASE,
    # Members below links of the same layer, and hard links that name their files through links.
    layer([
        a_directory("app"), a_directory("app/store"), a_link("app/node_modules", "store"),
        a_file("app/node_modules/pkg.js"), a_link("app/absolute", "/app/store"), a_file("app/absolute/other.js", b"2"),
        a_link("app/up", "../../../usr/./lib"), a_file("app/up/up.so", b"3"),
        a_directory("usr"), a_directory("usr/lib"), a_link("lib", "usr/lib"), a_link("lib64", "lib"),
        a_file("usr/lib/z", b"4"), a_hard_link("usr/lib/y", "lib64/z"),
        a_link("to-file", "usr/lib/z"), a_hard_link("to-file-too", "to-file"),
    ]),
    # Owners and modes as old archives have them.
    layer(
        [a_directory("owned"), a_file("owned/nobody", uid=-2, gid=-2), a_file("owned/none", uid=-1, gid=-1),
         a_link("owned/link", "nobody", mode=0o644), a_link("owned/mode-0", "nobody", mode=0)],
        form=tarfile.GNU_FORMAT,
    ),
    # Attributes of more than 255 bytes.
    layer([
        a_directory("described", pax_headers=xattrs(large=b"d" * 300)),
        a_file("described/file", pax_headers=xattrs(large=b"f" * 3000, small=b"s")),
        a_file("described/255", pax_headers=xattrs(large=b"f" * 255)),
        a_file("described/256", pax_headers=xattrs(large=b"f" * 256)),
    ]),
    # Whiteouts of what no layer has, in directories of this layer alone, and real ones.
    layer([
        a_directory("only"), a_file("only/.wh.gone", b""), a_file("only/x"), a_directory("only/deep"),
        a_file("only/deep/.wh.gone", b""),
        a_directory("etc"), a_file("etc/.wh.gone", b""), a_file("etc/.wh.never", b""),
    ]),
    # What the stock tools take for markers of nested catalogs: files of the image like any others.
    layer([
        a_directory("./"), a_file(".cvmfscatalog", b"top"), a_directory("marked"), a_file("marked/.cvmfscatalog", b""),
        a_file("marked/x"), a_directory("marked/a"), a_directory("marked/a/.cvmfscatalog"),
        a_file("marked/a/.cvmfscatalog/.cvmfscatalog", b"deep"), a_directory("linked"),
        a_link("linked/.cvmfscatalog", "/etc"),
    ]),
    layer([a_directory("marked"), a_file("marked/.wh..cvmfscatalog", b"")]),
]  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> PublishedImage:
    need_fuse()
    place = tmp_path_factory.mktemp("odd")
    sample = make_sample(LAYERS)
    tagged = dataclasses.replace(sample.manifest, annotations={REF_NAME: "t"})
    image = publish_layout(place, write_layout(place / "layout", sample, tagged), "t")
    checked = mica(image.repository.state, "repo", "check", image.repository.fqrn)
    assert checked.code == 0, checked.stdout
    return image


@pytest.fixture(scope="module")
def unpacked(published: PublishedImage, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, Seen]:
    return snapshot(os.fsencode(unpack(published, tmp_path_factory.mktemp("umoci") / "bundle")))


@pytest.mark.parametrize("path", LAZY, ids=lambda path: path.name)
def test_odd_layers_are_shown_as_umoci_unpacks_them(
    path: MountPath, published: PublishedImage, unpacked: dict[bytes, Seen], disk_path: Path
) -> None:
    assert {b"/app/store/pkg.js", b"/app/store/other.js", b"/usr/lib/up.so", b"/only/x"} <= unpacked.keys()
    assert b"/only/gone" not in unpacked
    with path.open(published, disk_path / "mount", cache=disk_path / "cache", writable=False) as root:
        assert differences_from_unpacked(published, unpacked, root, disk_path / "cache") == []
