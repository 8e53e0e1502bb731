"""The check of every object while it arrives: its digest over the stored bytes, and limits of what it unpacks to.

Nothing reaches a cache or a checker by another way. Called by whoever downloads or looks through objects. Any thread.
"""

from typing import Protocol

from isal import isal_zlib
from isal.igzip_lib import IsalError

from mica.digest import new_hasher
from mica.errors import IntegrityError
from mica.repo.objectname import ObjectName
from mica.repo.objects import Compression
from mica.streams import Readable

_BLOCK = 256 << 10


class Sink(Protocol):
    """Where plain content goes, before it is known to be right."""

    def write(self, data: bytes, /) -> object: ...


def copy_verified(stream: Readable, sink: Sink, name: ObjectName) -> None:
    """Hash the stored bytes and write the unpacked content, never more than is allowed. Raises IntegrityError."""
    hasher = new_hasher(name.digest.algorithm)
    unpack = _Unpacker(sink, name)
    left = name.most + name.most // 100 + _BLOCK  # zlib makes nothing so much larger
    while block := stream.read(_BLOCK):
        left -= len(block)
        if left < 0:
            raise IntegrityError(
                f"Object {name.digest} has more stored bytes than {name.most} bytes of content can need."
            )
        hasher.update(block)
        unpack.take(block)
    found = hasher.finish()
    if found != name.digest:
        raise IntegrityError(f"Object {name.digest} has other content: its bytes hash to {found}.")
    unpack.finish()


class _Unpacker:
    """Writes the plain content of a stream into a sink. Damage is reported only after the digest was compared: a wrong
    digest is the better message."""

    def __init__(self, sink: Sink, name: ObjectName) -> None:
        self._sink = sink
        self._name = name
        self._inflater = None if name.compression is Compression.NONE else isal_zlib.decompressobj()
        self._written = 0
        self._damage = ""

    def take(self, block: bytes) -> None:
        if self._damage:
            return
        if self._inflater is None:
            self._write(block)
            return
        while block and not self._damage:
            if self._inflater.eof:
                self._damage = "is followed by other bytes"
                return
            try:
                plain = self._inflater.decompress(block, min(_BLOCK * 4, self._name.most + 1 - self._written) or 1)
            except IsalError:  # type: ignore[misc]  # the stub lacks its base
                self._damage = "is not a zlib stream"
                return
            self._write(plain)
            block = self._inflater.unconsumed_tail or self._inflater.unused_data

    def finish(self) -> None:
        if not self._damage and self._inflater is not None and not self._inflater.eof:
            self._drain()
        if not self._damage and self._name.size is not None and self._written != self._name.size:
            self._damage = f"unpacks to {self._written} bytes and not to {self._name.size}"
        if self._damage:
            raise IntegrityError(f"Object {self._name.digest} {self._damage}.")

    def _drain(self) -> None:
        assert self._inflater is not None
        while not self._inflater.eof and not self._damage:
            plain = self._inflater.decompress(b"", _BLOCK)
            if not plain:
                self._damage = "is cut short"
            self._write(plain)

    def _write(self, plain: bytes) -> None:
        self._written += len(plain)
        if self._written > self._name.most:
            self._damage = f"unpacks to more than the {self._name.most} bytes it may have"
            return
        self._sink.write(plain)
