"""HTTP to registries: time-outs, retries with back-off, redirects. Knows no image and no token; any thread.

Secrets belong to the origin that a request goes to (docs/design/converting.md). A redirect to another origin is
followed without them and without the client certificate, never from HTTPS to HTTP; if that origin asks for a login, the
request fails. This module maps urllib3's exceptions to mica's. Messages name hosts and never whole URLs, because URLs
of storage back ends have signatures.
"""

import contextlib
import email.utils
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin

import urllib3

from mica.errors import TemporaryError, UserError
from mica.oci.origins import host_of, is_local, parse_origin
from mica.oci.proxies import NO_PROXIES, Proxies
from mica.oci.refusalreasons import parse_reason, told

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REDIRECT_LIMIT = 5
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_POOL_SIZE = 16
_ERROR_BODY_LIMIT = 64 << 10
_TUNNEL_STATUS = re.compile(r"Tunnel connection failed: (\d{3})")
_NO_HEADERS: Mapping[str, str] = {}
USER_AGENT = "mica"


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """Patience and trust. `insecure` allows plain HTTP and unverified certificates for every registry."""

    insecure: bool = False
    ca_file: Path | None = None
    proxies: Proxies = NO_PROXIES
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    attempts: int = 4
    backoff_s: float = 0.5
    longest_wait_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Trust:
    """CAs of a server besides those of the whole transport, and the client certificate for it."""

    ca_files: tuple[Path, ...] = ()
    client_certificate: Path | None = None
    client_key: Path | None = None
    is_verified: bool = True

    @property
    def elsewhere(self) -> "Trust":
        """For another server that this one leads to: the site's CAs count there, the client certificate is not sent."""
        return Trust(self.ca_files)


USUAL_TRUST = Trust()
NO_TRUST = Trust(is_verified=False)


class UnreachableError(TemporaryError):
    """No HTTP answer at all: no such host, refused, wrong protocol, broken off."""


