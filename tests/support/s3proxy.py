"""A proxy before an S3 server that fails, delays, truncates, hangs up, and loses answers, on command. Loopback only.

    with s3_proxy(server.endpoint) as proxy:
        proxy.fault = lambda request: Refuse(503, "SlowDown") if request.method == "PUT" else None

Requests pass as they are, with the Host header that the client signed.
"""

import contextlib
import http.client
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.support.httpservers import HttpServer, answering
from tests.support.s3signature import Credentials, signed
from tests.support.zygote import Process, Zygote

_DEADLINE_S = 60


class S3Request(NamedTuple):
    """`key` is the path without the slash in front, and begins with the bucket. `number` counts from 1."""

    number: int
    method: str
    key: str
    query: str
    headers: dict[str, str]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Is not passed on."""

    status: int
    code: str = ""


@dataclass(frozen=True, slots=True)
class HangUp:
    """Instead of passing it on; after so many bytes of its body were read, or all."""

    after_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class LoseAnswer:
    """It is carried out, and then the connection is closed."""


@dataclass(frozen=True, slots=True)
class Truncate:
    """Only so many bytes of the answer's body arrive."""

    bytes: int


@dataclass(frozen=True, slots=True)
class Delay:
    """It is passed on after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Ignore:
    """It is passed on without the headers of these names, signed anew: a server that ignores them does the same."""

    names: tuple[str, ...]
    credentials: Credentials


Fault = Refuse | HangUp | LoseAnswer | Truncate | Delay | Ignore | None


class S3Proxy(HttpServer):
    """`requests` are all that came. A fault that kills the sender sets `reads_first`: else the rest of the body is lost
    with it."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target).netloc
        self.requests: list[S3Request] = []
        self.fault: Callable[[S3Request], Fault] = lambda request: None
        self.reads_first = False
        self.lock = threading.Lock()
        # SeaweedFS takes a second to decide between clients of the same moment; one at a time is done at once.
        self.conditional = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that break are part of the tests."""

    def puts(self) -> list[str]:
        return [request.key for request in self.requests if request.method == "PUT"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _DEADLINE_S
    server: S3Proxy

    def _pass(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        key, _, query = self.path.lstrip("/").partition("?")
        with self.server.lock:
            number = len(self.server.requests) + 1
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = S3Request(number, self.command, key, query, headers, size)
            self.server.requests.append(request)
        body = self.rfile.read(size) if self.server.reads_first else None
        fault = self.server.fault(request)
        if isinstance(fault, HangUp):
            if body is None:
                self.rfile.read(size if fault.after_bytes is None else min(size, fault.after_bytes))
            self.close_connection = True
            return
        body = self.rfile.read(size) if body is None else body
        if isinstance(fault, Refuse):
            self._refuse(fault)
            return
        if isinstance(fault, Delay):
            time.sleep(fault.seconds)
        headers = _without(headers, fault, self) if isinstance(fault, Ignore) else headers
        with (
            self.server.conditional if headers.keys() & {"if-match", "if-none-match"} else contextlib.nullcontext(),
            contextlib.closing(http.client.HTTPConnection(self.server.target, timeout=_DEADLINE_S)) as connection,
        ):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            content = b"" if self.command == "HEAD" else answer.read()
            if isinstance(fault, LoseAnswer):
                self.close_connection = True
                return
            self._answer(answer.status, answer.getheaders(), content, fault)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, fault: Fault) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in {"connection", "transfer-encoding"} and not (
                name.lower() == "content-length" and self.command != "HEAD"
            ):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if isinstance(fault, Truncate):
            content = content[: fault.bytes]
            self.close_connection = True
        self.wfile.write(content)

    def _refuse(self, fault: Refuse) -> None:
        text = f"<Error><Code>{fault.code}</Code><Message>A test wants it.</Message></Error>" if fault.code else ""
        body = b"" if self.command == "HEAD" else text.encode()
        self.send_response_only(fault.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by the base
        """Tests are quiet."""


def _without(headers: dict[str, str], fault: Ignore, request: BaseHTTPRequestHandler) -> dict[str, str]:
    left = {name: value for name, value in headers.items() if name not in {name.lower() for name in fault.names}}
    payload = headers["x-amz-content-sha256"]
    return left | signed(fault.credentials, request.command, request.path, headers["host"], payload)


def run_until_request(proxy: S3Proxy, zygote: Zygote, arguments: Sequence[str], number: int, output: Path) -> int:
    """Run a command and kill it at its request of this number, which sometimes arrives. Returns its exit code."""
    begin = len(proxy.requests)
    return run_until(
        proxy, zygote, arguments, output, lambda request: request.number - begin >= number, late=bool(number % 2)
    )


def run_until(
    proxy: S3Proxy,
    zygote: Zygote,
    arguments: Sequence[str | Path],
    output: Path,
    is_point: Callable[[S3Request], bool],
    *,
    late: bool,
) -> int:
    """Run a command and kill it at the first request that is a point; with `late` that request still takes place.
    Returns its exit code. What it sends after it was to be killed is lost, as if it had not been sent."""
    started = threading.Event()
    dead = threading.Event()
    process: Process | None = None

    def kill(request: S3Request) -> Fault:
        started.wait(60)
        if dead.is_set():
            return HangUp()
        if process is None or not is_point(request):
            return None
        os.kill(process.pid, signal.SIGKILL)
        dead.set()
        return LoseAnswer() if late else HangUp()

    proxy.fault, proxy.reads_first = kill, True
    process = zygote.start(*arguments, output=output)
    started.set()
    code = process.wait(120)
    proxy.fault, proxy.reads_first = lambda request: None, False
    return code


@contextlib.contextmanager
def s3_proxy(target: str) -> Iterator[S3Proxy]:
    with S3Proxy(target) as proxy, answering(proxy):
        yield proxy
