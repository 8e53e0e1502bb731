"""Images by the names that users give them."""

import json
from pathlib import Path

import pytest
from tests.unit.oci.samples import make_sample, write_layout

from mica.cli.images import find_image, open_source
from mica.cli.outputs import Output, parse_output
from mica.cli.places import Places
from mica.errors import NotFoundError, UserError
from mica.thin.descriptor import SIZE_LIMIT, ThinLayer

THIN = {"version": "1.0", "layers": [{"digest": "ab" * 32, "url": "cvmfs://a.example.org/x"}]}


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("oci:dir", Output("oci", "dir", "")),
        ("oci:dir:tag", Output("oci", "dir", "tag")),
        ("oci:/a/b:1.0", Output("oci", "/a/b", "1.0")),
        ("oci:/a:b/c", Output("oci", "/a:b/c", "")),
        ("docker://reg.example/a/b:1", Output("docker", "reg.example/a/b", "1")),
        ("docker://reg.example:5000/a/b", Output("docker", "reg.example:5000/a/b", "")),
        ("oci-archive:file.tar:tag", Output("oci-archive", "file.tar", "tag")),
    ],
)
def test_outputs(text: str, output: Output) -> None:
    assert parse_output(text) == output


@pytest.mark.parametrize("text", ["", "dir", "oci", "oci:", "docker:a/b", "docker-archive:x", "OCI:dir"])
def test_places_that_are_no_output(text: str) -> None:
    with pytest.raises(UserError, match="is not oci:DIR"):
        parse_output(text)


def test_descriptor_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "thin.json").write_text(json.dumps(THIN))
    found = find_image(str(tmp_path / "thin.json"), Places(tmp_path), None)
    assert found.descriptor.layers == (ThinLayer("ab" * 32, "a.example.org", "/x"),)
    assert found.config == {}


def test_file_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "thin.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=f"has {SIZE_LIMIT + 1} bytes"):
        find_image(str(tmp_path / "thin.json"), Places(tmp_path), None)


def test_directory_with_a_layout_is_one(tmp_path: Path) -> None:
    write_layout(tmp_path / "image", make_sample())
    with pytest.raises(UserError, match="ordinary image"):
        find_image(str(tmp_path / "image"), Places(tmp_path), None)


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000 + "b", "", "A B", "/etc", "."])
def test_names_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        find_image(name, Places(tmp_path), None)


def test_unknown_name_without_any_repository(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no image docker\.io/library/none:latest and no repository is known"):
        find_image("none", Places(tmp_path), None)


def test_source_without_a_platform_takes_this_machine_s(tmp_path: Path) -> None:
    write_layout(tmp_path / "image", make_sample())
    with open_source(f"oci:{tmp_path / 'image'}", None, None) as image:
        assert image.config.architecture == "amd64"
