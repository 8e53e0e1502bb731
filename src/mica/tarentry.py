"""One member of a tar archive and the buffered stream its data comes from. Only `tarheader` and `tarstream` make them.

A source and its entries belong to one thread.
"""

import enum
from dataclasses import dataclass

from mica.errors import UserError
from mica.streams import Readable
from mica.texts import quoted

BLOCK_BYTES = 512
BLOCK_MASK = BLOCK_BYTES - 1
NAME_MAX_BYTES = 255
PATH_MAX_BYTES = 4095

_READ_BYTES = 256 * 1024
INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)


class Kind(enum.Enum):
    """What a member is. Tar has no sockets."""

    REGULAR = "regular"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    CHARACTER = "character"
    BLOCK = "block"
    FIFO = "fifo"


@dataclass(frozen=True, slots=True)
class TarLimits:
    """What an archive may cost. `max_bytes` bounds the sum of logical sizes; `max_header_bytes` everything that
    describes one member (extended headers, long names, sparse maps) and, separately, all global headers.
    """

    max_entries: int = 4_000_000
    max_bytes: int = 1 << 40
    max_header_bytes: int = 1 << 20


DEFAULT_LIMITS = TarLimits()


class TarEntry:
    """One member. Its data is read before the next member is asked for; what was not read is skipped."""

    __slots__ = (
        "_left",
        "_source",
        "_sparse",
        "_stored",
        "device_major",
        "device_minor",
        "gid",
        "kind",
        "link",
        "mode",
        "mtime_ns",
        "mtime_s",
        "name",
        "offset",
        "size",
        "uid",
        "xattrs",
    )

    def __init__(  # positional: this runs a million times
        self,
        name: bytes,
        kind: Kind = Kind.REGULAR,
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        size: int = 0,
        mtime_s: int = 0,
        mtime_ns: int = 0,
        link: bytes = b"",
        device_major: int = 0,
        device_minor: int = 0,
        xattrs: dict[bytes, bytes] | None = None,
        offset: int = 0,
        source: "Source | None" = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.mtime_s = mtime_s
        self.mtime_ns = mtime_ns
        self.link = link
        self.device_major = device_major
        self.device_minor = device_minor
        self.xattrs = {} if xattrs is None else xattrs
        self.offset = offset
        self._source = source
        self._left = size
        self._stored = size
        self._sparse: SparseData | None = None

    def read(self, n: int) -> bytes:
        """The next n bytes of the content; all if negative; fewer only at its end, b"" after it.

        Holes become zeros here.
        """
        left = self._left
        if n >= left or n < 0:
            if left < 0:
                raise ValueError(f"data of {quoted(self.name)} asked for after the reader went on")
            n = left
        if not n:
            return b""
        source = self._source
        if source is None:
            raise ValueError(f"{quoted(self.name)} was not read from an archive")
        self._left = left - n
        data = source.take(n) if self._sparse is None else self._sparse.read(n, source)
        if len(data) != n:
            raise truncated(f"in the data of {quoted(self.name)}", source.offset)
        return data

    def data(self) -> bytes:
        """All that is left of the content at once: for members whose `size` the caller has looked at."""
        return self.read(self._left or 1)

    def store(self, stored: int, sparse: "SparseData | None") -> None:
        """For the reader: how many bytes of the member are in the archive, and for a sparse one how they make the
        content."""
        self._stored = stored
        self._sparse = sparse

    def leave(self) -> int:
        """For the reader when it goes on: the member cannot be read any more. Returns how many bytes to skip, with the
        padding."""
        left = self._left if self._sparse is None else self._sparse.stored_left
        self._left = -1
        return left + (-self._stored & BLOCK_MASK)

    def __repr__(self) -> str:
        return f"<TarEntry {quoted(self.name)} {self.kind.value} {self.size} bytes at {self.offset}>"


def truncated(where: str, offset: int) -> UserError:
    return UserError(f"The archive is truncated {where} (byte {offset}).", hint="Fetch or make it again.")


class Source:
    """Buffered reading with a position; `buffer` and `position` are open to the reader's fast path."""

    __slots__ = ("_base", "_read", "buffer", "position")

    def __init__(self, stream: Readable) -> None:
        self._read = stream.read
        self.buffer = b""
        self.position = 0
        self._base = 0

    @property
    def offset(self) -> int:
        return self._base + self.position

    def fill(self) -> int:
        """Have a whole block in the buffer if there is one; returns how many bytes of it there are."""
        rest = self.buffer[self.position :]
        while len(rest) < BLOCK_BYTES and (more := self._read(_READ_BYTES)):
            rest += more
        self._base += self.position
        self.buffer = rest
        self.position = 0
        return min(len(rest), BLOCK_BYTES)

    def take(self, n: int) -> bytes:
        """The next n bytes, fewer only at the end of the stream."""
        start = self.position
        data = self.buffer[start : start + n]
        self.position = start + len(data)
        return data if len(data) == n else self._take_more(data, n)

    def _take_more(self, data: bytes, n: int) -> bytes:
        parts = [data]
        missing = n - len(data)
        while missing:
            self._base += self.position
            self.buffer = self._read(_READ_BYTES if missing < _READ_BYTES else min(missing, 16 * _READ_BYTES))
            self.position = min(missing, len(self.buffer))
            if not self.buffer:
                break
            parts.append(self.buffer if self.position == len(self.buffer) else self.buffer[: self.position])
            missing -= self.position
        return b"".join(parts)

    def skip(self, n: int) -> bool:
        """Go n bytes forward; False if the stream ends before."""
        while (have := len(self.buffer) - self.position) < n:
            n -= have
            self._base += len(self.buffer)
            self.position = 0
            self.buffer = self._read(_READ_BYTES)
            if not self.buffer:
                return False
        self.position += n
        return True


class SparseData:
    """Content of a sparse member: stored pieces in ascending order, zeros between them."""

    __slots__ = ("_place", "_segment", "_segments", "stored_left")

    def __init__(self, segments: list[tuple[int, int]], stored: int) -> None:
        self._segments = iter([*segments, (INT64_MAX, 0)])
        self._segment = next(self._segments)
        self._place = 0
        self.stored_left = stored

    def read(self, n: int, source: Source) -> bytes:
        parts = []
        while n:
            start, length = self._segment
            if self._place >= start + length:
                self._segment = next(self._segments)
                continue
            if self._place < start:
                piece = bytes(min(n, start - self._place))
            else:
                wanted = min(n, start + length - self._place)
                piece = source.take(wanted)
                self.stored_left -= len(piece)
                if len(piece) < wanted:
                    break
            parts.append(piece)
            self._place += len(piece)
            n -= len(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)
