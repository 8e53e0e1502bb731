"""Images by the names that people give them, from every place that is a file."""

import bz2
import dataclasses
import gzip
import io
import json
import lzma
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tests.unit.oci.samples import (
    Sample,
    digest_of,
    docker_archive_files,
    make_config,
    make_sample,
    make_tar,
    read_all,
    write_layout,
)

from mica.errors import IntegrityError, MicaError, NotFoundError, UserError
from mica.oci import mediatypes
from mica.oci.image import NoImageError
from mica.oci.models import REF_NAME, Descriptor, format_index, format_manifest
from mica.oci.platforms import Platform
from mica.oci.source import SourceOptions, open_choice, open_image

LIMIT = 1 << 30


def read_layers(source: str, *, platform: str = "") -> list[bytes]:
    with open_image(source, platform=platform) as image:
        tars = []
        for layer in image.layers:
            with image.open_layer(layer, LIMIT) as stream:
                tars.append(read_all(stream))
        return tars


def tagged(descriptor: Descriptor, tag: str) -> Descriptor:
    return dataclasses.replace(descriptor, annotations={REF_NAME: tag})


@pytest.mark.parametrize("kind", ["", "gzip", "zstd"])
def test_layout_gives_the_tars_of_its_layers(tmp_path: Path, kind: str) -> None:
    sample = make_sample(kind=kind)
    write_layout(tmp_path / "layout", sample)
    assert read_layers(f"oci:{tmp_path / 'layout'}") == sample.tars


def test_layout_image_tells_its_parts(tmp_path: Path) -> None:
    sample = make_sample()
    write_layout(tmp_path / "layout", sample, tagged(sample.manifest, "v1"))
    with open_image(f"oci:{tmp_path / 'layout'}:v1") as image:
        assert image.reference is None
        assert image.name == f"oci:{tmp_path / 'layout'}:v1"
        assert image.manifest_digest == sample.manifest.digest
        assert image.manifest.raw == sample.blobs[sample.manifest.digest]
        assert image.config.env == ("PATH=/bin",)
        assert [layer.digest for layer in image.layers] == [one.digest for one in sample.layers]


def test_oci_archive_reads_like_its_directory(tmp_path: Path) -> None:
    sample = make_sample()
    layout = write_layout(tmp_path / "layout", sample, tagged(sample.manifest, "v1"))
    with tarfile.open(tmp_path / "image.tar", "w") as tar:
        tar.add(layout, arcname=".")
    assert read_layers(f"oci-archive:{tmp_path / 'image.tar'}:v1") == sample.tars


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "xz": lzma.compress, "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}  # fmt: skip


