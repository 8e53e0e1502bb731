"""A static web server for repositories in directories, for tests, demonstrations and small sites.

It serves `/cvmfs/<fqrn>/<path>` only: names that a repository can have, no listing, no way out of the directory.
Headers as the reference server sets them: `.cvmfs*` 61 seconds, objects three days, no entity tags; byte ranges (one
range); the kernel copies the bytes. Use nginx or Apache in production.
"""

import os
import re
import stat
import threading
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from mica.httpbase import TcpHandler, TcpServer

POINTER_SECONDS = 61
OBJECT_SECONDS = 259200
_PATH = re.compile(
    r"/cvmfs/(?P<fqrn>[A-Za-z0-9][A-Za-z0-9._-]{0,59})/"
    r"(?P<path>\.cvmfs[a-zA-Z0-9._-]{1,80}|data/[0-9a-f]{2}/[0-9a-f]{38}(?:-rmd160|-shake128)?[A-Z]?)"
)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class RepositoryServer(TcpServer):
    """`served_requests` and `served_bytes` count requests and bytes of bodies."""

    def __init__(self, address: tuple[str, int], storages: Mapping[str, Path]) -> None:
        self.storages = {fqrn: os.fspath(path) for fqrn, path in storages.items()}
        self.served_requests = 0
        self.served_bytes = 0
        self.lock = threading.Lock()
        super().__init__(address, _Handler)


class _Handler(TcpHandler):
    server: RepositoryServer

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def _answer(self, *, send_body: bool) -> None:
        with self.server.lock:
            self.server.served_requests += 1
        match = _PATH.fullmatch(self.path.partition("?")[0])
        storage = self.server.storages.get(match["fqrn"]) if match else None
        if match is None or storage is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        try:
            fd = os.open(f"{storage}/{match['path']}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        try:
            self._send_file(fd, match["path"], send_body=send_body)
        finally:
            os.close(fd)

    def _refuse(self, status: HTTPStatus, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_file(self, fd: int, path: str, *, send_body: bool) -> None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        size = status.st_size
        start, end = 0, size
        # Without validators an If-Range always fails, and then the whole file is sent (RFC 9110, 13.1.5 and 14.2).
        if send_body and "If-Range" not in self.headers and self.headers.get("Range", "").lstrip().startswith("bytes"):
            wanted = _wanted_range(self.headers["Range"], size)
            if wanted is None:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, Content_Range=f"bytes */{size}")
                return
            start, end = wanted
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        else:
            self.send_response(HTTPStatus.OK)
        is_pointer = path.startswith(".cvmfs")
        self.send_header("Content-Type", "application/x-cvmfs" if is_pointer else "application/octet-stream")
        self.send_header("Cache-Control", f"max-age={POINTER_SECONDS if is_pointer else OBJECT_SECONDS}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if send_body and end > start:  # sendfile refuses to send nothing
            self._send_body(fd, start, end)

    def _send_body(self, fd: int, start: int, end: int) -> None:
        self.wfile.flush()
        # socket.sendfile and not os.sendfile: a socket with a time-out does not block, and large bodies outrun it.
        with open(fd, "rb", closefd=False) as file:
            sent = self.connection.sendfile(file, start, end - start)
        if sent < end - start:
            self.close_connection = True  # the file became shorter meanwhile: the promised length cannot be kept
        with self.server.lock:
            self.server.served_bytes += sent


def _wanted_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last-plus-one byte of a single range; None if it cannot be satisfied (RFC 9110, 14.1.2)."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        start, end = max(size - int(last), 0), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
    return (start, end) if start < end else None
