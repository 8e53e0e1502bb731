"""The demo image seen through us equals what umoci makes of it: every entry, byte, mode, owner, time, xattr, link."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from demo.image import DemoImage
from tests.support.demoimage import demo_image  # noqa: F401 - a fixture
from tests.support.tools import need, need_fuse
from tests.support.trees import Seen, differences, snapshot

from mica import linux
from mica.mount.overlay import open_overlay, plan_overlay

pytestmark = pytest.mark.system
FQRN = "demo.example.org"


def mica(state: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mica", *arguments], env={**os.environ, "MICA_STATE": str(state)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_union_equals_what_umoci_unpacks(demo_image: DemoImage, tmp_path: Path) -> None:  # noqa: F811
    need_fuse()
    umoci = need("umoci", "umoci")
    state = tmp_path / "state"
    mica(state, "repo", "create", FQRN, "--storage", str(tmp_path / "storage"))
    mica(state, "convert", demo_image.source, FQRN, "--tag", "demo/r:1", "--output", f"oci:{tmp_path}/thin:r")
    image = f"{demo_image.layout}:{demo_image.tag}"
    subprocess.run([umoci, "unpack", "--image", image, tmp_path / "bundle"], check=True, capture_output=True)
    expected = snapshot(os.fsencode(tmp_path / "bundle/rootfs"))
    changed = changes_of_layers(state, demo_image)
    found = union_snapshot(state, tmp_path)
    assert len(found) == len(expected) > 10_000
    listed_left_out = [
        {path: forget_changes(seen, path, changed) for path, seen in tree.items()} for tree in (expected, found)
    ]
    assert differences(*listed_left_out) == []


def union_snapshot(state: Path, tmp_path: Path) -> dict[bytes, Seen]:
    descriptor = json.loads(mica(state, "inspect", f"oci:{tmp_path}/thin:r", "--json"))
    repository, union = tmp_path / "repository", tmp_path / "union"
    repository.mkdir()
    union.mkdir()
    mica(state, "mount", FQRN, str(repository))
    try:
        layers = [repository / layer["url"].split("/", 3)[3] for layer in reversed(descriptor["layers"])]
        with open_overlay(plan_overlay(layers, None, None, union)):
            return snapshot(os.fsencode(union))
    finally:
        linux.umount2(repository, linux.MNT_DETACH)


def changes_of_layers(state: Path, image: DemoImage) -> dict[str, list]:
    """What the layer facts say was changed to fit, of all layers."""
    changes: dict[str, list] = {"split_hardlinks": [], "dropped_xattrs": [], "implied_directories": []}
    for layer in image.layers:
        digest = layer.digest.removeprefix("sha256:")
        about = json.loads(mica(state, "repo", "cat", FQRN, f"/.layers/{digest[:2]}/{digest}.json"))
        for name in changes:
            assert about[name]["total"] == len(about[name]["items"])
            changes[name] += about[name]["items"]
    return changes


def forget_changes(seen: Seen, path: bytes, changed: dict[str, list]) -> Seen:
    """Leave out of a comparison exactly what the layers' reports list, and nothing else."""
    text = path.decode("utf-8", "backslashreplace") or "/"
    if text in changed["implied_directories"]:
        seen = seen._replace(mtime_ns=0, mode=seen.mode & 0o170000)
    dropped = {item["name"].encode() for item in changed["dropped_xattrs"] if item["path"] == text}
    seen = seen._replace(xattrs=tuple(pair for pair in seen.xattrs if pair[0] not in dropped))
    if any(text in group["paths"] for group in changed["split_hardlinks"]):
        seen = seen._replace(links=())
    return seen
