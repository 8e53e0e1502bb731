"""What an image says is what its containers see: nothing in it stands for something of the host or of the caller."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.disks import disk_path
from tests.support.mountpaths import PATHS, ExternalTrees, MountPath
from tests.support.publishedimages import PublishedImage, publish_layout
from tests.support.tools import need_fuse
from tests.unit.oci.samples import make_sample, make_tar, write_layout

from mica.oci.models import REF_NAME

__all__ = ["disk_path"]
pytestmark = pytest.mark.system
LINKS = {
    "plain": "target", "variable": "x$(MICA_TEST_SECRET)y", "default": "$(MICA_TEST_NONE:-other)", "home": "/$(HOME)",
    "shell": "$MICA_TEST_SECRET/${MICA_TEST_SECRET}", "tilde": "~/x", "percent": "%s{0}", "escaped": "a\\,b:c\\$(HOME)",
}  # fmt: skip
# Another client shows its layers there, by its own rules: docs/design/dataplane.md.
OURS = [path for path in PATHS if path.traits.is_lazy and not isinstance(path, ExternalTrees)]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> PublishedImage:
    need_fuse()
    work = tmp_path_factory.mktemp("texts")
    below = make_tar({"target": b"x", "odd/$(MICA_TEST_SECRET)": b"name"})
    sample = make_sample([below, make_tar(dict(LINKS))])
    layout = write_layout(work / "image", sample, replace(sample.manifest, annotations={REF_NAME: "1"}))
    return publish_layout(work / "published", layout, "1")


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_links_and_names_are_not_expanded(
    path: MountPath, published: PublishedImage, disk_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICA_TEST_SECRET", "s3cr3t")
    with path.open(published, disk_path / "mount", cache=disk_path / "cache") as root:
        assert {name: str((root / name).readlink()) for name in LINKS} == LINKS
        assert {name: (root / name).lstat().st_size for name in LINKS} == {n: len(t) for n, t in LINKS.items()}
        assert (root / "odd/$(MICA_TEST_SECRET)").read_bytes() == b"name"


def test_a_mounted_repository_is_no_image_and_expands_links_as_the_stock_client_does(
    published: PublishedImage, disk_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICA_TEST_SECRET", "s3cr3t")
    with ExternalTrees().open(published, disk_path / "mount", cache=disk_path / "cache") as root:
        shown = {name: str((root / name).readlink()) for name in ("plain", "variable", "default", "shell")}
    assert shown == {"plain": "target", "variable": "xs3cr3ty", "default": "other", "shell": LINKS["shell"]}
