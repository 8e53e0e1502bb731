"""Logging in to a registry: challenge -> token request -> header. No I/O; any thread.

A registry answers 401 with `WWW-Authenticate: Basic …` or `Bearer realm="…",service="…",scope="…"`. For the second a
token is fetched from the realm. The registry names the realm, so it is not trusted: credentials go there over HTTPS
only. Plain HTTP is allowed if the registry itself is asked in plain HTTP, except from a registry on this machine to a
realm elsewhere: plain HTTP that stays on this machine does not allow plain HTTP that leaves it. Secrets are in no repr
and no error.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

from mica.errors import UserError
from mica.oci.documents import parse_document
from mica.oci.origins import host_of, is_local, parse_origin

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
    """A user of a registry; an identity token replaces name and password."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to log in; the scheme and parameter names are lower-case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request to a token server: GET without a body, POST with one. Only that server gets the headers `secrets`."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    body: bytes | None = field(default=None, repr=False)


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """Read WWW-Authenticate up to the first part that is not understood."""
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
    """Raises UserError for a realm that is not a URL, or that must not get a password."""
    realm = challenge.parameters.get("realm", "")
    try:
        scheme = parse_origin(realm, what="a token").scheme if realm.isascii() and realm.isprintable() else ""
    except UserError:
        scheme = ""
    if not scheme:
        raise UserError(f"{registry} names no usable token server: {realm[:200]!r}.")
    may_be_plain = is_plain_http and (is_local(host_of(realm)) or not is_local(registry))
    if scheme == "http" and credential is not None and not may_be_plain:
        raise UserError(f"{registry} wants a password sent in plain HTTP, which is refused.")
    query = {"scope": challenge.parameters.get("scope") or repository_scope(repository, can_push=can_push)}
    if service := challenge.parameters.get("service"):
        query["service"] = service
    if credential is not None and credential.identity_token:
        query |= {"grant_type": "refresh_token", "client_id": _CLIENT_ID, "refresh_token": credential.identity_token}
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        return TokenRequest(realm, form, body=urlencode(query).encode())
    secrets = {} if credential is None else {"Authorization": basic_header(credential)}
    return TokenRequest(f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}", secrets=secrets)


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
