"""Image documents as values: descriptor, index, manifest, configuration. Bytes in, frozen values out; any thread.

Documents come from registries and archives: a malformed one is refused by a UserError that names it. The bytes are
kept, so that a document is written as it was read, member for member.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mica.errors import IntegrityError, UserError
from mica.oci import mediatypes
from mica.oci.blobdigest import checked_digest, matches_digest
from mica.oci.documents import Fields, parse_document
from mica.oci.platforms import Platform

REF_NAME = "org.opencontainers.image.ref.name"
# containerd writes the whole name beside the tag.
CONTAINERD_NAME = "io.containerd.image.name"
# Builders list attestations among the images as platform unknown/unknown.
_UNKNOWN_OS = "unknown"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A document's pointer to a blob."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    urls: tuple[str, ...] = ()
    artifact_type: str = ""

    @property
    def is_artifact(self) -> bool:
        """Whether it states that it is not an image but an attestation, a signature, a list of materials or a chart."""
        is_attestation = self.platform is not None and self.platform.os == _UNKNOWN_OS
        return is_attestation or self.artifact_type not in {"", *mediatypes.CONFIGS}

    @property
    def is_foreign(self) -> bool:
        """Whether the registry need not have the blob."""
        return self.media_type in mediatypes.FOREIGN_LAYERS

    def to_json(self) -> dict[str, Any]:
        members: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.urls:
            members["urls"] = list(self.urls)
        if self.annotations:
            members["annotations"] = dict(self.annotations)
        if self.platform is not None:
            variant = {"variant": self.platform.variant} if self.platform.variant else {}
            members["platform"] = {"architecture": self.platform.architecture, "os": self.platform.os} | variant
        if self.artifact_type:
            members["artifactType"] = self.artifact_type
        return members


@dataclass(frozen=True, slots=True)
class Index:
    """Images of several platforms under one name; also `index.json` of a layout."""

    manifests: tuple[Descriptor, ...]
    media_type: str
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    raw: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image: its configuration and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    raw: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """How a layer, or a change without a layer, was made."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How a container of the image starts, and the digests of its unpacked layers. `raw` is the whole document."""

    raw: bytes = field(repr=False)
    os: str
    architecture: str
    variant: str
    diff_ids: tuple[str, ...]
    history: tuple[HistoryEntry, ...]
    env: tuple[str, ...]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    user: str
    working_dir: str
    labels: Mapping[str, str] = field(hash=False)
    exposed_ports: tuple[str, ...]
    volumes: tuple[str, ...]
    stop_signal: str
    healthcheck: Mapping[str, Any] | None = field(hash=False)

    @property
    def platform(self) -> Platform:
        return Platform(self.os, self.architecture, self.variant)

    def document(self) -> dict[str, Any]:
        """The whole document as a fresh value, to make another one from."""
        members: dict[str, Any] = json.loads(self.raw)
        return members


def parse_descriptor(fields: Fields) -> Descriptor:
    platform = fields.object("platform")
    return Descriptor(
        media_type=fields.text("mediaType"),
        digest=checked_digest(fields.text("digest"), what=fields.what),
        size=fields.size_bytes("size"),
        platform=_parse_platform(platform) if "platform" in fields else None,
        annotations=fields.text_map("annotations"),
        urls=fields.texts("urls"),
        artifact_type=fields.text("artifactType"),
    )


def _parse_platform(fields: Fields) -> Platform | None:
    """None if it states too little for a choice."""
    return Platform(fields.text("os"), fields.text("architecture"), fields.text("variant")).stated


def parse_index(data: bytes, *, what: str) -> Index:
    document = parse_document(data, what=what)
    manifests = tuple(parse_descriptor(one) for one in document.objects("manifests"))
    media_type = document.text("mediaType", mediatypes.OCI_INDEX)
    return Index(manifests, media_type, document.text_map("annotations"), data)


