"""The thin images that were made: all are small and kept for good.

    <home>/thin/<sha256 of the name>/     an OCI image layout for each repository at the portal
    <home>/thin/<sha256 of the name>/tags/<tag>.json     {"upstream": digest, "manifest": digest, "media_type": …}

A repository's name gives only images of its own layout. Any thread; the tag's file is replaced last.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from mica.files import mapped_os_errors, replace_file
from mica.oci import mediatypes
from mica.oci.blobdigest import is_digest, split_digest
from mica.oci.documents import DOCUMENT_LIMIT_BYTES, Fields, parse_document
from mica.oci.layoutwriter import LayoutWriter

SHELF_DIRECTORY = "thin"
"""Its name in a repository's directory (`ReleaseManager.directory`)."""
_TAGS = "tags"


class ShelvedTag(NamedTuple):
    """`upstream` is the digest that the tag had there when the thin image was made."""

    upstream: str
    manifest: str
    media_type: str


class Document(NamedTuple):
    """A manifest or a blob as it is sent."""

    digest: str
    media_type: str
    data: bytes


class Shelf:
    def __init__(self, root: Path) -> None:
        self._root = root

    def writer(self, name: str) -> LayoutWriter:
        directory = self._directory(name)
        with mapped_os_errors(f"make {directory}"):
            directory.mkdir(parents=True, exist_ok=True)
        return LayoutWriter(directory)

    def tag(self, name: str, tag: str) -> ShelvedTag | None:
        """None for a missing tag, and for a tag whose file or manifest is damaged."""
        try:
            data = self._tag_path(name, tag).read_bytes()
            fields = parse_document(data, what="a tag")
            found = ShelvedTag(*(fields.text(member) for member in ShelvedTag._fields))
        except Exception:  # after every failure the image is made again
            return None
        return found if is_digest(found.manifest) and self.manifest(name, found.manifest) is not None else None

    def put_tag(self, name: str, tag: str, shelved: ShelvedTag) -> None:
        path = self._tag_path(name, tag)
        with mapped_os_errors(f"write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, json.dumps(shelved._asdict()).encode("ascii") + b"\n")

    def tags(self, name: str) -> list[str]:
        return sorted(path.stem for path in (self._directory(name) / _TAGS).glob("*.json"))

    def manifest(self, name: str, digest: str) -> Document | None:
        """A manifest or an index by its digest."""
        data = self.blob(name, digest)
        if data is None or len(data) > DOCUMENT_LIMIT_BYTES or not data.startswith(b"{"):
            return None
        media_type = _media_type(data)
        return Document(digest, media_type, data) if media_type in mediatypes.MANIFESTS | mediatypes.INDEXES else None

    def blob(self, name: str, digest: str) -> bytes | None:
        """The digest is from outside."""
        if not is_digest(digest):
            return None
        algorithm, text = split_digest(digest)
        try:
            return (self._directory(name) / "blobs" / algorithm / text).read_bytes()
        except FileNotFoundError:
            return None

    def _directory(self, name: str) -> Path:
        return self._root / hashlib.sha256(name.encode("utf-8")).hexdigest()

    def _tag_path(self, name: str, tag: str) -> Path:
        return self._directory(name) / _TAGS / f"{tag}.json"


def _media_type(data: bytes) -> str:
    fields: Fields = parse_document(data, what="a manifest")
    return fields.text("mediaType")
