"""Pulling from registries: the OCI distribution protocol, version 2. docs/adr/0002 says why mica has its own client.

Several threads may use one `RegistryClient`, and the session below it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import urllib3

from mica.errors import IntegrityError, NotFoundError, UserError
from mica.oci import mediatypes
from mica.oci.blobdigest import blob_digest, is_digest, matches_digest
from mica.oci.blobstream import BlobStream
from mica.oci.documents import DOCUMENT_LIMIT_BYTES, parse_document
from mica.oci.endpoints import Endpoint, Use
from mica.oci.image import Image, ImageChoice, every_of_document, open_document
from mica.oci.models import Descriptor, Index, Manifest, check_document, parse_image_document
from mica.oci.nextpage import next_page
from mica.oci.platforms import Platform
from mica.oci.reference import Reference, is_tag
from mica.oci.session import RegistryOptions, RegistryRequest, RegistrySession
from mica.oci.transport import discard, read_body
from mica.streams import Readable

_TAG_LIMIT = 100_000
_TAG_PAGE = 1000
_TAG_PAGE_LIMIT = 5000
"""Registries send 50 and more tags a page, even if fewer are asked for."""


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
        """All images that a name stands for. They are read through this client, which must stay open."""
        document = self.manifest(reference)
        reader = _Repository(self, reference)
        name = reference.text
        return ImageChoice(
            blob_digest(document.raw),
            lambda platform: open_document(document, reader, platform=platform, name=name, reference=reference),
            lambda: every_of_document(document, reader, name=name, reference=reference),
        )

    def manifest(self, reference: Reference) -> Index | Manifest:
        """The manifest or index that a tag or digest points at, verified against the digest if there is one."""
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
        """All tags of a repository, in the registry's order. Raises UserError if there are too many to list."""
        return self.session.ask_itself(reference, Use.RESOLVE, lambda endpoint: self._tags_at(endpoint, reference))

    def _tags_at(self, endpoint: Endpoint, reference: Reference) -> list[str]:
        what = f"the tags of {reference.name}"
        address = self.session.address(endpoint, reference, f"tags/list?n={_TAG_PAGE}")
        found: list[str] = []
        asked: set[str] = set()
        while address:
            if address in asked or len(asked) == _TAG_PAGE_LIMIT:
                raise UserError(f"{endpoint.host} sends {what} without end.")
            asked.add(address)
            response = self.session.send(endpoint, reference, RegistryRequest(Use.RESOLVE, address, what))
            self.session.checked(response, reference, what=what)
            link = response.headers.get("Link", "")
            data = read_body(response, DOCUMENT_LIMIT_BYTES, host=endpoint.host, what=what)
            page = parse_document(data, what=f"The list of tags of {reference.name}").texts("tags")
            found += filter(is_tag, page)
            if len(found) > _TAG_LIMIT:
                raise UserError(f"{reference.name} has more than {_TAG_LIMIT} tags.")
            address = next_page(link, address)
        return found

    @contextlib.contextmanager
    def open_blob(self, reference: Reference, descriptor: Descriptor) -> Iterator[Readable]:
        """The stored bytes of a blob. Their number is checked against the descriptor, their digest is not."""
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
        """The digest that a tag points at now. It is not fetched if the registry answers HEAD."""
        what = f"the manifest of {reference}"
        request = RegistryRequest(
            Use.RESOLVE, f"manifests/{reference.version}", what, "HEAD", {"Accept": ", ".join(mediatypes.ACCEPTED)}
        )
        try:
            response = self.session.fetch(reference, request)
        except UserError:
            # Some registries, and proxies in front of them, do not know HEAD and answer with all kinds of statuses. If
            # the image is missing, GET gives the reason too.
            return blob_digest(self.manifest(reference).raw)
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
        """A layer that is elsewhere according to its manifest: HTTPS only, and never with a login."""
        for url in descriptor.urls:
            if url.startswith("https://"):
                return self.session.fetch_elsewhere(url, headers, what=what)
        raise NotFoundError(f"The registry does not have {what}, and its manifest names no HTTPS address for it.")


@contextlib.contextmanager
def open_registry(options: RegistryOptions | None = None) -> Iterator[RegistryClient]:
    """A client and its connections for the length of a block."""
    with contextlib.closing(RegistryClient(options or RegistryOptions())) as client:
        yield client
