"""Registries for tests: one that misbehaves on command, Debian's real one. Loopback only; both end themselves."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from tests.support.httpservers import HttpServer, answering
from tests.support.tools import need

_START_DEADLINE_S = 20


@dataclass
class Reply:
    """One scripted answer. `cut_after` hangs up after so many bytes of the body; `length` lies about its length;
    `is_lost` hangs up instead of answering."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None
    length: int | None = None
    is_lost: bool = False


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


class ScriptedRegistry:
    """Serves `manifests` and `blobs` like a registry, except where `script` says otherwise.

    `script` maps a path (or its end) to answers given once each, in order; None in the list is the ordinary answer.
    `password` asks for Basic, `token` for Bearer, whose realm is this server (or `realm`); a token is good for
    `token_uses` requests. Every `drop_every`-th request is dropped: a blob half-way, all else without an answer.
    """

    def __init__(self) -> None:
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.tags: list[str] = []
        self.script: dict[str, list[Reply | None]] = {}
        self.requests: list[Request] = []
        self.password: tuple[str, str] | None = None
        self.tokens: list[str] = []
        self.valid_tokens: set[str] = set()
        self.needs_token = False
        self.realm = ""
        self.knows_ranges = True
        self.token_uses = 1 << 30
        self.drop_every = 0
        self.uploads: dict[str, bytearray] = {}
        self.used: dict[str, int] = {}
        self.lock = threading.Lock()
        self.host = ""

    def add_blobs(self, blobs: Mapping[str, bytes]) -> None:
        self.blobs.update(blobs)

    def add_manifest(self, name: str, media_type: str, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.manifests[name] = self.manifests[digest] = (media_type, data)
        return digest

    def paths(self, part: str = "") -> list[str]:
        return [one.path for one in self.requests if part in one.path]

    def answer(self, request: Request) -> Reply:
        with self.lock:
            self.requests.append(request)
            for end, replies in self.script.items():
                if replies and urlsplit(request.path).path.endswith(end):
                    reply = replies.pop(0)
                    if reply is not None:
                        return reply
                    break
            is_dropped = self.drop_every > 0 and len(self.requests) % self.drop_every == 0
        if is_dropped and "/blobs/sha" not in request.path:
            return Reply(is_lost=True)
        reply = self._ordinary(request)
        return dataclasses.replace(reply, cut_after=len(reply.body) // 2) if is_dropped else reply

    def _ordinary(self, request: Request) -> Reply:
        path = urlsplit(request.path).path
        if path == "/token":
            return self._token(request)
        if not self._is_allowed(request):
            scheme = f'Bearer realm="{self.realm or f"http://{self.host}/token"}",service="test"'
            return Reply(401, {"WWW-Authenticate": scheme if self.needs_token else 'Basic realm="test"'})
        if request.method in {"POST", "PUT", "PATCH"} or "/blobs/uploads/" in path:
            return self._write(request, path)
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs|tags)/(.+)", path)
        if match is None:
            return Reply(200 if path == "/v2/" else 404)
        if match[2] == "manifests" and match[3] in self.manifests:
            media_type, data = self.manifests[match[3]]
            return Reply(headers={"Content-Type": media_type, "Docker-Content-Digest": _digest(data)}, body=data)
        if match[2] == "blobs" and match[3] in self.blobs:
            return self._blob(request, self.blobs[match[3]])
        if match[2] == "tags":
            return self._tag_page(request)
        return Reply(404, body=b'{"errors": []}')

    def _blob(self, request: Request, data: bytes) -> Reply:
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if wanted is None or not self.knows_ranges:
            return Reply(body=data)
        start = int(wanted[1])
        if start >= len(data):
            return Reply(416)
        return Reply(206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, data[start:])

    def _tag_page(self, request: Request) -> Reply:
        """Pages of two, the next one under a cursor that says nothing to anybody else."""
        parts = urlsplit(request.path)
        cursor = parse_qs(parts.query).get("cursor", ["MA=="])[0]
        start = int(base64.urlsafe_b64decode(cursor))
        rest = quote(base64.urlsafe_b64encode(str(start + 2).encode()).decode())
        headers = {"Link": f'<{parts.path}?cursor={rest}&n=2>; rel="next"'} if start + 2 < len(self.tags) else {}
        return Reply(headers=headers, body=json.dumps({"name": "x", "tags": self.tags[start : start + 2]}).encode())

    def _write(self, request: Request, path: str) -> Reply:
        query = parse_qs(urlsplit(request.path).query)
        name = path.rpartition("/")[2]
        if "/manifests/" in path:
            self.add_manifest(name, request.headers["content-type"], request.body)
            return Reply(201)
        if request.method == "POST" and query.get("mount", [""])[0] in self.blobs:
            return Reply(201)
        if request.method == "POST":
            name = f"upload-{len(self.uploads)}"
            self.uploads[name] = bytearray()
            return Reply(202, {"Location": f"{path}{name}?state=1"})
        data = self.uploads.get(name)
        if data is None:
            return Reply(404)
        if request.method == "PATCH" and request.headers["content-range"].partition("-")[0] != str(len(data)):
            return Reply(416)
        data += request.body
        if request.method == "PUT":
            digest = query["digest"][0]
            if _digest(bytes(data)) != digest:
                return Reply(400)
            self.blobs[digest] = bytes(data)
            return Reply(201)
        status = 204 if request.method == "GET" else 202
        return Reply(status, {"Location": f"{path}?state=2", "Range": f"0-{max(0, len(data) - 1)}"})

    def _is_allowed(self, request: Request) -> bool:
        sent = request.headers.get("authorization", "")
        if self.needs_token:
            token = sent.removeprefix("Bearer ")
            self.used[token] = self.used.get(token, 0) + 1
            return token in self.valid_tokens and self.used[token] <= self.token_uses
        return self.password is None or sent == _basic(self.password)

    def _token(self, request: Request) -> Reply:
        if self.password is not None and request.headers.get("authorization") != _basic(self.password):
            return Reply(401)
        token = f"token-{len(self.tokens)}"
        self.tokens.append(token)
        self.valid_tokens = {token}
        return Reply(body=json.dumps({"token": token}).encode())


def _basic(password: tuple[str, str]) -> str:
    return f"Basic {base64.b64encode(':'.join(password).encode()).decode()}"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class _Server(HttpServer):
    def __init__(self, registry: ScriptedRegistry) -> None:
        self.registry = registry
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        length = int(self.headers.get("Content-Length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.server.registry.answer(Request(self.command, self.path, headers, self.rfile.read(length)))
        if reply.is_lost:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if "Transfer-Encoding" not in reply.headers:
            self.send_header("Content-Length", str(len(reply.body) if reply.length is None else reply.length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: reply.cut_after])
        if reply.cut_after is not None or reply.length is not None:
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_PATCH = do_GET

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Tests are quiet."""


@contextlib.contextmanager
def scripted_registry(*, tls: ssl.SSLContext | None = None) -> Iterator[ScriptedRegistry]:
    """A registry on a free port of 127.0.0.1 for the length of a block."""
    registry = ScriptedRegistry()
    with _Server(registry) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        registry.host = f"127.0.0.1:{server.server_address[1]}"
        with answering(server):
            yield registry


class _HangUp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(1 << 16)


@contextlib.contextmanager
def hanging_up_server() -> Iterator[str]:
    """HOST:PORT of something that accepts, reads a little and closes."""
    with socketserver.TCPServer(("127.0.0.1", 0), _HangUp) as server, answering(server):
        yield f"127.0.0.1:{server.server_address[1]}"


@contextlib.contextmanager
def real_registry(
    directory: Path, *, users: Mapping[str, str] | None = None, certificate: Path | None = None
) -> Iterator[str]:
    """HOST:PORT of Debian's docker-registry with its data in a directory; with users it asks for Basic, with a
    certificate and its key in one file it speaks TLS."""
    program = need("docker-registry", "docker-registry")
    address = f"127.0.0.1:{_free_port()}"
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": {"addr": address},
    }
    if certificate is not None:
        config["http"]["tls"] = {"certificate": str(certificate), "key": str(certificate)}
    if users:
        (directory / "htpasswd").write_text("".join(_htpasswd_line(name, word) for name, word in users.items()))
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
    # JSON is YAML.
    (directory / "config.yml").write_text(json.dumps(config))
    with (
        (directory / "registry.log").open("wb") as log,
        subprocess.Popen([program, "serve", str(directory / "config.yml")], stdout=log, stderr=log) as process,
    ):
        try:
            _await_port(address, process, directory / "registry.log")
            yield address
        finally:
            process.terminate()


def _htpasswd_line(name: str, password: str) -> str:
    program = need("htpasswd", "apache2-utils")
    done = subprocess.run([program, "-nbB", name, password], capture_output=True, text=True, check=True)
    return done.stdout.strip() + "\n"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _await_port(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    host, _, port = address.partition(":")
    deadline_s = time.monotonic() + _START_DEADLINE_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"docker-registry does not start: {log.read_text()}")
