"""The pull half of the OCI distribution protocol: from a request to an answer. No sockets; any thread.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pull: `GET /v2/`, manifests, blobs, tags; HEAD is
GET without the body, which the server leaves out. Errors have the codes and the form that the specification gives.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs, quote, urlsplit

from mica.errors import IntegrityError, MicaError, NotFoundError, TemporaryError
from mica.logs import logger
from mica.portal.policy import AccessList, ForbiddenError
from mica.portal.thinimages import StillMakingError, ThinImages

_LOG = logger(__name__)
_PATH = re.compile(r"/v2/(?P<name>[a-z0-9][a-z0-9._/-]{0,254})/(?P<kind>manifests|blobs|tags)/(?P<version>[^/]{1,200})")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_RETRY_AFTER_S = 30
_PAGE = 1000
_JSON = "application/json"
_BINARY = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer; the server adds Content-Length."""

    status: HTTPStatus
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)


class Portal:
    """Answers requests."""

    def __init__(self, images: ThinImages, access: AccessList) -> None:
        self._images = images
        self._access = access

    def answer(self, target: str, authorization: str) -> Answer:
        """The answer to GET or HEAD of a target such as `/v2/docker.io/library/debian/manifests/12`."""
        parts = urlsplit(target)
        if not self._access.allows(authorization):
            headers = {"WWW-Authenticate": 'Basic realm="mica portal", charset="UTF-8"'}
            return _refusal(HTTPStatus.UNAUTHORIZED, "UNAUTHORIZED", "Log in to use this portal.", headers)
        if parts.path in {"/v2", "/v2/"}:
            return Answer(HTTPStatus.OK, b"{}", {"Content-Type": _JSON})
        match = _PATH.fullmatch(parts.path)
        if match is None:
            return _refusal(HTTPStatus.NOT_FOUND, "NAME_UNKNOWN", "There is nothing of that name.")
        try:
            return self._found(match["name"], match["kind"], match["version"], parse_qs(parts.query))
        except MicaError as error:
            return _explained(error, match["kind"])
        except Exception:
            # The border of the portal: a bug in one conversion must not look like a broken connection.
            _LOG.exception("a request for %s failed", match["name"])
            return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "UNKNOWN", "The portal failed; its log says how.")

    def _found(self, name: str, kind: str, version: str, query: Mapping[str, list[str]]) -> Answer:
        if kind == "blobs":
            data = self._images.blob(name, version)
            return Answer(HTTPStatus.OK, data, {"Content-Type": _BINARY, "Docker-Content-Digest": version})
        if kind == "tags":
            if version != "list":
                raise NotFoundError(f"{name} has no page tags/{version[:40]}.")
            return _page(name, self._images.tags(name), query)
        if ":" not in version and _TAG.fullmatch(version) is None:
            raise NotFoundError(f"{version[:100]!r} is not a tag.")
        document = self._images.manifest(name, version)
        headers = {"Content-Type": document.media_type, "Docker-Content-Digest": document.digest}
        return Answer(HTTPStatus.OK, document.data, headers)


def _page(name: str, tags: list[str], query: Mapping[str, list[str]]) -> Answer:
    number, last = query.get("n", [""])[0], query.get("last", [""])[0]
    size = int(number) if number.isascii() and number.isdecimal() and len(number) < 6 else _PAGE
    rest = [tag for tag in sorted(tags) if tag > last]
    shown = rest[:size]
    headers = {"Content-Type": _JSON}
    if len(rest) > len(shown) and shown:
        headers["Link"] = f'</v2/{name}/tags/list?n={size}&last={quote(shown[-1])}>; rel="next"'
    return Answer(HTTPStatus.OK, json.dumps({"name": name, "tags": shown}).encode(), headers)


def _explained(error: MicaError, kind: str) -> Answer:
    """Clients show the message; docs/adr/0006-portal.md says what they do after each status."""
    text = f"{error} {error.hint}".strip()
    if isinstance(error, StillMakingError):
        headers = {"Retry-After": str(_RETRY_AFTER_S)}
        return _refusal(HTTPStatus.TOO_MANY_REQUESTS, "TOOMANYREQUESTS", text, headers)
    if isinstance(error, NotFoundError):
        codes = {"manifests": "MANIFEST_UNKNOWN", "blobs": "BLOB_UNKNOWN", "tags": "NAME_UNKNOWN"}
        return _refusal(HTTPStatus.NOT_FOUND, codes[kind], text)
    if isinstance(error, ForbiddenError):
        return _refusal(HTTPStatus.FORBIDDEN, "DENIED", text)
    if isinstance(error, TemporaryError):
        headers = {"Retry-After": str(_RETRY_AFTER_S)}
        return _refusal(HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE", text, headers)
    if isinstance(error, IntegrityError):
        return _refusal(HTTPStatus.BAD_GATEWAY, "MANIFEST_INVALID", text)
    return _refusal(HTTPStatus.FORBIDDEN, "DENIED", text)


def _refusal(status: HTTPStatus, code: str, text: str, headers: Mapping[str, str] | None = None) -> Answer:
    body = json.dumps({"errors": [{"code": code, "message": text}]}).encode()
    return Answer(status, body, {"Content-Type": _JSON, **(headers or {})})


def unsupported() -> Answer:
    """The answer to all requests that do not pull."""
    text = "This portal is pulled from; it takes nothing."
    return _refusal(HTTPStatus.METHOD_NOT_ALLOWED, "UNSUPPORTED", text, {"Allow": "GET, HEAD"})
