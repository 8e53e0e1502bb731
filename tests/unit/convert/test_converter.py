"""From a name to a thin image: which images are taken, under which names they are recorded, what is written."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.noise import noise
from tests.support.repositories import FQRN, Repository, findings, make_repository
from tests.unit.oci.samples import Sample, make_config, make_sample, make_tar, write_layout

from mica.convert.converter import Converter, ConverterOptions, OpenedSource, Platforms
from mica.convert.layerbuilder import ConversionLimits, StoppedError
from mica.convert.publishing import Conversion
from mica.digest import digest_of
from mica.errors import NotFoundError, TemporaryError, UserError
from mica.oci.image import NoImageError
from mica.oci.layoutwriter import LayoutWriter
from mica.oci.models import Descriptor, format_index
from mica.oci.platforms import Platform
from mica.oci.source import open_image
from mica.publish.storedfiles import load_file
from mica.repo.localname import LocalName
from mica.repo.objects import Compression
from mica.thin.image import read_thin_descriptor
from mica.thin.record import RECORD_LIMIT, ImageRecord, parse_record
from mica.thin.trace import ProgramTrace

ONE, ALL = Platforms(), Platforms(every=True)
NAME = "registry.example.org/team/image:v1"
COMMON = make_tar({"etc/name": b"first"})
HERE = Platform.here()
OTHER = Platform("linux", "s390x" if HERE.architecture != "s390x" else "amd64")
THIRD = Platform("linux", "riscv64" if HERE.architecture != "riscv64" else "amd64")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


def sample_for(platform: Platform, *tars: bytes) -> Sample:
    every = [COMMON, make_tar({"arch": platform.text.encode()}), *tars]
    return make_sample(every, config=make_config(every, os=platform.os, architecture=platform.architecture))


def layout(place: Path, *samples: tuple[Platform, Sample]) -> str:
    """A layout whose one entry is an index of these images."""
    manifests = tuple(replace(sample.manifest, platform=platform) for platform, sample in samples)
    data = format_index(manifests)
    blobs = {digest: blob for _, sample in samples for digest, blob in sample.blobs.items()}
    whole = replace(samples[0][1], blobs=blobs)
    path = write_layout(place, whole, *manifests)
    (path / "index.json").write_bytes(data)
    return f"oci:{path}"


@pytest.fixture
def source(tmp_path: Path) -> str:
    """An index of an image for another machine, one for this one, and a third."""
    return layout(tmp_path / "image", *((one, sample_for(one)) for one in (OTHER, HERE, THIRD)))


@contextlib.contextmanager
def opening(
    repository: Repository, source: str, platforms: Platforms = ONE, *, name: str = NAME, **options: Any
) -> Iterator[tuple[Converter, OpenedSource]]:
    with repository.manager() as manager:
        converter = Converter(manager, ConverterOptions(**options))
        with converter.opened(source, platforms, name=name) as opened:
            yield converter, opened


def convert(repository: Repository, source: str, platforms: Platforms = ONE, **options: Any) -> Conversion:
    with opening(repository, source, platforms, **options) as (converter, opened):
        return converter.convert(opened)


def record(repository: Repository, version: str) -> ImageRecord | None:
    path = f"/.images/registry.example.org/team/image/{version}.json".encode()
    with repository.manager() as manager, manager.snapshot() as catalogs:
        data = load_file(catalogs, manager.store, path, limit=RECORD_LIMIT)
    return None if data is None else parse_record(data, version)


def platforms_of(opened: OpenedSource) -> list[Platform]:
    return [one.platform for one in opened.images]


# Which images


@pytest.mark.parametrize(
    ("platforms", "expected", "is_index"),
    [
        (ONE, [HERE], False),
        (Platforms((OTHER,)), [OTHER], False),
        (ALL, [OTHER, HERE, THIRD], True),
        (Platforms((HERE, OTHER)), [OTHER, HERE], True),
        (Platforms((THIRD, Platform("linux", "mips"))), [THIRD], False),
        (Platforms((THIRD, THIRD)), [THIRD], False),
    ],
    ids=range(6),
)
def test_the_images_for_the_platforms_are_taken_in_the_order_of_the_index(
    repository: Repository, source: str, platforms: Platforms, expected: list[Platform], *, is_index: bool
) -> None:
    with opening(repository, source, platforms) as (_, opened):
        assert platforms_of(opened) == expected
        assert opened.is_index == is_index


@pytest.mark.parametrize(("platforms", "is_one"), [
    (ONE, True), (Platforms((HERE,)), True), (Platforms((HERE, OTHER)), False), (ALL, False),
    (Platforms((HERE,), every=True), False),
])  # fmt: skip
def test_one_platform_or_none_is_one(platforms: Platforms, *, is_one: bool) -> None:
    assert platforms.is_one == is_one


def test_the_main_image_is_this_machine_s_and_otherwise_the_first(tmp_path: Path, repository: Repository) -> None:
    for number, (order, expected) in enumerate([((OTHER, HERE), HERE), ((THIRD, OTHER), THIRD)]):
        source = layout(tmp_path / str(number), *((one, sample_for(one)) for one in order))
        with opening(repository, source, ALL) as (_, opened):
            assert opened.main.platform == expected


@pytest.mark.parametrize("platforms", [Platforms((Platform("linux", "mips"),)), Platforms((Platform("a", "b"),) * 2)])
def test_a_platform_without_an_image_is_refused(repository: Repository, source: str, platforms: Platforms) -> None:
    with pytest.raises(UserError, match=r"linux/mips|a/b"):
        convert(repository, source, platforms)


def test_an_index_without_any_image_is_refused(tmp_path: Path, repository: Repository) -> None:
    sample = sample_for(HERE)
    path = write_layout(tmp_path / "image", sample)
    (path / "index.json").write_bytes(
        format_index((replace(sample.manifest, platform=Platform("unknown", "unknown")),))
    )
    with pytest.raises(NoImageError, match="without any image"):
        convert(repository, f"oci:{path}", ALL)


def test_an_image_without_layers_is_refused_before_anything_is_made(tmp_path: Path, repository: Repository) -> None:
    path = write_layout(tmp_path / "image", make_sample([]))
    with pytest.raises(UserError, match="has no layers"):
        convert(repository, f"oci:{path}")


# Names


def test_a_name_is_needed_and_the_given_one_is_taken(tmp_path: Path, repository: Repository) -> None:
    path = write_layout(tmp_path / "image", sample_for(HERE))
    with pytest.raises(UserError, match="gives no name for the image") as refusal:
        convert(repository, f"oci:{path}", name="")
    assert "--tag" in refusal.value.hint
    with pytest.raises(UserError):
        convert(repository, f"oci:{path}", name="NOT A NAME")
    with opening(repository, f"oci:{path}") as (_, opened):
        assert str(opened.reference) == NAME


def test_a_missing_source_is_a_missing_thing(tmp_path: Path, repository: Repository) -> None:
    with pytest.raises(NotFoundError):
        convert(repository, f"oci:{tmp_path / 'missing'}")


def test_the_digest_is_what_the_name_points_at(tmp_path: Path, repository: Repository, source: str) -> None:
    path = write_layout(tmp_path / "single", sample_for(HERE))
    with opening(repository, f"oci:{path}") as (_, opened):
        assert opened.digest == opened.main.image.manifest_digest
    with opening(repository, source, ALL) as (_, opened):
        assert opened.digest


def test_the_main_image_is_recorded_by_name_and_those_of_an_index_by_digest_too(
    repository: Repository, source: str, tmp_path: Path
) -> None:
    conversion = convert(repository, source, ALL)
    assert len(conversion.layers) == 4, "the common layer is made once"
    by_name = record(repository, "v1")
    assert by_name is not None
    assert by_name.platform == HERE
    assert str(by_name.reference) == NAME
    with opening(repository, source, ALL) as (_, opened):
        for one in opened.images:
            by_digest = record(repository, one.image.manifest_digest)
            assert by_digest is not None
            assert by_digest.platform == one.platform
            assert by_digest.manifest == json.loads(one.image.manifest.raw)
            assert by_digest.manifest_digest == one.image.manifest_digest
            assert [layer.digest for layer in by_digest.descriptor.layers] == [
                layer.digest.removeprefix("sha256:") for layer in one.image.layers
            ]
            assert {layer.fqrn for layer in by_digest.descriptor.layers} == {FQRN}
    assert findings(repository, tmp_path) == []


def test_one_image_is_recorded_by_name_alone(repository: Repository, source: str) -> None:
    convert(repository, source)
    with opening(repository, source, ALL) as (_, opened):
        assert [record(repository, one.image.manifest_digest) for one in opened.images] == [None] * 3
    assert record(repository, "v1") is not None


def test_traces_are_the_main_image_s_and_stay_when_none_is_given(repository: Repository, source: str) -> None:
    def traces() -> Sequence[bytes]:
        with repository.manager() as manager, manager.snapshot() as catalogs:
            return sorted(
                entry.name
                for group in catalogs.children(b"/.layers")
                for entry in catalogs.children(b"/.layers/" + group.name)
                if entry.name.endswith(b".trace")
            )

    name = LocalName(digest_of(b"program"), Compression.ZLIB, 7)
    trace = ProgramTrace(("program",), name, ())
    with opening(repository, source, ALL) as (converter, opened):
        converter.convert(opened)
        assert traces() == []
        converter.convert(opened, [trace])
        top = opened.main.image.layers[-1].digest.removeprefix("sha256:").encode()
        assert traces() == [top + b".trace"]
        converter.convert(opened)
        assert traces() == [top + b".trace"]


# What is written


def test_a_thin_image_or_an_index_of_them_is_written(repository: Repository, source: str, tmp_path: Path) -> None:
    for number, (platforms, expected) in enumerate([(ONE, [HERE]), (ALL, [OTHER, HERE, THIRD])]):
        place = tmp_path / f"thin-{number}"
        with opening(repository, source, platforms) as (converter, opened):
            written = converter.write(opened, converter.convert(opened), LayoutWriter(place), tag="thin")
            originals = {one.platform: one.image for one in opened.images}
            layers = {platform: [layer.digest for layer in image.layers] for platform, image in originals.items()}
        assert isinstance(written, Descriptor)
        for platform in expected:
            with open_image(f"oci:{place}:thin", platform=platform.text) as image:
                descriptor = read_thin_descriptor(image)
                assert descriptor is not None
                assert [f"sha256:{layer.digest}" for layer in descriptor.layers] == layers[platform]
                assert image.config.architecture == platform.architecture


# Limits and stopping


@pytest.mark.parametrize(("less", "is_refused"), [(0, False), (1, True)])
def test_each_image_has_the_limit_of_bytes(
    repository: Repository, tmp_path: Path, less: int, *, is_refused: bool
) -> None:
    samples = [(HERE, sample_for(HERE)), (OTHER, sample_for(OTHER, make_tar({"large": noise(50_000)})))]
    source = layout(tmp_path / "image", *samples)
    largest = sum(layer.size for layer in samples[1][1].layers)
    if not is_refused:
        convert(repository, source, ALL, max_image_bytes=largest - less)
        return
    with pytest.raises(UserError, match=f"has {largest} bytes of layers, more than the {largest - 1} allowed"):
        convert(repository, source, ALL, max_image_bytes=largest - less)
    convert(repository, source, ONE, max_image_bytes=largest - less)


def test_limits_of_layers_are_passed_on(repository: Repository, source: str) -> None:
    with pytest.raises(UserError, match="more than 100 bytes"):
        convert(repository, source, limits=ConversionLimits(max_layer_bytes=100))
    assert record(repository, "v1") is None


@pytest.mark.parametrize("when", ["before", "while a layer is read"])
def test_a_stopped_converter_publishes_nothing(repository: Repository, source: str, when: str) -> None:
    class Stopping:
        """An observer that stops the conversion when the first layer begins."""

        stop: Callable[[], None] = staticmethod(lambda: None)

        @contextlib.contextmanager
        def layer(self, number: int, count: int, layer: object) -> Iterator[Callable[[int], None]]:
            self.stop()
            yield lambda _: None

    with repository.manager() as manager:
        head, observer = manager.head(), Stopping()
        converter = Converter(manager, ConverterOptions(), observer=observer)
        if when == "before":
            converter.stop()
        else:
            observer.stop = converter.stop  # type: ignore[method-assign]
        with converter.opened(source, ONE, name=NAME) as opened, pytest.raises(StoppedError):
            converter.convert(opened)
        assert manager.head() == head
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("layer", "objects"))]
    convert(repository, source)
    assert record(repository, "v1") is not None


def test_another_publisher_is_waited_for_as_long_as_the_options_say(repository: Repository, source: str) -> None:
    with repository.manager() as manager, manager.transaction() as transaction:
        with pytest.raises(TemporaryError, match="in use by process"):
            convert(repository, source, wait_s=0.0)
        transaction.give_up()
