"""Proof that plain content is that of an object, although digests are those of stored bytes.

Content that is stored as it is hashes to the digest. Compressed content is compressed again: mica packs in two or
three ways, the stock server with zlib, and each always gives the same bytes, so right content gives the digest again
(docs/adr/0007-verify-by-packing.md). Another digest proves nothing: the publisher may use another compressor. Bounded
memory. Any thread; the compressors release the interpreter lock.
"""

import enum
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Final

from mica.digest import Digest, new_hasher
from mica.repo.objects import LEVEL, Compression, packings

_BLOCK: Final = 1 << 20
_PACKED_WHOLE_MAX: Final = 64 << 20
"""libdeflate takes content as a whole, and mica cuts what is larger than a few MiB into chunks."""


class Verdict(enum.StrEnum):
    """UNPROVEN: it can neither be shown to be right nor to be wrong."""

    RIGHT = "right"
    UNPROVEN = "unproven"
    WRONG = "wrong"


class Content:
    """A range of an open file."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self.size = size
        self._fd = fd
        self._offset = offset

    def blocks(self) -> Iterator[bytes]:
        """Raises EOFError where the file ends too early."""
        done = 0
        while done < self.size:
            data = os.pread(self._fd, min(_BLOCK, self.size - done), self._offset + done)
            if not data:
                raise EOFError
            yield data
            done += len(data)


class Prover:
    """Tries first the compressor that has proved most so far."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ways: list[Callable[[Content, Digest], bool]] = [_is_packed_by_us, _is_packed_by_stock]
        self._successes = dict.fromkeys(self._ways, 0)

    def judge(self, content: Content, digest: Digest, compression: Compression) -> Verdict:
        """Raises EOFError if the content is cut short, OSError if it cannot be read."""
        if compression is Compression.NONE:
            return Verdict.RIGHT if _is_stored(content, digest) else Verdict.WRONG
        for way in list(self._ways):
            if way(content, digest):
                self._prefer(way)
                return Verdict.RIGHT
        return Verdict.UNPROVEN

    def _prefer(self, way: Callable[[Content, Digest], bool]) -> None:
        with self._lock:
            self._successes[way] += 1
            self._ways.sort(key=lambda way: -self._successes[way])


def _is_stored(content: Content, digest: Digest) -> bool:
    hasher = new_hasher(digest.algorithm)
    for block in content.blocks():
        hasher.update(block)
    return hasher.finish() == digest


def _is_packed_by_us(content: Content, digest: Digest) -> bool:
    if content.size > _PACKED_WHOLE_MAX:
        return False
    return any(packed.digest == digest for packed in packings(b"".join(content.blocks()), digest.algorithm))


def _is_packed_by_stock(content: Content, digest: Digest) -> bool:
    hasher = new_hasher(digest.algorithm)
    packer = zlib.compressobj(LEVEL)
    for block in content.blocks():
        hasher.update(packer.compress(block))
    hasher.update(packer.flush())
    return hasher.finish() == digest
