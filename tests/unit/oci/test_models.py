"""Image documents: what is read, what is refused and how it is called then."""

import json
from typing import Any

import pytest

from mica.errors import IntegrityError, MicaError, UserError
from mica.oci import mediatypes
from mica.oci.documents import DOCUMENT_LIMIT_BYTES, parse_document
from mica.oci.models import (
    Descriptor,
    Index,
    Manifest,
    check_document,
    format_index,
    format_manifest,
    parse_config,
    parse_image_document,
    parse_index,
    parse_manifest,
)
from mica.oci.platforms import Platform, best_platform

SHA = "sha256:" + "ab" * 32
LAYER = {"mediaType": mediatypes.OCI_LAYER_GZIP, "digest": SHA, "size": 5}
CONFIG = {"mediaType": mediatypes.OCI_CONFIG, "digest": SHA, "size": 7}


def parse(value: Any, media_type: str = "") -> Index | Manifest:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return parse_image_document(data, media_type=media_type, what="The manifest of x")


def test_manifest_is_read_and_keeps_its_bytes() -> None:
    data = json.dumps({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER], "annotations": {"a": "b"}}).encode()
    manifest = parse(data)
    assert manifest == Manifest(
        Descriptor(mediatypes.OCI_CONFIG, SHA, 7),
        (Descriptor(mediatypes.OCI_LAYER_GZIP, SHA, 5),),
        mediatypes.OCI_MANIFEST,
        {"a": "b"},
        data,
    )


def test_index_is_read_with_platforms() -> None:
    entry = {"mediaType": mediatypes.OCI_MANIFEST, "digest": SHA, "size": 1}
    index = parse({"manifests": [entry | {"platform": {"os": "linux", "architecture": "arm", "variant": "v7"}}]})
    assert isinstance(index, Index)
    assert index.manifests[0].platform == Platform("linux", "arm", "v7")


def test_written_documents_read_back() -> None:
    layer = Descriptor(mediatypes.OCI_LAYER, SHA, 3, annotations={"k": "v"}, urls=("https://example.org/x",))
    config = Descriptor(mediatypes.OCI_CONFIG, SHA, 2)
    manifest = parse_manifest(format_manifest(config, (layer,), annotations={"a": "ü"}), what="x")
    assert (manifest.config, manifest.layers, manifest.annotations) == (config, (layer,), {"a": "ü"})
    entry = Descriptor(mediatypes.OCI_MANIFEST, SHA, 3, Platform("linux", "arm64", "v8"))
    assert parse_index(format_index((entry,)), what="x").manifests == (entry,)
    assert format_index((entry,)) == format_index((entry,))


