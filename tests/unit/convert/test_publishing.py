"""Conversions: what is done once, what is kept of a failed one, what is published and when."""

import contextlib
import dataclasses
import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.noise import noise
from tests.support.registry import Reply, ScriptedRegistry, scripted_registry
from tests.support.repositories import FQRN, Repository, findings, make_repository
from tests.unit.oci.samples import Sample, make_config, make_sample, make_tar

from mica.convert.converter import Converter, ConverterOptions, Platforms
from mica.convert.plan import LayerState
from mica.convert.publishing import Conversion
from mica.convert.removal import remove_layers
from mica.convert.staging import STAGING_DIRECTORY, Staging
from mica.errors import IntegrityError, NotFoundError, TemporaryError, UserError
from mica.files import mapped_os_errors
from mica.oci import mediatypes
from mica.oci.layoutwriter import LayoutWriter
from mica.oci.models import format_index
from mica.oci.platforms import Platform
from mica.oci.session import RegistryOptions
from mica.oci.source import SourceOptions, expand_source, open_image
from mica.oci.transport import TransportOptions
from mica.thin.image import read_thin_descriptor
from mica.thin.layout import image_path, layer_path
from mica.thin.record import parse_record

ONE = Platforms()
FAST = TransportOptions(attempts=2, backoff_s=0.001, connect_timeout_s=5, read_timeout_s=5, longest_wait_s=2)
SAMPLE = make_sample([make_tar({"etc/name": b"first"}), make_tar({"usr/big": noise(300_000)})])


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with scripted_registry() as registry:
        add(registry, SAMPLE, "v1")
        yield registry


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path)


def add(registry: ScriptedRegistry, sample: Sample, tag: str) -> None:
    registry.add_blobs(sample.blobs)
    registry.add_manifest(tag, mediatypes.OCI_MANIFEST, sample.blobs[sample.manifest.digest])


def options(**changes: Any) -> ConverterOptions:
    source = SourceOptions(registry=RegistryOptions(transport=FAST))
    return dataclasses.replace(ConverterOptions(source), **changes)


def convert(
    registry: ScriptedRegistry,
    repository: Repository,
    version: str = ":v1",
    *,
    platforms: Platforms = ONE,
    writer: LayoutWriter | None = None,
    **changes: Any,
) -> Conversion:
    with repository.manager() as manager:
        converter = Converter(manager, options(**changes))
        with converter.opened(f"docker://{registry.host}/team/image{version}", platforms) as opened:
            conversion = converter.convert(opened)
            if writer is not None:
                converter.write(opened, conversion, writer, tag="thin")
            return conversion


def blobs_asked(registry: ScriptedRegistry) -> list[str]:
    layers = {layer.digest for layer in SAMPLE.layers}
    return [path.rpartition("/")[2] for path in registry.paths("/blobs/") if path.rpartition("/")[2] in layers]


def has_record(repository: Repository, version: str, registry: ScriptedRegistry) -> bool:
    with repository.manager() as manager, manager.snapshot() as catalogs:
        return catalogs.find(b"/.images/%s/team/image/%s.json" % (registry.host.encode(), version.encode())) is not None


def test_layer_in_the_repository_is_not_downloaded(registry: ScriptedRegistry, repository: Repository) -> None:
    first = convert(registry, repository)
    assert [layer.is_new for layer in first.layers] == [True, True]
    registry.requests.clear()
    second = convert(registry, repository)
    assert not blobs_asked(registry)
    assert (second.revision, second.new_objects) == (first.revision, 0)
    assert not list((repository.state / "repositories" / FQRN / "layers").iterdir())


def test_finished_layer_stays_when_another_fails(
    registry: ScriptedRegistry, repository: Repository, tmp_path: Path
) -> None:
    bad = SAMPLE.layers[1].digest
    good = registry.blobs[bad]
    registry.blobs[bad] = bytes(len(good))
    with pytest.raises(IntegrityError, match=bad[7:19]):
        convert(registry, repository)
    assert not has_record(repository, "v1", registry)
    assert not findings(repository, tmp_path)
    registry.requests.clear()
    registry.blobs[bad] = good
    assert [layer.is_new for layer in convert(registry, repository).layers] == [True, True]
    assert blobs_asked(registry) == [bad]
    assert not findings(repository, tmp_path)


