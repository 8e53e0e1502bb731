"""Thin images: an ordinary image of one layer that holds `thin.json`, with the original's whole configuration.

The same original and the same descriptor give the same bytes. Pure besides what a given writer or source does.
"""

import dataclasses
import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from mica.errors import UserError
from mica.oci import mediatypes
from mica.oci.blobdigest import blob_digest
from mica.oci.image import ImageSource
from mica.oci.models import Descriptor, format_document, format_index, format_manifest
from mica.oci.platforms import Platform
from mica.streams import Readable
from mica.tarentry import Kind
from mica.tarstream import TarLimits, read_tar
from mica.thin.descriptor import FILE_NAME, SIZE_LIMIT, ThinDescriptor, format_descriptor, parse_descriptor

_GZIP_LEVEL = 6
_NAME = FILE_NAME.encode("ascii")
_MEMBER_LIMIT = 16
"""A thin image has one, and directories where a builder wrote them."""


class ImageWriter(Protocol):
    """Where images go: a layout, an archive, a repository of a registry."""

    def put_blob(self, content: bytes, media_type: str) -> Descriptor: ...

    def put_image(self, manifest: Descriptor, *, tag: str = "", platform: Platform | None = None) -> None: ...


class ThinImage(NamedTuple):
    """What a thin image is made of; `config` is the original's document."""

    descriptor: ThinDescriptor
    config: dict[str, Any]
    platform: Platform


def write_thin_image(writer: ImageWriter, thin: ThinImage, *, tag: str) -> Descriptor:
    """Put a thin image somewhere, under a tag."""
    manifest = _put_thin_manifest(writer, thin)
    writer.put_image(manifest, tag=tag, platform=thin.platform.stated)
    return manifest


def write_thin_index(writer: ImageWriter, images: Sequence[ThinImage], *, tag: str) -> Descriptor:
    """Put an index of thin images somewhere, under a tag."""
    manifests = tuple(
        dataclasses.replace(_put_thin_manifest(writer, thin), platform=thin.platform.stated) for thin in images
    )
    index = writer.put_blob(format_index(manifests), mediatypes.OCI_INDEX)
    writer.put_image(index, tag=tag)
    return index


def _put_thin_manifest(writer: ImageWriter, thin: ThinImage) -> Descriptor:
    tar = _layer_tar(thin.descriptor)
    layer = writer.put_blob(gzip.compress(tar, _GZIP_LEVEL, mtime=0), mediatypes.OCI_LAYER_GZIP)
    document = format_document(_thin_config(thin.config, thin.descriptor, blob_digest(tar)))
    stored = writer.put_blob(document, mediatypes.OCI_CONFIG)
    return writer.put_blob(format_manifest(stored, (layer,)), mediatypes.OCI_MANIFEST)


def read_thin_descriptor(image: ImageSource) -> ThinDescriptor | None:
    """The descriptor of a thin image; None for an ordinary one.

    Thin is an image of one layer whose only file is `thin.json`. Raises UserError if that file is not a descriptor.
    """
    if len(image.layers) != 1 or image.layers[0].size > SIZE_LIMIT:
        return None
    what = f"{FILE_NAME} of {image.name}"
    try:
        # What is left early, by an exception, is not drained: the rest of an ordinary layer may be large.
        with image.open_layer(image.layers[0], 2 * SIZE_LIMIT) as stream:
            found = _only_file(stream, what)
    except _OrdinaryLayerError:
        return None
    return parse_descriptor(found, what)


class _OrdinaryLayerError(Exception):
    """A layer with anything else in it than `thin.json`."""


def _only_file(stream: Readable, what: str) -> bytes:
    found: bytes | None = None
    limits = TarLimits(max_entries=_MEMBER_LIMIT + 1)
    for number, entry in enumerate(read_tar(stream, limits=limits, require_end=False)):
        if number < _MEMBER_LIMIT and entry.kind is Kind.DIRECTORY:
            continue
        if found is not None or entry.kind is not Kind.REGULAR or entry.name.removeprefix(b"./") != _NAME:
            raise _OrdinaryLayerError
        if entry.size > SIZE_LIMIT:
            raise UserError(f"{what} has {entry.size} bytes, more than an image descriptor can have.")
        found = entry.data()
    if found is None:
        raise _OrdinaryLayerError
    return found


def require_thin(image: ImageSource) -> ThinDescriptor:
    descriptor = read_thin_descriptor(image)
    if descriptor is None:
        raise UserError(
            f"{image.name} is an ordinary image, not a thin one.",
            hint="Publish it first: mica convert IMAGE FQRN -o oci:DIR",
        )
    return descriptor


def _layer_tar(descriptor: ThinDescriptor) -> bytes:
    data = format_descriptor(descriptor)
    member = tarfile.TarInfo(FILE_NAME)
    member.size = len(data)
    member.mode = 0o644
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _thin_config(config: dict[str, Any], descriptor: ThinDescriptor, diff_id: str) -> dict[str, Any]:
    """The original's document with one layer; its history stays, told as steps without a layer of their own."""
    document: dict[str, Any] = json.loads(json.dumps(config))
    document["rootfs"] = {"type": "layers", "diff_ids": [diff_id]}
    history = [{**step, "empty_layer": True} for step in document.get("history") or [] if isinstance(step, dict)]
    created_by = f"mica convert {descriptor.origin}"
    step = {"created_by": created_by, "comment": "thin image: the layers are in a repository"}
    if isinstance(document.get("created"), str):
        step["created"] = document["created"]
    document["history"] = [*history, step]
    return document
