"""A repository as a node sees it: the verified revision, its catalogs, and the content of objects as local files.

Everything passes through the cache and nothing leaves unverified: digests over the stored bytes while they arrive,
sizes against the catalog, the chain of signatures in `repo/trust.py`. Any thread; an object has one download at a
time.
"""

import contextlib
import datetime
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric import rsa

from mica.cache.cache import Cache
from mica.cache.partfiles import MARGIN_BYTES, SEAM_BYTES, PartFile, keep_list
from mica.cache.quota import Reservation
from mica.cache.readahead import around_bytes
from mica.digest import Digest, Suffix
from mica.errors import MicaError, TemporaryError, UserError
from mica.fetch.counters import TrafficCounter
from mica.fetch.documents import Documents, fetch_revision, verify_documents
from mica.fetch.download import Connection, Consumer, Fetcher, PieceFetcher, Result
from mica.fetch.trustrecord import TrustRecord
from mica.fetch.verify import copy_verified
from mica.flight import Flight
from mica.repo.blacklist import Blacklist
from mica.repo.catalog import CATALOG_LIMIT, Catalog, NestedCatalog
from mica.repo.chunklist import format_chunk_list
from mica.repo.entry import Chunk
from mica.repo.history import SIZE_LIMIT as HISTORY_LIMIT
from mica.repo.history import History, parse_history
from mica.repo.localname import chunked_name
from mica.repo.manifest import Manifest
from mica.repo.objectname import ObjectName, chunk_object
from mica.repo.objects import Compression
from mica.repo.trust import NOTHING_KNOWN, KnownRevision, RevisionTrust, TrustedRevision
from mica.streams import Readable
from mica.texts import quoted_path

_OPEN_CATALOGS = 128
_CHUNKS_AT_ONCE = 16
_CHUNKS_WAITING = 1024
"""A read can need any number of them: a publisher may cut a file into single bytes."""
_IN_MEMORY_BYTES = 1 << 20


def catalog_object(reference: NestedCatalog) -> ObjectName:
    """The object of a catalog. A size of 0 means that the size is not known, as in old catalogs."""
    return ObjectName(reference.digest, Suffix.CATALOG, Compression.ZLIB, reference.size or None, CATALOG_LIMIT)


def open_cached_catalog(cache: Cache, reference: NestedCatalog) -> Catalog:
    """A catalog that is in the cache. Raises IntegrityError for a file that is not a catalog."""
    path = Path(cache.place(catalog_object(reference))).absolute()
    return Catalog.open(path, f"{reference.digest} of {quoted_path(reference.path)}")


