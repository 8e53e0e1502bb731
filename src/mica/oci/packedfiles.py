"""Files packed as a whole, known by their first bytes: gzip, zstd, xz, bzip2, as `docker load` and Podman read them.

Reading forward has the decoder's speed; going back begins again. Memory is bounded for every file. One thread per
reader.
"""

import bz2
import io
import lzma
from collections.abc import Callable
from typing import Any, Protocol, cast

from isal import igzip

from mica.errors import IntegrityError
from mica.oci.decoders import GZIP_ERRORS, GZIP_MAGIC, ZSTD_MAGIC
from mica.streams import Readable

HEAD_BYTES = 6
_READ_BYTES = 128 << 10
_XZ_MEMORY_BYTES = 256 << 20  # `xz -9` needs 65 MiB
_ZSTD_WINDOW_BYTES = 128 << 20  # `zstd --ultra` and `--long`
_MAGICS = {
    GZIP_MAGIC: "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    ZSTD_MAGIC: "zstd",
    **{bytes((low, 0x2A, 0x4D, 0x18)): "zstd" for low in range(0x50, 0x60)},  # frames to be skipped may come first
}


class _Decompressor(Protocol):
    """The common interface of lzma and bz2."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def packing_of(head: bytes) -> str:
    """How a file that begins so is packed; empty if it is not."""
    return next((name for magic, name in _MAGICS.items() if head.startswith(magic)), "")


class PackedFile:
    """The content of a packed file; `name` is its name in messages. `close` also closes the file below.

    `read` gives as many bytes as are asked for, fewer only at the end. Raises IntegrityError for a damaged file.
    """

    def __init__(self, raw: io.RawIOBase, packing: str, name: str) -> None:
        self._raw = raw
        self._packing = packing
        self._name = name
        self._position = 0
        self._decoder: Readable | None = None
        self._errors = _errors(packing)

    def read(self, size: int, /) -> bytes:
        parts = []
        while size and (part := self._decode(size)):
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seek(self, offset: int, /) -> int:
        if offset < self._position:
            self._raw.seek(0)
            self._decoder = None
            self._position = 0
        while self._position < offset and self._decode(min(offset - self._position, _READ_BYTES)):
            pass
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._raw.close()

    def _decode(self, size: int) -> bytes:
        if self._decoder is None:
            self._decoder = _open_decoder(self._raw, self._packing)
        try:
            data = self._decoder.read(size)
        except self._errors as error:
            raise IntegrityError(f"{self._name} is a damaged {self._packing} file.") from error
        self._position += len(data)
        return data


class _DamagedError(Exception):
    """A decompressor refused its input. Errors of reading the file below are others."""


class _Frames:
    """The content of frames, one behind the other; zeros behind them are padding."""

    def __init__(self, raw: io.RawIOBase, new: Callable[[], _Decompressor]) -> None:
        self._raw = raw
        self._new = new
        self._current = new()
        self._ahead = b""

    def read(self, size: int, /) -> bytes:
        while True:
            if self._current.eof and not self._begin_next():
                return b""
            data, self._ahead = self._ahead, b""
            if self._current.needs_input and not data and not (data := self._raw.read(_READ_BYTES) or b""):
                raise _DamagedError
            if piece := self._decompress(data, size):
                return piece

    def _decompress(self, data: bytes, size: int) -> bytes:
        try:
            return self._current.decompress(data, size)
        except (lzma.LZMAError, OSError, EOFError, ValueError) as error:
            raise _DamagedError from error

    def _begin_next(self) -> bool:
        rest = self._current.unused_data.lstrip(b"\0")
        while not rest:
            data = self._raw.read(_READ_BYTES)
            if not data:
                return False
            rest = data.lstrip(b"\0")
        self._current = self._new()
        self._ahead = rest
        return True


def _open_decoder(raw: io.RawIOBase, packing: str) -> Readable:
    if packing == "gzip":
        # Not GzipReader, which would close the file below when it is dropped.
        return cast("Readable", cast("Any", igzip).IGzipFile(fileobj=raw, mode="rb"))
    if packing == "zstd":
        import zstandard  # few archives need it

        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        return decompressor.stream_reader(cast("Any", raw), read_across_frames=True, closefd=False)
    if packing == "xz":
        return _Frames(raw, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES))
    return _Frames(raw, bz2.BZ2Decompressor)


def _errors(packing: str) -> tuple[type[Exception], ...]:
    if packing == "zstd":
        import zstandard

        return (zstandard.ZstdError,)
    return GZIP_ERRORS if packing == "gzip" else (_DamagedError,)


def unpacked(stream: Readable, name: str) -> Readable:
    """The content of a stream that may be packed; `name` is its name in messages."""
    head = b""
    while len(head) < HEAD_BYTES and (data := stream.read(HEAD_BYTES - len(head))):
        head += data
    whole = _Ahead(head, stream)
    packing = packing_of(head)
    return PackedFile(whole, packing, name) if packing else whole


class _Ahead(io.RawIOBase):
    """A stream whose first bytes were read already. Read forward only."""

    def __init__(self, head: bytes, stream: Readable) -> None:
        super().__init__()
        self._head = head
        self._stream = stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if not self._head:
            return self._stream.read(size)
        wanted = len(self._head) if size < 0 else size
        data, self._head = self._head[:wanted], self._head[wanted:]
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
