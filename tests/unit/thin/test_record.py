"""Records of images: kept whole, and refused with a sentence when they are damaged."""

import json
from dataclasses import replace
from typing import Any

import pytest

from mica.errors import UserError
from mica.oci.reference import Reference
from mica.thin.descriptor import ThinDescriptor, ThinLayer
from mica.thin.record import ImageRecord, format_record, parse_record

DIGEST = "ab" * 32
CONFIG = {
    "os": "linux",
    "architecture": "amd64",
    "config": {"Env": ["A=ü"], "Labels": {"x": "y"}, "Healthcheck": {"Test": ["NONE"]}},
    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{DIGEST}"]},
    "something.of.its.own": {"kept": [1, None, 2.5]},
}
RECORD = ImageRecord(
    Reference.parse("ghcr.io/a/b:1"),
    f"sha256:{DIGEST}",
    {"schemaVersion": 2, "layers": []},
    CONFIG,
    ThinDescriptor("ghcr.io/a/b:1", (ThinLayer(DIGEST, "a.example.org", "/x"),)),
)


def test_what_is_written_is_read_back() -> None:
    assert parse_record(format_record(RECORD), "it") == RECORD


def test_same_image_same_bytes() -> None:
    turned = ImageRecord(
        RECORD.reference,
        RECORD.manifest_digest,
        dict(reversed(RECORD.manifest.items())),
        dict(reversed(RECORD.config.items())),
        RECORD.descriptor,
    )
    assert format_record(turned) == format_record(RECORD)


def changed(**changes: Any) -> bytes:
    return json.dumps(json.loads(format_record(RECORD)) | changes).encode()


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "record"),
        (b"[]", "version 1"),
        (b"\xff", "record"),
        (b"[" * 200_000, "record"),
        (changed(version=2), "version 1"),
        (changed(manifest=None), "missing"),
        (changed(config=[]), "missing"),
        (changed(thin="x"), "missing"),
        (changed(reference=None), "not an image name"),
        (changed(reference="../x"), "not an image name"),
        (changed(thin={"version": "1.0", "layers": []}), "no layers"),
        (changed(config={"config": []}), "config"),
        (changed(config={"config": {"Env": "A=B"}}), "Env"),
        (changed(config={"config": {"Cmd": [1]}}), "Cmd"),
    ],
)
def test_damaged_record_is_refused(data: bytes, word: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_record(data, "The record")
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("index", [None, (), (f"sha256:{DIGEST}",)])
def test_what_an_index_has_is_read_back(index: tuple[str, ...] | None) -> None:
    record = replace(RECORD, index=index)
    assert parse_record(format_record(record), "it") == record


@pytest.mark.parametrize("index", ["x", [1], {}, 0])
def test_an_index_that_is_no_list_is_refused(index: object) -> None:
    with pytest.raises(UserError, match="list of digests"):
        parse_record(changed(index=index), "The record")
