"""Staged layers: what a conversion finished is found by the next one, whole or not at all."""

import os
import time
from pathlib import Path

import pytest
from tests.support.repositories import Repository, make_repository
from tests.unit.oci.samples import make_sample, make_tar, write_layout

from mica.convert.layerbuilder import DEFAULT_LIMITS, LayerBuilder
from mica.convert.staging import STAGED_FOR_S, StagedLayer, Staging
from mica.oci.source import SourceOptions, open_image
from mica.thin.layout import hex_of

SAMPLE = make_sample([make_tar({"etc/name": b"content"})])
DIGEST = SAMPLE.layers[0].digest


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "layers"


def stage(repository: Repository, place: Path, layout: Path) -> StagedLayer:
    """Make the sample's layer and keep it."""
    write_layout(layout, SAMPLE)
    with repository.manager() as manager, open_image(f"oci:{layout}", options=SourceOptions()) as image:
        staging = Staging(place, manager.store)
        builder = LayerBuilder(manager.store, manager.settings.objects, DEFAULT_LIMITS, jobs=1)
        with staging.making(DIGEST) as work:
            layer = builder.build(image, image.layers[0], work, lambda _: None)
            staging.keep(layer)
    return layer


def find(repository: Repository, place: Path) -> StagedLayer | None:
    with repository.manager() as manager:
        return Staging(place, manager.store).find(DIGEST, place)


def test_a_layer_that_was_kept_is_found_as_it_was(repository: Repository, place: Path, tmp_path: Path) -> None:
    assert find(repository, place) is None
    layer = stage(repository, place, tmp_path / "layout")
    assert find(repository, place) == layer
    assert [path.name for path in place.iterdir()] == [f"{hex_of(DIGEST)}.json"], "neither lock nor scratch is left"


def test_a_layer_that_was_forgotten_is_not_found(repository: Repository, place: Path, tmp_path: Path) -> None:
    stage(repository, place, tmp_path / "layout")
    with repository.manager() as manager:
        staging = Staging(place, manager.store)
        assert staging.has(DIGEST)
        staging.forget(DIGEST)
        staging.forget(DIGEST)
        assert not staging.has(DIGEST)
    assert find(repository, place) is None


@pytest.mark.parametrize(
    ("old", "new"), [(b'"version": 3', b'"version": 2'), (DIGEST.encode(), b"sha256:" + b"0" * 64)]
)
def test_a_layer_of_another_version_or_name_is_forgotten(
    repository: Repository, place: Path, tmp_path: Path, old: bytes, new: bytes
) -> None:
    stage(repository, place, tmp_path / "layout")
    path = place / f"{hex_of(DIGEST)}.json"
    text = path.read_bytes()
    assert old in text
    path.write_bytes(text.replace(old, new, 1))
    assert find(repository, place) is None
    assert not path.exists()


def test_a_maker_gets_an_empty_scratch_directory(repository: Repository, place: Path) -> None:
    """A maker that was killed leaves its own; one that fails leaves nothing."""
    left = place / f"{hex_of(DIGEST)}.work/catalog"
    left.parent.mkdir(parents=True)
    left.touch()

    def fail(staging: Staging) -> None:
        with staging.making(DIGEST) as work:
            assert list(work.iterdir()) == []
            (work / "catalog").touch()
            raise ZeroDivisionError

    with repository.manager() as manager, pytest.raises(ZeroDivisionError):
        fail(Staging(place, manager.store))
    assert list(place.iterdir()) == []


def aged(repository: Repository, place: Path, tmp_path: Path) -> list[Path]:
    """All objects that a layer brings, older than a staged layer is taken as it is, and its document too."""
    before = set(repository.storage.rglob("data/??/*"))
    stage(repository, place, tmp_path / "layout")
    objects = sorted(set(repository.storage.rglob("data/??/*")) - before)
    long_ago = time.time() - STAGED_FOR_S - 60
    for path in (*objects, place / f"{hex_of(DIGEST)}.json"):
        os.utime(path, (long_ago, long_ago))
    return objects


def test_a_layer_that_waited_for_long_is_made_young_as_a_whole(
    repository: Repository, place: Path, tmp_path: Path
) -> None:
    objects = aged(repository, place, tmp_path)
    assert len(objects) >= 4
    start = time.time() - 60
    assert find(repository, place) is not None
    assert [path for path in (*objects, *place.iterdir()) if path.stat().st_mtime < start] == []


@pytest.mark.parametrize("number", range(4))
def test_a_layer_that_waited_for_long_and_lost_an_object_is_forgotten(
    repository: Repository, place: Path, tmp_path: Path, number: int
) -> None:
    aged(repository, place, tmp_path)[number].unlink()
    assert find(repository, place) is None
    assert list(place.iterdir()) == []
