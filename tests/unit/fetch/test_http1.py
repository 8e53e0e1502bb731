"""Answers of servers: those that are right, in whatever pieces they come, and those that are not."""

import pytest

from mica.fetch.http1 import ReceivingError, Response, parse_head


class Wire:
    """Gives what a server sent, at most `step` bytes at a time."""

    def __init__(self, data: bytes, step: int = 1 << 20) -> None:
        self.data = data
        self.step = step

    def recv(self, size: int, /) -> bytes:
        size = min(size, self.step)
        taken, self.data = self.data[:size], self.data[size:]
        return taken


def body_of(response: Response, size: int = 1000) -> bytes:
    return b"".join(iter(lambda: response.read(size), b""))


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("head", "body", "is_clean"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n", b"hello world", True),
        (b"HTTP/1.1 200\r\ncontent-length:11\r\n\r\n", b"hello world", True),
        (b"HTTP/1.1 200 OK\nContent-Length: 11\n\n", b"hello world", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 11, 11\r\nContent-Length: 11\r\n\r\n", b"hello world", True),
        (b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 11\r\n\r\n", b"hello world", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
         b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n",
         b"B\r\nhello world\r\n00\r\nTrailer: x\r\n\r\n", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n", b"hello world", True),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 11\r\n\r\n", b"hello world", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 11\r\n\r\n", b"hello world", False),
        (b"HTTP/1.1 200 OK\r\nConnection: x, close\r\nContent-Length: 11\r\n\r\n", b"hello world", False),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"hello world", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
         b"b\r\nhello world\r\n0\r\n\r\n", False),
    ],
)  # fmt: skip
def test_bodies(head: bytes, body: bytes, is_clean: bool, size: int, step: int) -> None:
    response = Response(Wire(head + body, step))
    assert response.head.status == 200
    assert body_of(response, size) == b"hello world"
    assert response.is_whole
    assert response.leaves_clean == is_clean
    assert response.read(size) == b""


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body(status: int) -> None:
    response = Response(Wire(b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n\r\n" % status))
    assert (response.head.status, response.is_whole, response.leaves_clean) == (status, True, True)


def test_headers_are_found_by_their_names() -> None:
    head = parse_head(
        b"HTTP/1.1 404 Not Found\r\nX-Squid-Error:  ERR 0 \r\nvia: a\r\nVia: b\r\nEmpty:\r\nContent-Length: 0"
    )
    assert head.headers == {"x-squid-error": "ERR 0", "via": "a, b", "empty": "", "content-length": "0"}
    assert (head.status, head.length) == (404, 0)


def test_what_follows_an_answer_makes_its_connection_useless() -> None:
    response = Response(Wire(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n"))
    assert body_of(response) == b"ok"
    assert response.is_whole
    assert not response.leaves_clean


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"HTTP/2 200 OK\r\n\r\n", "is not HTTP"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "is not HTTP"),
        (b"HTTP/1.1 600 OK\r\n\r\n", "is not HTTP"),
        (b"ICY 200 OK\r\n\r\n", "is not HTTP"),
        (b"\r\n\r\n", "is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\nName : value\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\n: value\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "no valid length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "no valid length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n", "no valid length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 19 + b"\r\n\r\n", "no valid length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "an unknown encoding"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "no proper head"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, "only preliminary answers"),
        (b"HTTP/1.1 200 OK\r\nX: y", "half-way"),
    ],
)
def test_answers_that_are_none(data: bytes, reason: str) -> None:
    with pytest.raises(ReceivingError, match=reason):
        Response(Wire(data))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"5\r\nhel", "half-way"),
        (b"5\r\nhello\r\n", "half-way"),
        (b"5\r\nhello\r\n0\r\n", "half-way"),
        (b"5\r\nhelloX\r\n0\r\n\r\n", "malformed chunk"),
        (b"-5\r\nhello\r\n0\r\n\r\n", "malformed chunk"),
        (b"\r\nhello\r\n0\r\n\r\n", "malformed chunk"),
        (b"f" * 20 + b"\r\nhello\r\n0\r\n\r\n", "malformed chunk"),
        (b"5" * 100_000, "malformed chunk"),
        (b"0\r\n" + b"Trailer: x\r\n" * 10_000, "no end"),
    ],
)
def test_chunks_that_are_none(body: bytes, reason: str) -> None:
    response = Response(Wire(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body))
    with pytest.raises(ReceivingError, match=reason):
        body_of(response)


def test_a_body_that_ends_early() -> None:
    response = Response(Wire(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"))
    assert response.read(10) == b"ab"
    with pytest.raises(ReceivingError, match="half-way"):
        response.read(10)
    assert not response.is_whole


def test_nothing_at_all_is_a_closed_connection() -> None:
    with pytest.raises(ConnectionResetError):
        Response(Wire(b""))
