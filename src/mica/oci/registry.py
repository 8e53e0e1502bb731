"""Pulling from registries: the OCI distribution protocol, version 2. Why an own client: docs/adr/0003.

`RegistryClient` may be used from several threads; connections and tokens are shared between them. Two threads that
need a token at the same moment may both fetch one; the later is kept.
"""

import contextlib
import ipaddress
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

import urllib3

from mica.errors import IntegrityError, NotFoundError, UserError
from mica.oci import mediatypes
from mica.oci.auth import (
    Credential,
    basic_header,
    bearer_header,
    parse_challenges,
    parse_token,
    plan_token_request,
)
from mica.oci.blobdigest import blob_digest, is_digest, matches_digest
from mica.oci.blobstream import BlobStream
from mica.oci.credentials import no_credentials
from mica.oci.documents import DOCUMENT_LIMIT_BYTES, parse_document
from mica.oci.image import Image, open_document
from mica.oci.layerstream import Readable
from mica.oci.models import Descriptor, Index, Manifest, check_document, parse_image_document
from mica.oci.platforms import Platform
from mica.oci.reference import DOCKER_HUB, Reference
from mica.oci.transport import Transport, TransportOptions, discard, read_body

_HUB_API = "https://registry-1.docker.io"
_TOKEN_LIMIT_BYTES = 1 << 20
_TAG_LIMIT = 100_000
_TAG_PAGE = 1000


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """How to speak to registries. `find_credential` gets the host as it stands in a reference."""

    find_credential: Callable[[str], Credential | None] = field(default=no_credentials, repr=False)
    transport: TransportOptions = field(default_factory=TransportOptions)


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
        self._options = options
        self._transport = Transport(options.transport)
        self._lock = threading.Lock()
        self._bases: dict[str, str] = {}
        self._authorizations: dict[tuple[str, str], str] = {}

    def close(self) -> None:
        self._transport.close()

    def image(self, reference: Reference, *, platform: Platform | None = None) -> Image:
        """The image under a name. It reads through this client, which must stay open."""
        document = self.manifest(reference)
        reader = _Repository(self, reference)
        return open_document(document, reader, platform=platform, name=reference.text, reference=reference)

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
            response = self._get(reference, f"tags/list?{urlencode(query)}", {}, what=what)
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
            return self._get(reference, f"blobs/{descriptor.digest}", headers, what=what)

        stream = BlobStream(
            fetch,
            size=descriptor.size,
            host=reference.registry,
            what=what,
            backoff_s=self._options.transport.backoff_s,
        )
        with contextlib.closing(stream):
            yield stream

    def _get_manifest(self, reference: Reference, version: str, *, what: str) -> tuple[bytes, str, str]:
        headers = {"Accept": ", ".join(mediatypes.ACCEPTED)}
        response = self._get(reference, f"manifests/{version}", headers, what=what)
        media_type = mediatypes.without_parameters(response.headers.get("Content-Type", ""))
        stated = response.headers.get("Docker-Content-Digest", "")
        data = read_body(response, DOCUMENT_LIMIT_BYTES, host=reference.registry, what=what)
        return data, media_type, stated

    def _get(
        self, reference: Reference, path: str, headers: Mapping[str, str], *, what: str
    ) -> urllib3.BaseHTTPResponse:
        """A successful answer, after logging in if the registry asks for it."""
        base = self._base_url(reference.registry)
        url = f"{base}/v2/{reference.repository}/{path}"
        verify = self._is_verified(reference.registry)
        key = (reference.registry, reference.repository)
        for is_retry in (False, True):
            with self._lock:
                authorization = self._authorizations.get(key)
            sent = dict(headers) | ({"Authorization": authorization} if authorization else {})
            response = self._transport.get(url, sent, what=what, verify=verify)
            if response.status != 401 or is_retry:
                break
            fresh = self._authorize(reference, response, base=base)
            if fresh is None:
                break
            with self._lock:
                self._authorizations[key] = fresh
        return _checked(response, reference, what=what)

    def _authorize(self, reference: Reference, response: urllib3.BaseHTTPResponse, *, base: str) -> str | None:
        """What the registry's 401 asks for; None where nothing helps, and then the answer is still unread."""
        challenges = {one.scheme: one for one in parse_challenges(response.headers.get("WWW-Authenticate", ""))}
        credential = self._options.find_credential(reference.registry)
        if "bearer" not in challenges:
            if "basic" not in challenges or credential is None:
                return None
            discard(response)
            return basic_header(credential)
        discard(response)
        request = plan_token_request(
            challenges["bearer"],
            credential,
            repository=reference.repository,
            registry=reference.registry,
            is_plain_http=base.startswith("http:"),
        )
        what = f"a token for {reference.name}"
        verify = self._is_verified(reference.registry)
        answer = self._transport.get(request.url, request.headers, what=what, body=request.body, verify=verify)
        if answer.status != 200:
            raise _refused_token(answer, reference, has_credential=credential is not None)
        data = read_body(answer, _TOKEN_LIMIT_BYTES, host=reference.registry, what=what)
        return bearer_header(parse_token(data, what=f"The token server's answer for {reference.name}"))

    def _is_verified(self, registry: str) -> bool:
        return not (self._options.transport.insecure or is_local(registry))

    def _base_url(self, registry: str) -> str:
        """HTTPS; for local and insecure registries whichever of HTTPS and HTTP answers, as Docker does."""
        if registry == DOCKER_HUB:
            return _HUB_API
        if self._is_verified(registry):
            return f"https://{registry}"
        with self._lock:
            known = self._bases.get(registry)
        if known is None:
            known = (
                f"https://{registry}" if self._transport.answers(f"https://{registry}/v2/") else f"http://{registry}"
            )
            with self._lock:
                self._bases[registry] = known
        return known


@contextlib.contextmanager
def open_registry(options: RegistryOptions | None = None) -> Iterator[RegistryClient]:
    """A client and its connections for the length of a block."""
    with contextlib.closing(RegistryClient(options or RegistryOptions())) as client:
        yield client


def is_local(registry: str) -> bool:
    """Whether a registry is on this machine, where plain HTTP is no risk: localhost, 127.0.0.0/8, ::1."""
    host = registry.rpartition("]")[0].removeprefix("[") or registry.partition(":")[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _checked(response: urllib3.BaseHTTPResponse, reference: Reference, *, what: str) -> urllib3.BaseHTTPResponse:
    status = response.status
    if status in {200, 206, 416}:
        return response
    discard(response)
    if status == 404:
        raise NotFoundError(f"{reference.registry} does not have {what}.", hint="Is the name right, and its tag?")
    if status in {401, 403}:
        raise _denied(reference, what=what)
    raise UserError(f"{reference.registry} answers HTTP {status} for {what}.")


def _denied(reference: Reference, *, what: str) -> UserError:
    return UserError(
        f"{reference.registry} does not let you read {what}.",
        hint=f"Log in with: docker login {reference.registry}. Some registries answer so for names they do not have.",
    )


def _refused_token(answer: urllib3.BaseHTTPResponse, reference: Reference, *, has_credential: bool) -> UserError:
    status = answer.status
    discard(answer)
    if status in {400, 401, 403}:
        if has_credential:
            return UserError(f"{reference.registry} does not accept the password for {reference.name}.")
        return _denied(reference, what=reference.name)
    return UserError(f"The token server of {reference.registry} answers HTTP {status} for {reference.name}.")
