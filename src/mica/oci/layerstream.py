"""A layer as a stream of its uncompressed tar, checked on the way. Nothing is kept on disk, never more than a few MiB
in memory, whatever the layer holds.

The caller reads, then ends the block (or calls `finish`). This reads the rest and checks both digests; only then may
the caller publish its result. A block that an exception leaves checks nothing. One thread per stream.

No helper thread: a gzip layer runs at 515 MB/s of tar (igzip 855 MB/s, SHA-256 2000 MB/s) in one thread and at 700 MB/s
in two, on 2 cores; the reader of the stream compresses more slowly than either and needs the second core itself.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import Any, cast

from mica.errors import IntegrityError, MicaError, UserError
from mica.files import mapped_os_errors
from mica.oci import mediatypes
from mica.oci.blobdigest import finished_digest, new_blob_hasher
from mica.oci.decoders import GZIP_ERRORS, GZIP_MAGIC, ZSTD_MAGIC, FrameWalker, GzipReader
from mica.oci.models import Descriptor
from mica.streams import Readable

READ_SIZE = 128 << 10
# RFC 8878 asks for 8 MiB; `zstd --ultra` and `--long` use up to 128 MiB, and such layers exist.
_ZSTD_WINDOW_LIMIT_BYTES = 128 << 20
_ZSTD_MAGICS = (ZSTD_MAGIC, *(bytes((low, 0x2A, 0x4D, 0x18)) for low in range(0x50, 0x60)))
_REFUSED_MAGICS = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}


class _CheckedBlob(io.RawIOBase):
    """The stored bytes: counted, hashed, never more of them than the descriptor says."""

    def __init__(self, raw: Readable, descriptor: Descriptor, name: str) -> None:
        super().__init__()
        self._raw = raw
        self._descriptor = descriptor
        self._name = name
        self._hasher = new_blob_hasher(descriptor.digest)
        self.size = 0
        self._ahead = b""
        self.frames: FrameWalker | None = None

    def readable(self) -> bool:
        return True

    def peek(self) -> bytes:
        """The first bytes, which `read` will give again."""
        while len(self._ahead) < 8 and (piece := self._take(8 - len(self._ahead))):
            self._ahead += piece
        return self._ahead

    def read(self, size: int = -1, /) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead, b""
        else:
            data = self._take(size if size > 0 else READ_SIZE)
        if self.frames is not None:
            self.frames.feed(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _take(self, size: int) -> bytes:
        with mapped_os_errors(f"read {self._name}"):
            data = self._raw.read(size)
        self._hasher.update(data)
        self.size += len(data)
        if self.size > self._descriptor.size:
            raise IntegrityError(f"{self._name} is longer than the {self._descriptor.size} bytes its manifest says.")
        return data

    def verify(self) -> None:
        """Read the rest and compare. Raises IntegrityError."""
        while self.read(READ_SIZE):
            pass
        if self.size != self._descriptor.size:
            raise IntegrityError(f"{self._name} has {self.size} bytes instead of {self._descriptor.size}.")
        if finished_digest(self._hasher) != self._descriptor.digest:
            raise IntegrityError(f"{self._name} does not have the digest {self._descriptor.digest}.")


class LayerStream:
    """The uncompressed tar of a layer."""

    def __init__(self, blob: _CheckedBlob, *, diff_id: str | None, max_bytes: int, name: str) -> None:
        self._blob = blob
        self._diff_id = diff_id
        self._hasher = new_blob_hasher(diff_id or "")
        self._max_bytes = max_bytes
        self._name = name
        self._decoder: Readable | None = None
        self._buffer = memoryview(b"")
        self._verified = False
        self.size = 0

    @property
    def stored_size(self) -> int:
        """Compressed bytes that were read so far."""
        return self._blob.size

    def read(self, size: int, /) -> bytes:
        """Exactly `size` bytes, fewer only at the end.

        Raises IntegrityError if the layer is damaged, UserError if it unpacks to more than the limit, and the errors of
        the stream below.
        """
        if size <= len(self._buffer):
            piece, self._buffer = self._buffer[:size], self._buffer[size:]
            return bytes(piece)
        parts = [bytes(self._buffer)]
        missing = size - len(self._buffer)
        self._buffer = memoryview(b"")
        while missing and (data := self._decode()):
            parts.append(data[:missing])
            self._buffer = memoryview(data)[missing:]
            missing -= len(parts[-1])
        return b"".join(parts)

    def finish(self) -> None:
        """Read to the end and check size and digests. May be called twice. Raises IntegrityError."""
        self._buffer = memoryview(b"")
        while self._decode():
            pass

    def _decode(self) -> bytes:
        if self._verified:
            return b""
        if self._decoder is None:
            self._decoder = _open_decoder(self._blob, self._name)
        try:
            data = self._decoder.read(READ_SIZE)
        except _decode_errors() as error:
            raise self._damaged(error) from error
        if not data:
            self._verify()
        self._hasher.update(data)
        self.size += len(data)
        if self.size > self._max_bytes:
            raise UserError(
                f"{self._name} unpacks to more than {self._max_bytes} bytes.",
                hint="Raise the limit: --max-layer-gib, or max_layer_gib of the portal.",
            )
        return data

    def _damaged(self, error: Exception) -> IntegrityError:
        if isinstance(error, EOFError):
            return IntegrityError(f"{self._name} ends in the middle of its compressed data.")
        return IntegrityError(f"{self._name} does not decompress: {error}.")

    def _verify(self) -> None:
        self._blob.verify()
        if self._blob.frames is not None and not self._blob.frames.at_boundary:
            raise self._damaged(EOFError())
        if self._diff_id is not None and finished_digest(self._hasher) != self._diff_id:
            raise IntegrityError(f"{self._name} does not unpack to its diff id {self._diff_id}.")
        self._verified = True


def _decode_errors() -> tuple[type[Exception], ...]:
    import zstandard

    return (*GZIP_ERRORS, zstandard.ZstdError, ValueError)


def _open_decoder(blob: _CheckedBlob, name: str) -> Readable:
    """Chosen by the first bytes: media types of layers are wrong often enough."""
    first = blob.peek()
    if first.startswith(GZIP_MAGIC):
        return GzipReader(blob)
    if first.startswith(_ZSTD_MAGICS):
        import zstandard  # few layers need it, and every start of a container would wait for it

        blob.frames = FrameWalker()
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_LIMIT_BYTES)
        return decompressor.stream_reader(cast("Any", blob), read_across_frames=True, closefd=False)
    for magic, kind in _REFUSED_MAGICS.items():
        if first.startswith(magic):
            raise UserError(f"{name} is compressed with {kind}, which no image specification allows.")
    return blob


def media_type_of(head: bytes) -> str:
    """The OCI media type of a layer that begins with these bytes."""
    if head.startswith(GZIP_MAGIC):
        return mediatypes.OCI_LAYER_GZIP
    return mediatypes.OCI_LAYER_ZSTD if head.startswith(_ZSTD_MAGICS) else mediatypes.OCI_LAYER


@contextlib.contextmanager
def open_layer(
    raw: Readable, descriptor: Descriptor, diff_id: str | None, *, max_bytes: int, image: str = ""
) -> Iterator[LayerStream]:
    """Read a layer; the end of the block checks it. The caller closes `raw`."""
    name = f"Layer {descriptor.digest} of {image}" if image else f"Layer {descriptor.digest}"
    with contextlib.closing(_CheckedBlob(raw, descriptor, name)) as blob:
        stream = LayerStream(blob, diff_id=diff_id, max_bytes=max_bytes, name=name)
        try:
            yield stream
        except UserError as error:
            _blame_damage(blob, error, is_too_large=stream.size > max_bytes)
            raise
        stream.finish()


def _blame_damage(blob: _CheckedBlob, error: UserError, *, is_too_large: bool) -> None:
    """Tells damage from a refusal: a refused layer may only be damaged. Raises IntegrityError if it is.

    Of a layer that unpacks to more than it may, or that is not at fault, no more is read."""
    if is_too_large or type(error) is not UserError or isinstance(error.__cause__, OSError):
        return
    try:
        blob.verify()
    except IntegrityError:
        raise
    except MicaError:
        return  # the rest cannot be read: the earlier error counts
