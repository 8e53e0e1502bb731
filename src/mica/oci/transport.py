"""HTTP to registries: time-outs, retries with back-off, redirects. Knows no image and no token; any thread.

A redirect to another origin is followed without Authorization, and never from HTTPS to HTTP. Foreign exceptions
become ours here; messages name hosts and never whole URLs, because storage back ends sign them.
"""

import contextlib
import email.utils
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import urllib3

from mica.errors import TemporaryError, UserError

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REDIRECT_LIMIT = 5
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_POOL_SIZE = 16
_ERROR_BODY_LIMIT = 64 << 10
USER_AGENT = "mica"


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """Patience and trust. `insecure` allows plain HTTP and unverified certificates for every registry."""

    insecure: bool = False
    ca_file: Path | None = None
    proxy_url: str = field(default="", repr=False)
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    attempts: int = 4
    backoff_s: float = 0.5
    longest_wait_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose certificates a server may have, besides those of the whole transport, and the one we show it."""

    ca_files: tuple[Path, ...] = ()
    client_certificate: Path | None = None
    client_key: Path | None = None
    is_verified: bool = True


USUAL_TRUST = Trust()
NO_TRUST = Trust(is_verified=False)


class Origin(NamedTuple):
    """What a header with a secret in it is for."""

    scheme: str
    host: str
    port: int


class UnreachableError(TemporaryError):
    """No HTTP answer at all: no such host, refused, wrong protocol, broken off."""


class Transport:
    """Sends requests. Closed by its owner."""

    def __init__(self, options: TransportOptions) -> None:
        self.options = options
        self._pools: dict[Trust, urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        for pool in self._pools.values():
            pool.clear()

    def answers(self, url: str) -> bool:
        """Whether anything at all answers HTTP there, of which no certificate is asked. One attempt."""
        try:
            discard(self._attempt("GET", url, {}, None, what="its version", trust=NO_TRUST))
        except UnreachableError:
            return False
        return True

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        what: str,
        body: bytes | None = None,
        trust: Trust = USUAL_TRUST,
        attempts: int = 0,
    ) -> urllib3.BaseHTTPResponse:
        """The answer that is neither a redirect nor an overloaded server; the caller reads and closes it.

        Only GET and HEAD are redirected. `attempts` instead of the usual number of them, where it matters that the
        same request is not sent twice. Raises TemporaryError after the last attempt.
        """
        for _ in range(_REDIRECT_LIMIT + 1):
            response = self._attempt_all(
                method, url, headers, body, what=what, trust=trust, attempts=attempts or self.options.attempts
            )
            location = response.headers.get("Location", "")
            if response.status not in _REDIRECTS or not location or method not in {"GET", "HEAD"}:
                return response
            discard(response)
            target = self._redirected(url, location, what=what)
            if parse_origin(target, what=what) != parse_origin(url, what=what):
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
                trust = NO_TRUST if self.options.insecure else USUAL_TRUST
            url = target
        raise UserError(f"{_host(url)} redirects without end for {what}.")

    def get(
        self, url: str, headers: Mapping[str, str], *, what: str, trust: Trust = USUAL_TRUST
    ) -> urllib3.BaseHTTPResponse:
        return self.send("GET", url, headers, what=what, trust=trust)

    def _redirected(self, url: str, location: str, *, what: str) -> str:
        try:
            target = urljoin(url, location)
        except ValueError as error:
            raise UserError(f"{_host(url)} redirects {what} to no address.") from error
        origin = parse_origin(target, what=what)
        if url.startswith("https:") and origin.scheme != "https" and not self.options.insecure:
            raise UserError(f"{_host(url)} redirects {what} to plain HTTP, which is refused.")
        return target

    def _attempt_all(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        what: str,
        trust: Trust,
        attempts: int,
    ) -> urllib3.BaseHTTPResponse:
        for attempt in range(1, attempts + 1):
            is_last = attempt == attempts
            wait_s = self.options.backoff_s * 2 ** (attempt - 1)
            try:
                response = self._attempt(method, url, headers, body, what=what, trust=trust)
            except TemporaryError:
                if is_last:
                    raise
            else:
                if response.status not in _RETRIED:
                    return response
                asked_s = _retry_after_s(response.headers.get("Retry-After", ""))
                status = response.status
                discard(response)
                if is_last or asked_s > self.options.longest_wait_s:
                    raise _overloaded(_host(url), status, asked_s, what=what)
                wait_s = max(wait_s, asked_s)
            time.sleep(min(wait_s, self.options.longest_wait_s))
        raise AssertionError("a transport makes at least one attempt")

    def _attempt(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, *, what: str, trust: Trust
    ) -> urllib3.BaseHTTPResponse:
        timeout = urllib3.Timeout(connect=self.options.connect_timeout_s, read=self.options.read_timeout_s)
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"} | dict(headers)
        try:
            return self._pool(trust).request(
                method,
                url,
                body=body,
                headers=sent,
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise explained_http_error(error, _host(url), what=what) from error

    def _pool(self, trust: Trust) -> urllib3.PoolManager:
        with self._lock:
            if trust not in self._pools:
                self._pools[trust] = self._new_pool(trust)
            return self._pools[trust]

    def _new_pool(self, trust: Trust) -> urllib3.PoolManager:
        context = self._context(trust)
        if self.options.proxy_url:
            return urllib3.ProxyManager(self.options.proxy_url, maxsize=_POOL_SIZE, ssl_context=context)
        return urllib3.PoolManager(maxsize=_POOL_SIZE, ssl_context=context)

    def _context(self, trust: Trust) -> ssl.SSLContext:
        ca_file = self.options.ca_file
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        for path in trust.ca_files:
            with _mapped_tls_errors(f"the CA file {path}"):
                context.load_verify_locations(cafile=path)
        if trust.client_certificate is not None:
            with _mapped_tls_errors(f"the client certificate {trust.client_certificate}"):
                context.load_cert_chain(trust.client_certificate, trust.client_key)
        if not trust.is_verified:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


@contextlib.contextmanager
def _mapped_tls_errors(file: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        raise UserError(f"{file[0].upper()}{file[1:]} is not one in PEM form.") from error
    except OSError as error:
        raise UserError(f"Cannot read {file}: {error.strerror}.") from error


def read_body(response: urllib3.BaseHTTPResponse, limit_bytes: int, *, host: str, what: str) -> bytes:
    """A small body, and the connection back to its pool. Raises UserError over the limit, TemporaryError if cut."""
    data = bytearray()
    try:
        # A cut connection shows only at the read after the last bytes.
        while len(data) <= limit_bytes and (piece := response.read(limit_bytes + 1 - len(data))):
            data += piece
    except (urllib3.exceptions.HTTPError, OSError) as error:
        response.close()
        raise explained_http_error(error, host, what=what) from error
    if len(data) > limit_bytes:
        response.close()
        raise UserError(f"{host} sends more than {limit_bytes} bytes for {what}.")
    response.release_conn()
    return bytes(data)


def discard(response: urllib3.BaseHTTPResponse) -> None:
    """Have done with an answer, keeping the connection where its body is small."""
    try:
        if int(response.headers.get("Content-Length") or _ERROR_BODY_LIMIT) < _ERROR_BODY_LIMIT:
            response.read(_ERROR_BODY_LIMIT)
            response.release_conn()
    except (urllib3.exceptions.HTTPError, OSError, ValueError):
        # Nothing is lost: the connection is closed below.
        pass
    finally:
        response.close()


def parse_origin(url: str, *, what: str) -> Origin:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UserError(f"A registry redirects {what} to no web address.")
    return Origin(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80))


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _retry_after_s(text: str) -> float:
    """Seconds that a Retry-After header asks for: a number or a date; 0 for anything else."""
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0


def _overloaded(host: str, status: int, asked_s: float, *, what: str) -> TemporaryError:
    reason = "allows no more requests for now" if status == 429 else "is in trouble"
    hint = f"It asks to wait {asked_s:.0f} s." if asked_s else ""
    if status == 429 and not hint:
        hint = "Log in: registries allow known users more."
    return TemporaryError(f"{host} {reason} and does not send {what} (HTTP {status}).", hint=hint)


def explained_http_error(error: Exception, host: str, *, what: str) -> TemporaryError | UserError:
    """The border between urllib3's errors and ours."""
    errors = urllib3.exceptions
    if isinstance(error, errors.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return UserError(f"{host} has a certificate that is not trusted here.", hint="Name the right CA file.")
    if isinstance(error, errors.LocationParseError | ValueError):
        return UserError(f"{host} is not a usable host name.")
    if isinstance(error, errors.NameResolutionError):
        reason = "the name is not known"
    elif isinstance(error, errors.NewConnectionError | ConnectionRefusedError):
        reason = "no connection"
    elif isinstance(error, errors.TimeoutError):
        reason = "no answer in time"
    elif isinstance(error, errors.SSLError):
        reason = "no TLS"
    elif isinstance(error, errors.ProxyError):
        reason = "the proxy does not answer"
    else:
        reason = "the connection broke off"
    return UnreachableError(f"{host} could not be asked for {what}: {reason}.")
