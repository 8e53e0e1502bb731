"""Pulling from registries: the OCI distribution protocol, version 2. Why an own client: docs/adr/0003.

`RegistryClient` may be used from several threads, as the session below it may.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

import urllib3

from mica.errors import IntegrityError, NotFoundError, UserError
from mica.oci import mediatypes
from mica.oci.blobdigest import blob_digest, is_digest, matches_digest
from mica.oci.blobstream import BlobStream
from mica.oci.choice import ImageChoice, every_of_document
from mica.oci.documents import DOCUMENT_LIMIT_BYTES, parse_document
from mica.oci.endpoints import Use
from mica.oci.image import Image, open_document
from mica.oci.layerstream import Readable
from mica.oci.models import Descriptor, Index, Manifest, check_document, parse_image_document
from mica.oci.platforms import Platform
from mica.oci.reference import Reference
from mica.oci.session import RegistryOptions, RegistryRequest, RegistrySession
from mica.oci.transport import discard, read_body

_TAG_LIMIT = 100_000
_TAG_PAGE = 1000


@dataclass(frozen=True, slots=True)
class _Repository:
    """The blobs of one image: an `image.BlobReader`."""

    client: "RegistryClient"
    reference: Reference

    def read_document(self, descriptor: Descriptor, *, what: str) -> bytes:
        kinds = mediatypes.INDEXES | mediatypes.MANIFESTS
        if descriptor.media_type in kinds:
            return self.client.read_manifest(self.reference, descriptor, what=what)
        with self.client.open_blob(self.reference, descriptor) as stream:
            data = b"".join(iter(lambda: stream.read(DOCUMENT_LIMIT_BYTES), b""))
        return check_document(data, descriptor, what=what)

    def open_blob(self, descriptor: Descriptor) -> contextlib.AbstractContextManager[Readable]:
        return self.client.open_blob(self.reference, descriptor)


class RegistryClient:
    """Reads images from any registry. Made by `open_registry`."""

    def __init__(self, options: RegistryOptions) -> None:
        self.session = RegistrySession(options)

    def close(self) -> None:
        self.session.close()

    def image(self, reference: Reference, *, platform: Platform | None = None) -> Image:
        """The image under a name. It reads through this client, which must stay open."""
        return self.choice(reference).one(platform)

    def choice(self, reference: Reference) -> ImageChoice:
        """All that a name stands for. It reads through this client, which must stay open."""
        document = self.manifest(reference)
        reader = _Repository(self, reference)
        name = reference.text
        return ImageChoice(
            blob_digest(document.raw),
            lambda platform: open_document(document, reader, platform=platform, name=name, reference=reference),
            lambda: every_of_document(document, reader, name=name, reference=reference),
        )

    def manifest(self, reference: Reference) -> Index | Manifest:
        """What a tag or digest points at, verified against the digest where there is one."""
        what = f"the manifest of {reference}"
        data, media_type, stated = self._get_manifest(reference, reference.version, what=what)
        digest = reference.digest or (stated if is_digest(stated) else blob_digest(data))
        if not matches_digest(data, digest):
            raise IntegrityError(f"{reference.registry} sends {what} with another digest than {digest}.")
        return parse_image_document(data, media_type=media_type, what=f"The manifest of {reference}")

    def read_manifest(self, reference: Reference, descriptor: Descriptor, *, what: str) -> bytes:
        """A manifest of the same repository by its descriptor."""
        data, _, _ = self._get_manifest(reference, descriptor.digest, what=f"the manifest of {reference}")
        return check_document(data, descriptor, what=what)

    def tags(self, reference: Reference) -> list[str]:
        """All tags of a repository, in the registry's order."""
        found: list[str] = []
        query = {"n": str(_TAG_PAGE)}
        while True:
            what = f"the tags of {reference.name}"
            response = self._get(reference, f"tags/list?{urlencode(query)}", {}, what=what, use=Use.RESOLVE)
            has_more = "rel" in response.headers.get("Link", "")
            data = read_body(response, DOCUMENT_LIMIT_BYTES, host=reference.registry, what=what)
            page = parse_document(data, what=f"The list of tags of {reference.name}").texts("tags")
            found += page
            # The next page begins behind the last tag; a list that stands still would never end.
            if not has_more or not page or query.get("last") == page[-1]:
                return found
            if len(found) > _TAG_LIMIT:
                raise UserError(f"{reference.name} has more than {_TAG_LIMIT} tags.")
            query["last"] = page[-1]

    @contextlib.contextmanager
    def open_blob(self, reference: Reference, descriptor: Descriptor) -> Iterator[Readable]:
        """The stored bytes of a blob, as many as the descriptor says, not verified against its digest."""
        what = f"blob {descriptor.digest} of {reference}"

        def fetch(offset: int) -> urllib3.BaseHTTPResponse:
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            try:
                return self._get(reference, f"blobs/{descriptor.digest}", headers, what=what)
            except NotFoundError:
                if not descriptor.is_foreign:
                    raise
            return self._get_foreign(descriptor, headers, what=what)

        stream = BlobStream(
            fetch,
            size=descriptor.size,
            host=reference.registry,
            what=what,
            backoff_s=self.session.options.transport.backoff_s,
        )
        with contextlib.closing(stream):
            yield stream

    def digest_of(self, reference: Reference) -> str:
        """What a tag points at now, without fetching it where the registry says so."""
        what = f"the manifest of {reference}"
        request = RegistryRequest(
            Use.RESOLVE, f"manifests/{reference.version}", what, "HEAD", {"Accept": ", ".join(mediatypes.ACCEPTED)}
        )
        response = self.session.fetch(reference, request)
        stated = response.headers.get("Docker-Content-Digest", "")
        discard(response)
        return stated if is_digest(stated) else blob_digest(self.manifest(reference).raw)

    def _get_manifest(self, reference: Reference, version: str, *, what: str) -> tuple[bytes, str, str]:
        headers = {"Accept": ", ".join(mediatypes.ACCEPTED)}
        use = Use.PULL if is_digest(version) else Use.RESOLVE
        response = self._get(reference, f"manifests/{version}", headers, what=what, use=use)
        media_type = mediatypes.without_parameters(response.headers.get("Content-Type", ""))
        stated = response.headers.get("Docker-Content-Digest", "")
        data = read_body(response, DOCUMENT_LIMIT_BYTES, host=reference.registry, what=what)
        return data, media_type, stated

    def _get(
        self, reference: Reference, path: str, headers: Mapping[str, str], *, what: str, use: Use = Use.PULL
    ) -> urllib3.BaseHTTPResponse:
        return self.session.fetch(reference, RegistryRequest(use, path, what, headers=headers))

    def _get_foreign(
        self, descriptor: Descriptor, headers: Mapping[str, str], *, what: str
    ) -> urllib3.BaseHTTPResponse:
        """A layer that its manifest says to be elsewhere: HTTPS only, and never with a login."""
        for url in descriptor.urls:
            if url.startswith("https://"):
                return self.session.fetch_elsewhere(url, headers, what=what)
        raise NotFoundError(f"The registry does not have {what}, and its manifest names no HTTPS address for it.")


@contextlib.contextmanager
def open_registry(options: RegistryOptions | None = None) -> Iterator[RegistryClient]:
    """A client and its connections for the length of a block."""
    with contextlib.closing(RegistryClient(options or RegistryOptions())) as client:
        yield client
