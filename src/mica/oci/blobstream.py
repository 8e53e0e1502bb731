"""A blob of a registry as a stream that survives broken connections: it goes on where it stopped, by Range.

It checks only that as many bytes come as the descriptor says; the reader checks digests. One thread per stream.
"""

import time
from collections.abc import Callable

import urllib3

from mica.errors import IntegrityError, TemporaryError
from mica.oci.transport import UnreachableError, discard, explained_http_error

# More than a registry on a bad line needs; few enough to give up on a registry that sends a byte at a time. The count
# begins again after every _PROGRESS_BYTES, so that the connection of a large layer may break more often.
_RESUME_LIMIT = 8
_PROGRESS_BYTES = 4 << 20
_PATIENCE_S = 60.0
_SLOWEST_BYTES_PER_S = 1024
_SKIP_SIZE = 128 << 10


class BlobStream:
    """`fetch(offset)` opens the blob from there: HTTP 206, or 200 from the beginning."""

    def __init__(
        self, fetch: Callable[[int], urllib3.BaseHTTPResponse], *, size: int, host: str, what: str, backoff_s: float
    ) -> None:
        self._fetch = fetch
        self._size = size
        self._host = host
        self._what = what
        self._backoff_s = backoff_s
        self._offset = 0
        self._resumes = 0
        self._counted_from = 0
        self._waited_s = 0.0
        self._response = self._open()

    def read(self, size: int, /) -> bytes:
        """Raises TemporaryError where the registry breaks off for good, IntegrityError for a wrong length."""
        started_s = time.monotonic()
        while not (data := self._read_once(size)) and self._offset < self._size:
            self._resume()
        self._offset += len(data)
        self._waited_s += time.monotonic() - started_s
        if self._waited_s > _PATIENCE_S and self._offset / self._waited_s < _SLOWEST_BYTES_PER_S:
            raise TemporaryError(f"{self._host} sends {self._what} slower than {_SLOWEST_BYTES_PER_S} bytes a second.")
        return data

    def _read_once(self, size: int) -> bytes:
        try:
            return self._response.read(size, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError):
            # The caller resumes, as after an end before the size.
            return b""

    def _resume(self) -> None:
        if self._offset - self._counted_from >= _PROGRESS_BYTES:
            self._resumes, self._counted_from = 0, self._offset
        while True:
            self._response.close()
            if self._resumes == _RESUME_LIMIT:
                raise UnreachableError(
                    f"{self._host} broke off {self._what} after {self._offset} of {self._size} bytes, "
                    f"{_RESUME_LIMIT} times.",
                )
            self._resumes += 1
            time.sleep(self._backoff_s * min(self._resumes, 8))
            try:
                self._response = self._open()
            except UnreachableError:
                continue
            return

    def _open(self) -> urllib3.BaseHTTPResponse:
        response = self._fetch(self._offset)
        try:
            self._check_start(response)
        except BaseException:
            response.close()
            raise
        return response

    def _check_start(self, response: urllib3.BaseHTTPResponse) -> None:
        if response.status == 416:
            raise IntegrityError(f"{self._what} on {self._host} is shorter than the {self._size} bytes it should have.")
        start = 0
        if response.status == 206:
            start = _range_start(response.headers.get("Content-Range", ""))
            if start != self._offset:
                raise IntegrityError(f"{self._host} sends another part of {self._what} than was asked for.")
        length = response.headers.get("Content-Length", "")
        if length.isascii() and length.isdecimal() and len(length) < 20 and start + int(length) != self._size:
            raise IntegrityError(
                f"{self._what} on {self._host} has {start + int(length)} bytes instead of {self._size}."
            )
        if start < self._offset:
            self._skip(response)

    def _skip(self, response: urllib3.BaseHTTPResponse) -> None:
        """The server knows no ranges: skip the bytes that were read before."""
        missing = self._offset
        try:
            while missing and (data := response.read(min(missing, _SKIP_SIZE), decode_content=False)):
                missing -= len(data)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise explained_http_error(error, self._host, what=self._what) from error
        if missing:
            raise UnreachableError(f"{self._host} broke off {self._what}.")

    def close(self) -> None:
        if self._offset == self._size:
            discard(self._response)
        else:
            self._response.close()


def _range_start(header: str) -> int:
    """First byte of `bytes 5-9/10`; -1 for anything else."""
    text = header.removeprefix("bytes ").partition("-")[0]
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1
