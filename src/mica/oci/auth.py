"""How a registry wants to be asked: challenge -> token request -> header. No I/O; any thread.

A registry answers 401 with `WWW-Authenticate: Basic …` or `Bearer realm="…",service="…",scope="…"`; for the second
a token is fetched from the realm, which the registry names and which therefore is not trusted with much: credentials
go there over HTTPS only, unless the registry itself is spoken to in plain HTTP. Secrets are in no repr and no error.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from mica.errors import UserError
from mica.oci.documents import parse_document

_HEADER_LIMIT = 16 << 10
_CLIENT_ID = "mica"
_CHALLENGE_PART = re.compile(
    r"""[\s,]*
    (?: (?P<key>[A-Za-z0-9_-]+) \s*=\s* (?: "(?P<quoted>(?:[^"\\]|\\.)*)" | (?P<plain>[^\s,"]+) )
      | (?P<scheme>[A-Za-z0-9_-]+) (?=[\s,]|$) )""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Credential:
    """A user of a registry; an identity token stands for both name and password."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in; the scheme and parameter names are lower-case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What to send to a token server: GET without a body, POST with one."""

    url: str
    headers: Mapping[str, str] = field(repr=False, hash=False)
    body: bytes | None = field(default=None, repr=False)


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """Read WWW-Authenticate; what is not understood ends the list."""
    challenges: list[Challenge] = []
    parameters: dict[str, str] = {}
    position = 0
    while match := _CHALLENGE_PART.match(header, position, _HEADER_LIMIT):
        position = match.end()
        if match["scheme"]:
            parameters = {}
            challenges.append(Challenge(match["scheme"].lower(), parameters))
        else:
            quoted = match["quoted"]
            value = match["plain"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters[match["key"].lower()] = value
    return tuple(challenges)


def repository_scope(repository: str, *, can_push: bool) -> str:
    return f"repository:{repository}:{'pull,push' if can_push else 'pull'}"


def plan_token_request(
    challenge: Challenge,
    credential: Credential | None,
    *,
    repository: str,
    registry: str,
    is_plain_http: bool,
    can_push: bool = False,
) -> TokenRequest:
    """Raises UserError for a realm that is no URL, or no place for a password."""
    realm = challenge.parameters.get("realm", "")
    scheme = _url_scheme(realm)
    if scheme not in {"http", "https"} or not realm.isascii() or not realm.isprintable():
        raise UserError(f"{registry} names no usable token server: {realm[:200]!r}.")
    if scheme == "http" and credential is not None and not is_plain_http:
        raise UserError(f"{registry} wants a password sent in plain HTTP, which is refused.")
    query = {"scope": challenge.parameters.get("scope") or repository_scope(repository, can_push=can_push)}
    if service := challenge.parameters.get("service"):
        query["service"] = service
    if credential is not None and credential.identity_token:
        query |= {"grant_type": "refresh_token", "client_id": _CLIENT_ID, "refresh_token": credential.identity_token}
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        return TokenRequest(realm, form, urlencode(query).encode())
    headers = {} if credential is None else {"Authorization": basic_header(credential)}
    return TokenRequest(f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}", headers)


def _url_scheme(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return parts.scheme if parts.hostname else ""


def parse_token(data: bytes, *, what: str) -> str:
    """The token in a token server's answer. Raises UserError."""
    fields = parse_document(data, what=what)
    token = fields.text("token") or fields.text("access_token")
    if not token or not token.isascii() or not token.isprintable():
        raise UserError(f"{what} holds no token.")
    return token


def bearer_header(token: str) -> str:
    return f"Bearer {token}"


def basic_header(credential: Credential) -> str:
    text = f"{credential.username}:{credential.password}"
    return f"Basic {base64.b64encode(text.encode()).decode()}"
