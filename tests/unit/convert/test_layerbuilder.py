"""One layer to objects, catalog, image and facts: the same from any form of the layer, or nothing at all."""

import contextlib
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.memorystore import InjectedError, MemoryStore
from tests.support.noise import noise
from tests.support.repositories import SMALL_CHUNKS
from tests.support.tars import END, header, member, pax
from tests.unit.oci.samples import Sample, make_config, make_sample, write_layout

from mica.convert import layerbuilder as building
from mica.convert.layerbuilder import DEFAULT_LIMITS, ConversionLimits, LayerBuilder, StoppedError
from mica.convert.staging import StagedFile, StagedLayer
from mica.digest import Suffix
from mica.errors import IntegrityError, TemporaryError, UserError
from mica.metaimage.reader import read_image
from mica.oci.image import ImageSource, LayerSource
from mica.oci.source import open_image
from mica.publish.rules import ObjectRules
from mica.repo.cutting import ChunkRule
from mica.repo.entry import Flag
from mica.repo.objects import unpack

RULES = ObjectRules(chunking=SMALL_CHUNKS)
TAR = (
    header(b"d", type_flag=b"5") + member(b"d/small", b"x" * 100) + member(b"large", noise(60_000))
    + header(b"other", type_flag=b"1", link=b"large") + header(b"link", type_flag=b"2", link=b"d") + END
)  # fmt: skip


