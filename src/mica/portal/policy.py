"""The images that clients may pull, and the clients that may pull. Pure; any thread.

A name at the portal is `<upstream>/<repository>`, as in `docker.io/library/r-base`: the upstream is the host of a
registry, or a short name that the configuration gives to one (a host with a port has no other way into a name).
"""

import base64
import fnmatch
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from mica.errors import UserError
from mica.oci.reference import Reference


class ForbiddenError(UserError):
    """This portal does not serve the name, or this client may not pull."""


@dataclass(frozen=True, slots=True)
class Policy:
    """`allow` are patterns over names at the portal; `upstreams` short names of registries."""

    allow: tuple[str, ...]
    upstreams: Mapping[str, str] = field(default_factory=dict, hash=False)

    def upstream_of(self, name: str) -> Reference:
        """The repository upstream that a name stands for; its tag has no meaning.

        Raises ForbiddenError for a name that is not allowed, UserError for a malformed one.
        """
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.allow):
            raise ForbiddenError(f"{name[:200]!r} is not one of the names that this portal makes thin images of.")
        first, slash, rest = name.partition("/")
        host = self.upstreams.get(first, first)
        if not slash or not ("." in host or ":" in host or host == "localhost"):
            raise UserError(f"{name[:200]!r} does not begin with a registry.", hint="As in docker.io/library/debian.")
        return Reference.parse(f"{host}/{rest}:any")


class AccessList:
    """Users with passwords, and tokens of clients; if both are empty, every client may pull."""

    def __init__(self, users: Mapping[str, str], tokens: frozenset[str]) -> None:
        self._basic = [f"{user}:{password}".encode() for user, password in users.items()]
        self._tokens = [token.encode() for token in tokens]

    @property
    def is_open(self) -> bool:
        return not self._basic and not self._tokens

    def allows(self, authorization: str) -> bool:
        """Whether the header of a request is right. Every candidate is compared, so the time does not reveal one."""
        if self.is_open:
            return True
        scheme, _, value = authorization.strip().partition(" ")
        if scheme.lower() == "bearer":
            return _is_among(value.strip().encode("utf-8", "replace"), self._tokens)
        if scheme.lower() != "basic":
            return False
        try:
            given = base64.b64decode(value.strip(), validate=True)
        except ValueError:
            return False
        return _is_among(given, self._basic)


def _is_among(given: bytes, known: list[bytes]) -> bool:
    return sum(hmac.compare_digest(given, one) for one in known) > 0


def parse_users(data: bytes, what: str) -> dict[str, str]:
    """Lines `user:password`; empty lines and those with # in front are skipped. Raises UserError without the line."""
    users = {}
    for number, line in enumerate(_lines(data, what), 1):
        user, colon, password = line.partition(":")
        if not user or not colon or not password:
            raise UserError(f"Line {number} of {what} is not user:password.")
        users[user] = password
    return users


def parse_tokens(data: bytes, what: str) -> frozenset[str]:
    """One token a line. Raises UserError."""
    tokens = frozenset(_lines(data, what))
    if any(len(token) < _TOKEN_LENGTH for token in tokens):
        raise UserError(f"{what} has a token of fewer than {_TOKEN_LENGTH} characters.")
    return tokens


_TOKEN_LENGTH = 16


def _lines(data: bytes, what: str) -> list[str]:
    try:
        lines = [line.strip() for line in data.decode("utf-8").split("\n")]
    except UnicodeDecodeError:
        # Not chained: the exception carries the bytes.
        raise UserError(f"{what} is not text.") from None
    return [line for line in lines if line and not line.startswith("#")]