def test_staged_layers_give_the_same_repository(registry: ScriptedRegistry, tmp_path: Path) -> None:
    catalogs = []
    for turn, is_interrupted in (("one", False), ("two", True)):
        repository = make_repository(tmp_path / turn)
        if is_interrupted:
            registry.script[f"blobs/{SAMPLE.layers[1].digest}"] = [Reply(404)]
            with pytest.raises(NotFoundError):
                convert(registry, repository)
        convert(registry, repository)
        names = {path.name for path in (repository.storage / "data").rglob("*") if path.is_file()}
        with repository.manager() as manager, manager.snapshot() as tree:
            found = [tree._branch_below(layer_path(layer.digest)).reference for layer in SAMPLE.layers]
        catalogs.append((found, {name for name in names if not name.endswith(("C", "H", "X"))}))
    assert catalogs[0] == catalogs[1]


def test_staged_layer_whose_catalog_is_gone_is_made_again(registry: ScriptedRegistry, repository: Repository) -> None:
    registry.script[f"blobs/{SAMPLE.layers[1].digest}"] = [Reply(404)]
    with pytest.raises(NotFoundError):
        convert(registry, repository)
    with repository.manager() as manager:
        staged = json.loads(next(manager.directory(STAGING_DIRECTORY).glob("*.json")).read_text())
        manager.store.delete(f"data/{staged['catalog']['digest'][:2]}/{staged['catalog']['digest'][2:]}C")
    convert(registry, repository)
    assert blobs_asked(registry).count(SAMPLE.layers[0].digest) == 2


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"null", b'{"version": 1}', b"\xff", b'{"version": 9}'])
def test_damaged_staging_is_forgotten(repository: Repository, damage: bytes) -> None:
    digest = SAMPLE.layers[0].digest
    with repository.manager() as manager:
        staging = Staging(manager.directory(STAGING_DIRECTORY), manager.store)
        manager.directory(STAGING_DIRECTORY).mkdir(parents=True)
        (manager.directory(STAGING_DIRECTORY) / f"{digest[7:]}.json").write_bytes(damage)
        assert staging.has(digest)
        assert staging.find(digest, repository.state) is None
        assert not staging.has(digest)


def test_plan_tells_states_and_changes_nothing(registry: ScriptedRegistry, repository: Repository) -> None:
    registry.script[f"blobs/{SAMPLE.layers[1].digest}"] = [Reply(404)]
    with pytest.raises(NotFoundError):
        convert(registry, repository)
    with repository.manager() as manager:
        revision = manager.head().revision
        converter = Converter(manager, options())
        with converter.opened(f"docker://{registry.host}/team/image:v1", Platforms()) as opened:
            plan = converter.plan(opened)
            assert [one.state for one in plan] == [LayerState.STAGED, LayerState.MISSING]
            converter.convert(opened)
            assert [one.state for one in converter.plan(opened)] == [LayerState.PUBLISHED] * 2
        assert manager.head().revision == revision + 1


def test_ten_conversions_at_once_do_the_work_once(registry: ScriptedRegistry, repository: Repository) -> None:
    barrier = threading.Barrier(10)
    results: list[Conversion] = []
    errors: list[BaseException] = []

    def work() -> None:
        barrier.wait()
        try:
            results.append(convert(registry, repository, wait_s=60))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(blobs_asked(registry)) == sorted(layer.digest for layer in SAMPLE.layers)
    assert sum(layer.is_new for result in results for layer in result.layers) == 2


def test_somebody_else_publishing_is_waited_for_or_temporary(
    registry: ScriptedRegistry, repository: Repository
) -> None:
    with repository.manager() as manager, manager.transaction() as transaction:
        with pytest.raises(TemporaryError, match=f"in use by process {os.getpid()}"):
            convert(registry, repository)
        transaction.give_up()
    registry.requests.clear()
    convert(registry, repository)
    assert not blobs_asked(registry), "the layers were finished, only publishing them was not"


def test_image_with_the_same_layer_twice(registry: ScriptedRegistry, repository: Repository, tmp_path: Path) -> None:
    tar = make_tar({"x": b"same"})
    add(registry, make_sample([tar, tar]), "double")
    assert len(convert(registry, repository, ":double").layers) == 1
    assert not findings(repository, tmp_path)


