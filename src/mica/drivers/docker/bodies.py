"""Bodies of requests as streams: of a given length, or in chunks, which the standard library's server does not read.

Reading raises UserError if the sender went away before the end. Called by `server.py`. One thread.
Source: RFC 9112, 7.1.
"""

from typing import BinaryIO

from mica.errors import UserError
from mica.streams import Readable

_LINE_MAX = 4096
_HEX_DIGITS_MAX = 16
_DRAIN_BYTES = 1 << 20


class SizedBody:
    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, n: int, /) -> bytes:
        if not self._left:
            return b""
        data = self._stream.read1(min(n, self._left)) if hasattr(self._stream, "read1") else self._stream.read(n)
        if not data:
            raise _cut_short()
        self._left -= len(data)
        return data


class ChunkedBody:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = 0
        self._is_over = False

    def read(self, n: int, /) -> bytes:
        if not self._left and not self._is_over:
            self._next_chunk()
        if self._is_over:
            return b""
        data = self._stream.read(min(n, self._left))
        if not data:
            raise _cut_short()
        self._left -= len(data)
        if not self._left:
            self._line()
        return data

    def _next_chunk(self) -> None:
        digits = self._line().partition(b";")[0].strip()
        try:
            if len(digits) > _HEX_DIGITS_MAX:
                raise ValueError
            self._left = int(digits, 16)
        except ValueError as error:
            raise UserError("The request has a chunk without a length.") from error
        if self._left < 0:
            raise UserError("The request has a chunk without a length.")
        if not self._left:
            self._is_over = True
            while self._line():
                pass

    def _line(self) -> bytes:
        line = self._stream.readline(_LINE_MAX)
        if not line.endswith(b"\n"):
            raise _cut_short()
        return line.rstrip(b"\r\n")


def read_whole(body: Readable, limit: int) -> bytes:
    """Raises UserError if it is larger."""
    data = b""
    while piece := body.read(limit):
        data += piece
        if len(data) > limit:
            raise UserError(f"The request has more than {limit} bytes.")
    return data


def drain(body: Readable) -> bool:
    """Read the rest; returns whether there was any. A sender whose body is not read to its end may miss the answer."""
    found = False
    while body.read(_DRAIN_BYTES):
        found = True
    return found


def _cut_short() -> UserError:
    return UserError("The request ended in the middle.")
