"""A repository as a node sees it: the verified revision, its catalogs, and the content of objects as local files.

Everything passes through the cache and nothing leaves unverified: digests over the stored bytes while they arrive,
sizes against the catalog, the chain of signatures in `repo/trust.py`. Any thread; an object is downloaded once at a
time.
"""

import contextlib
import datetime
import io
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from cryptography.hazmat.primitives.asymmetric import rsa
from isal import isal_zlib
from isal.igzip_lib import IsalError

from mica.digest import Digest, Suffix, new_hasher
from mica.errors import IntegrityError, MicaError, TemporaryError
from mica.fetch.cache import Cache
from mica.fetch.counters import TrafficCounter
from mica.fetch.download import Connection, Fetcher
from mica.fetch.parts import SEAM_BYTES, PartFile, keep_list
from mica.fetch.quota import Reservation
from mica.fetch.readahead import around_bytes
from mica.files import replace_file
from mica.flight import Flight
from mica.repo.catalog import Catalog, NestedCatalog
from mica.repo.entry import Chunk
from mica.repo.history import SIZE_LIMIT as HISTORY_LIMIT
from mica.repo.history import History, parse_history
from mica.repo.localname import chunked_name, format_chunk_list
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import Manifest, parse_manifest
from mica.repo.objects import Compression
from mica.repo.trust import CERTIFICATE_LIMIT, RevisionTrust, TrustedRevision
from mica.repo.whitelist import NAME as WHITELIST
from mica.repo.whitelist import SIZE_LIMIT as WHITELIST_LIMIT
from mica.store.base import Readable

_MANIFEST_LIMIT = 64 << 10
_CATALOG_LIMIT = 4 << 30
_OPEN_CATALOGS = 128
_BLOCK = 256 << 10
_CHUNKS_AT_ONCE = 16
_IN_MEMORY_BYTES = 1 << 20


class ObjectName(NamedTuple):
    """All that is needed to fetch an object and to check it. `size` is that of its content in bytes, None if unknown,
    then `limit` bounds it."""

    digest: Digest
    suffix: Suffix
    compression: Compression
    size: int | None
    limit: int = 0

    @property
    def most(self) -> int:
        return self.limit if self.size is None else self.size


def catalog_object(reference: NestedCatalog) -> ObjectName:
    """The object that a catalog is. A size of 0 stands for one that is not known, as in old catalogs."""
    return ObjectName(reference.digest, Suffix.CATALOG, Compression.ZLIB, reference.size or None, _CATALOG_LIMIT)


def open_cached_catalog(cache: Cache, reference: NestedCatalog) -> Catalog:
    """A catalog that is in the cache. Raises IntegrityError if it is none."""
    shown = reference.path.decode("utf-8", "surrogateescape") or "/"
    path = Path(cache.place(reference.digest, Compression.ZLIB, reference.size or None)).absolute()
    return Catalog.open(path, f"{reference.digest} of {shown!r}")