def two_platforms(registry: ScriptedRegistry) -> list[Sample]:
    samples = []
    for architecture in ("amd64", "s390x"):
        tars = [make_tar({"etc/name": b"first"}), make_tar({"arch": architecture.encode()})]
        samples.append(make_sample(tars, config=make_config(tars, architecture=architecture)))
        registry.add_blobs(samples[-1].blobs)
        registry.add_manifest("unused", mediatypes.OCI_MANIFEST, samples[-1].blobs[samples[-1].manifest.digest])
    manifests = [
        dataclasses.replace(sample.manifest, platform=Platform("linux", name))
        for sample, name in zip(samples, ("amd64", "s390x"), strict=True)
    ]
    attestation = dataclasses.replace(samples[0].manifest, platform=Platform("unknown", "unknown"))
    registry.add_manifest("multi", mediatypes.OCI_INDEX, format_index((*manifests, attestation)))
    return samples


def test_all_platforms_become_an_index_of_thin_images(
    registry: ScriptedRegistry, repository: Repository, tmp_path: Path
) -> None:
    samples = two_platforms(registry)
    layout = LayoutWriter(tmp_path / "thin")
    conversion = convert(registry, repository, ":multi", platforms=Platforms(every=True), writer=layout)
    assert len(conversion.layers) == 3, "the shared layer is made once"
    for sample, name in zip(samples, ("amd64", "s390x"), strict=True):
        with open_image(f"oci:{tmp_path / 'thin'}:thin", platform=f"linux/{name}") as image:
            descriptor = read_thin_descriptor(image)
            assert descriptor is not None
            assert [layer.digest for layer in descriptor.layers] == [layer.digest[7:] for layer in sample.layers]
            assert image.config.architecture == name
        assert has_record(repository, sample.manifest.digest, registry)
    assert has_record(repository, "multi", registry)
    assert not findings(repository, tmp_path)


def test_some_platforms_of_an_index(registry: ScriptedRegistry, repository: Repository) -> None:
    two_platforms(registry)
    wanted = Platforms((Platform("linux", "s390x"), Platform("linux", "ppc64le")))
    assert len(convert(registry, repository, ":multi", platforms=wanted).layers) == 2
    with pytest.raises(UserError, match="not made for any of linux/riscv64, linux/ppc64le"):
        convert(
            registry,
            repository,
            ":multi",
            platforms=Platforms((Platform("linux", "riscv64"), Platform("linux", "ppc64le"))),
        )


def test_image_over_the_limit_is_refused_before_anything_is_read(
    registry: ScriptedRegistry, repository: Repository
) -> None:
    with pytest.raises(UserError, match="bytes of layers, more than the 1000 allowed"):
        convert(registry, repository, max_image_bytes=1000)
    assert not blobs_asked(registry)


def test_tags_by_pattern(registry: ScriptedRegistry) -> None:
    registry.tags = ["3.1", "3.2", "4.0", "latest"]
    source = SourceOptions(registry=RegistryOptions(transport=FAST))

    def expand(pattern: str) -> list[str]:
        found = expand_source(f"docker://{registry.host}/team/image{pattern}", options=source)
        return [one.removeprefix(f"docker://{registry.host}/team/image") for one in found]

    assert expand(":3.*") == [":3.1", ":3.2"]
    assert expand(":[34].?") == [":3.1", ":3.2", ":4.0"]
    assert expand(":4.0") == [":4.0"]
    assert expand("") == [""]
    with pytest.raises(NotFoundError, match=r"no tag that matches '9\*'"):
        expand(":9*")


def test_record_says_what_the_name_stands_for(registry: ScriptedRegistry, repository: Repository) -> None:
    convert(registry, repository)
    with repository.manager() as manager, manager.snapshot() as catalogs:
        with open_image(f"docker://{registry.host}/team/image:v1") as image:
            assert image.reference is not None
            entry = catalogs.find(image_path(image.reference))
        assert entry is not None
        assert entry.digest is not None
        from mica.digest import Suffix
        from mica.repo.objects import unpack
        from mica.store.base import read_limited

        stored = read_limited(manager.store, entry.digest.object_path(Suffix.FILE), 1 << 20)
        record = parse_record(unpack(stored, entry.digest, limit=1 << 20), "record")
    assert record.manifest_digest == SAMPLE.manifest.digest


def test_interrupted_conversion_ends_its_threads(registry: ScriptedRegistry, repository: Repository) -> None:
    class Interrupting:
        @contextlib.contextmanager
        def layer(self, number: int, count: int, layer: object) -> Iterator[Callable[[int], None]]:
            raise KeyboardInterrupt
            yield

    with repository.manager() as manager:
        converter = Converter(manager, options(), observer=Interrupting())
        with (
            converter.opened(f"docker://{registry.host}/team/image:v1", Platforms()) as opened,
            pytest.raises(KeyboardInterrupt),
        ):
            converter.convert(opened)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("layer", "objects"))]


