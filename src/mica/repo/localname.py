"""How a node calls verified content: the name of a file in the cache, and the redirect of a metadata image. Pure.

    ab/<38 hex><text id>.<size>          content of an object that is stored compressed
    ab/<38 hex><text id>.<size>.raw      content of an object that is stored as it is
    ab/<38 hex><text id>.<size>.parts[.raw]   a file in chunks; the digest is that of its chunk list

A name holds all that is needed to fetch the content and to check it, so whoever is asked for one keeps no state
(docs/format/local-names.md). `size` is that of the content in bytes, in decimal.
"""

import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

from mica.digest import DIGEST_SIZE, Algorithm, Digest, digest_of
from mica.repo.entry import Chunk
from mica.repo.objects import Compression

SIZE_MAX = (1 << 63) - 1
_NAME = re.compile(r"([0-9a-f]{2})/([0-9a-f]{38})(-rmd160|-shake128|)\.(0|[1-9][0-9]{0,18})(\.parts)?(\.raw)?")
_ALGORITHMS = {algorithm.text_id: algorithm for algorithm in Algorithm}
_PART = struct.Struct(f"<I{DIGEST_SIZE}s")


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

    @classmethod
    def parse(cls, text: str) -> "LocalName":
        """Raises ValueError for anything that `str()` does not give."""
        match = _NAME.fullmatch(text)
        if match is None:
            raise ValueError(f"not the name of content: {text[:120]!r}")
        first, rest, text_id, digits, parts, raw = match.groups()
        size = int(digits)
        if size > SIZE_MAX:
            raise ValueError(f"not the name of content: {text[:120]!r}")
        digest = Digest(bytes.fromhex(first + rest), _ALGORITHMS[text_id])
        return cls(digest, Compression.NONE if raw else Compression.ZLIB, size, parts is not None)


def format_chunk_list(chunks: Sequence[Chunk]) -> bytes:
    """Plain size (32 bits, little-endian) and digest of every chunk, in order of their place in the file.

    Raises ValueError for chunks that do not follow each other, or of 4 GiB and more.
    """
    offset = 0
    parts = []
    for chunk in chunks:
        if chunk.offset != offset or not 0 < chunk.size < 1 << 32:
            raise ValueError(f"a chunk of {chunk.size} bytes at {chunk.offset}, expected one at {offset}")
        parts.append(_PART.pack(chunk.size, chunk.digest.raw))
        offset += chunk.size
    return b"".join(parts)


def parse_chunk_list(data: bytes, algorithm: Algorithm) -> list[Chunk]:
    """Raises ValueError for anything that is not whole, or has an empty chunk."""
    if not data or len(data) % _PART.size:
        raise ValueError(f"a chunk list of {len(data)} bytes")
    chunks = []
    offset = 0
    for size, raw in _PART.iter_unpack(data):
        if not size:
            raise ValueError("a chunk list with an empty chunk")
        chunks.append(Chunk(offset, size, Digest(raw, algorithm)))
        offset += size
    return chunks


def chunked_name(chunks: Sequence[Chunk], compression: Compression) -> LocalName:
    """The name of a file in chunks. All chunks have the algorithm of the first."""
    digest = digest_of(format_chunk_list(chunks), chunks[0].digest.algorithm)
    return LocalName(digest, compression, chunks[-1].offset + chunks[-1].size, in_chunks=True)
