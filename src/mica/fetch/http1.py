"""Answers of HTTP/1: heads as values, and bodies by length, in chunks, or up to the end (RFC 9112).

Reads from any object with `recv`; knows no connections, no requests and no redirects (`connections.py` does). The
standard library reads answers with its parser for mail, which took a third of the time to fetch 10,000 objects of 5 KB
over a fast network. Everything is bounded. One answer belongs to one thread.
"""

import re
from typing import Final, NamedTuple, Protocol

_HEAD_MAX_BYTES: Final = 64 << 10
_LINE_MAX_BYTES: Final = 4 << 10
_INTERIM_MAX: Final = 8
_RECEIVED_BYTES: Final = 64 << 10
_BODY_RECEIVED_MAX_BYTES: Final = 1 << 20
_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE: Final = re.compile(r"HTTP/1\.([0-9]) ([1-5][0-9][0-9])(?: [^\n]*)?")
_FOLD: Final = re.compile(r"\n[ \t]+")
_HEADER: Final = re.compile(r"^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*$", re.MULTILINE)
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")


class ReceivingError(Exception):
    """The answer ended early, or is not HTTP; the text is the reason, in words that end a sentence."""


class Receiver(Protocol):
    """A socket."""

    def recv(self, size: int, /) -> bytes: ...


class Head(NamedTuple):
    """Names of headers are in lower case, and values of one name are joined by commas. `length` is None if the head
    does not tell it; `is_final` means that the connection ends with the body."""

    status: int
    headers: dict[str, str]
    length: int | None
    is_chunked: bool
    is_final: bool


def parse_head(data: bytes) -> Head:
    """What comes before the empty line. Raises ReceivingError."""
    text = data.decode("latin-1").replace("\r\n", "\n")
    if "\n " in text or "\n\t" in text:
        text = _FOLD.sub(" ", text)
    first, _, rest = text.partition("\n")
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise ReceivingError("the answer is not HTTP")
    found = _HEADER.findall(rest)
    if len(found) != (rest.count("\n") + 1 if rest else 0):
        raise ReceivingError("the answer has a malformed header")
    headers: dict[str, str] = {}
    for name, value in found:
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return _framed(int(match[2]), headers, keeps_alive=match[1] != "0")


def _framed(status: int, headers: dict[str, str], *, keeps_alive: bool) -> Head:
    """How long the body is: RFC 9112, section 6.3, for an answer to GET."""
    options = {option.strip() for option in headers.get("connection", "").lower().split(",")}
    is_final = "close" in options or not (keeps_alive or "keep-alive" in options)
    if status < 200 or status in {204, 304}:
        return Head(status, headers, 0, is_chunked=False, is_final=is_final)
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if coding.lower() != "chunked":
            raise ReceivingError("the answer has an unknown encoding")
        # A server that also sends a length may mean something else by the bytes that follow.
        return Head(status, headers, None, is_chunked=True, is_final=is_final or "content-length" in headers)
    lengths = {text.strip() for text in headers.get("content-length", "").split(",")}
    if lengths == {""}:
        return Head(status, headers, None, is_chunked=False, is_final=True)
    (length, *others) = lengths
    if others or not (length.isascii() and length.isdigit() and len(length) <= 18):
        raise ReceivingError("the answer has no valid length")
    return Head(status, headers, int(length), is_chunked=False, is_final=is_final)


class Response:
    """An answer, read from the next bytes of a receiver. Raises ReceivingError, and what `recv` raises;
    ConnectionResetError if the connection ended before the first byte."""

    __slots__ = ("_buffer", "_left", "_receiver", "head", "is_whole")

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._buffer = b""
        self.is_whole = False
        """Whether the body was read to its end."""
        head = parse_head(self._take_head())
        for _ in range(_INTERIM_MAX):
            if head.status >= 200:
                break
            head = parse_head(self._take_head())
        else:
            raise ReceivingError("only preliminary answers came")
        self.head = head
        # How much is left of the chunk, or of the body.
        self._left = 0 if head.is_chunked else head.length
        if self._left == 0 and not head.is_chunked:
            self.is_whole = True

    @property
    def leaves_clean(self) -> bool:
        """Whether the connection's next byte belongs to the next answer."""
        return self.is_whole and not self._buffer and not self.head.is_final

    def read(self, size: int) -> bytes:
        """At most this many bytes of the body; none only at its end."""
        if self.is_whole or not size:
            return b""
        if self.head.is_chunked and not self._left and not self._begin_chunk():
            self.is_whole = True
            return b""
        if self._left is not None:
            size = min(size, self._left)
        if self._buffer:
            data, self._buffer = self._buffer[:size], self._buffer[size:]
        else:
            data = self._receiver.recv(min(size, _BODY_RECEIVED_MAX_BYTES))
        if self._left is None:
            self.is_whole = not data
            return data
        if not data:
            raise ReceivingError("the connection was lost half-way")
        self._left -= len(data)
        if not self._left:
            if self.head.is_chunked:
                self._end_chunk()
            else:
                self.is_whole = True
        return data

    def _begin_chunk(self) -> bool:
        """False for the empty chunk at the end."""
        match = _CHUNK_SIZE.fullmatch(self._take_line())
        if match is None:
            raise ReceivingError("the answer has a malformed chunk")
        self._left = int(match[1], 16)
        if self._left:
            return True
        taken = 0
        while line := self._take_line():  # trailers
            taken += len(line)
            if taken > _HEAD_MAX_BYTES:
                raise ReceivingError("the answer has no end")
        return False

    def _end_chunk(self) -> None:
        if self._take_line():
            raise ReceivingError("the answer has a malformed chunk")

    def _take_line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LINE_MAX_BYTES:
                raise ReceivingError("the answer has a malformed chunk")
            self._receive()
        line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
        return line.removesuffix(b"\r")

    def _take_head(self) -> bytes:
        if not self._buffer:
            self._buffer = self._receiver.recv(_RECEIVED_BYTES)
            if not self._buffer:
                raise ConnectionResetError
        while (match := _END_OF_HEAD.search(self._buffer)) is None:
            if len(self._buffer) > _HEAD_MAX_BYTES:
                raise ReceivingError("the answer has no proper head")
            self._receive()
        head, self._buffer = self._buffer[: match.start()], self._buffer[match.end() :]
        return head

    def _receive(self) -> None:
        more = self._receiver.recv(_RECEIVED_BYTES)
        if not more:
            raise ReceivingError("the connection was lost half-way")
        self._buffer += more
