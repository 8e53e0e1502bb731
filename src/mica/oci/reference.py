"""Names of images: `debian`, `ghcr.io/some/thing:1.2`, `localhost:5000/x@sha256:…`; also names whose tag is a pattern:
`debian:12*`, `reg.example/a/b:v[12].?`.

Docker's rules: no registry means docker.io, one word there means `library/`, neither tag nor digest means `latest`.
Pure values; any thread.
"""

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass

from mica.errors import UserError
from mica.oci.blobdigest import is_digest

DOCKER_HUB = "docker.io"
HUB_HOSTS = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
"""Names of Docker's Hub; a login or a setting under one of them counts for all."""
DEFAULT_TAG = "latest"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_NAME_LIMIT = 255
_WILD = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Reference:
    """A complete image name: at least one of tag and digest is there; the digest decides when both are."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        return f"{self.registry}/{self.repository}"

    @property
    def text(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.name}{tag}{digest}"

    @property
    def version(self) -> str:
        """The digest or else the tag, for requests to a registry."""
        return self.digest or self.tag or DEFAULT_TAG

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Read a name as people write it. Raises UserError with one sentence for a bad one."""
        remainder, at, digest = text.partition("@")
        if at and not is_digest(digest):
            raise _refused(text, "what follows the @ is not a sha256 or sha512 digest")
        name, tag = _split_tag(remainder)
        if tag is not None and _TAG.fullmatch(tag) is None:
            raise _refused(text, "the tag has more than 128 characters or one that is not allowed")
        registry, repository = _split_registry(name)
        _check_name(text, registry, repository)
        if tag is None and not at:
            tag = DEFAULT_TAG
        return cls(registry, repository, tag, digest or None)


def has_registry(text: str) -> bool:
    """Whether a name as people write it begins with a registry, by Docker's rule."""
    first, slash, _ = text.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")


def full_names(text: str) -> tuple[str, ...]:
    """Without registries.conf a full name stands for itself, and a short one for nothing."""
    return (text,) if has_registry(text) else ()


def is_registry(text: str) -> bool:
    return _REGISTRY.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    return _TAG.fullmatch(text) is not None


def _split_tag(text: str) -> tuple[str, str | None]:
    # A colon before the last slash belongs to a port.
    name, colon, tag = text.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (text, None)


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    is_host = "." in first or ":" in first or first == "localhost" or first != first.lower()
    if not slash or not is_host:
        first, rest = DOCKER_HUB, name
    if first in HUB_HOSTS:
        first = DOCKER_HUB
    if first == DOCKER_HUB and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest


def _check_name(text: str, registry: str, repository: str) -> None:
    if not text:
        raise _refused(text, "it is empty")
    if _IMAGE_ID.fullmatch(text) is not None:
        raise _refused(text, "it is an image id, which no registry knows")
    if _REGISTRY.fullmatch(registry) is None:
        raise _refused(text, f"{registry[:80]!r} is not a registry host")
    if _REPOSITORY.fullmatch(repository) is None:
        raise _refused(text, "a repository is lower-case letters and digits, separated by . _ - and /")
    if len(registry) + 1 + len(repository) > _NAME_LIMIT:
        raise _refused(text, f"the name has more than {_NAME_LIMIT} characters")


def _refused(text: str, reason: str) -> UserError:
    return UserError(f"{text[:300]!r} is not an image name: {reason}.", hint="For example debian:12 or ghcr.io/a/b:1")


@dataclass(frozen=True, slots=True)
class TagPattern:
    """The tag of `repository` has no meaning."""

    repository: Reference
    pattern: str

    @classmethod
    def parse(cls, text: str) -> "TagPattern | None":
        """None for a name whose tag is not a pattern. Raises UserError for a bad name before a pattern."""
        name, colon, pattern = text.rpartition(":")
        if not colon or "/" in pattern or not _WILD & set(pattern):
            return None
        return cls(Reference.parse(name), pattern)

    def matching(self, tags: Iterable[str]) -> list[str]:
        """In alphabetical order."""
        return sorted(tag for tag in set(tags) if fnmatch.fnmatchcase(tag, self.pattern))

    def matches(self, reference: Reference) -> bool:
        """Whether the pattern matches the tag of an image."""
        is_there = reference.name == self.repository.name and reference.tag is not None and reference.digest is None
        return is_there and fnmatch.fnmatchcase(reference.tag or "", self.pattern)