class RepositoryClient:
    def __init__(
        self,
        fqrn: str,
        fetcher: Fetcher,
        cache: Cache,
        master_keys: Sequence[rsa.RSAPublicKey],
        *,
        counter: TrafficCounter | None = None,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self.fqrn = fqrn
        self.counter = counter or TrafficCounter()
        self._fetcher = fetcher
        self._cache = cache
        self._master_keys = master_keys
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
    def cache(self) -> Cache:
        return self._cache

    def close(self) -> None:
        # What was not asked for may be on its way until its server's time-out: nobody waits for it.
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            catalogs, self._catalogs = list(self._catalogs.values()), OrderedDict()
        for catalog in catalogs:
            catalog.close()

    def update(self) -> TrustedRevision:
        """Verify what the servers publish now. While no server answers, the newest revision verified on this node
        counts, as long as its whitelist is valid."""
        known = self._known()
        try:
            documents, revision = self._fetch_verified(0 if known is None else known.published_at)
        except TemporaryError:
            if known is None:
                raise
            return self._verify(self._read_documents(), f"the cache {self._cache.root}", 0)
        self._keep_documents(documents)
        return revision

    def catalog(self, reference: NestedCatalog) -> Catalog:
        """A catalog, opened; of many the least recently used are let go, and closed when nobody reads in them."""
        with self._lock:
            catalog = self._catalogs.get(reference.digest)
            if catalog is not None:
                self._catalogs.move_to_end(reference.digest)
                return catalog
        os.close(self.open_object(catalog_object(reference)))
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

    def open_object(self, name: ObjectName) -> int:
        """A descriptor of the verified content; the caller closes it. Downloads it if it is not in the cache."""
        fd = self._cache.open(name.digest, name.compression, name.size)
        if fd is not None:
            self.counter.add(cache_hits=1)
            return fd
        opened: list[int] = []

        def download() -> None:
            # Whoever led before us may have finished between our look and now: look again, as the only one.
            fd = self._cache.open(name.digest, name.compression, name.size)
            opened.append(self._download(name) if fd is None else fd)

        self._flight.do((name.digest, name.compression, name.size), download)
        if opened:
            return opened[0]
        fd = self._cache.open(name.digest, name.compression, name.size)
        # Somebody else downloaded it, and already it has left the cache again.
        return self._download(name) if fd is None else fd

    def open_local(self, name: ObjectName) -> int | None:
        """A descriptor of what is in the cache, which the caller closes; None if it would have to be downloaded."""
        return self._cache.open(name.digest, name.compression, name.size)

    def open_part(self, chunks: Sequence[Chunk], compression: Compression) -> PartFile:
        """A large file, none of whose chunks are fetched for it. Raises ValueError for impossible chunks."""
        name = chunked_name(chunks, compression)
        keep_list(self._cache, name.digest, format_chunk_list(chunks))
        return PartFile(self._cache, name, chunks)

    @property
    def latency_s(self) -> float:
        """Of a request, at its best lately; 0 before the first."""
        return self._fetcher.connection.latency_s

    def fetch_range(self, part: PartFile, offset: int, size: int) -> None:
        """Have these bytes of a large file here, and begin to fetch what is likely to be read next.

        Raises what fetching the bytes raises. The file's owner must not close it, but let go of it: more may be on its
        way into it.
        """
        needed = part.missing(offset, size)
        if not needed:
            return
        around = around_bytes(self.latency_s)
        for number in part.read_ahead.plan(part.chunks, needed, around=around):
            if not part.has(number):
                self._begin(self._fetch_unasked, part, number)
        self.fetch_chunks(part, needed)

    def fetch_chunks(self, part: PartFile, numbers: Sequence[int]) -> None:
        """Have these chunks in the file, several at a time. Raises what the first of them that failed raised."""
        others = {number: self._begin(self._fetch_chunk, part, number) for number in numbers[1:]}
        try:
            for number in numbers:
                future = others.get(number)
                # What has not begun for lack of threads is done here: nobody waits for what was not asked for.
                if future is None or future.cancel():
                    self._fetch_chunk(part, number)
                else:
                    future.result()
        finally:
            wait([future for future in others.values() if future is not None and not future.cancel()])

    def _begin(self, fetch: Callable[[PartFile, int], None], part: PartFile, number: int) -> Future[None] | None:
        """None if the client was closed meanwhile."""
        try:
            return self._pool.submit(fetch, part, number)
        except RuntimeError:
            return None

    def _fetch_unasked(self, part: PartFile, number: int) -> None:
        # Whoever needs the chunk asks for it, and is told what is wrong; ValueError: everything is closed meanwhile.
        with contextlib.suppress(MicaError, ValueError):
            if self._cache.quota.fits(part.chunks[number].size):
                self._fetch_chunk(part, number)

    def _fetch_chunk(self, part: PartFile, number: int) -> None:
        chunk = part.chunks[number]
        name = ObjectName(chunk.digest, Suffix.CHUNK, part.name.compression, chunk.size)

        def download() -> None:
            if not part.has(number):
                with self._cache.quota.reserving(chunk.size + SEAM_BYTES) as room:
                    self._fetcher.fetch(name.digest.object_path(name.suffix), lambda stream: consume(stream, room))
                self.counter.add(objects_fetched=1)

        def consume(stream: Readable, room: Reservation) -> None:
            # Where a chunk waits until it is verified: in memory if it is small, else beside its place.
            if chunk.size <= _IN_MEMORY_BYTES:
                content = io.BytesIO()
                copy_verified(stream, content, name)
                room.keep(part.put_bytes(number, content.getvalue()))
            else:
                with self._cache.adding_place("", room) as new:
                    copy_verified(stream, new, name)
                    room.keep(part.put(number, new.fd))

        self._flight.do((part.name, number), download)

    def _download(self, name: ObjectName) -> int:
        with self._cache.quota.reserving(name.size or 0) as room:

            def consume(stream: Readable) -> int:
                with self._cache.adding(name.digest, name.compression, name.size, room) as new:
                    copy_verified(stream, new, name)
                    return new.commit()

            fd = self._fetcher.fetch(name.digest.object_path(name.suffix), consume)
        self.counter.add(objects_fetched=1)
        return fd

    def _fetch_verified(self, oldest: int) -> tuple[dict[str, bytes], TrustedRevision]:
        """The documents of a revision belong together: if they do not hold, all are asked of the next host."""
        again = False

        def fetch(path: str, limit: int, *, fresh: bool) -> bytes:
            return self._fetcher.fetch(path, lambda stream: read_whole(stream, limit), fresh=fresh)

        def consume(stream: Readable) -> tuple[dict[str, bytes], TrustedRevision]:
            nonlocal again
            data = read_whole(stream, _MANIFEST_LIMIT)
            manifest, _ = parse_manifest(data, f"The manifest of {self.fqrn}")
            certificate = manifest.certificate.object_path(Suffix.CERTIFICATE)
            again, fresh = True, again
            documents = {
                "manifest": data,
                "certificate": fetch(certificate, CERTIFICATE_LIMIT, fresh=fresh),
                "whitelist": fetch(WHITELIST, WHITELIST_LIMIT, fresh=True) if fresh else whitelist.result(),
            }
            return documents, self._verify(documents, "", oldest)

        # Over a long way it counts that the whitelist does not have to wait for the manifest.
        with ThreadPoolExecutor(1, thread_name_prefix="whitelist") as beside:
            whitelist = beside.submit(fetch, WHITELIST, WHITELIST_LIMIT, fresh=True)
            return self._fetcher.fetch(MANIFEST, consume, fresh=True)

    def _verify(self, documents: dict[str, bytes], where: str, oldest: int) -> TrustedRevision:
        trust = RevisionTrust(self.fqrn, self._master_keys, where=where, oldest=oldest)
        trust.take_manifest(documents["manifest"])
        trust.take_certificate(documents["certificate"])
        trust.take_whitelist(documents["whitelist"], self._now())
        return trust.verified()

    @property
    def _documents_path(self) -> Path:
        return self._cache.root / "repositories" / self.fqrn

    def _keep_documents(self, documents: dict[str, bytes]) -> None:
        text = json.dumps({name: data.hex() for name, data in documents.items()})
        replace_file(self._documents_path, text.encode("ascii"), mode=0o600, durable=False)

    def _read_documents(self) -> dict[str, bytes]:
        try:
            values = json.loads(self._documents_path.read_bytes())
            return {name: bytes.fromhex(values[name]) for name in ("manifest", "certificate", "whitelist")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TemporaryError(f"No server of {self.fqrn} answers and nothing of it is kept here.") from error

    def _known(self) -> Manifest | None:
        """The newest manifest that was verified on this node; a damaged record counts as none."""
        try:
            return parse_manifest(self._read_documents()["manifest"], "kept")[0]
        except MicaError:
            return None


def read_whole(stream: Readable, limit: int) -> bytes:
    """All of a stream. Raises IntegrityError when it is longer than `limit`."""
    data = b""
    while block := stream.read(limit + 1 - len(data)):
        data += block
    if len(data) > limit:
        raise IntegrityError(f"An answer has more than the {limit} bytes it may have.")
    return data


class Sink(Protocol):
    """Where plain content goes, before it is known to be right."""

    def write(self, data: bytes, /) -> object: ...


def copy_verified(stream: Readable, sink: Sink, name: ObjectName) -> None:
    """Hash what arrives and write what it unpacks to, never more than is allowed. Raises IntegrityError."""
    hasher = new_hasher(name.digest.algorithm)
    unpack = _Unpacker(sink, name)
    while block := stream.read(_BLOCK):
        hasher.update(block)
        unpack.take(block)
    found = hasher.finish()
    if found != name.digest:
        raise IntegrityError(f"Object {name.digest} has other content: its bytes hash to {found}.")
    unpack.finish()


class _Unpacker:
    """Plain content of a stream into a sink. Damage is told only after the digest was compared: a wrong digest is the
    better sentence."""

    def __init__(self, sink: Sink, name: ObjectName) -> None:
        self._sink = sink
        self._name = name
        self._inflater = None if name.compression is Compression.NONE else isal_zlib.decompressobj()
        self._written = 0
        self._damage = ""

    def take(self, block: bytes) -> None:
        if self._damage:
            return
        if self._inflater is None:
            self._write(block)
            return
        while block and not self._damage:
            if self._inflater.eof:
                self._damage = "is followed by other bytes"
                return
            try:
                plain = self._inflater.decompress(block, min(_BLOCK * 4, self._name.most + 1 - self._written) or 1)
            except IsalError:  # type: ignore[misc]  # the stub lacks its base
                self._damage = "is not a zlib stream"
                return
            self._write(plain)
            block = self._inflater.unconsumed_tail or self._inflater.unused_data

    def finish(self) -> None:
        if not self._damage and self._inflater is not None and not self._inflater.eof:
            self._drain()
        if not self._damage and self._name.size is not None and self._written != self._name.size:
            self._damage = f"unpacks to {self._written} bytes and not to {self._name.size}"
        if self._damage:
            raise IntegrityError(f"Object {self._name.digest} {self._damage}.")

    def _drain(self) -> None:
        assert self._inflater is not None
        while not self._inflater.eof and not self._damage:
            plain = self._inflater.decompress(b"", _BLOCK)
            if not plain:
                self._damage = "is cut short"
            self._write(plain)

    def _write(self, plain: bytes) -> None:
        self._written += len(plain)
        if self._written > self._name.most:
            self._damage = f"unpacks to more than the {self._name.most} bytes it may have"
            return
        self._sink.write(plain)