class Made:
    """A builder with its store, and what it reported."""

    def __init__(self, limits: ConversionLimits = DEFAULT_LIMITS, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()
        self.stop = threading.Event()
        self.builder = LayerBuilder(self.store, RULES, limits, jobs=1, stop=self.stop)
        self.told: list[int] = []

    def build(self, image: ImageSource, work: Path, number: int = 0) -> StagedLayer:
        return self.builder.build(image, image.layers[number], work, self.told.append)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@contextlib.contextmanager
def opened(place: Path, sample: Sample) -> Iterator[ImageSource]:
    with open_image(f"oci:{write_layout(place / 'image', sample)}") as image:
        yield image


def build(made: Made, tmp_path: Path, sample: Sample) -> StagedLayer:
    with opened(tmp_path, sample) as image:
        return made.build(image, tmp_path / "work")


def facts_of(made: Made, layer: StagedLayer) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(content_of(made, layer.beside[1]))
    return document


def image_of(made: Made, layer: StagedLayer) -> bytes:
    """The metadata image, from its objects."""
    return content_of(made, layer.beside[0])


def content_of(made: Made, file: StagedFile) -> bytes:
    if file.entry.digest is not None:
        pieces = [(file.entry.digest, Suffix.FILE, file.entry.size)]
    else:
        pieces = [(chunk.digest, Suffix.CHUNK, chunk.size) for chunk in file.chunks]
    objects = made.store.contents()
    return b"".join(unpack(objects[digest.object_path(suffix)], digest, limit=size) for digest, suffix, size in pieces)


def test_a_layer_is_made_whole(tmp_path: Path, work: Path) -> None:
    made, sample = Made(), make_sample([TAR])
    layer = build(made, tmp_path, sample)
    assert layer.digest == sample.layers[0].digest
    facts = facts_of(made, layer)
    assert facts["digest"] == layer.digest
    assert facts["diff_id"] == sample.config["rootfs"]["diff_ids"][0]
    assert facts["size"] == sample.layers[0].size
    assert facts["bytes"] == 60_100
    assert facts["image_dropped_xattrs"] == {"total": 0, "items": []}
    assert layer.changes == {
        "split_hardlinks": 0, "dropped_xattrs": 0, "image_dropped_xattrs": 0, "changed_times": 0,
        "implied_directories": 1,
    }  # fmt: skip
    assert layer.beside[0].entry.size == len(image_of(made, layer))
    with io.BytesIO(image_of(made, layer)) as file:
        paths = [path for path, _ in read_image(file, "the image")]
    assert paths == [b"", b"/d", b"/d/small", b"/large", b"/link", b"/other"]
    assert list(work.iterdir()) == []
    assert sum(made.told) == sample.layers[0].size
    assert made.builder.new_objects == len(made.store.contents()) - 1, "the catalog is none of the writer's objects"


def test_every_form_of_a_layer_gives_the_same_objects(tmp_path: Path, work: Path) -> None:
    results = []
    for kind in ("gzip", "zstd", ""):
        made = Made()
        place = tmp_path / (kind or "plain")
        place.mkdir()
        with opened(place, make_sample([TAR], kind=kind)) as image:
            layer = made.build(image, work)
        facts = layer.beside[1].entry.digest  # they state the packed layer's digest and size
        assert facts is not None
        others = {facts.object_path(Suffix.FILE)}
        data = {path: data for path, data in made.store.contents().items() if path[-1] != "C" and path not in others}
        results.append((layer.beside[0].entry.digest, layer.changes, facts_of(made, layer)["diff_id"], data))
    assert results[0] == results[1] == results[2]


def test_what_is_stored_already_is_not_counted_as_new(tmp_path: Path, work: Path) -> None:
    made, sample = Made(), make_sample([TAR])
    with opened(tmp_path, sample) as image:
        first = made.build(image, work)
        counts = (made.builder.new_objects, made.builder.stored_bytes)
        assert made.build(image, work) == first
    assert (made.builder.new_objects, made.builder.stored_bytes) == counts
    assert counts[1] == sum(len(data) for path, data in made.store.contents().items() if path[-1] != "C")


def test_changes_are_counted_and_listed(tmp_path: Path, work: Path) -> None:
    tar = (
        member(b"implied/file", b"1") + member(b"a/one", b"2") + header(b"b/two", type_flag=b"1", link=b"a/one")
        + pax([(b"SCHILY.xattr.user." + b"n" * 300, b"v")]) + member(b"attributed", b"3") + END
    )  # fmt: skip
    made = Made()
    layer = build(made, tmp_path, make_sample([tar]))
    facts = facts_of(made, layer)
    assert layer.changes["implied_directories"] == facts["implied_directories"]["total"] == 4
    assert layer.changes["split_hardlinks"] == facts["split_hardlinks"]["total"] == 1
    assert layer.changes["dropped_xattrs"] == facts["dropped_xattrs"]["total"] == 1


@pytest.mark.parametrize(("whole_bytes", "is_cut"), [(1 << 20, False), (4096, True)])
def test_a_large_metadata_image_is_cut(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int, *, is_cut: bool
) -> None:
    """One request fetches a small one; pieces of a large one are fetched at the same time."""
    monkeypatch.setattr(building, "WHOLE_IMAGE_BYTES", whole_bytes)
    monkeypatch.setattr(building, "STANDARD_RULE", ChunkRule(4096, 4096, 4096))
    tar = b"".join(member(b"file %d" % number, b"x") for number in range(300)) + END
    made = Made()
    layer = build(made, tmp_path, make_sample([tar]))
    assert bool(layer.beside[0].chunks) == bool(layer.beside[0].entry.flags & Flag.CHUNKED) == is_cut
    assert len(image_of(made, layer)) == layer.beside[0].entry.size > 4096


# Refusals


def damaged(sample: Sample, change: Callable[[bytes], bytes], number: int = 0) -> Sample:
    """The stored bytes of a layer are others; its digest and size stay."""
    digest = sample.layers[number].digest
    return replace(sample, blobs={**sample.blobs, digest: change(sample.blobs[digest])})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda blob: blob[:-1], "has .* bytes instead of|ends in the middle|longer"),
        (lambda blob: blob[:-1] + b"!", "does not have the digest|does not decompress"),
        (lambda blob: blob + b"more", "is longer than|does not have"),
        (lambda blob: bytes(len(blob)), "does not have the digest|damaged"),
        (lambda blob: b"", "bytes instead of"),
    ],
    ids=range(5),
)
@pytest.mark.parametrize("kind", ["gzip", ""])
def test_a_damaged_layer_is_an_integrity_error_with_its_name(
    tmp_path: Path, work: Path, change: Callable[[bytes], bytes], sentence: str, kind: str
) -> None:
    made, sample = Made(), make_sample([TAR], kind=kind)
    with pytest.raises(IntegrityError, match=sentence) as refusal:
        build(made, tmp_path, damaged(sample, change))
    assert sample.layers[0].digest in str(refusal.value)
    assert not [path for path in made.store.contents() if path.endswith("C")], "no catalog of it was made"
    assert list(work.iterdir()) == []


def test_a_wrong_diff_id_is_an_integrity_error(tmp_path: Path, work: Path) -> None:
    wrong = "sha256:" + hashlib.sha256(b"another").hexdigest()
    config = make_config([TAR], rootfs={"type": "layers", "diff_ids": [wrong]})
    made = Made()
    with pytest.raises(IntegrityError, match=f"does not unpack to its diff id {wrong}"):
        build(made, tmp_path, make_sample([TAR], config=config))
    assert not [path for path in made.store.contents() if path.endswith("C")]