def staged_first_layer(registry: ScriptedRegistry, repository: Repository) -> Path:
    """The record of a layer that a failed conversion left."""
    registry.script[f"blobs/{SAMPLE.layers[1].digest}"] = [Reply(404)]
    with pytest.raises(NotFoundError):
        convert(registry, repository)
    with repository.manager() as manager:
        return manager.directory(STAGING_DIRECTORY) / f"{SAMPLE.layers[0].digest[7:]}.json"


def test_staged_layer_stays_when_the_storage_is_away_for_a_while(
    registry: ScriptedRegistry, repository: Repository, tmp_path: Path
) -> None:
    staged = staged_first_layer(registry, repository)
    away = repository.storage.rename(tmp_path / "away")
    with repository.manager() as manager:
        staging = Staging(manager.directory(STAGING_DIRECTORY), manager.store)
        with pytest.raises(UserError, match=r"storage directory .* is not there"):
            staging.find(SAMPLE.layers[0].digest, repository.state)
    assert staged.exists()
    away.rename(repository.storage)
    registry.requests.clear()
    convert(registry, repository)
    assert blobs_asked(registry) == [SAMPLE.layers[1].digest]


@pytest.mark.parametrize("error", [TemporaryError("The storage does not answer."), OSError(errno.EIO, "I/O error")])
def test_staged_layer_stays_after_a_failure_that_passes(
    registry: ScriptedRegistry, repository: Repository, error: Exception
) -> None:
    class FailingStore:
        def has(self, path: str) -> bool:
            with mapped_os_errors(f"look for {path}"):
                raise error

    staged = staged_first_layer(registry, repository)
    staging = Staging(staged.parent, FailingStore())  # type: ignore[arg-type]
    with pytest.raises((TemporaryError, UserError)):
        staging.find(SAMPLE.layers[0].digest, repository.state)
    assert staged.exists()


def test_refused_layer_is_named(registry: ScriptedRegistry, repository: Repository) -> None:
    bad = make_sample([make_tar({"etc/name": b"first"}), make_tar({"../evil": b"x"})])
    add(registry, bad, "bad")
    sentence = rf"^Layer {bad.layers[1].digest} of .*image:bad cannot be converted: Archive member '\.\./evil'"
    with pytest.raises(UserError, match=sentence):
        convert(registry, repository, ":bad")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rootfs": {"diff_ids": ["nonsense"]}}, r"'rootfs' of the configuration of .* has no usable digest"),
        ({"rootfs": {"diff_ids": "x"}}, r"'diff_ids' of 'rootfs' of the configuration of .* is not a list"),
        ({"os": 1}, r"'os' of the configuration of .* is not text"),
    ],
)
def test_refused_configuration_is_named_in_a_sentence(
    registry: ScriptedRegistry, repository: Repository, change: dict[str, object], sentence: str
) -> None:
    tars = [make_tar({"etc/name": b"first"})]
    add(registry, make_sample(tars, config=make_config(tars, **change)), "bad")
    with pytest.raises(UserError, match=sentence):
        convert(registry, repository, ":bad")


def test_a_thin_image_names_the_revision_that_has_its_layers(
    registry: ScriptedRegistry, repository: Repository, tmp_path: Path
) -> None:
    """And stays the same as long as its layers do, whatever else is published."""
    other = make_sample([make_tar({"etc/other": b"other"})])
    add(registry, other, "other")
    first = convert(registry, repository, writer=LayoutWriter(tmp_path / "first"))
    assert [one.revisions for one in first.descriptors.values()] == [((FQRN, first.revision),)]
    later = convert(registry, repository, ":other")
    again = convert(registry, repository, writer=LayoutWriter(tmp_path / "again"))
    assert again.revision == later.revision == first.revision + 1
    assert again.descriptors == first.descriptors
    assert (tmp_path / "first/index.json").read_bytes() == (tmp_path / "again/index.json").read_bytes()
    with repository.manager() as manager, manager.transaction() as transaction:
        remove_layers(transaction.catalogs, [SAMPLE.layers[0].digest[7:]])
    back = convert(registry, repository)
    assert back.revision == later.revision + 2
    assert [one.revisions for one in back.descriptors.values()] == [((FQRN, back.revision),)]