def test_foreign_layers_are_recognised() -> None:
    kinds = [mediatypes.DOCKER_FOREIGN_LAYER + ".gzip", mediatypes.OCI_FOREIGN_LAYER + "+zstd"]
    assert all(Descriptor(kind, SHA, 1).is_foreign for kind in kinds)
    assert not Descriptor(mediatypes.DOCKER_LAYER_GZIP, SHA, 1).is_foreign


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"no json",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"text"',
        b"{} {}",
        b'{"config": NaN}',
        b'{"size": ' + b"9" * 5000 + b"}",
        b'{"a":"\\ud800","config":{},"layers":[]}',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b" " * (DOCUMENT_LIMIT_BYTES + 1),
        {},
        {"config": CONFIG, "layers": [], "manifests": []},
        {"config": CONFIG, "layers": {}},
        {"config": CONFIG, "layers": [1]},
        {"config": CONFIG, "layers": [None]},
        {"config": CONFIG, "layers": [LAYER | {"size": -1}]},
        {"config": CONFIG, "layers": [LAYER | {"size": True}]},
        {"config": CONFIG, "layers": [LAYER | {"size": 1.5}]},
        {"config": CONFIG, "layers": [LAYER | {"size": "5"}]},
        {"config": CONFIG, "layers": [LAYER | {"size": 1 << 63}]},
        {"config": CONFIG, "layers": [{"mediaType": "x", "digest": SHA}]},
        {"config": CONFIG, "layers": [LAYER | {"digest": "sha256:../../etc/passwd"}]},
        {"config": CONFIG, "layers": [LAYER | {"digest": SHA.upper()}]},
        {"config": CONFIG, "layers": [LAYER | {"digest": "md5:" + "0" * 32}]},
        {"config": CONFIG, "layers": [LAYER | {"digest": SHA + "\n"}]},
        {"config": CONFIG, "layers": [LAYER | {"digest": 5}]},
        {"config": CONFIG, "layers": [LAYER | {"annotations": {"a": 1}}]},
        {"config": CONFIG, "layers": [LAYER | {"platform": "linux"}]},
        {"config": CONFIG, "layers": [LAYER | {"urls": "x"}]},
        {"config": "x", "layers": []},
        {"layers": [LAYER]},
        {"manifests": [{"platform": {}}]},
        {"manifests": 3},
        {"schemaVersion": 1, "fsLayers": [], "history": []},
        {"mediaType": mediatypes.DOCKER_INDEX, "config": CONFIG, "layers": []},
        {"mediaType": mediatypes.OCI_MANIFEST, "manifests": []},
        {"mediaType": 3, "config": CONFIG, "layers": []},
    ],
)
def test_hostile_documents_are_refused_by_name(value: Any) -> None:
    with pytest.raises(UserError, match="of x") as caught:
        parse(value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("header", "document"),
    [(mediatypes.OCI_INDEX, {"config": CONFIG, "layers": []}), (mediatypes.OCI_MANIFEST, {"manifests": []})],
)
def test_media_type_of_the_transport_must_agree(header: str, document: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        parse(document, header)


def test_manifest_in_the_place_of_a_manifest_only() -> None:
    with pytest.raises(UserError):
        parse_manifest(b'{"manifests": []}', what="The manifest of x")


def test_document_of_another_size_or_digest_is_refused() -> None:
    data = b"{}"
    import hashlib

    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert check_document(data, Descriptor("", digest, 2), what="x") == data
    for descriptor in (Descriptor("", digest, 3), Descriptor("", SHA, 2)):
        with pytest.raises(IntegrityError):
            check_document(data, descriptor, what="x")


def test_configuration_is_kept_whole() -> None:
    document = {
        "os": "linux",
        "architecture": "arm",
        "variant": "v6",
        "x-unknown": {"kept": [1, None]},
        "config": {
            "Env": ["A=b"],
            "Entrypoint": ["/e"],
            "Cmd": None,
            "User": "1:2",
            "WorkingDir": "/w",
            "Labels": {"l": "v"},
            "ExposedPorts": {"80/tcp": {}},
            "Volumes": {"/v": {}},
            "StopSignal": "SIGINT",
            "Healthcheck": {"Test": ["CMD", "x"]},
        },
        "history": [{"created_by": "one"}, {"empty_layer": True}],
        "rootfs": {"type": "layers", "diff_ids": [SHA]},
    }
    data = json.dumps(document, indent=3).encode()
    config = parse_config(data, what="The configuration of x")
    assert config.raw == data
    assert config.document() == document
    assert config.platform == Platform("linux", "arm", "v6")
    assert (config.env, config.entrypoint, config.cmd) == (("A=b",), ("/e",), ())
    assert (config.user, config.working_dir, config.stop_signal) == ("1:2", "/w", "SIGINT")
    assert (config.labels, config.exposed_ports, config.volumes) == ({"l": "v"}, ("80/tcp",), ("/v",))
    assert config.healthcheck == {"Test": ["CMD", "x"]}
    assert config.diff_ids == (SHA,)
    assert [one.empty_layer for one in config.history] == [False, True]


def test_smallest_configuration_is_enough() -> None:
    config = parse_config(b'{"config": null}', what="x")
    assert (config.env, config.diff_ids, config.healthcheck, config.os) == ((), (), None, "linux")


@pytest.mark.parametrize(
    "document",
    [
        {"config": {"Env": "A=b"}},
        {"config": {"Env": [1]}},
        {"config": {"Labels": ["a"]}},
        {"config": {"Volumes": []}},
        {"config": []},
        {"os": 1},
        {"history": {}},
        {"history": [3]},
        {"history": [{"empty_layer": "yes"}]},
        {"rootfs": {"diff_ids": ["x"]}},
        {"rootfs": {"diff_ids": [None]}},
        {"rootfs": []},
    ],
)
def test_hostile_configurations_are_refused(document: Any) -> None:
    with pytest.raises(UserError, match=r"[Tt]he configuration of x"):
        parse_config(json.dumps(document).encode(), what="The configuration of x")


def test_error_does_not_repeat_long_input() -> None:
    with pytest.raises(MicaError) as caught:
        parse_document(b'{"digest": "' + b"x" * 100_000, what="x")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("wanted", "offered", "best"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], "linux/amd64"),
        ("linux/amd64", ["linux/amd64/v2"], None),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], "linux/amd64/v2"),
        ("linux/arm64", ["linux/arm64/v8"], "linux/arm64/v8"),
        ("linux/arm/v6", ["linux/arm/v5", "linux/arm/v7"], "linux/arm/v5"),
        ("linux/arm", ["linux/arm/v5", "linux/arm/v7"], "linux/arm/v7"),
        ("linux/x86_64", ["linux/amd64"], "linux/amd64"),
        ("windows/amd64", ["linux/amd64"], None),
        ("linux/amd64", [], None),
    ],
)
def test_best_platform(wanted: str, offered: list[str], best: str | None) -> None:
    found = best_platform(Platform.parse(wanted), [Platform.parse(one) for one in offered])
    assert (found and found.text) == best


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/amd 64", "linux/\namd64"])
def test_bad_platforms_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a platform"):
        Platform.parse(text)


def test_this_machine_has_a_platform() -> None:
    assert Platform.here().os == "linux"
