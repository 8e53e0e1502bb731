"""`thin.json`, the image descriptor: which layers, in which repositories (docs/format/thin-image.md). Pure.

A descriptor comes from a registry and is hostile until shown otherwise: a URL names a repository and a path inside it
and can never be a way to another place. Which repositories are allowed is for the caller to say.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from mica.errors import UserError
from mica.repo.manifest import is_fqrn

FILE_NAME = "thin.json"
VERSION = "1.0"
SIZE_LIMIT = 1 << 20
LAYER_LIMIT = 500
"""The kernel refuses an overlay of more than 500 lower layers (fs/overlayfs/params.h, OVL_MAX_STACK)."""

_REVISION_MAX = 10**18 - 1
"""The largest number that a manifest can have."""
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}|[0-9a-f]{128}")
_URL = re.compile(r"cvmfs://([^/]+)(/.*)")


@dataclass(frozen=True, slots=True)
class ThinLayer:
    """One layer: hex digest of its compressed form, and the layer tree's place."""

    digest: str
    fqrn: str
    path: str

    @property
    def url(self) -> str:
        return f"cvmfs://{self.fqrn}{self.path}"


@dataclass(frozen=True, slots=True)
class ThinDescriptor:
    """`layers` from the bottom to the top; `origin` is the reference that was converted. `revisions` tells of
    repositories which revision has the layers, and all later ones have; it may be empty."""

    origin: str
    layers: tuple[ThinLayer, ...]
    min_version: str = ""
    comment: str = ""
    revisions: tuple[tuple[str, int], ...] = ()

    def revision_of(self, fqrn: str) -> int:
        """A node whose revision is older asks for a newer one; 0 if nothing is known."""
        return dict(self.revisions).get(fqrn, 0)

    @property
    def repositories(self) -> frozenset[str]:
        return frozenset(layer.fqrn for layer in self.layers)


def format_descriptor(descriptor: ThinDescriptor) -> bytes:
    return json.dumps(descriptor_document(descriptor), indent=1).encode("utf-8") + b"\n"


def descriptor_document(descriptor: ThinDescriptor) -> dict[str, object]:
    """The descriptor for JSON, also as a part of other documents."""
    document: dict[str, object] = {
        "version": VERSION,
        "origin": descriptor.origin,
        "layers": [{"digest": layer.digest, "url": layer.url} for layer in descriptor.layers],
    }
    if descriptor.min_version:
        document["min_version"] = descriptor.min_version
    if descriptor.comment:
        document["comment"] = descriptor.comment
    if descriptor.revisions:
        document["revisions"] = dict(descriptor.revisions)
    return document


def parse_descriptor(data: bytes, what: str) -> ThinDescriptor:
    """Raises UserError naming `what` and the first thing wrong with it."""
    if len(data) > SIZE_LIMIT:
        raise UserError(f"{what} has {len(data)} bytes, more than an image descriptor can have.")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is not JSON.") from error
    return parse_descriptor_document(document, what)


def parse_descriptor_document(document: Any, what: str) -> ThinDescriptor:
    """The same for a descriptor that is a part of another document, whose reader sees to the limit."""
    try:
        return _descriptor_from(document)
    except ValueError as error:
        raise UserError(f"{what} is not a valid image descriptor: {error}.") from error


def _descriptor_from(document: Any) -> ThinDescriptor:
    if not isinstance(document, dict):
        raise ValueError("it is not an object")
    version = document.get("version")
    if not isinstance(version, str) or version.split(".")[0] != VERSION.split(".", maxsplit=1)[0]:
        raise ValueError(f"version {str(version)[:40]!r} is not one of 1.x")
    layers = document.get("layers")
    if not isinstance(layers, list) or not layers:
        raise ValueError("it names no layers")
    if len(layers) > LAYER_LIMIT:
        raise ValueError(f"it names {len(layers)} layers, a union can have {LAYER_LIMIT}")
    texts = {name: document.get(name, "") for name in ("origin", "min_version", "comment")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("origin, min_version and comment have to be texts")
    return ThinDescriptor(
        layers=tuple(map(_layer_from, layers)), revisions=_revisions_from(document.get("revisions", {})), **texts
    )


def _revisions_from(document: Any) -> tuple[tuple[str, int], ...]:
    if not isinstance(document, dict) or not all(type(number) is int for number in document.values()):
        raise ValueError("'revisions' has to name a number for each repository")
    if not all(is_fqrn(fqrn) and 0 <= number <= _REVISION_MAX for fqrn, number in document.items()):
        raise ValueError("'revisions' names what is no repository, or no revision")
    return tuple(sorted(document.items()))


def _layer_from(document: Any) -> ThinLayer:
    digest, url = (document.get("digest"), document.get("url")) if isinstance(document, dict) else (None, None)
    if not isinstance(digest, str) or _HEX_DIGEST.fullmatch(digest) is None:
        raise ValueError(f"{str(digest)[:80]!r} is not a layer digest in hex")
    match = _URL.fullmatch(url) if isinstance(url, str) else None
    if match is None or not is_fqrn(match[1]):
        raise ValueError(f"{str(url)[:120]!r} is not a cvmfs:// URL of a layer")
    path = match[2]
    if any(part in {"", ".", ".."} for part in path[1:].split("/")) or not path.isprintable():
        raise ValueError(f"{path[:120]!r} is not a plain path inside a repository")
    return ThinLayer(digest, match[1], path)