@pytest.mark.parametrize(
    ("tar", "sentence"),
    [
        (member(b"../evil", b"x") + END, r"Archive member '\.\./evil'"),
        (header(b"x", type_flag=b"1", link=b"missing") + END, "missing"),
        (b"no tar" * 200, "damaged"),
        (member(b"cut", b"x" * 1000)[:-512], "truncated"),
    ],
    ids=range(4),
)
def test_a_refused_layer_is_named_with_its_image(tmp_path: Path, work: Path, tar: bytes, sentence: str) -> None:
    """The digests are right, so the image is what somebody made."""
    made, sample = Made(), make_sample([TAR, tar])
    with opened(tmp_path, sample) as image:
        with pytest.raises(UserError, match=sentence) as refusal:
            made.build(image, work, 1)
        assert type(refusal.value) is UserError
        expected = f"Layer {sample.layers[1].digest} of {image.name} cannot be converted: "
        assert str(refusal.value).startswith(expected)


def test_a_layer_without_end_blocks_is_whole_as_its_digest_says(tmp_path: Path, work: Path) -> None:
    for number, tar in enumerate((TAR[: -len(END)], b"")):
        (tmp_path / str(number)).mkdir()
        with opened(tmp_path / str(number), make_sample([tar])) as image:
            made = Made()
            assert facts_of(made, made.build(image, work))["bytes"] == (0 if number else 60_100)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (ConversionLimits(max_layer_bytes=len(TAR) - 1), f"more than {len(TAR) - 1} bytes"),
        (ConversionLimits(max_entries=4), "more than 4"),
    ],
    ids=["bytes", "entries"],
)
def test_a_layer_above_a_limit_is_refused_with_its_name(
    tmp_path: Path, work: Path, limits: ConversionLimits, sentence: str
) -> None:
    sample = make_sample([TAR])
    with pytest.raises(UserError, match=sentence) as refusal:
        build(Made(limits), tmp_path, sample)
    assert str(refusal.value).count(sample.layers[0].digest) == 1, "named once"


def test_a_layer_at_its_limits_is_made(tmp_path: Path, work: Path) -> None:
    build(Made(ConversionLimits(max_layer_bytes=len(TAR), max_entries=5)), tmp_path, make_sample([TAR]))


# Stopping and failing


def test_a_stopped_builder_ends_before_it_reads(tmp_path: Path, work: Path) -> None:
    for stop in (lambda made: made.builder.stop(), lambda made: made.stop.set()):
        made = Made()
        stop(made)
        place = tmp_path / str(id(made))
        place.mkdir()
        with opened(place, make_sample([TAR])) as image, pytest.raises(StoppedError):
            made.build(image, work)
        assert made.store.contents() == {}


def test_a_builder_is_stopped_in_the_middle_of_a_layer(tmp_path: Path, work: Path) -> None:
    tar = b"".join(member(b"file %d" % number, noise(40_000)) for number in range(100)) + END
    made, sample = Made(), make_sample([tar], kind="")
    told = made.told

    def progress(count: int) -> None:
        told.append(count)
        made.builder.stop()

    with opened(tmp_path, sample) as image, pytest.raises(StoppedError):
        made.builder.build(image, image.layers[0], work, progress)
    assert 0 < sum(told) < sample.layers[0].size
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("objects")]


def test_errors_of_the_store_and_of_the_network_keep_their_kind(tmp_path: Path, work: Path) -> None:
    sample = make_sample([TAR])
    store = MemoryStore()
    store.fail_at(1)
    with opened(tmp_path, sample) as image:
        with pytest.raises(InjectedError, match="a test wants it"):
            Made(store=store).build(image, work)

        class Unreachable:
            name = image.name

            def open_layer(self, layer: LayerSource, max_bytes: int) -> contextlib.AbstractContextManager[Any]:
                raise TemporaryError("The registry does not answer.")

        with pytest.raises(TemporaryError, match=r"^The registry does not answer\.$"):
            Made().builder.build(Unreachable(), image.layers[0], work, lambda _: None)  # type: ignore[arg-type]


def test_a_missing_scratch_directory_is_not_blamed_on_the_layer(tmp_path: Path, work: Path) -> None:
    """A failure of this host says what failed and that it is no fault of the image."""
    work.rmdir()
    with pytest.raises((UserError, TemporaryError)) as failure:
        build(Made(), tmp_path, make_sample([TAR]))
    assert "cannot be converted" not in str(failure.value)