@pytest.mark.parametrize("pack", [bytes, *PACKINGS.values()], ids=["plain", *PACKINGS])
def test_docker_archive_gives_layers_by_diff_id(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    sample = make_sample()
    archive = tmp_path / "image.tar"
    archive.write_bytes(pack(make_tar(docker_archive_files(sample, tags=["example/a:1"]))))
    for source in (f"docker-archive:{archive}", f"docker-archive:{archive}:example/a:1"):
        assert read_layers(source) == sample.tars
        with open_image(source) as image:
            assert [layer.digest for layer in image.layers] == [digest_of(tar) for tar in sample.tars]
            assert str(image.reference) == "docker.io/example/a:1"


def test_docker_archive_follows_links_between_equal_layers(tmp_path: Path) -> None:
    tar = make_tar({"a": b"1"})
    sample = make_sample([tar, tar])
    files = docker_archive_files(sample, tags=["a:1"])
    second = sorted(name for name in files if name.endswith("layer.tar"))[1]
    files[second] = f"../{0:064x}/layer.tar"
    (tmp_path / "image.tar").write_bytes(make_tar(files))
    assert read_layers(f"docker-archive:{tmp_path / 'image.tar'}") == [tar, tar]


def test_docker_archive_with_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    files = docker_archive_files(make_sample(), tags=["a:1"])
    files[f"{0:064x}/layer.tar"] = "layer.tar"
    (tmp_path / "image.tar").write_bytes(make_tar(files))
    with pytest.raises(NotFoundError, match="has no file"):
        read_layers(f"docker-archive:{tmp_path / 'image.tar'}")


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_docker_archive_of_newer_docker_has_compressed_blobs(tmp_path: Path, kind: str) -> None:
    sample = make_sample(kind=kind)
    files: dict[str, bytes | str] = {f"blobs/sha256/{name[7:]}": blob for name, blob in sample.blobs.items()}
    config = json.dumps(sample.config).encode()
    entry = {
        "Config": f"blobs/sha256/{digest_of(config)[7:]}",
        "RepoTags": None,
        "Layers": [f"blobs/sha256/{one.digest[7:]}" for one in sample.layers],
    }
    (tmp_path / "image.tar").write_bytes(make_tar(files | {"manifest.json": json.dumps([entry]).encode()}))
    assert read_layers(f"docker-archive:{tmp_path / 'image.tar'}") == sample.tars
    with open_image(f"docker-archive:{tmp_path / 'image.tar'}") as image:
        assert [one.digest for one in image.layers] == [one.digest for one in sample.layers]


def test_docker_archive_hashes_compressed_layers_with_other_names(tmp_path: Path) -> None:
    sample = make_sample()
    files = docker_archive_files(sample, tags=["a:1"])
    for number, layer in enumerate(sample.layers):
        files[f"{number:064x}/layer.tar"] = sample.blobs[layer.digest]
    (tmp_path / "image.tar").write_bytes(make_tar(files))
    with open_image(f"docker-archive:{tmp_path / 'image.tar'}") as image:
        assert [one.digest for one in image.layers] == [one.digest for one in sample.layers]
    assert read_layers(f"docker-archive:{tmp_path / 'image.tar'}") == sample.tars


@pytest.mark.parametrize("kind", PACKINGS)
def test_several_layers_may_be_open_at_once_in_a_packed_archive(tmp_path: Path, kind: str) -> None:
    sample = make_sample()
    archive = tmp_path / "image.tar.gz"
    archive.write_bytes(PACKINGS[kind](make_tar(docker_archive_files(sample, tags=["a:1"]))))
    with open_image(f"docker-archive:{archive}") as image:
        first, second = image.layers
        with image.open_layer(second, LIMIT) as upper, image.open_layer(first, LIMIT) as lower:
            assert upper.read(600) == sample.tars[1][:600]
            assert read_all(lower) == sample.tars[0]
            assert read_all(upper) == sample.tars[1][600:]


def test_image_without_layers_opens(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", make_sample([]))
    assert read_layers(f"oci:{tmp_path / 'layout'}") == []


def multi_platform(path: Path, *texts: str) -> dict[str, Sample]:
    """A tagged index of images, each of which says its platform in a file."""
    samples: dict[str, Sample] = {}
    entries: list[Descriptor] = []
    blobs: dict[str, bytes] = {}
    for text in texts:
        platform = Platform.parse(text)
        tars = [make_tar({"platform": text.encode()})]
        sample = make_sample(tars, config=make_config(tars, architecture=platform.architecture))
        samples[text] = sample
        blobs |= sample.blobs
        entries.append(dataclasses.replace(sample.manifest, platform=platform))
    unknown = dataclasses.replace(entries[0], platform=Platform("unknown", "unknown"))
    index = format_index((unknown, *entries))
    blobs[digest_of(index)] = index
    whole = dataclasses.replace(samples[texts[0]], blobs=blobs)
    write_layout(path, whole, Descriptor(mediatypes.OCI_INDEX, digest_of(index), len(index)))
    return samples


def test_index_gives_the_platform_that_was_asked_for(tmp_path: Path) -> None:
    samples = multi_platform(tmp_path / "layout", "linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64")
    source = f"oci:{tmp_path / 'layout'}"
    for text, sample in samples.items():
        assert read_layers(source, platform=text) == sample.tars
    assert read_layers(source, platform="linux/arm64/v8") == samples["linux/arm64"].tars
    assert read_layers(source, platform="linux/arm") == samples["linux/arm/v7"].tars
    with pytest.raises(UserError, match="not made for linux/s390x") as caught:
        read_layers(source, platform="linux/s390x")
    assert "linux/amd64, linux/arm/v6, linux/arm/v7, linux/arm64" in caught.value.hint
    assert "unknown" not in caught.value.hint


def test_single_image_of_another_platform_needs_no_choice_and_obeys_one(tmp_path: Path) -> None:
    tars = [make_tar({"a": b""})]
    write_layout(tmp_path / "layout", make_sample(tars, config=make_config(tars, architecture="riscv64")))
    assert read_layers(f"oci:{tmp_path / 'layout'}") == tars
    with pytest.raises(UserError, match="made for linux/riscv64, not for linux/amd64"):
        read_layers(f"oci:{tmp_path / 'layout'}", platform="linux/amd64")


SIGNATURE = "application/vnd.dev.cosign.simplesigning.v1+json"


def artifact(**changes: object) -> tuple[Descriptor, dict[str, bytes]]:
    """What stands in indexes beside images: a manifest of something else."""
    config = Descriptor("application/vnd.oci.empty.v1+json", digest_of(b"{}"), 2)
    data = format_manifest(config, (Descriptor("application/spdx+json", digest_of(b"{}"), 2),))
    descriptor = Descriptor(mediatypes.OCI_MANIFEST, digest_of(data), len(data))
    return dataclasses.replace(descriptor, **changes), {digest_of(b"{}"): b"{}", digest_of(data): data}  # type: ignore[arg-type]


def with_index(path: Path, entries: list[Descriptor], *samples: Sample) -> str:
    """A layout with an index of the entries, and nothing but the index in its index.json."""
    blobs = {digest: data for sample in samples for digest, data in sample.blobs.items()} | artifact()[1]
    index = format_index(tuple(entries))
    blobs[digest_of(index)] = index
    write_layout(
        path,
        dataclasses.replace(make_sample([]), blobs=blobs),
        Descriptor(mediatypes.OCI_INDEX, digest_of(index), len(index)),
    )
    return f"oci:{path}"


def sample_of(**changes: Any) -> Sample:
    tars = [make_tar({"name": repr(changes).encode()})]
    config = {key: value for key, value in make_config(tars, **changes).items() if value is not None}
    return make_sample(tars, config=config)


def every(source: str) -> list[str]:
    with open_choice(source) as choice:
        return [str(one.platform) for one in choice.every()]


@pytest.mark.parametrize(
    "changes",
    [
        {"artifact_type": "application/spdx+json"},
        {},
        {"artifact_type": SIGNATURE, "platform": Platform("linux", "amd64")},
        {"platform": Platform("unknown", "unknown")},
    ],
    ids=["typed", "bare", "with a platform", "attestation"],
)
def test_what_is_no_image_is_left_out_of_an_index(tmp_path: Path, changes: dict[str, object]) -> None:
    sample = make_sample()
    image = dataclasses.replace(sample.manifest, platform=Platform("linux", "amd64"))
    for number, entries in enumerate(([image, artifact(**changes)[0]], [artifact(**changes)[0], image])):
        source = with_index(tmp_path / str(number), entries, sample)
        assert read_layers(source) == read_layers(source, platform="linux/amd64") == sample.tars
        assert every(source) == ["linux/amd64"]
    source = with_index(tmp_path / "alone", [artifact(**changes)[0]] * 2)
    assert every(source) == []
    with pytest.raises(NoImageError, match="is an index without any image"):
        read_layers(source, platform="linux/amd64")


def test_signature_with_the_configuration_of_an_image_is_none(tmp_path: Path) -> None:
    sample, tars = make_sample(), [b"{}"]
    signed = make_sample(tars, kind="")
    layer = Descriptor(SIGNATURE, digest_of(b"{}"), 2)
    config = json.loads(signed.blobs[signed.manifest.digest])["config"]
    data = format_manifest(Descriptor(config["mediaType"], config["digest"], config["size"]), (layer,))
    signature = Descriptor(mediatypes.OCI_MANIFEST, digest_of(data), len(data))
    blobs = dataclasses.replace(signed, blobs=signed.blobs | {digest_of(data): data})
    source = with_index(tmp_path / "x", [signature, sample.manifest], sample, blobs)
    assert read_layers(source, platform="linux/amd64") == sample.tars
    write_layout(tmp_path / "alone", blobs, signature)
    with pytest.raises(NoImageError, match=r"is of an unknown kind: .*simplesigning"):
        read_layers(f"oci:{tmp_path / 'alone'}")


def test_layer_in_a_compression_that_is_not_known_is_an_image_s(tmp_path: Path) -> None:
    """It is refused, and not left out as if it were a signature."""
    sample = make_sample()
    encrypted = json.loads(sample.blobs[sample.manifest.digest])
    encrypted["layers"][0]["mediaType"] += "+encrypted"
    data = json.dumps(encrypted).encode()
    entry = Descriptor(mediatypes.OCI_MANIFEST, digest_of(data), len(data))
    whole = dataclasses.replace(sample, blobs=sample.blobs | {digest_of(data): data})
    with pytest.raises(UserError, match=r"unknown kind: .*\+encrypted"):
        every(with_index(tmp_path / "x", [entry, sample.manifest], whole))


def test_image_that_says_it_is_one_is_one(tmp_path: Path) -> None:
    sample = make_sample()
    entry = dataclasses.replace(sample.manifest, artifact_type=mediatypes.OCI_CONFIG)
    assert read_layers(with_index(tmp_path / "x", [entry, artifact()[0]], sample)) == sample.tars


def test_images_without_a_platform_in_an_index_are_told_apart_by_their_configurations(tmp_path: Path) -> None:
    ours, other = sample_of(architecture="amd64"), sample_of(architecture="arm64")
    stated = dataclasses.replace(sample_of(architecture="s390x").manifest, platform=Platform("linux", "s390x"))
    entries = [stated, artifact()[0], other.manifest, ours.manifest]
    source = with_index(tmp_path / "x", entries, ours, other, sample_of(architecture="s390x"))
    assert read_layers(source, platform="linux/amd64") == ours.tars
    assert read_layers(source, platform="linux/arm64") == other.tars
    assert every(source) == ["linux/s390x", "linux/arm64", "linux/amd64"]
    with pytest.raises(UserError, match=r"not made for linux/riscv64") as caught:
        read_layers(source, platform="linux/riscv64")
    assert caught.value.hint == "It exists for: linux/amd64, linux/arm64, linux/s390x"


@pytest.mark.parametrize("changes", [{"architecture": None}, {"architecture": ""}, {"architecture": None, "os": None}])
def test_image_without_an_architecture_is_for_whoever_asks(tmp_path: Path, changes: dict[str, Any]) -> None:
    sample, other = sample_of(**changes), sample_of(architecture="arm64")
    write_layout(tmp_path / "alone", sample)
    for platform in ("", "linux/amd64", "linux/arm64"):
        assert read_layers(f"oci:{tmp_path / 'alone'}", platform=platform) == sample.tars
    with pytest.raises(UserError, match="made for linux, not for windows/amd64"):
        read_layers(f"oci:{tmp_path / 'alone'}", platform="windows/amd64")
    source = with_index(tmp_path / "both", [sample.manifest, other.manifest], sample, other)
    assert read_layers(source, platform="linux/amd64") == sample.tars
    assert read_layers(source, platform="linux/arm64") == other.tars, "who says it comes before who does not"
    assert every(source) == ["linux", "linux/arm64"]


def test_index_that_is_a_maze_is_refused(tmp_path: Path) -> None:
    """Nested three deep, thirty wide: nothing in it is an image, and nobody reads thousands of documents for that."""
    entries, blobs = [artifact()[0]] * 30, artifact()[1]
    for _ in range(2):
        data = format_index(tuple(entries))
        blobs[digest_of(data)] = data
        entries = [Descriptor(mediatypes.OCI_INDEX, digest_of(data), len(data))] * 30
    data = format_index(tuple(entries))
    blobs[digest_of(data)] = data
    sample = dataclasses.replace(make_sample([]), blobs=blobs)
    write_layout(tmp_path / "x", sample, Descriptor(mediatypes.OCI_INDEX, digest_of(data), len(data)))
    with pytest.raises(UserError, match="more than 100 images"):
        every(f"oci:{tmp_path / 'x'}")


def test_signature_beside_an_image_in_a_layout_makes_no_choice_necessary(tmp_path: Path) -> None:
    sample = make_sample()
    signature, blobs = artifact(artifact_type=SIGNATURE)
    both = dataclasses.replace(sample, blobs=sample.blobs | blobs)
    write_layout(tmp_path / "x", both, signature, sample.manifest)
    assert read_layers(f"oci:{tmp_path / 'x'}") == sample.tars


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("debian:12", UserError, "does not say where"),
        ("", UserError, "does not say where"),
        ("oci", UserError, "names no image"),
        ("oci:", UserError, "names no image"),
        ("docker:debian", UserError, "slashes"),
        ("docker://De bian", UserError, "not an image name"),
        ("oci:{tmp}/missing", NotFoundError, "no directory"),
        ("oci:{tmp}", NotFoundError, "not an OCI image layout"),
        ("oci:{tmp}/layout:nope", NotFoundError, "no image 'nope'"),
        ("oci-archive:{tmp}/missing", NotFoundError, "no file"),
        ("oci-archive:{tmp}/docker.tar", NotFoundError, "not an OCI archive"),
        ("docker-archive:{tmp}/missing", NotFoundError, "no file"),
        ("docker-archive:{tmp}/layout", UserError, "not a regular file"),
        ("docker-archive:{tmp}/layout/index.json", UserError, "not a readable tar"),
        ("docker-archive:{tmp}/docker.tar:other:1", NotFoundError, "no image other:1"),
        ("docker-archive:{tmp}/empty.tar", NotFoundError, "no manifest.json"),
    ],
)
def test_wrong_sources_are_told_in_a_sentence(
    tmp_path: Path, source: str, error: type[MicaError], message: str
) -> None:
    sample = make_sample()
    write_layout(tmp_path / "layout", sample, tagged(sample.manifest, "v1"), tagged(sample.manifest, "v2"))
    (tmp_path / "docker.tar").write_bytes(make_tar(docker_archive_files(sample, tags=["a:1"])))
    (tmp_path / "empty.tar").write_bytes(make_tar({"x": b""}))
    with pytest.raises(error, match=message) as caught, open_image(source.format(tmp=tmp_path)):
        pass
    assert str(caught.value).endswith(".")


