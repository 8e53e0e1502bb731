"""Pushing to registries: blobs first, each only if it is missing, then the manifest, then the tag.

A `RegistryWriter` takes the same calls as a `LayoutWriter`; `copy_image` moves a whole image. A small blob goes up in
one request, a large one in chunks. A chunk is sent again if the connection breaks, so a push keeps one chunk in memory.
Any thread.
"""

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from urllib.parse import urlencode, urljoin

import urllib3

from mica.errors import IntegrityError, TemporaryError, UserError
from mica.oci import mediatypes
from mica.oci.blobdigest import blob_digest, finished_digest, new_blob_hasher
from mica.oci.documents import DOCUMENT_LIMIT_BYTES
from mica.oci.endpoints import Use
from mica.oci.image import Image, PlatformImage
from mica.oci.models import Descriptor, format_index
from mica.oci.origins import parse_origin
from mica.oci.platforms import Platform
from mica.oci.reference import Reference
from mica.oci.registry import RegistryClient
from mica.oci.session import RegistryRequest
from mica.oci.transport import UnreachableError, discard, read_body
from mica.streams import Readable

CHUNK_BYTES = 8 << 20
_CHUNK_TRIES = 5
_UPLOAD_TRIES = 3
_BINARY = {"Content-Type": "application/octet-stream"}
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")

OpenBlob = Callable[[], AbstractContextManager[Readable]]


