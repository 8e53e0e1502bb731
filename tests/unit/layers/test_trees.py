"""Layers in mounted repositories: what a repository says never makes a directory of the host a layer."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mica.errors import NotFoundError, UserError
from mica.layers.trees import find_layer_trees
from mica.thin.descriptor import ThinDescriptor, ThinLayer
from mica.union.plainpaths import pinned

FQRN = "a.example.org"
PLACE = ".layers/ab/abcd/layerfs"


def descriptor(*paths: str) -> ThinDescriptor:
    return ThinDescriptor("test", tuple(ThinLayer("ab" * 32, FQRN, f"/{path}") for path in paths))


def make_layer(root: Path, path: str, content: str) -> Path:
    layer = root / FQRN / path
    layer.mkdir(parents=True)
    (layer / "file").write_text(content)
    return layer


def test_layers_are_found_top_first(tmp_path: Path) -> None:
    bottom, top = make_layer(tmp_path, "bottom", "1"), make_layer(tmp_path, PLACE, "2")
    assert find_layer_trees(tmp_path, descriptor("bottom", PLACE)) == (top, bottom)


def test_nothing_stays_open(tmp_path: Path) -> None:
    layer = make_layer(tmp_path, PLACE, "1")
    before = os.listdir("/proc/self/fd")
    find_layer_trees(tmp_path, descriptor(PLACE))
    with pytest.raises(NotFoundError):
        find_layer_trees(tmp_path, descriptor("none", PLACE))
    with contextlib.ExitStack() as stack:
        pinned([layer, layer], tmp_path, stack)
        assert len(os.listdir("/proc/self/fd")) == len(before) + 2
    assert os.listdir("/proc/self/fd") == before


def test_the_host_may_have_its_repositories_elsewhere(tmp_path: Path) -> None:
    make_layer(tmp_path / "elsewhere", PLACE, "1")
    (tmp_path / "cvmfs").symlink_to("elsewhere")
    (tree,) = find_layer_trees(tmp_path / "cvmfs", descriptor(PLACE))
    with contextlib.ExitStack() as stack:
        (path,) = pinned([tree], tmp_path / "cvmfs", stack)
        assert (path / "file").read_text() == "1"


def to_the_host(place: Path, host: Path) -> None:
    place.symlink_to(host)


def relative(place: Path, host: Path) -> None:
    place.symlink_to(os.path.relpath(host, place.parent))


def inside(place: Path, _host: Path) -> None:
    place.symlink_to(".")


@pytest.mark.parametrize("make", [to_the_host, relative, inside])
@pytest.mark.parametrize("linked", [".layers", ".layers/ab", ".layers/ab/abcd", PLACE])
def test_a_link_is_refused_wherever_it_is(tmp_path: Path, linked: str, make: Callable[[Path, Path], None]) -> None:
    """Also one that would stay inside: it is no plain layer, and no two clients follow links alike."""
    host = tmp_path / "host"
    for part in ("", "layerfs", "abcd/layerfs", "ab/abcd/layerfs"):
        (host / part).mkdir(parents=True, exist_ok=True)
    place = tmp_path / FQRN / linked
    place.parent.mkdir(parents=True)
    make(place, host)
    with pytest.raises(UserError, match=r"is not a directory, or has a link in its path"):
        find_layer_trees(tmp_path, descriptor(PLACE))


def test_a_layer_that_becomes_a_link_after_the_look(tmp_path: Path) -> None:
    """A repository is at a new revision when it likes."""
    layer = make_layer(tmp_path, PLACE, "layer")
    (tmp_path / "host").mkdir()
    (tree,) = find_layer_trees(tmp_path, descriptor(PLACE))
    with contextlib.ExitStack() as stack:
        (path,) = pinned([tree], tmp_path, stack)
        layer.rename(tmp_path / "old")
        layer.symlink_to(tmp_path / "host")
        assert (path / "file").read_text() == "layer"
    with contextlib.ExitStack() as stack, pytest.raises(NotADirectoryError):
        pinned([tree], tmp_path, stack)


def test_other_layers_are_as_trusted_as_ever(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        assert pinned([Path("/home/1/diff")], tmp_path, stack) == (Path("/home/1/diff"),)
        assert pinned([tmp_path / "x"], None, stack) == (tmp_path / "x",)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"Repository a\.example\.org is not mounted below"):
        find_layer_trees(tmp_path, descriptor(PLACE))
    (tmp_path / FQRN).mkdir()
    with pytest.raises(NotFoundError, match=r"not in the newest revision of a\.example\.org"):
        find_layer_trees(tmp_path, descriptor(PLACE))
    (tmp_path / FQRN / "x").write_text("")
    for path in ("x", "x/layerfs"):
        with pytest.raises(UserError, match="is not a directory"):
            find_layer_trees(tmp_path, descriptor(path))
