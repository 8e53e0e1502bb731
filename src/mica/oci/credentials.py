"""Credentials as Docker and Podman keep them: `auths` in a configuration, or helper programs named there.

A key of `auths` is a registry, or a namespace or repository in it (`registry.example/team`), as containers-auth.json(5)
says; the longest key that contains a repository counts. Helpers know registries only. The caller parses the
configuration, because only the command line reads configuration files. Any thread.
"""

import base64
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping

from mica.errors import UserError
from mica.oci.auth import Credential
from mica.oci.documents import Fields, parse_document
from mica.oci.reference import DOCKER_HUB, HUB_HOSTS

# The key of Docker's Hub, which `docker login` writes since 2014.
_HUB_KEY = "https://index.docker.io/v1/"
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HELPER_TIMEOUT_S = 60
_TOKEN_USER = "<token>"  # noqa: S105 - the protocol's word, not a secret
_NOT_FOUND = b"credentials not found"


def run_credential_helper(helper: str, server: str) -> bytes:
    """Output of `docker-credential-<helper> get`; empty if it does not know the server. Raises UserError."""
    program = f"docker-credential-{helper}"
    if _HELPER_NAME.fullmatch(helper) is None:
        raise UserError(f"{helper[:80]!r} is not the name of a credential helper.")
    try:
        done = subprocess.run(
            [program, "get"], input=server.encode(), capture_output=True, timeout=_HELPER_TIMEOUT_S, check=False
        )
    except OSError as error:
        raise UserError(f"The credential helper {program} cannot be started: {error.strerror}.") from error
    except subprocess.TimeoutExpired:
        # Not chained: the exception carries what the helper printed.
        raise UserError(f"The credential helper {program} did not answer within {_HELPER_TIMEOUT_S} s.") from None
    if done.returncode == 0:
        return done.stdout
    if _NOT_FOUND in done.stdout.lower():
        return b""
    raise UserError(f"The credential helper {program} failed with status {done.returncode}.")


class DockerCredentials:
    """Finds the credential for a registry. `config` is Docker's config.json."""

    def __init__(
        self, config: Mapping[str, object], *, run_helper: Callable[[str, str], bytes] = run_credential_helper
    ) -> None:
        fields = Fields(dict(config), what="Docker's configuration")
        self._auths = {_place(key): value for key, value in fields.object("auths").members.items()}
        self._helpers = {_place(key): name for key, name in fields.text_map("credHelpers").items()}
        self._store = fields.text("credsStore")
        self._run_helper = run_helper

    def find(self, place: str) -> Credential | None:
        """For `host[:port]/repository`, or a host alone. None if there is none. Raises UserError for a broken entry
        or helper, without its content."""
        *namespaces, registry = places_around(_place(place))
        for name in namespaces:
            if name in self._auths and (found := self._entry(name)):
                return found
        helper = self._helpers.get(registry) or self._store
        if helper and (found := self._from_helper(helper, registry)):
            return found
        return self._entry(registry) if registry in self._auths else None

    def _entry(self, name: str) -> Credential | None:
        return _parse_entry(Fields(self._auths[name], what=f"Docker's configuration for {name}"))

    def _from_helper(self, helper: str, registry: str) -> Credential | None:
        output = self._run_helper(helper, _HUB_KEY if registry == DOCKER_HUB else registry)
        if not output.strip():
            return None
        fields = parse_document(output, what=f"The answer of docker-credential-{helper} for {registry}")
        username, secret = fields.text("Username"), fields.text("Secret")
        return Credential(identity_token=secret) if username == _TOKEN_USER else Credential(username, secret)


def no_credentials(place: str) -> Credential | None:  # noqa: ARG001 - the finder's signature
    return None


def places_around(place: str) -> Iterator[str]:
    """The place itself and the places that contain it, up to the host: `a.example/b/c`, `a.example/b`, `a.example`."""
    while place:
        yield place
        place = place.rpartition("/")[0]


def _place(key: str) -> str:
    """The place that a key names. A URL, as Docker writes it (`https://…/v1/`), names its host."""
    bare = re.sub(r"^https?://", "", key)
    host, slash, rest = bare.partition("/")
    if bare != key or rest.strip("/") in {"", "v1", "v2"}:
        slash = rest = ""
    return (DOCKER_HUB if host in HUB_HOSTS else host) + slash + rest.rstrip("/")


def _parse_entry(fields: Fields) -> Credential | None:
    if token := fields.text("identitytoken"):
        return Credential(identity_token=token)
    username, password = fields.text("username"), fields.text("password")
    if encoded := fields.text("auth"):
        try:
            username, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            # Not chained: the exception of a decoder carries the bytes.
            raise UserError(f"'auth' of {fields.what} is not base64 text.") from None
    return Credential(username, password) if username else None
