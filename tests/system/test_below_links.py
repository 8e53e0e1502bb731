"""Members of a layer below a symbolic link of a lower layer are where the link leads, by every method; judged by umoci.

layer 1     lib -> usr/lib   usr/lib/old
layer 2     lib/new
shown       lib -> usr/lib   usr/lib/old   usr/lib/new
"""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.belowlinks import LAYERS, Member, link
from tests.support.disks import disk_path
from tests.support.enginelayers import adding, archive_of, fill
from tests.support.mountpaths import PATHS, MountPath, PlainOverlay
from tests.support.publishedimages import PublishedImage, publish_layout, unpack
from tests.support.tools import need_fuse, need_root
from tests.support.trees import Seen, snapshot
from tests.unit.oci.samples import make_sample, write_layout

from mica.engine.layers import open_layers
from mica.engine.unions import OverlayUnion
from mica.errors import UserError
from mica.oci.models import REF_NAME
from mica.providers.node import NoProvider

__all__ = ["disk_path"]
pytestmark = pytest.mark.system
OURS = [path for path in PATHS if not isinstance(path, PlainOverlay)]


def publish(place: Path, *layers: tuple[Member, ...]) -> PublishedImage:
    need_fuse()
    sample = make_sample([archive_of(*members) for members in layers])
    tagged = replace(sample.manifest, annotations={REF_NAME: "t"})
    return publish_layout(place, write_layout(place / "layout", sample, tagged), "t")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> PublishedImage:
    return publish(tmp_path_factory.mktemp("image"), *LAYERS)


def seen(root: Path) -> dict[bytes, Seen]:
    """Without what umoci and overlayfs have ways of their own for: times of directories."""
    return snapshot(os.fsencode(root), directory_times=False)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
@pytest.mark.parametrize("is_writable", [True, False])
def test_members_below_a_link_of_a_lower_layer_are_where_umoci_unpacks_them(
    image: PublishedImage, disk_path: Path, path: MountPath, is_writable: bool
) -> None:
    expected = seen(unpack(image, disk_path / "unpacked"))
    assert expected[b"/usr/lib/new"].size == len(b"newest")
    with path.open(image, disk_path / "place", cache=disk_path / "cache", writable=is_writable) as root:
        shown = seen(root)
        assert shown.keys() == expected.keys()
        assert shown == expected
        subprocess.run([root / "usr/lib/program"], check=True)
        if is_writable:
            (root / "lib/written").write_bytes(b"w")
            (root / "usr/lib/replaced").write_bytes(b"w")
            (root / "usr/lib/new").unlink()
            assert sorted(os.listdir(root / "lib")) == sorted(os.listdir(root / "usr/lib"))


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
@pytest.mark.parametrize(
    "layer", [(link("a", "b"), link("b", "a")), (adding("b"), link("a", "b"))], ids=["loop", "file"]
)
def test_a_link_that_leads_to_no_directory_refuses_the_image(
    disk_path: Path, path: MountPath, layer: tuple[Member, ...]
) -> None:
    image = publish(disk_path / "image", layer, (adding("a/x"),))
    with pytest.raises(UserError, match="'/a'"), path.open(image, disk_path / "place", cache=disk_path / "cache"):
        pass


def test_layers_that_an_engine_unpacks_by_itself(image: PublishedImage, tmp_path: Path) -> None:
    need_root()
    expected = seen(unpack(image, tmp_path / "unpacked"))
    with open_layers(tmp_path / "home", OverlayUnion(), NoProvider()) as layers:
        parent = None
        for number, members in enumerate(LAYERS):
            fill(layers, str(number), parent, archive_of(*members))
            parent = str(number)
        layers.create("container", parent, is_writable=True)
        shown = seen(layers.mount("container"))
        layers.unmount("container")
        assert shown.keys() == expected.keys()
        assert shown == expected
        fill(layers, "loop", None, archive_of(link("a", "b"), link("b", "a")))
        with pytest.raises(UserError, match="'/a'"):
            fill(layers, "refused", "loop", archive_of(adding("a/x")))
