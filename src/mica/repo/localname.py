"""Local names of verified content: the name of a file in the cache, and the redirect in a metadata image. Pure.

    ab/<38 hex><text id>.<size>          content of an object that is stored compressed
    ab/<38 hex><text id>.<size>.raw      content of an object that is stored as it is
    ab/<38 hex><text id>.<size>.parts[.raw]   a file in chunks; the digest is that of its chunk list

A name is enough to fetch the content and to check it, so a node needs no other state (docs/format/local-names.md).
`size` is that of the content in bytes, in decimal.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from mica.digest import Algorithm, Digest, digest_of
from mica.repo.chunklist import format_chunk_list
from mica.repo.entry import Chunk
from mica.repo.objects import Compression

SIZE_MAX = (1 << 63) - 1
_NAME = re.compile(r"([0-9a-f]{2})/([0-9a-f]{38})(-rmd160|-shake128|)\.(0|[1-9][0-9]{0,18})(\.parts)?(\.raw)?")
_ALGORITHMS = {algorithm.text_id: algorithm for algorithm in Algorithm}


class LocalName(NamedTuple):
    """Content by digest, compression and size. With `in_chunks` the digest is that of a chunk list and `compression`
    that of all chunks."""

    digest: Digest
    compression: Compression
    size: int
    in_chunks: bool = False

    def __str__(self) -> str:
        text = self.digest.text
        parts = ".parts" if self.in_chunks else ""
        raw = ".raw" if self.compression is Compression.NONE else ""
        return f"{text[:2]}/{text[2:]}.{self.size}{parts}{raw}"

    @property
    def flat(self) -> str:
        """Without the slash: the name of a part in the cache."""
        return str(self).replace("/", "", 1)

    @classmethod
    def parse_flat(cls, text: str) -> "LocalName":
        """The inverse of `flat`. Raises ValueError for any other text."""
        return cls.parse(f"{text[:2]}/{text[2:]}")

    @property
    def redirect(self) -> bytes:
        """The path that overlayfs finds in a stub: of the content in a data-only layer."""
        return b"/%s" % str(self).encode("ascii")

    @classmethod
    def parse_redirect(cls, redirect: bytes) -> "LocalName":
        """The inverse of `redirect`. Raises ValueError for any other path."""
        if redirect[:1] != b"/":
            raise ValueError(f"not the path of content: {redirect[:120]!r}")
        return cls.parse(redirect[1:].decode("ascii"))

    @classmethod
    def parse(cls, text: str) -> "LocalName":
        """The inverse of `str()`. Raises ValueError for any other text."""
        match = _NAME.fullmatch(text)
        if match is None:
            raise ValueError(f"not the name of content: {text[:120]!r}")
        first, rest, text_id, digits, parts, raw = match.groups()
        size = int(digits)
        if size > SIZE_MAX:
            raise ValueError(f"not the name of content: {text[:120]!r}")
        digest = Digest(bytes.fromhex(first + rest), _ALGORITHMS[text_id])
        return cls(digest, Compression.NONE if raw else Compression.ZLIB, size, parts is not None)


def chunked_name(chunks: Sequence[Chunk], compression: Compression) -> LocalName:
    """The name of a file in chunks. All chunks have the algorithm of the first."""
    digest = digest_of(format_chunk_list(chunks), chunks[0].digest.algorithm)
    return LocalName(digest, compression, chunks[-1].offset + chunks[-1].size, in_chunks=True)