def test_missing_tag_lists_those_there_are(tmp_path: Path) -> None:
    sample = make_sample()
    write_layout(tmp_path / "layout", sample, tagged(sample.manifest, "v1"), tagged(sample.manifest, "v2"))
    with pytest.raises(NotFoundError) as caught, open_image(f"oci:{tmp_path / 'layout'}:v3"):
        pass
    assert "v1, v2" in caught.value.hint


def test_layout_in_a_directory_with_a_colon_in_its_name(tmp_path: Path) -> None:
    sample = make_sample()
    write_layout(tmp_path / "a:b", sample)
    assert read_layers(f"oci:{tmp_path / 'a:b'}") == sample.tars


def test_number_of_layers_must_equal_that_of_diff_ids(tmp_path: Path) -> None:
    tars = [make_tar({"a": b""})]
    sample = make_sample(tars, config=make_config([*tars, b"more"]))
    write_layout(tmp_path / "layout", sample)
    with pytest.raises(IntegrityError, match="1 layers and 2 diff ids"):
        read_layers(f"oci:{tmp_path / 'layout'}")
    (tmp_path / "image.tar").write_bytes(make_tar(docker_archive_files(sample, tags=["a:1"])))
    with pytest.raises(IntegrityError, match="1 layers and 2 diff ids"):
        read_layers(f"docker-archive:{tmp_path / 'image.tar'}")


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
@pytest.mark.parametrize("damage", ["flip", "cut", "add", "remove", "fifo"])
def test_damaged_blob_is_named(tmp_path: Path, part: str, damage: str) -> None:
    sample = make_sample([make_tar({"a": b"content" * 100})])
    layout = write_layout(tmp_path / "layout", sample)
    config = digest_of(json.dumps(sample.config).encode())
    digest = {"manifest": sample.manifest.digest, "config": config, "layer": sample.layers[0].digest}[part]
    path = layout / "blobs" / "sha256" / digest[7:]
    data = path.read_bytes()
    path.unlink()
    if damage == "fifo":
        import os

        os.mkfifo(path)
    elif damage != "remove":
        path.write_bytes({"flip": b"\x1f\x8b" + data[2:-1] + b"\x01", "cut": data[:-9], "add": data + b"\n"}[damage])
    expected = {"remove": NotFoundError, "fifo": UserError}.get(damage, IntegrityError)
    with pytest.raises(expected) as caught:
        read_layers(f"oci:{layout}")
    assert digest[7:] in str(caught.value) or str(layout) in str(caught.value)


