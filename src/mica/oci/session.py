"""Requests to registries: which endpoint, logged in how. The part that pulling and pushing share; any thread.

Connections and tokens are shared between threads. Two threads that need a token at the same moment may both fetch one;
the later is kept. A mirror that fails is left alone for a while, and the registry itself is asked last.
"""

import ipaddress
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

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
from mica.oci.endpoints import Endpoint, HostConfig, Use, no_hosts
from mica.oci.reference import DOCKER_HUB, Reference
from mica.oci.transport import NO_TRUST, USUAL_TRUST, Transport, TransportOptions, discard, read_body

_HUB_API = "https://registry-1.docker.io/v2"
_TOKEN_LIMIT_BYTES = 1 << 20
_MIRROR_REST_S = 60.0
_LOG = logger(__name__)


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """How to speak to registries. `find_credential` and `find_hosts` get the host as it stands in a reference."""

    find_credential: Callable[[str], Credential | None] = field(default=no_credentials, repr=False)
    find_hosts: Callable[[str], HostConfig] = field(default=no_hosts, repr=False)
    transport: TransportOptions = field(default_factory=TransportOptions)


@dataclass(frozen=True, slots=True)
class RegistryRequest:
    """What to do with one repository; `path` follows its name, or is a whole URL that the registry gave."""

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
        self._local: dict[str, str] = {}
        self._authorizations: dict[tuple[str, str, bool], str] = {}
        self._resting: dict[str, float] = {}

    def close(self) -> None:
        self._transport.close()

    def fetch(self, reference: Reference, request: RegistryRequest) -> urllib3.BaseHTTPResponse:
        """A successful answer, from a mirror if one has it. Raises what the registry itself gives reason for."""
        *mirrors, last = self._endpoints(reference.registry, request.use)
        for endpoint in mirrors:
            try:
                return checked(self.send(endpoint, reference, request), reference, what=request.what)
            except (NotFoundError, UserError) as error:
                _LOG.info("mirror %s: %s", endpoint.host, error)
            except TemporaryError as error:
                self._rest(endpoint, error)
        return checked(self.send(last, reference, request), reference, what=request.what)

    def target(self, reference: Reference) -> Endpoint:
        """Where to push: the first that takes content."""
        return next(self._endpoints(reference.registry, Use.PUSH))

    def send(self, endpoint: Endpoint, reference: Reference, request: RegistryRequest) -> urllib3.BaseHTTPResponse:
        """The registry's answer, whatever its status, after logging in if it asks for it."""
        is_whole = "://" in request.path
        url = request.path if is_whole else f"{endpoint.api}/{reference.repository}/{request.path}"
        key = (endpoint.api, reference.repository, request.use is Use.PUSH)
        for is_retry in (False, True):
            with self._lock:
                authorization = self._authorizations.get(key)
            sent = {**endpoint.headers, **request.headers}
            if authorization:
                sent["Authorization"] = authorization
            response = self._transport.send(
                request.method, url, sent,
                what=request.what, body=request.body, trust=endpoint.trust, attempts=request.attempts,
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
        """Content from an address that is no registry's, without any login."""
        response = self._transport.get(url, headers, what=what)
        if response.status in {200, 206, 416}:
            return response
        discard(response)
        raise UserError(f"The address that the manifest gives for {what} answers HTTP {response.status}.")

    def _authorize(
        self, endpoint: Endpoint, reference: Reference, response: urllib3.BaseHTTPResponse, *, can_push: bool
    ) -> str | None:
        """What the registry's 401 asks for; None where nothing helps, and then the answer is still unread."""
        challenges = {one.scheme: one for one in parse_challenges(response.headers.get("WWW-Authenticate", ""))}
        credential = self.options.find_credential(_credential_host(endpoint, reference))
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
            registry=endpoint.host,
            is_plain_http=endpoint.is_plain_http,
            can_push=can_push,
        )
        what = f"a token for {reference.name}"
        answer = self._transport.send(
            "GET" if request.body is None else "POST", request.url, request.headers,
            what=what, body=request.body, trust=endpoint.trust,
        )  # fmt: skip
        if answer.status != 200:
            raise _refused_token(answer, reference, has_credential=credential is not None)
        data = read_body(answer, _TOKEN_LIMIT_BYTES, host=endpoint.host, what=what)
        return bearer_header(parse_token(data, what=f"The token server's answer for {reference.name}"))

    def _endpoints(self, registry: str, use: Use) -> Iterator[Endpoint]:
        config = self.options.find_hosts(registry)
        now_s = time.monotonic()
        for mirror in config.mirrors:
            if use in mirror.uses and self._resting.get(mirror.api, 0.0) <= now_s:
                yield mirror
        yield config.server or self._registry_itself(registry, config)

    def _rest(self, endpoint: Endpoint, error: MicaError) -> None:
        _LOG.warning("mirror %s is left alone for %d s: %s", endpoint.host, _MIRROR_REST_S, error)
        self._resting[endpoint.api] = time.monotonic() + _MIRROR_REST_S

    def _registry_itself(self, registry: str, config: HostConfig) -> Endpoint:
        """HTTPS; for local and insecure registries whichever of HTTPS and HTTP answers, as Docker does."""
        if registry == DOCKER_HUB:
            return Endpoint(_HUB_API, registry, config.trust or USUAL_TRUST)
        is_insecure = self.options.transport.insecure
        if config.trust is not None or not (is_insecure or is_local(registry)):
            trust = NO_TRUST if is_insecure else config.trust or USUAL_TRUST
            return Endpoint(f"https://{registry}/v2", registry, trust)
        with self._lock:
            known = self._local.get(registry)
        if known is None:
            answers = self._transport.answers(f"https://{registry}/v2/")
            known = f"{'https' if answers else 'http'}://{registry}/v2"
            with self._lock:
                self._local[registry] = known
        return Endpoint(known, registry, NO_TRUST)


def is_local(registry: str) -> bool:
    """Whether a registry is on this machine, where plain HTTP is no risk: localhost, 127.0.0.0/8, ::1."""
    host = registry.rpartition("]")[0].removeprefix("[") or registry.partition(":")[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _credential_host(endpoint: Endpoint, reference: Reference) -> str:
    """Passwords of the registry go to the registry alone: a mirror has its own."""
    return reference.registry if endpoint.api == _HUB_API else endpoint.host


def checked(response: urllib3.BaseHTTPResponse, reference: Reference, *, what: str) -> urllib3.BaseHTTPResponse:
    """The response itself if it is a success. Raises UserError, NotFoundError for 404."""
    status = response.status
    if status in {200, 206, 416}:
        return response
    discard(response)
    raise refusal(status, reference, what=what)


def refusal(status: int, reference: Reference, *, what: str, doing: str = "read") -> UserError:
    """The sentence for a status that is no success."""
    if status == 404:
        return NotFoundError(f"{reference.registry} does not have {what}.", hint="Is the name right, and its tag?")
    if status in {401, 403}:
        return _denied(reference, what=what, doing=doing)
    return UserError(f"{reference.registry} answers HTTP {status} for {what}.")


def _denied(reference: Reference, *, what: str, doing: str = "read") -> UserError:
    return UserError(
        f"{reference.registry} does not let you {doing} {what}.",
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
