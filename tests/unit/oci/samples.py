"""Small images, made by hand: layouts, docker archives, and the ways to damage them."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from mica.oci import mediatypes
from mica.oci.models import Descriptor, format_index, format_manifest


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def make_tar(files: Mapping[str, bytes | str], *, links: Mapping[str, str] | None = None) -> bytes:
    """A tar of files; a text is the target of a symbolic link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def compressed(tar: bytes, kind: str) -> bytes:
    if kind == "gzip":
        return gzip.compress(tar, mtime=0)
    return zstandard.compress(tar) if kind == "zstd" else tar


_TYPES = {"gzip": mediatypes.OCI_LAYER_GZIP, "zstd": mediatypes.OCI_LAYER_ZSTD, "": mediatypes.OCI_LAYER}


@dataclass(frozen=True)
class Sample:
    """An image as blobs by digest, its manifest among them."""

    blobs: dict[str, bytes]
    manifest: Descriptor
    config: dict[str, Any]
    tars: list[bytes]
    layers: tuple[Descriptor, ...]


def make_config(tars: list[bytes], **changes: Any) -> dict[str, Any]:
    return {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]},
    } | changes


def make_sample(tars: list[bytes] | None = None, *, kind: str = "gzip", config: dict[str, Any] | None = None) -> Sample:
    if tars is None:
        tars = [make_tar({"etc/name": b"first"}), make_tar({"usr/big": bytes(range(256)) * 4000})]
    config = make_config(tars) if config is None else config
    blobs = [compressed(tar, kind) for tar in tars]
    layers = tuple(Descriptor(_TYPES[kind], digest_of(blob), len(blob)) for blob in blobs)
    config_data = json.dumps(config).encode()
    manifest = format_manifest(Descriptor(mediatypes.OCI_CONFIG, digest_of(config_data), len(config_data)), layers)
    stored = {digest_of(blob): blob for blob in (*blobs, config_data, manifest)}
    return Sample(stored, Descriptor(mediatypes.OCI_MANIFEST, digest_of(manifest), len(manifest)), config, tars, layers)


def write_layout(path: Path, sample: Sample, *entries: Descriptor) -> Path:
    """A layout that lists the given descriptors, or the sample's manifest without a tag."""
    (path / "blobs" / "sha256").mkdir(parents=True)
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    for digest, blob in sample.blobs.items():
        (path / "blobs" / "sha256" / digest.removeprefix("sha256:")).write_bytes(blob)
    (path / "index.json").write_bytes(format_index(entries or (sample.manifest,)))
    return path


def docker_archive_files(sample: Sample, *, tags: list[str]) -> dict[str, bytes | str]:
    """The form of Docker before 25: a directory for each layer."""
    config = json.dumps(sample.config).encode()
    config_name = f"{digest_of(config).removeprefix('sha256:')}.json"
    names = [f"{number:064x}/layer.tar" for number in range(len(sample.tars))]
    entry = {"Config": config_name, "RepoTags": tags, "Layers": names}
    files: dict[str, bytes | str] = dict(zip(names, sample.tars, strict=True))
    return files | {config_name: config, "manifest.json": json.dumps([entry]).encode()}


def read_all(stream: Any, size: int = 1000) -> bytes:
    return b"".join(iter(lambda: stream.read(size), b""))
