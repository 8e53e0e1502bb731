"""Thin images: an ordinary image of one file, the original's configuration whole, the same bytes every time."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tests.unit.oci.samples import make_sample, make_tar, write_layout

from mica.errors import IntegrityError, UserError
from mica.oci.layoutwriter import LayoutWriter
from mica.oci.models import Descriptor
from mica.oci.platforms import Platform
from mica.oci.source import open_image
from mica.thin.descriptor import ThinDescriptor, ThinLayer, format_descriptor
from mica.thin.image import ThinImage, read_thin_descriptor, require_thin, write_thin_image, write_thin_index

DESCRIPTOR = ThinDescriptor("docker.io/a/b:1", (ThinLayer("ab" * 32, "a.example.org", "/.layers/ab/x/layerfs"),))
RUN = {
    "Env": ["PATH=/bin", "LANG=ü"], "Entrypoint": ["/init"], "Cmd": ["sh"], "User": "1:2", "WorkingDir": "/srv",
    "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}}, "StopSignal": "SIGINT",
    "Healthcheck": {"Test": ["CMD", "true"], "Interval": 1}, "OnBuild": None, "ArgsEscaped": True,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "os": "linux", "architecture": "arm64", "variant": "v8", "created": "2024-01-02T03:04:05Z", "author": "me",
    "config": RUN, "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "cd" * 32, "sha256:" + "ef" * 32]},
    "history": [{"created_by": "ADD"}, {"created_by": "ENV", "empty_layer": True}], "moby.buildkit": {"x": 1},
}  # fmt: skip


def write(path: Path, config: dict[str, Any] = CONFIG) -> Descriptor:
    platform = Platform.parse("linux/arm64")
    return write_thin_image(LayoutWriter(path), ThinImage(DESCRIPTOR, config, platform), tag="thin")


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_same_original_same_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "one")
    again = write(tmp_path / "two", json.loads(json.dumps(dict(reversed(CONFIG.items())))))
    assert first == again
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert write(tmp_path / "one") == first
    assert contents(tmp_path / "one") == contents(tmp_path / "two"), "written twice it is there once"


def test_image_without_an_architecture_stays_without(tmp_path: Path) -> None:
    """An index that says `linux/` is for no machine at all."""
    thin = ThinImage(DESCRIPTOR, {"config": RUN}, Platform("linux", ""))
    for _ in range(2):
        write_thin_image(LayoutWriter(tmp_path / "one"), thin, tag="thin")
        write_thin_index(LayoutWriter(tmp_path / "two"), [thin, thin], tag="thin")
    for name in ("one", "two"):
        assert b"platform" not in b"".join(contents(tmp_path / name).values())
        for platform in ("linux/amd64", "linux/arm64"):
            with open_image(f"oci:{tmp_path / name}:thin", platform=platform) as image:
                assert require_thin(image) == DESCRIPTOR


def test_configuration_is_kept_whole(tmp_path: Path) -> None:
    before = json.dumps(CONFIG)
    write(tmp_path / "thin")
    assert json.dumps(CONFIG) == before, "the caller's document is not touched"
    with open_image(f"oci:{tmp_path / 'thin'}:thin", platform="linux/arm64") as image:
        document = image.config.document()
        assert require_thin(image) == DESCRIPTOR
        assert len(image.layers) == 1
    kept = {name: value for name, value in CONFIG.items() if name not in {"rootfs", "history"}}
    assert {name: value for name, value in document.items() if name not in {"rootfs", "history"}} == kept
    assert [step["created_by"] for step in document["history"]][:2] == ["ADD", "ENV"]
    # As many steps with a layer as there are layers: some tools count.
    assert sum(not step.get("empty_layer") for step in document["history"]) == len(document["rootfs"]["diff_ids"]) == 1


@pytest.mark.parametrize("history", [None, [], [1, "x"]])
def test_odd_history_is_survived(tmp_path: Path, history: object) -> None:
    write(tmp_path / "thin", CONFIG | {"history": history})
    with open_image(f"oci:{tmp_path / 'thin'}:thin", platform="linux/arm64") as image:
        assert len(image.config.history) == 1


def test_layer_holds_one_plain_file(tmp_path: Path) -> None:
    write(tmp_path / "thin")
    with (
        open_image(f"oci:{tmp_path / 'thin'}", platform="linux/arm64") as image,
        image.open_layer(image.layers[0], 1 << 20) as stream,
    ):
        data = stream.read(1 << 20)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        [member] = tar.getmembers()
        assert (member.name, member.mode, member.uid, member.gid, member.mtime) == ("thin.json", 0o644, 0, 0, 0)
        content = tar.extractfile(member)
        assert content is not None
        assert content.read() == format_descriptor(DESCRIPTOR)


def read(path: Path, *tars: bytes) -> ThinDescriptor | None:
    write_layout(path, make_sample(list(tars)))
    with open_image(f"oci:{path}") as image:
        return read_thin_descriptor(image)


def test_images_of_others_are_recognised(tmp_path: Path) -> None:
    data = format_descriptor(DESCRIPTOR)
    assert read(tmp_path / "1", make_tar({"thin.json": data})) == DESCRIPTOR
    assert read(tmp_path / "2", make_tar({"./thin.json": data})) == DESCRIPTOR


@pytest.mark.parametrize(
    "tars",
    [
        [make_tar({"etc/passwd": b"x"})],
        [make_tar({"thin.json": b"{}", "other": b""})],
        [make_tar({"thin.json": "/etc/passwd"})],
        [make_tar({"sub/thin.json": b"{}"})],
        [make_tar({"thin.json": b"{}"}), make_tar({"x": b""})],
        [make_tar({})],
        [],
    ],
    ids=["files", "two files", "a link", "elsewhere", "two layers", "empty", "no layers"],
)
def test_ordinary_images_are_not_thin(tmp_path: Path, tars: list[bytes]) -> None:
    assert read(tmp_path / "image", *tars) is None
    with open_image(f"oci:{tmp_path / 'image'}") as image, pytest.raises(UserError, match="ordinary image"):
        require_thin(image)


def test_ordinary_images_of_many_small_files_are_not_thin(tmp_path: Path) -> None:
    """More files than a thin image has, or more bytes, make an ordinary image and no error."""
    assert read(tmp_path / "many", make_tar({f"file{number}": b"" for number in range(40)})) is None
    assert read(tmp_path / "large", make_tar({"bin/busybox": bytes(8 << 20)})) is None
    assert read(tmp_path / "both", make_tar({"thin.json": b"{}", "bin/busybox": bytes(8 << 20)})) is None


def test_bomb_in_place_of_a_descriptor_is_refused(tmp_path: Path) -> None:
    tar = make_tar({"thin.json": bytes(64 << 20)})
    with pytest.raises((UserError, IntegrityError)) as caught:
        read(tmp_path / "image", tar)
    assert "\n" not in str(caught.value)


def test_damaged_descriptor_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"thin\.json of oci:.* is not JSON"):
        read(tmp_path / "image", make_tar({"thin.json": b"{"}))