def parse_manifest(data: bytes, *, what: str) -> Manifest:
    """Read an image manifest. Raises UserError for an index and for a manifest of something else."""
    document = parse_document(data, what=what)
    config = parse_descriptor(document.object("config"))
    layers = tuple(parse_descriptor(one) for one in document.objects("layers"))
    media_type = document.text("mediaType", mediatypes.OCI_MANIFEST)
    return Manifest(config, layers, media_type, document.text_map("annotations"), data)


def parse_image_document(data: bytes, *, media_type: str = "", what: str) -> Index | Manifest:
    """Read the manifest or index that a name points at.

    The members decide and the media types must agree with them: a document that could be both was used to show two
    readers two images under one digest (CVE-2021-41190).
    """
    document = parse_document(data, what=what)
    stated = document.text("mediaType")
    types = {one for one in (stated, media_type) if one in mediatypes.INDEXES | mediatypes.MANIFESTS}
    is_index, is_manifest = "manifests" in document, "config" in document or "layers" in document
    if media_type in mediatypes.SCHEMA1 or stated in mediatypes.SCHEMA1 or "fsLayers" in document:
        raise UserError(f"{what} is in the retired format of Docker 1.9.", hint="Push the image again with any tool.")
    if is_index and is_manifest:
        raise UserError(f"{what} is a manifest and an index at once.")
    if not is_index and (is_manifest or not types & mediatypes.INDEXES):
        if types & mediatypes.INDEXES or not is_manifest:
            raise UserError(f"{what} is neither an image manifest nor an index.")
        return parse_manifest(data, what=what)
    if types & mediatypes.MANIFESTS:
        raise UserError(f"{what} says it is a manifest and is an index.")
    return parse_index(data, what=what)


def parse_config(data: bytes, *, what: str) -> ImageConfig:
    document = parse_document(data, what=what)
    run, rootfs = document.object("config"), document.object("rootfs")
    diff_ids = rootfs.texts("diff_ids")
    return ImageConfig(
        raw=data,
        os=document.text("os", "linux"),
        architecture=document.text("architecture"),
        variant=document.text("variant"),
        diff_ids=tuple(checked_digest(one, what=rootfs.what) for one in diff_ids),
        history=tuple(_parse_history(one) for one in document.objects("history")),
        env=run.texts("Env"),
        entrypoint=run.text_or_texts("Entrypoint"),
        cmd=run.text_or_texts("Cmd"),
        user=run.text("User"),
        working_dir=run.text("WorkingDir"),
        labels=run.text_map("Labels"),
        exposed_ports=tuple(run.object("ExposedPorts").members),
        volumes=tuple(run.object("Volumes").members),
        stop_signal=run.text("StopSignal"),
        healthcheck=dict(run.object("Healthcheck").members) if "Healthcheck" in run else None,
    )


def _parse_history(fields: Fields) -> HistoryEntry:
    return HistoryEntry(
        created=fields.text("created"),
        created_by=fields.text("created_by"),
        author=fields.text("author"),
        comment=fields.text("comment"),
        empty_layer=fields.flag("empty_layer"),
    )


def format_document(members: Mapping[str, Any]) -> bytes:
    """A document in its one spelling: the same value always gives the same bytes, and so the same digest."""
    return json.dumps(members, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def format_manifest(config: Descriptor, layers: tuple[Descriptor, ...], **extra: Any) -> bytes:
    members = {"schemaVersion": 2, "mediaType": mediatypes.OCI_MANIFEST}
    return format_document(
        members | {"config": config.to_json(), "layers": [one.to_json() for one in layers]} | extra,
    )


def format_index(manifests: tuple[Descriptor, ...], **extra: Any) -> bytes:
    members = {"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX}
    return format_document(members | {"manifests": [one.to_json() for one in manifests]} | extra)


def check_document(data: bytes, descriptor: Descriptor, *, what: str) -> bytes:
    """The data, if it has the descriptor's size and digest. Raises IntegrityError."""
    if len(data) != descriptor.size:
        raise IntegrityError(f"{what} has {len(data)} bytes instead of {descriptor.size}.")
    if not matches_digest(data, descriptor.digest):
        raise IntegrityError(f"{what} does not have the digest {descriptor.digest}.")
    return data
