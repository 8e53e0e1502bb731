"""Requests to registries: the choice of the endpoint, and logging in. Pulling and pushing share it; any thread.

Threads share connections and tokens. Two threads that need a token at the same moment may both fetch one; the later is
kept. A mirror that fails is not asked again for a while, and the registry itself is asked last.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import urllib3

from mica.errors import MicaError, NotFoundError, TemporaryError, UserError
from mica.logs import logger
from mica.oci.auth import (
    Credential,
    basic_header,
    bearer_header,
    parse_challenges,
    parse_token,
    plan_token_request,
)
from mica.oci.credentials import no_credentials
from mica.oci.endpoints import Endpoint, HostConfig, Use, endpoint_of, no_hosts
from mica.oci.origins import host_of, parse_origin
from mica.oci.reference import HUB_HOSTS, Reference, full_names
from mica.oci.refusalreasons import told
from mica.oci.transport import (
    Transport,
    TransportOptions,
    discard,
    login_elsewhere,
    read_body,
    read_reason,
)

_TOKEN_LIMIT_BYTES = 1 << 20
_MIRROR_REST_S = 60.0
_LOG = logger(__name__)
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """How to speak to registries. `find_credential` gets `host[:port]/repository` of the server that asks for a login,
    `find_hosts` an image. `find_names` gives the images that a name, perhaps a short one, may stand for. `logins` is
    for messages: the file of logins, if one was named."""

    find_credential: Callable[[str], Credential | None] = field(default=no_credentials, repr=False)
    find_hosts: Callable[[Reference], HostConfig] = field(default=no_hosts, repr=False)
    find_names: Callable[[str], Sequence[str]] = field(default=full_names, repr=False)
    transport: TransportOptions = field(default_factory=TransportOptions)
    logins: str = ""


@dataclass(frozen=True, slots=True)
class RegistryRequest:
    """A request for one repository; `path` follows its name, or is a whole URL that the registry gave."""

    use: Use
    path: str
    what: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    body: bytes | None = field(default=None, repr=False)
    attempts: int = 0


class RegistrySession:
    """Closed by its owner."""

    def __init__(self, options: RegistryOptions) -> None:
        self.options = options
        self._transport = Transport(options.transport)
        self._lock = threading.Lock()
        self._has_tls: dict[str, bool] = {}
        self._authorizations: dict[tuple[str, str, bool], str] = {}
        self._resting: dict[str, float] = {}

    def close(self) -> None:
        self._transport.close()

    def fetch(self, reference: Reference, request: RegistryRequest) -> urllib3.BaseHTTPResponse:
        """A successful answer, from a mirror if one has it. Raises the error that the registry itself answers with."""

        def answer(endpoint: Endpoint) -> urllib3.BaseHTTPResponse:
            return self.checked(self.send(self._reached(endpoint), reference, request), reference, what=request.what)

        *mirrors, itself = self._endpoints(reference, request.use)
        for endpoint in mirrors:
            try:
                return answer(endpoint)
            except (NotFoundError, UserError) as error:
                _LOG.info("mirror %s: %s", endpoint.host, error)
            except TemporaryError as error:
                self._rest(endpoint, error)
        return answer(itself)

    def ask_itself(self, reference: Reference, use: Use, ask: Callable[[Endpoint], _Answer]) -> _Answer:
        """For facts that mirrors know only in part: mirrors are asked only while the registry does not answer."""
        *mirrors, itself = self._endpoints(reference, use)
        try:
            return ask(self._reached(itself))
        except TemporaryError:
            for endpoint in mirrors:
                try:
                    return ask(self._reached(endpoint))
                except MicaError as error:
                    _LOG.info("mirror %s: %s", endpoint.host, error)
            raise

    def address(self, endpoint: Endpoint, reference: Reference, path: str) -> str:
        """The URL of a path of a repository."""
        return f"{endpoint.api}/{endpoint.repository or reference.repository}/{path}"

    def target(self, reference: Reference) -> Endpoint:
        """Where to push: the first that takes content."""
        return self._reached(next(self._endpoints(reference, Use.PUSH)))

    def send(self, endpoint: Endpoint, reference: Reference, request: RegistryRequest) -> urllib3.BaseHTTPResponse:
        """The registry's answer, whatever its status, after logging in if it asks for it."""
        is_whole = "://" in request.path
        url = request.path if is_whole else self.address(endpoint, reference, request.path)
        if is_whole and not _is_within(endpoint, url, what=request.what):
            return self._send_elsewhere(endpoint, request)
        key = (endpoint.api, endpoint.repository or reference.repository, request.use is Use.PUSH)
        for is_retry in (False, True):
            with self._lock:
                authorization = self._authorizations.get(key)
            secrets = dict(endpoint.headers)
            if authorization:
                secrets["Authorization"] = authorization
            response = self._transport.send(
                request.method, url, request.headers,
                what=request.what, body=request.body, secrets=secrets, trust=endpoint.trust, attempts=request.attempts,
            )  # fmt: skip
            if response.status != 401 or is_retry:
                return response
            fresh = self._authorize(endpoint, reference, response, can_push=request.use is Use.PUSH)
            if fresh is None:
                return response
            with self._lock:
                self._authorizations[key] = fresh
        raise AssertionError("the second answer is returned")

    def fetch_elsewhere(self, url: str, headers: Mapping[str, str], *, what: str) -> urllib3.BaseHTTPResponse:
        """Content from an address outside the registry, without any login."""
        response = self._transport.get(url, headers, what=what)
        if response.status in {200, 206, 416}:
            return response
        discard(response)
        raise UserError(f"The address that the manifest gives for {what} answers HTTP {response.status}.")

    def _send_elsewhere(self, endpoint: Endpoint, request: RegistryRequest) -> urllib3.BaseHTTPResponse:
        """A request to another server, whose address the registry gave: without the registry's login and headers."""
        trust = self._transport.trust_elsewhere(endpoint.trust, request.path)
        response = self._transport.send(
            request.method, request.path, request.headers,
            what=request.what, body=request.body, trust=trust, attempts=request.attempts,
        )  # fmt: skip
        if response.status == 401:
            discard(response)
            raise login_elsewhere(endpoint.host, host_of(request.path), what=request.what)
        return response

    def _authorize(
        self, endpoint: Endpoint, reference: Reference, response: urllib3.BaseHTTPResponse, *, can_push: bool
    ) -> str | None:
        """The header that the registry's 401 asks for; None if no login helps, and then the answer is still unread."""
        challenges = {one.scheme: one for one in parse_challenges(response.headers.get("WWW-Authenticate", ""))}
        repository = endpoint.repository or reference.repository
        credential = self.options.find_credential(f"{endpoint.host}/{repository}")
        if "bearer" not in challenges:
            if "basic" not in challenges or credential is None:
                return None
            discard(response)
            return basic_header(credential)
        discard(response)
        request = plan_token_request(
            challenges["bearer"],
            credential,
            repository=repository,
            registry=endpoint.host,
            is_plain_http=endpoint.is_plain_http,
            can_push=can_push,
        )
        what = f"a token for {reference.name}"
        is_here = _is_within(endpoint, request.url, what=what)
        trust = endpoint.trust if is_here else self._transport.trust_elsewhere(endpoint.trust, request.url)
        answer = self._transport.send(
            "GET" if request.body is None else "POST", request.url, request.headers,
            what=what, body=request.body, secrets=request.secrets, trust=trust,
        )  # fmt: skip
        if answer.status != 200:
            raise self._refused_token(answer, reference, has_credential=credential is not None)
        data = read_body(answer, _TOKEN_LIMIT_BYTES, host=endpoint.host, what=what)
        return bearer_header(parse_token(data, what=f"The token server's answer for {reference.name}"))

    def _endpoints(self, reference: Reference, use: Use) -> Iterator[Endpoint]:
        """Mirrors in their order, then the registry itself."""
        config = self.options.find_hosts(reference)
        now_s = time.monotonic()
        for mirror in config.mirrors:
            if use in mirror.uses and self._resting.get(mirror.host, 0.0) <= now_s:
                yield mirror
        if config.server is not None and use in config.server.uses:
            yield config.server
        else:
            # The Hub's certificate is a public one, so the Hub is never insecure.
            is_insecure = self.options.transport.insecure and reference.registry not in HUB_HOSTS
            is_insecure = is_insecure or config.is_insecure
            yield endpoint_of(reference.registry, trust=config.trust, is_insecure=is_insecure)

    def _rest(self, endpoint: Endpoint, error: MicaError) -> None:
        _LOG.warning("mirror %s is left alone for %d s: %s", endpoint.host, _MIRROR_REST_S, error)
        self._resting[endpoint.host] = time.monotonic() + _MIRROR_REST_S

    def _reached(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint as it answers: HTTPS; an insecure one whichever of HTTPS and HTTP, as with Docker."""
        if not endpoint.is_insecure or endpoint.is_plain_http:
            return endpoint
        trust = dataclasses.replace(endpoint.trust, is_verified=False)
        host = endpoint.api.removeprefix("https://").partition("/")[0]
        with self._lock:
            has_tls = self._has_tls.get(host)
        if has_tls is None:
            has_tls = self._transport.answers(f"https://{host}/v2/", trust)
            with self._lock:
                self._has_tls[host] = has_tls
        scheme = "https" if has_tls else "http"
        return dataclasses.replace(endpoint, api=f"{scheme}://{endpoint.api.removeprefix('https://')}", trust=trust)

    def checked(
        self, response: urllib3.BaseHTTPResponse, reference: Reference, *, what: str
    ) -> urllib3.BaseHTTPResponse:
        """The response itself if it is a success. Raises UserError, NotFoundError for 404."""
        if response.status in {200, 206, 416}:
            return response
        raise self.refusal(response, reference, what=what)

    def refusal(
        self, response: urllib3.BaseHTTPResponse, reference: Reference, *, what: str, doing: str = "read"
    ) -> UserError:
        """The error for an answer that is not a success, with the registry's own reason. The answer is then
        finished."""
        status, reason = response.status, told(read_reason(response))
        if status == 404:
            return NotFoundError(
                f"{reference.registry} does not have {what}{reason}.", hint="Check the name and the tag."
            )
        if status in {401, 403}:
            return self._denied(reference, what=what, doing=doing, reason=reason)
        return UserError(f"{reference.registry} answers HTTP {status} for {what}{reason}.")

    def _denied(self, reference: Reference, *, what: str, reason: str, doing: str = "read") -> UserError:
        return UserError(
            f"{reference.registry} does not let you {doing} {what}{reason}.",
            hint=f"{self._login_hint(reference)} Some registries also refuse names that they do not have.",
        )

    def _login_hint(self, reference: Reference) -> str:
        """With a given file of logins the hint names it: a login that is written into another file would not help."""
        if self.options.logins:
            return f"Only the logins in {self.options.logins} count: has it the right one for {reference.registry}?"
        return f"Log in with: docker login {reference.registry}."

    def _refused_token(
        self, answer: urllib3.BaseHTTPResponse, reference: Reference, *, has_credential: bool
    ) -> UserError:
        status, reason = answer.status, told(read_reason(answer))
        if status in {400, 401, 403}:
            if has_credential:
                return UserError(
                    f"{reference.registry} does not accept the password for {reference.name}{reason}.",
                    hint=self._login_hint(reference),
                )
            return self._denied(reference, what=reference.name, reason=reason)
        return UserError(
            f"The token server of {reference.registry} answers HTTP {status} for {reference.name}{reason}."
        )


def _is_within(endpoint: Endpoint, url: str, *, what: str) -> bool:
    """Whether a URL is on the server of an endpoint."""
    return parse_origin(url, what=what) == parse_origin(endpoint.api, what=what)
