"""Images in `docker save` archives: `manifest.json` names a configuration and layer tars for each image.

Docker before 25 stores `<id>/layer.tar`, newer ones an OCI layout beside `manifest.json`, other tools any names. An
archive is plain or packed as a whole. It has no manifest with layer digests, so one is made here: a layer's digest is
that of its stored bytes, which for an uncompressed tar is the diff id. Any thread.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from mica.errors import IntegrityError, NotFoundError, UserError
from mica.oci import mediatypes
from mica.oci.blobdigest import blob_digest, is_digest
from mica.oci.documents import DOCUMENT_LIMIT_BYTES, Fields, parse_json
from mica.oci.image import Image, assemble_image
from mica.oci.layerstream import READ_SIZE, media_type_of
from mica.oci.models import Descriptor, format_manifest, parse_config, parse_manifest
from mica.oci.reference import Reference
from mica.oci.tarindex import TarIndex, open_tar
from mica.streams import Readable

_MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One image in manifest.json."""

    config: str
    tags: tuple[str, ...]
    layers: tuple[str, ...]


class _ArchiveBlobs:
    """Blobs by their digests in the manifest that is made here."""

    def __init__(self, index: TarIndex) -> None:
        self._index = index
        self._names: dict[str, str] = {}

    def add(self, digest: str, name: str) -> None:
        self._names[digest] = name

    def read_document(self, descriptor: Descriptor, *, what: str) -> bytes:  # noqa: ARG002 - the seam's signature
        return self._index.read(self._names[descriptor.digest], limit_bytes=DOCUMENT_LIMIT_BYTES)

    def open_blob(self, descriptor: Descriptor) -> AbstractContextManager[Readable]:
        return self._index.open(self._names[descriptor.digest])


@contextlib.contextmanager
def open_docker_archive(path: Path, *, tag: str = "") -> Iterator[Image]:
    """The image with a tag, or the only one. Raises NotFoundError with a hint that lists the tags."""
    with open_tar(path) as index:
        yield image_in_docker_archive(index, tag=tag)


def image_in_docker_archive(index: TarIndex, *, tag: str = "", name: str = "") -> Image:
    entry = _choose_entry(_read_entries(index), tag, name=str(index.path))
    label = name or (f"{index.path}:{tag}" if tag else str(index.path))
    config_data = index.read(entry.config, limit_bytes=DOCUMENT_LIMIT_BYTES)
    _check_config_name(entry.config, config_data, label)
    diff_ids = parse_config(config_data, what=f"The configuration of {label}").diff_ids
    if len(diff_ids) != len(entry.layers):
        raise IntegrityError(f"{label} has {len(entry.layers)} layers and {len(diff_ids)} diff ids.")
    blobs = _ArchiveBlobs(index)
    layers = tuple(
        _describe_layer(index, blobs, one, diff_id) for one, diff_id in zip(entry.layers, diff_ids, strict=True)
    )
    config = Descriptor(mediatypes.OCI_CONFIG, blob_digest(config_data), len(config_data))
    blobs.add(config.digest, entry.config)
    manifest = parse_manifest(format_manifest(config, layers), what=f"The manifest of {label}")
    reference = Reference.parse(tag or entry.tags[0]) if tag or entry.tags else None
    return assemble_image(manifest, config_data, blobs, name=label, reference=reference)


def _read_entries(index: TarIndex) -> list[_Entry]:
    if index.find(_MANIFEST_NAME) is None:
        hint = "It is an OCI archive: use oci-archive:FILE." if index.find("index.json") is not None else ""
        raise NotFoundError(f"{index.path} is not a docker archive: it has no {_MANIFEST_NAME}.", hint=hint)
    data = index.read(_MANIFEST_NAME, limit_bytes=DOCUMENT_LIMIT_BYTES)
    what = f"{_MANIFEST_NAME} of {index.path}"
    # The document is a list; as a member of an object it is read like all others.
    document = Fields({"images": parse_json(data, what=what)}, what=what)
    return [_parse_entry(one) for one in document.objects("images")]


def _parse_entry(fields: Fields) -> _Entry:
    return _Entry(fields.text("Config"), fields.texts("RepoTags"), fields.texts("Layers"))


def _choose_entry(entries: list[_Entry], tag: str, *, name: str) -> _Entry:
    tags = [one for entry in entries for one in entry.tags]
    hint = f"Choose one of: {', '.join(tags[:20])}" if tags else "None of its images has a tag."
    if tag:
        wanted = Reference.parse(tag).text
        matching = [one for one in entries if any(_full_name(text) == wanted for text in one.tags)]
        if not matching:
            raise NotFoundError(f"{name} holds no image {tag}.", hint=hint)
        return matching[0]
    if not entries:
        raise NotFoundError(f"{name} holds no image at all.")
    if len(entries) > 1:
        raise UserError(f"{name} holds {len(entries)} images.", hint=hint)
    return entries[0]


def _full_name(tag: str) -> str:
    try:
        return Reference.parse(tag).text
    except UserError:
        return ""


def _check_config_name(name: str, data: bytes, label: str) -> None:
    """The configuration is named by its digest: `<hex>.json` or `blobs/sha256/<hex>`."""
    digest = f"sha256:{name.rpartition('/')[2].removesuffix('.json')}"
    if is_digest(digest) and blob_digest(data) != digest:
        raise IntegrityError(f"The configuration of {label} does not have the digest {digest}.")


def _describe_layer(index: TarIndex, blobs: _ArchiveBlobs, name: str, diff_id: str) -> Descriptor:
    place = index.place(name)
    media_type = media_type_of(place.head)
    if media_type == mediatypes.OCI_LAYER:
        digest = diff_id
    elif name.startswith("blobs/sha256/") and is_digest(f"sha256:{name.removeprefix('blobs/sha256/')}"):
        digest = f"sha256:{name.removeprefix('blobs/sha256/')}"
    else:
        digest = _hash_member(index, name)
    blobs.add(digest, name)
    return Descriptor(media_type, digest, place.size)


def _hash_member(index: TarIndex, name: str) -> str:
    hasher = hashlib.sha256()
    with index.open(name) as stream:
        while data := stream.read(READ_SIZE):
            hasher.update(data)
    return f"sha256:{hasher.hexdigest()}"
