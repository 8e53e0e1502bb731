"""Requests to one bucket, by obstore: the only module that imports it, and where its exceptions become ours.

Keys are below the prefix of a storage. Requests that may be repeated are, with growing and random pauses: after a
failed connection, a status of 5xx or 429, and, for those that change nothing or always the same, a lost answer. Any
thread; obstore releases the interpreter lock while it waits.
"""

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store as Bucket

from mica.errors import MicaError, NotFoundError
from mica.files import mapped_os_errors
from mica.store.base import StoredFile
from mica.store.s3access import Credentials, S3Options, S3Place, endpoint_url, find_credentials, region_name
from mica.store.s3errors import Failure, explain, parse_failure

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Credential

NEVER: Final = ".cvmfsnever"
_PART_BYTES: Final = 8 << 20
_PARTS_AT_ONCE: Final = 3
_WHOLE_BYTES: Final = 1 << 20
_BLOCK_BYTES: Final = 1 << 20
_RELOAD_CREDENTIALS_S: Final = 300


@dataclass(frozen=True, slots=True)
class S3Limits:
    """Seconds for a connection, for a request with its answer, and until a request is no longer repeated."""

    connect_s: float = 5.0
    request_s: float = 120.0
    retries: int = 8
    retry_s: float = 180.0


class S3Head(NamedTuple):
    """`changed_at` is in whole seconds."""

    size_bytes: int
    changed_at: float
    etag: str


class UnmetConditionError(Exception):
    """A request was not carried out, because the object is another than expected. Never leaves the room."""


class UnansweredError(Exception):
    """Nobody knows whether a request was carried out. Never leaves the room."""

    def __init__(self, error: MicaError) -> None:
        super().__init__(str(error))
        self.error = error