@pytest.mark.parametrize("kind", PACKINGS)
def test_damaged_packed_archive_is_refused(tmp_path: Path, kind: str) -> None:
    data = PACKINGS[kind](make_tar(docker_archive_files(make_sample(), tags=["a:1"])))
    archive = tmp_path / "image.tar"
    archive.write_bytes(data[:-500])
    with pytest.raises((IntegrityError, UserError), match=f"{archive} is (a damaged {kind} file|not a readable tar)"):
        read_layers(f"docker-archive:{archive}")
    archive.write_bytes(data[:30] + bytes(byte ^ 0xFF for byte in data[30:60]) + data[60:])
    # Zstd finds out at the end of a frame, when names that make no sense have been read.
    with pytest.raises((IntegrityError, UserError), match=f"{archive} (is a damaged {kind} file|is not a)"):
        read_layers(f"docker-archive:{archive}")


def test_docker_archive_whose_configuration_was_changed_is_refused(tmp_path: Path) -> None:
    files = docker_archive_files(make_sample(), tags=["a:1"])
    name = next(name for name in files if name.endswith(".json") and name != "manifest.json")
    content = files[name]
    assert isinstance(content, bytes)
    files[name] = content.replace(b"/bin", b"/tmp")
    (tmp_path / "image.tar").write_bytes(make_tar(files))
    with pytest.raises(IntegrityError, match="does not have the digest"):
        read_layers(f"docker-archive:{tmp_path / 'image.tar'}")