class Transport:
    """Sends requests. Closed by its owner."""

    def __init__(self, options: TransportOptions) -> None:
        self.options = options
        self._pools: dict[tuple[Trust, str], urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        for pool in self._pools.values():
            pool.clear()

    def answers(self, url: str, trust: Trust) -> bool:
        """Whether anything at all answers HTTP there. One attempt."""
        try:
            discard(self._attempt("GET", url, {}, None, what="its version", trust=trust))
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
        secrets: Mapping[str, str] = _NO_HEADERS,
        trust: Trust = USUAL_TRUST,
        attempts: int = 0,
    ) -> urllib3.BaseHTTPResponse:
        """The answer after redirects and after retries of an overloaded server; the caller reads and closes it.

        Only GET and HEAD are redirected. `secrets` are headers for the origin of the URL alone; an answer 401 comes
        from there too. `attempts` replaces the usual number, for requests that must not be sent twice. Raises
        TemporaryError after the last attempt.
        """
        origin = parse_origin(url, what=what)
        asked = url
        for _ in range(_REDIRECT_LIMIT + 1):
            sent = {**headers, **secrets}
            response = self._attempt_all(
                method, url, sent, body, what=what, trust=trust, attempts=attempts or self.options.attempts
            )
            if response.status == 401 and parse_origin(url, what=what) != origin:
                discard(response)
                raise login_elsewhere(host_of(asked), host_of(url), what=what)
            location = response.headers.get("Location", "")
            if response.status not in _REDIRECTS or not location or method not in {"GET", "HEAD"}:
                return response
            discard(response)
            target = self._redirected(url, location, what=what)
            if parse_origin(target, what=what) != origin:
                secrets, trust = _NO_HEADERS, self.trust_elsewhere(trust, target)
            url = target
        raise UserError(f"{host_of(url)} redirects without end for {what}.")

    def get(
        self, url: str, headers: Mapping[str, str], *, what: str, trust: Trust = USUAL_TRUST
    ) -> urllib3.BaseHTTPResponse:
        return self.send("GET", url, headers, what=what, trust=trust)

    def trust_elsewhere(self, trust: Trust, url: str) -> Trust:
        """The trust in the server of a URL that a server with `trust` leads to."""
        return NO_TRUST if self.options.insecure or is_local(host_of(url)) else trust.elsewhere

    def _redirected(self, url: str, location: str, *, what: str) -> str:
        try:
            target = urljoin(url, location)
        except ValueError as error:
            raise UserError(f"{host_of(url)} redirects {what} to no address.") from error
        old, new = parse_origin(url, what=what), parse_origin(target, what=what)
        if old.scheme == "https" and new.scheme != "https" and not self.options.insecure:
            raise UserError(f"{host_of(url)} redirects {what} to plain HTTP, which is refused.")
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
                status, reason = response.status, read_reason(response)
                if is_last or asked_s > self.options.longest_wait_s:
                    raise _overloaded(host_of(url), status, asked_s, what=what, reason=reason)
                wait_s = max(wait_s, asked_s)
            time.sleep(min(wait_s, self.options.longest_wait_s))
        raise AssertionError("a transport makes at least one attempt")

    def _attempt(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, *, what: str, trust: Trust
    ) -> urllib3.BaseHTTPResponse:
        timeout = urllib3.Timeout(connect=self.options.connect_timeout_s, read=self.options.read_timeout_s)
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"} | dict(headers)
        proxy = self.options.proxies.proxy_of(url)
        way = f"{host_of(url)} through {host_of(proxy)}" if proxy else host_of(url)
        try:
            response = self._pool(trust, proxy).request(
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
            raise explained_http_error(error, way, what=what) from error
        if response.status == 407:
            discard(response)
            raise _proxy_login(way, what=what)
        return response

    def _pool(self, trust: Trust, proxy: str) -> urllib3.PoolManager:
        with self._lock:
            if (trust, proxy) not in self._pools:
                self._pools[trust, proxy] = self._new_pool(trust, proxy)
            return self._pools[trust, proxy]

    def _new_pool(self, trust: Trust, proxy: str) -> urllib3.PoolManager:
        context = self._context(trust)
        if not proxy:
            return urllib3.PoolManager(maxsize=_POOL_SIZE, ssl_context=context)
        auth = urllib3.util.parse_url(proxy).auth
        headers = urllib3.make_headers(proxy_basic_auth=unquote(auth)) if auth else {}
        return urllib3.ProxyManager(
            proxy, proxy_headers=headers, maxsize=_POOL_SIZE, ssl_context=context,
            proxy_ssl_context=self._context(USUAL_TRUST),
        )  # fmt: skip

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
    """Finish an answer, and keep the connection if the body is small."""
    try:
        if int(response.headers.get("Content-Length") or _ERROR_BODY_LIMIT) < _ERROR_BODY_LIMIT:
            response.read(_ERROR_BODY_LIMIT)
            response.release_conn()
    except (urllib3.exceptions.HTTPError, OSError, ValueError):
        # Nothing is lost: the connection is closed below.
        pass
    finally:
        response.close()


def read_reason(response: urllib3.BaseHTTPResponse) -> str:
    """The reason that an answer gives for its failure; empty if it gives none. The answer is then finished."""
    data = b""
    try:
        data = response.read(_ERROR_BODY_LIMIT)
        if len(data) < _ERROR_BODY_LIMIT:
            response.release_conn()
    except (urllib3.exceptions.HTTPError, OSError):
        # The refusal itself has arrived: its status counts without the reason.
        data = b""
    finally:
        response.close()
    return parse_reason(data)


def _retry_after_s(text: str) -> float:
    """Seconds that a Retry-After header asks for: a number or a date; 0 for anything else."""
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0


def login_elsewhere(asked: str, host: str, *, what: str) -> UserError:
    """For a server that another one led to, and that asks for a password. It never gets one."""
    return UserError(
        f"{asked} leads to {host} for {what}, which asks for a login; only the registry gets passwords.",
        hint="The registry's storage or proxy is set up wrong, or an attacker wants the password.",
    )


def _overloaded(host: str, status: int, asked_s: float, *, what: str, reason: str) -> TemporaryError:
    trouble = "allows no more requests for now" if status == 429 else "is in trouble"
    hint = f"It asks to wait {asked_s:.0f} s." if asked_s else ""
    if status == 429 and not hint:
        hint = "Log in: registries allow more requests to known users."
    return TemporaryError(f"{host} {trouble} and does not send {what} (HTTP {status}){told(reason)}.", hint=hint)


def _proxy_login(way: str, *, what: str) -> UserError:
    return UserError(
        f"{way} could not be asked for {what}: the proxy asks for a login.",
        hint="Give the proxy with a login: http://user:password@proxy.example.org:3128",
    )


def explained_http_error(error: Exception, host: str, *, what: str) -> TemporaryError | UserError:
    """The border where urllib3's errors become mica's."""
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
        tunnel = _TUNNEL_STATUS.search(str(error.original_error))
        if tunnel is not None and tunnel[1] == "407":
            return _proxy_login(host, what=what)
        reason = "the proxy does not answer" if tunnel is None else f"the proxy answers HTTP {tunnel[1]}"
    else:
        reason = "the connection broke off"
    return UnreachableError(f"{host} could not be asked for {what}: {reason}.")