class S3Client:
    def __init__(self, place: S3Place, options: S3Options, *, limits: S3Limits | None = None) -> None:
        """Raises UserError if there are no credentials, or the options are wrong."""
        self.limits = limits or S3Limits()
        self.where = place.text
        self.region = region_name(options)
        endpoint = endpoint_url(options)
        self.server = endpoint or f"AWS in {self.region}"
        self.origin = find_credentials(place, options).origin
        self._bucket = self._opened(place, options, endpoint, self.limits)
        # The conditions of a replacement are judged by the present state, so obstore must not repeat it unseen.
        self._once = self._opened(place, options, endpoint, self.limits, retries=0)

    def _opened(
        self, place: S3Place, options: S3Options, endpoint: str, limits: S3Limits, *, retries: int | None = None
    ) -> Bucket:
        def credentials() -> "S3Credential":
            # A file with temporary credentials is replaced now and then: it is read again.
            found = find_credentials(place, options)
            return _credential(found)

        config: S3Config = {
            "region": self.region, "virtual_hosted_style_request": options.addressing == "virtual",
            "conditional_put": "etag",
        }  # fmt: skip
        if endpoint:
            host = endpoint.replace("://", f"://{place.bucket}.") if options.addressing == "virtual" else endpoint
            config["endpoint"] = host
        return Bucket(
            place.bucket,
            prefix=place.prefix or None,
            config=config,
            credential_provider=credentials,
            client_options={
                "allow_http": True,
                "connect_timeout": datetime.timedelta(seconds=limits.connect_s),
                "timeout": datetime.timedelta(seconds=limits.request_s),
                "user_agent": "mica",
            },
            retry_config={
                "max_retries": limits.retries if retries is None else retries,
                "retry_timeout": datetime.timedelta(seconds=limits.retry_s),
            },
        )

    def put(self, key: str, data: bytes, headers: dict[str, str], *, doing: str) -> None:
        """Put an object whatever was there."""
        with self._border(doing):
            obstore.put(self._bucket, key, data, attributes=headers, use_multipart=False)

    def put_file(self, key: str, file: Path, headers: dict[str, str], *, doing: str) -> None:
        with mapped_os_errors(f"read {file}"):
            source = open(file, "rb")  # noqa: SIM115 - closed below
        with source, self._border(doing):
            obstore.put(
                self._bucket, key, source, attributes=headers, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE
            )

    def put_if(self, key: str, data: bytes, headers: dict[str, str], *, etag: str | None, doing: str) -> None:
        """Put an object if it has an ETag, or with None if it is not there. Not repeated. Raises UnmetConditionError if
        it is another, UnansweredError if nobody knows whether it was put."""
        mode: Any = "create" if etag is None else {"e_tag": etag}
        try:
            with self._once_border(doing):
                obstore.put(self._once, key, data, attributes=headers, mode=mode, use_multipart=False)
        except NotFoundError as error:  # the answer of some servers where there is no object to compare
            raise UnmetConditionError from error

    def put_once(self, key: str, data: bytes, headers: dict[str, str], *, doing: str) -> None:
        """Put an object whatever was there. Not repeated. Raises UnansweredError if nobody knows whether it was put."""
        with self._once_border(doing):
            obstore.put(self._once, key, data, attributes=headers, use_multipart=False)

    def head(self, key: str, *, doing: str) -> S3Head | None:
        """None also for a bucket that is missing: the answer does not tell which it is."""
        try:
            return _head_of(obstore.head(self._bucket, key))
        except (BaseError, OSError) as error:
            failure = parse_failure(str(error))
            if failure.is_missing_key:
                return None
            if failure.status and not failure.code:
                self.look(doing=doing)
            raise self.explained(failure, doing) from error

    def look(self, *, doing: str) -> None:
        """Ask for an object that is never there. Raises what is wrong with the bucket or the credentials: the answer to
        a GET has a code, and that to a HEAD has none."""
        with contextlib.suppress(NotFoundError), self._border(doing):
            obstore.get(self._bucket, NEVER)

    @contextlib.contextmanager
    def get(self, key: str, *, doing: str) -> "Iterator[tuple[S3Body, S3Head]]":
        """Raises NotFoundError."""
        with self._border(doing):
            result = obstore.get(self._bucket, key)
            head = _head_of(result.meta)
            # Small content is read at once, and so is one content even if it is replaced meanwhile.
            whole = bytes(result.bytes()) if head.size_bytes <= _WHOLE_BYTES else None
        if whole is not None:
            yield S3Body(iter([whole]), self, doing), head
        else:
            yield S3Body(iter(result.stream(_BLOCK_BYTES)), self, doing), head

    def read(self, key: str, *, limit: int, doing: str) -> tuple[bytes, S3Head] | None:
        """At most `limit` bytes; None if there is no such object."""
        try:
            with self.get(key, doing=doing) as (body, head):
                return body.read(limit), head
        except NotFoundError:
            return None

    def list(self, prefix: str, *, doing: str) -> Iterator[StoredFile]:
        with self._border(doing):
            pages = iter(obstore.list(self._bucket, prefix or None))
        while True:
            with self._border(doing):
                page = next(pages, None)
            if page is None:
                return
            for meta in page:
                yield StoredFile(meta["path"], meta["size"], meta["last_modified"].timestamp())

    def delete(self, keys: Sequence[str], *, doing: str) -> None:
        """Missing ones are no error."""
        with self._border(doing):
            obstore.delete(self._bucket, keys)

    @contextlib.contextmanager
    def _border(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise self.explained(parse_failure(str(error)), doing) from error

    @contextlib.contextmanager
    def _once_border(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            failure = parse_failure(str(error))
            if failure.is_unmet_condition:
                raise UnmetConditionError from error
            explained = self.explained(failure, doing)
            if failure.is_unanswered:
                raise UnansweredError(explained) from error
            raise explained from error

    def explained(self, failure: Failure, doing: str) -> MicaError:
        return explain(failure, doing, where=self.where, server=self.server, origin=self.origin, region=self.region)


class S3Body:
    """Reads what comes in blocks. Raises TemporaryError where it breaks off."""

    def __init__(self, blocks: "Iterator[Any]", client: S3Client, doing: str) -> None:
        self._blocks = blocks
        self._client = client
        self._doing = doing
        self._left = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        """As many bytes as were asked for, and fewer only at the end."""
        parts = []
        while size:
            if not self._left:
                with self._client._border(self._doing):  # noqa: SLF001 - one border for both
                    block = next(self._blocks, None)
                if block is None:
                    break
                self._left = memoryview(bytes(block))
                continue
            part = self._left[:size]
            self._left = self._left[len(part) :]
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _head_of(meta: Any) -> S3Head:
    return S3Head(meta["size"], meta["last_modified"].timestamp(), meta["e_tag"] or "")


def _credential(found: Credentials) -> "S3Credential":
    now = datetime.datetime.now(datetime.UTC)
    return {
        "access_key_id": found.key_id,
        "secret_access_key": found.secret,
        "token": found.token or None,
        "expires_at": now + datetime.timedelta(seconds=_RELOAD_CREDENTIALS_S),
    }
