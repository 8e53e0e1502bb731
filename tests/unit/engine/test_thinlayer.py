"""Which layer of an engine is thin: one whose only entry is a descriptor."""

import json
import os
from pathlib import Path

import pytest

from mica.engine.thinlayer import find_descriptor
from mica.engine.whiteouts import AufsWhiteouts, OverlayWhiteouts
from mica.errors import UserError
from mica.thin.descriptor import SIZE_LIMIT, ThinDescriptor, ThinLayer

URL = "cvmfs://images.example.org/.layers/aa/aa/layerfs"
DOCUMENT = {"version": "1.0", "origin": "docker.io/a/b:1", "layers": [{"digest": "aa" * 32, "url": URL}]}


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    layer = tmp_path / "diff"
    layer.mkdir()
    (layer / "thin.json").write_text(json.dumps(DOCUMENT))
    return layer


def found_in(layer: Path) -> ThinDescriptor | None:
    return find_descriptor(layer, "layer ab", OverlayWhiteouts())


def test_a_thin_layer_names_the_real_ones(layer: Path) -> None:
    found = found_in(layer)
    assert found is not None
    assert found.layers == (ThinLayer("aa" * 32, "images.example.org", "/.layers/aa/aa/layerfs"),)


def test_it_is_parsed_once_as_long_as_it_stays_the_same(layer: Path) -> None:
    found = found_in(layer)
    assert found_in(layer) is found
    (layer / "thin.json").write_text(json.dumps({**DOCUMENT, "origin": "docker.io/a/b:2"}))
    changed = found_in(layer)
    assert changed is not None
    assert changed.origin == "docker.io/a/b:2"


def test_a_layer_with_anything_else_is_an_ordinary_one(layer: Path) -> None:
    (layer / ".wh..wh.orph").mkdir()
    assert found_in(layer) is None
    assert find_descriptor(layer, "layer ab", AufsWhiteouts()) is not None  # AUFS keeps that there for itself
    (layer / "b").touch()
    assert find_descriptor(layer, "layer ab", AufsWhiteouts()) is None


def test_only_a_regular_file_is_read(layer: Path) -> None:
    (layer / "thin.json").rename(layer.parent / "thin.json")
    (layer / "thin.json").symlink_to(layer.parent / "thin.json")
    assert found_in(layer) is None
    (layer / "thin.json").unlink()
    assert found_in(layer) is None
    os.mkfifo(layer / "thin.json")
    assert found_in(layer) is None


@pytest.mark.parametrize("data", [b"{}", b" " * (SIZE_LIMIT + 1)])
def test_a_descriptor_that_is_none_is_refused_by_the_layers_name(layer: Path, data: bytes) -> None:
    (layer / "thin.json").write_bytes(data)
    with pytest.raises(UserError, match=r"thin\.json of layer ab"):
        found_in(layer)
