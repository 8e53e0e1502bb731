"""Answers of hostile servers: refused or read, in bounded steps; and right ones, as the standard library reads them."""

import contextlib
import http.client
import io
import socket
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from mica.fetch.http1 import ReceivingError, Response

PIECES = [
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 404 Not Found\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 204 \r\n",
    b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"content-length:5, 5\n", b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"X: y\r\n", b" folded\r\n", b"\r\n", b"\n", b":\r\n",
    b"5\r\nhello\r\n", b"0\r\n\r\n", b"0\r\nA: b\r\n\r\n", b"hello", b"3;x\r\nabc\r\n", b"\xff", b"\0",
]  # fmt: skip


class Wire:
    def __init__(self, data: bytes, steps: list[int]) -> None:
        self.data = data
        self.steps = steps

    def recv(self, size: int, /) -> bytes:
        size = min(size, self.steps.pop() if self.steps else size)
        taken, self.data = self.data[:size], self.data[size:]
        return taken


@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=6), max_size=12), st.lists(st.integers(1, 9), max_size=30))
def test_whatever_comes(pieces: list[bytes], steps: list[int]) -> None:
    data = b"".join(pieces)
    read = 0
    with contextlib.suppress(ReceivingError, ConnectionResetError):
        response = Response(Wire(data, steps))
        while block := response.read(4):
            assert len(block) <= 4
            read += len(block)
        assert response.is_whole
    assert read <= len(data)


HEADERS = st.lists(
    st.tuples(
        st.from_regex(r"X-[A-Za-z0-9-]{1,10}", fullmatch=True),
        st.from_regex(r"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True),
    ),
    max_size=5,
)


@given(HEADERS, st.binary(max_size=60), st.booleans(), st.lists(st.integers(1, 20), max_size=20), st.booleans())
def test_what_is_right_is_read_as_by_the_standard_library(
    headers: list[tuple[str, str]], body: bytes, chunked: bool, steps: list[int], ends: bool
) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    if chunked:
        lines += "Transfer-Encoding: chunked\r\n"
        sent = b"".join(b"%x\r\n%b\r\n" % (len(body[at : at + 7]), body[at : at + 7]) for at in range(0, len(body), 7))
        sent += b"0\r\n\r\n"
    else:
        lines += "" if ends else f"Content-Length: {len(body)}\r\n"
        sent = body
    data = f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode() + sent
    ours = Response(Wire(data, steps))
    theirs = http.client.HTTPResponse(cast("socket.socket", _Socket(data)), method="GET")
    theirs.begin()
    assert ours.head.status == theirs.status
    assert ours.head.headers == {name.lower(): ", ".join(theirs.headers.get_all(name, [])) for name in theirs.headers}
    assert b"".join(iter(lambda: ours.read(5), b"")) == theirs.read() == body
    assert ours.leaves_clean == (not theirs.will_close)


class _Socket:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self.data)
