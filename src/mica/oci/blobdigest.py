"""Digests of images: texts of `sha256:` and lower-case hex. Those of repositories are in mica.digest.

A digest in a document or a name comes from outside, so it passes `checked_digest` before it becomes part of a path or
of a URL. Pure values; a hasher belongs to one thread.
"""

import hashlib
import re
from typing import Protocol

from mica.errors import UserError

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


class BlobHasher(Protocol):
    """The part of a hashlib object that is used here."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


def is_digest(text: object) -> bool:
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def checked_digest(text: object, *, what: str) -> str:
    """The text itself. Raises UserError unless it is a whole sha256 or sha512 digest."""
    if isinstance(text, str) and _DIGEST.fullmatch(text) is not None:
        return text
    raise UserError(f"{what} has no usable digest: {str(text)[:100]!r}.", hint="Digests are sha256:… or sha512:…")


def split_digest(digest: str) -> tuple[str, str]:
    """Algorithm and hex of a checked digest."""
    algorithm, _, text = digest.partition(":")
    return algorithm, text


def new_blob_hasher(digest: str) -> BlobHasher:
    """A hasher of the algorithm that a checked digest was made with."""
    return hashlib.sha512() if digest.startswith("sha512:") else hashlib.sha256()


def finished_digest(hasher: BlobHasher) -> str:
    text = hasher.hexdigest()
    return f"sha512:{text}" if len(text) == 128 else f"sha256:{text}"


def blob_digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def matches_digest(data: bytes, digest: str) -> bool:
    hasher = new_blob_hasher(digest)
    hasher.update(data)
    return finished_digest(hasher) == digest