def test_archive_header_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 33
    archive = tmp_path / "image.tar"
    archive.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(UserError, match="not a readable tar"):
        read_layers(f"docker-archive:{archive}")


def test_archive_with_a_negative_size_ends(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x")
    member.size = -1024
    buffer = io.BytesIO(make_tar({"first": b"1"})[:1024] + member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    (tmp_path / "image.tar").write_bytes(buffer.getvalue())
    with pytest.raises(UserError):
        read_layers(f"docker-archive:{tmp_path / 'image.tar'}")


def test_artifact_is_not_an_image(tmp_path: Path) -> None:
    sample = make_sample()
    document = json.loads(sample.blobs[sample.manifest.digest])
    document["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    data = json.dumps(document).encode()
    changed = dataclasses.replace(sample, blobs=sample.blobs | {digest_of(data): data})
    write_layout(tmp_path / "layout", changed, Descriptor(mediatypes.OCI_MANIFEST, digest_of(data), len(data)))
    with pytest.raises(UserError, match="not a container image but"):
        read_layers(f"oci:{tmp_path / 'layout'}")


def test_daemon_that_is_not_there(tmp_path: Path) -> None:
    options = SourceOptions(docker_socket=tmp_path / "docker.sock")
    with pytest.raises(MicaError, match="No Docker daemon"), open_image("docker-daemon:a", options=options):
        pass
    shutil.rmtree(tmp_path)