class RepositoryClient:
    def __init__(
        self,
        fqrn: str,
        fetcher: Fetcher,
        cache: Cache,
        master_keys: Sequence[rsa.RSAPublicKey] | Callable[[], Sequence[rsa.RSAPublicKey]],
        *,
        external: PieceFetcher | None = None,
        record: TrustRecord | None = None,
        blacklist: Callable[[], Blacklist] = Blacklist,
        counter: TrafficCounter | None = None,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        """`external` fetches the files whose content is not in the repository. Without a `record` no revision is too
        old, and no revision is known while no server answers. `blacklist` is asked at each update, and so are
        `master_keys` that can be called: a mount may outlive a master key."""
        self.fqrn = fqrn
        self.counter = counter or TrafficCounter()
        self._fetcher = fetcher
        self._external = external
        self._cache = cache
        self._master_keys = master_keys if callable(master_keys) else lambda: master_keys
        self._record = record
        self._blacklist = blacklist
        self._now = now
        self._flight: Flight[None] = Flight()
        self._catalogs: OrderedDict[Digest, Catalog] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_CHUNKS_AT_ONCE, thread_name_prefix="chunks")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connection(self) -> Connection:
        return self._fetcher.connection

    @property
    def external_host(self) -> str | None:
        """The host that the next external file would come from; None if none is configured."""
        return None if self._external is None else self._external.connection.host

    @property
    def cache(self) -> Cache:
        return self._cache

    def close(self) -> None:
        # Chunks that no read needs may be on their way until their server's time-out: do not wait for them.
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            catalogs, self._catalogs = list(self._catalogs.values()), OrderedDict()
        for catalog in catalogs:
            catalog.close()

    def update(self) -> TrustedRevision:
        """Verify what the servers publish now. While no server answers, the newest revision verified on this host
        counts, as long as its whitelist is valid."""
        if self._record is None:
            return self._fetch_verified(NOTHING_KNOWN)[1]
        known = self._record.known()
        try:
            documents, revision = self._fetch_verified(known)
        except TemporaryError:
            kept = self._record.read()
            if kept is None:
                raise
            return self._verify(kept, os.fspath(self._record.path), NOTHING_KNOWN)[1]
        self._record.keep(documents)
        return revision

    def catalog(self, reference: NestedCatalog) -> Catalog:
        """A catalog, opened. Only the most recently used stay open; another one closes when its last reader ends."""
        with self._lock:
            catalog = self._catalogs.get(reference.digest)
            if catalog is not None:
                self._catalogs.move_to_end(reference.digest)
                return catalog
        self.fetch_object(catalog_object(reference))
        catalog = open_cached_catalog(self._cache, reference)
        with self._lock:
            known = self._catalogs.setdefault(reference.digest, catalog)
            if known is catalog and len(self._catalogs) > _OPEN_CATALOGS:
                self._catalogs.popitem(last=False)
        if known is not catalog:
            catalog.close()
        return known

    def history(self, manifest: Manifest) -> History:
        if manifest.history is None:
            return History(self.fqrn)
        name = ObjectName(manifest.history, Suffix.HISTORY, Compression.ZLIB, None, HISTORY_LIMIT)
        fd = self.open_object(name)
        with os.fdopen(fd, "rb") as file:
            return parse_history(file.read(), f"History {manifest.history} of {self.fqrn}")

    def open_object(self, name: ObjectName, external: bytes | None = None) -> int:
        """A descriptor of the verified content; the caller closes it. Downloads it if it is not in the cache; an
        external file is downloaded by its path in the repository. Raises what downloading raises."""
        fd = self._cache.open(name)
        if fd is not None:
            self.counter.add(cache_hits=1)
            return fd
        opened: list[int] = []

        def download() -> None:
            # Another thread may have downloaded it since we looked: look again, as the only thread.
            fd = self._cache.open(name)
            opened.append(self._download(name, external) if fd is None else fd)

        self._flight.do((name.digest, name.compression, name.size), download)
        if opened:
            return opened[0]
        fd = self._cache.open(name)
        # Another thread downloaded it, and it has left the cache again already.
        return self._download(name, external) if fd is None else fd

    def fetch_object(self, name: ObjectName) -> None:
        """Bring the verified content into the cache. Raises what downloading raises."""
        os.close(self.open_object(name))

    def open_local(self, name: ObjectName) -> int | None:
        """A descriptor of content in the cache, which the caller closes; None if it would have to be downloaded."""
        return self._cache.open(name)

    def open_part(self, chunks: Sequence[Chunk], compression: Compression) -> PartFile:
        """A large file, opened without fetching any chunk. Raises ValueError for impossible chunks."""
        name = chunked_name(chunks, compression)
        keep_list(self._cache, name.digest, format_chunk_list(chunks))
        return PartFile(self._cache, name, chunks)

    @property
    def latency_s(self) -> float:
        """The lowest latency of recent requests; 0 before the first."""
        return self._fetcher.connection.latency_s

    def fetch_range(self, part: PartFile, offset: int, size: int, external: bytes | None = None) -> None:
        """Fetch these bytes of a large file, and begin to fetch what is likely to be read next. `external` is the path
        of an external file.

        Raises what fetching the bytes raises. The file's owner must not close it, only drop its reference: more chunks
        may be on their way into it.
        """
        needed = part.missing(offset, size)
        if not needed:
            return
        around = around_bytes(self.latency_s)
        for number in part.read_ahead.plan(part.chunks, needed, around=around)[:_CHUNKS_WAITING]:
            if not part.has(number):
                self._begin(self._fetch_unasked, part, number, external)
        self.fetch_chunks(part, needed, external)

    def fetch_chunks(self, part: PartFile, numbers: Sequence[int], external: bytes | None = None) -> None:
        """Bring these chunks into the file, several at a time. Raises the error of the first one that failed."""
        with part.growing(numbers):
            for start in range(0, len(numbers), _CHUNKS_WAITING):
                self._fetch_together(part, numbers[start : start + _CHUNKS_WAITING], external)

    def _fetch_together(self, part: PartFile, numbers: Sequence[int], external: bytes | None) -> None:
        others = {number: self._begin(self._fetch_chunk, part, number, external) for number in numbers[1:]}
        try:
            for number in numbers:
                future = others.get(number)
                # A chunk that no thread has begun is fetched here: it must not wait behind chunks that no read needs.
                if future is None or future.cancel():
                    self._fetch_chunk(part, number, external)
                else:
                    future.result()
        finally:
            wait([future for future in others.values() if future is not None and not future.cancel()])

    def _begin(
        self, fetch: Callable[[PartFile, int, bytes | None], None], part: PartFile, number: int, external: bytes | None
    ) -> Future[None] | None:
        """None if the client was closed meanwhile."""
        try:
            return self._pool.submit(fetch, part, number, external)
        except RuntimeError:
            return None

    def _fetch_unasked(self, part: PartFile, number: int, external: bytes | None) -> None:
        # A read that needs the chunk fetches it again and gets the error. ValueError: everything was closed meanwhile.
        with contextlib.suppress(MicaError, ValueError):
            if self._cache.quota.fits(part.chunks[number].size):
                self._fetch_chunk(part, number, external)

    def _fetch_chunk(self, part: PartFile, number: int, external: bytes | None) -> None:
        chunk = part.chunks[number]
        name = chunk_object(chunk, part.name.compression)

        def download() -> None:
            if not part.has(number):
                with self._cache.reserving(chunk.size + SEAM_BYTES) as room:
                    self._fetch(name, lambda stream: consume(stream, room), external, chunk.offset)
                self.counter.add(objects_fetched=1)

        def may_fill(room: Reservation) -> bool:
            return part.is_filling_up(number) and room.extend(MARGIN_BYTES)

        def consume(stream: Readable, room: Reservation) -> None:
            # Where a chunk waits until it is verified: in memory if it is small, else beside its place.
            if chunk.size <= _IN_MEMORY_BYTES:
                content = io.BytesIO()
                copy_verified(stream, content, name)
                room.keep(part.put_bytes(number, content.getvalue(), fill=may_fill(room)))
            else:
                with self._cache.adding_place("", room) as new:
                    copy_verified(stream, new, name)
                    room.keep(part.put(number, new.fd, fill=may_fill(room)))

        self._flight.do((part.name, number), download)

    def _fetch(
        self, name: ObjectName, consume: Consumer[Result], external: bytes | None, offset: int | None = None
    ) -> Result:
        """The object's bytes from the repository, or from the place of an external file: at `offset` of a chunk."""
        if external is None:
            return self._fetcher.fetch(name.path, consume)
        path = external.lstrip(b"/").decode("utf-8", "surrogateescape")
        if self._external is None:
            raise UserError(
                f"/{path} in {self.fqrn} is an external file, and no server of external files is configured.",
                hint="Give its server with --external-url, or as external_urls in the configuration.",
            )
        piece = None if offset is None else range(offset, offset + name.most)
        return self._external.fetch(path, consume, piece=piece)

    def _download(self, name: ObjectName, external: bytes | None) -> int:
        with self._cache.reserving(name.size or 0) as room:

            def consume(stream: Readable) -> int:
                with self._cache.adding(name, room) as new:
                    copy_verified(stream, new, name)
                    return new.commit()

            fd = self._fetch(name, consume, external)
        self.counter.add(objects_fetched=1)
        return fd

    def _fetch_verified(self, known: KnownRevision) -> tuple[Documents, TrustedRevision]:
        return fetch_revision(
            self._fetcher, self.fqrn, self._master_keys(), known=known, blacklist=self._blacklist(), now=self._now
        )

    def _verify(self, documents: Documents, where: str, known: KnownRevision) -> tuple[Documents, TrustedRevision]:
        """The documents that are valid, and the revision that they describe."""
        trust = RevisionTrust(self.fqrn, self._master_keys(), where=where, known=known, blacklist=self._blacklist())
        return verify_documents(trust, documents, self._now())