class RegistryWriter:
    """Puts images into one repository of a registry. `reference` says which, and the tag unless `put_image` does."""

    def __init__(self, client: RegistryClient, reference: Reference, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._session = client.session
        self._reference = reference
        self._endpoint = client.session.target(reference)
        self._chunk_bytes = chunk_bytes

    def put_blob(self, content: bytes, media_type: str) -> Descriptor:
        """Store a small blob, or a manifest by its digest."""
        descriptor = Descriptor(media_type, blob_digest(content), len(content))
        if media_type in mediatypes.MANIFESTS | mediatypes.INDEXES:
            self._put_manifest(descriptor, content, descriptor.digest)
        elif not self.has_blob(descriptor):
            with contextlib.closing(_Bytes(content)) as stream:
                self._upload(descriptor, stream)
        return descriptor

    def put_image(
        self, manifest: Descriptor, *, tag: str = "", platform: Platform | None = None, data: bytes | None = None
    ) -> None:
        """Give a stored manifest a tag; with `data` it is not asked for."""
        del platform
        if data is None:
            data = self._stored_manifest(manifest)
        self._put_manifest(manifest, data, tag or self._reference.version)

    def has_blob(self, descriptor: Descriptor) -> bool:
        what = f"blob {descriptor.digest} of {self._reference}"
        response = self._send("HEAD", f"blobs/{descriptor.digest}", what=what)
        if response.status not in {200, 404, 405, 501}:
            raise self._session.refusal(response, self._reference, what=what, doing="write")
        discard(response)
        return response.status == 200

    def copy_blob(self, descriptor: Descriptor, open_blob: OpenBlob, *, mount_from: str = "") -> bool:
        """Put a blob there, by a mount from another repository of the registry where that works.

        False if it was there or was mounted. Raises IntegrityError for a stream that is not what the descriptor says.
        """
        if self.has_blob(descriptor):
            return False
        for is_last in (*[False] * (_UPLOAD_TRIES - 1), True):
            try:
                with open_blob() as stream:
                    return self._upload(descriptor, stream, mount_from=mount_from)
            except TemporaryError:
                # The registry may have forgotten the upload: once more from the beginning.
                if is_last:
                    raise
        raise AssertionError("the last try returns or raises")

    def _upload(self, descriptor: Descriptor, stream: Readable, *, mount_from: str = "") -> bool:
        what = f"blob {descriptor.digest} of {self._reference}"
        query = f"?{urlencode({'mount': descriptor.digest, 'from': mount_from})}" if mount_from else ""
        response = self._send("POST", f"blobs/uploads/{query}", what=what, headers={"Content-Length": "0"}, body=b"")
        if response.status == 201:
            discard(response)
            return False
        location = self._location(response, "", {202}, what=what)
        hasher = new_blob_hasher(descriptor.digest)
        offset, data = 0, _read_chunk(stream, self._chunk_bytes)
        if len(data) < descriptor.size:
            while data:
                hasher.update(data)
                location = self._put_chunk(location, offset, data, what=what)
                offset += len(data)
                data = _read_chunk(stream, self._chunk_bytes)
        else:
            hasher.update(data)
            offset = len(data)
        if offset != descriptor.size or finished_digest(hasher) != descriptor.digest:
            raise IntegrityError(f"{what[0].upper()}{what[1:]} is not what its descriptor says; it was not pushed.")
        self._finish(location, descriptor, data, what=what)
        return True

    def _put_chunk(self, location: str, offset: int, data: bytes, *, what: str) -> str:
        """Where the next one goes."""
        end = offset + len(data)
        start = offset
        for attempt in range(1, _CHUNK_TRIES + 1):
            headers = {**_BINARY, "Content-Range": f"{start}-{end - 1}"}
            try:
                response = self._send(
                    "PATCH", location, what=what, headers=headers, body=data[start - offset :], attempts=1
                )
                return self._location(response, location, {202, 201, 204}, what=what)
            except TemporaryError:
                if attempt == _CHUNK_TRIES:
                    raise
            time.sleep(self._session.options.transport.backoff_s * attempt)
            location, known = self._progress(location, what=what)
            if known == end:
                return location
            if not offset <= known < end:
                raise TemporaryError(f"{self._reference.registry} lost a part of {what} during the upload.")
            start = known
        raise AssertionError("the last try returns or raises")

    def _progress(self, location: str, *, what: str) -> tuple[str, int]:
        """Where an upload goes on, and how many bytes the registry has."""
        response = self._send("GET", location, what=what)
        location = self._location(response, location, {204, 202}, what=what)
        match = _RANGE.fullmatch(response.headers.get("Range", ""))
        # Docker's registry says 0-0 for nothing as well as for one byte; nothing is what occurs.
        known = 0 if match is None or match[1] == "0" else int(match[1]) + 1
        return location, known

    def _finish(self, location: str, descriptor: Descriptor, data: bytes, *, what: str) -> None:
        url = f"{location}{'&' if '?' in location else '?'}{urlencode({'digest': descriptor.digest})}"
        for is_last in (*[False] * (_CHUNK_TRIES - 1), True):
            try:
                response = self._send("PUT", url, what=what, headers=_BINARY, body=data, attempts=1)
                break
            except UnreachableError:
                # Perhaps only the answer was lost. Data of which a part may have arrived is not sent again.
                if self.has_blob(descriptor):
                    return
                if data or is_last:
                    raise
        if response.status not in {201, 204}:
            raise self._session.refusal(response, self._reference, what=what, doing="write")
        discard(response)

    def _put_manifest(self, descriptor: Descriptor, data: bytes, version: str) -> None:
        what = f"the manifest {version} of {self._reference.name}"
        headers = {"Content-Type": descriptor.media_type}
        response = self._send("PUT", f"manifests/{version}", what=what, headers=headers, body=data)
        if response.status not in {200, 201, 202}:
            raise self._session.refusal(response, self._reference, what=what, doing="write")
        discard(response)

    def _stored_manifest(self, manifest: Descriptor) -> bytes:
        what = f"the manifest {manifest.digest} of {self._reference.name}"
        headers = {"Accept": manifest.media_type}
        response = self._send("GET", f"manifests/{manifest.digest}", what=what, headers=headers)
        if response.status != 200:
            raise self._session.refusal(response, self._reference, what=what)
        return read_body(response, DOCUMENT_LIMIT_BYTES, host=self._reference.registry, what=what)

    def _location(self, response: urllib3.BaseHTTPResponse, base: str, good: set[int], *, what: str) -> str:
        if response.status not in good:
            raise self._session.refusal(response, self._reference, what=what, doing="write")
        discard(response)
        location = response.headers.get("Location", "")
        url = self._joined(base or self._endpoint.api, location, what=what) if location else base
        if not url:
            raise UserError(f"{self._reference.registry} does not say where to send {what}.")
        if self._endpoint.api.startswith("https:") and not url.startswith("https:"):
            raise UserError(f"{self._reference.registry} wants {what} in plain HTTP, which is refused.")
        return url

    def _joined(self, base: str, location: str, *, what: str) -> str:
        try:
            url = urljoin(base, location)
            parse_origin(url, what=what)
        except (ValueError, UserError) as error:
            raise UserError(f"{self._reference.registry} sends {what} to no web address.") from error
        return url

    def _send(
        self,
        method: str,
        path: str,
        *,
        what: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        attempts: int = 0,
    ) -> urllib3.BaseHTTPResponse:
        request = RegistryRequest(Use.PUSH, path, what, method, headers or {}, body, attempts)
        return self._session.send(self._endpoint, self._reference, request)


def copy_image(image: Image, client: RegistryClient, target: Reference) -> Descriptor:
    """Push an image as it is, byte for byte; returns its manifest's descriptor."""
    writer = RegistryWriter(client, target)
    source = image.reference
    near = source.repository if source is not None and source.registry == target.registry else ""
    for layer in image.layers:
        if not layer.descriptor.is_foreign:
            writer.copy_blob(layer.descriptor, _opener(image, layer.descriptor), mount_from=near)
    writer.put_blob(image.config.raw, image.manifest.config.media_type)
    data = image.manifest.raw
    manifest = Descriptor(image.manifest.media_type, blob_digest(data), len(data))
    writer.put_image(manifest, tag=target.version, data=data)
    return manifest


def copy_images(images: Sequence[PlatformImage], client: RegistryClient, target: Reference) -> Descriptor:
    """Push one image as it is, or several as an index of them."""
    if len(images) == 1:
        return copy_image(images[0].image, client, target)
    manifests = []
    for one in images:
        by_digest = Reference(target.registry, target.repository, None, one.image.manifest_digest)
        manifests.append(dataclasses.replace(copy_image(one.image, client, by_digest), platform=one.platform.stated))
    writer = RegistryWriter(client, target)
    index = writer.put_blob(format_index(tuple(manifests)), mediatypes.OCI_INDEX)
    writer.put_image(index, tag=target.version)
    return index


def _opener(image: Image, descriptor: Descriptor) -> OpenBlob:
    return lambda: image.open_stored(descriptor)


class _Bytes:
    """A stream over bytes at hand."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def read(self, size: int, /) -> bytes:
        piece, self._data = self._data[:size], self._data[size:]
        return bytes(piece)

    def close(self) -> None:
        self._data = memoryview(b"")


def _read_chunk(stream: Readable, size: int) -> bytes:
    parts = []
    while size and (data := stream.read(size)):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)
