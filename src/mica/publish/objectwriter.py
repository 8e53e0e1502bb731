"""File contents into objects: cut, compressed, hashed and stored by a few threads while the caller reads on.

Small files travel in batches, because handing one file at a time to a thread costs more than the file (measured: 10,000
files of 5 KB, 1.9 s one by one, 0.8 s in batches). The data in flight is bounded: memory does not grow with the input.
The caller's thread calls `add` and `finish`; the owners of the data get their `content` at `finish` at the latest.
"""

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from mica.digest import Digest, Suffix
from mica.errors import UserError
from mica.publish.rules import ObjectRules
from mica.repo.chunklist import CHUNKS_MAX
from mica.repo.cutting import ChunkRule, read_pieces, read_up_to
from mica.repo.entry import Chunk, content_flags
from mica.repo.objects import pack
from mica.store.base import ObjectStore
from mica.streams import Readable

_BATCH_BYTES = 512 << 10
_BATCH_FILES = 64
IN_FLIGHT_BYTES = 48 << 20


class Content(NamedTuple):
    """A file's data as a catalog row has it: one object or chunks, and their flags."""

    digest: Digest | None
    chunks: tuple[Chunk, ...]
    flags: int


class HasContent(Protocol):
    """The caller's value for a file."""

    content: Content | None


class _Piece(NamedTuple):
    """Bytes of a file (`number` None) or of its n-th chunk on the way to the store."""

    owner: HasContent
    number: int | None
    data: bytes


class _Stored(NamedTuple):
    owner: HasContent
    number: int | None
    digest: Digest


class ObjectWriter:
    """Use as a context manager; an error that leaves it drops data that was not stored yet. `new_objects` and
    `stored_bytes` count the objects that the store did not have; they are complete when the store is in sync."""

    def __init__(
        self,
        store: ObjectStore,
        rules: ObjectRules,
        *,
        threads: int | None = None,
        in_flight_bytes: int = IN_FLIGHT_BYTES,
    ) -> None:
        self._limit_bytes = in_flight_bytes
        self._store = store
        self._rules = rules
        self._pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="objects")
        self._batch: list[_Piece] = []
        self._batch_bytes = 0
        self._running: deque[tuple[Future[list[_Stored]], int]] = deque()
        self._in_flight = 0
        self._chunks: dict[int, tuple[HasContent, list[int], dict[int, Digest]]] = {}
        self._lock = threading.Lock()
        self.stored_bytes = 0
        self.new_objects = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, owner: HasContent, stream: Readable, size: int, *, rule: ChunkRule | None = None) -> None:
        """Take a file's data from a stream that ends after `size` bytes. `rule` replaces the repository's for cutting.
        Raises the errors of storing earlier files."""
        rule = rule or self._rules.chunking
        if size <= rule.minimum:
            self._add_piece(_Piece(owner, None, read_up_to(stream, size)))
            return
        sizes: list[int] = []
        digests: dict[int, Digest] = {}
        pieces = read_pieces(stream, rule, size)
        first = next(pieces)
        if len(first) == size:
            self._add_piece(_Piece(owner, None, first))
            return
        self._chunks[id(owner)] = (owner, sizes, digests)
        self._add_chunk(owner, sizes, first)
        for piece in pieces:
            self._add_chunk(owner, sizes, piece)

    def add_bytes(self, owner: HasContent, data: bytes) -> None:
        self._add_piece(_Piece(owner, None, data))

    def finish(self) -> None:
        """Wait until everything added is stored and every owner has its content."""
        self._submit()
        while self._running:
            self._collect()
        for owner, sizes, digests in self._chunks.values():
            owner.content = self._chunked(sizes, digests)
        self._chunks.clear()

    def _add_chunk(self, owner: HasContent, sizes: list[int], data: bytes) -> None:
        if len(sizes) == CHUNKS_MAX:
            raise UserError(
                f"A file would have more than {CHUNKS_MAX} chunks, which clients refuse.",
                hint="Create the repository with larger chunks (mica repo create --chunk-sizes).",
            )
        self._add_piece(_Piece(owner, len(sizes), data))
        sizes.append(len(data))

    def _add_piece(self, piece: _Piece) -> None:
        self._batch.append(piece)
        self._batch_bytes += len(piece.data)
        if self._batch_bytes >= _BATCH_BYTES or len(self._batch) >= _BATCH_FILES:
            self._submit()

    def _submit(self) -> None:
        if not self._batch:
            return
        while self._running and (self._in_flight + self._batch_bytes > self._limit_bytes or self._running[0][0].done()):
            self._collect()
        self._running.append((self._pool.submit(self._store_batch, self._batch), self._batch_bytes))
        self._in_flight += self._batch_bytes
        self._batch, self._batch_bytes = [], 0

    def _collect(self) -> None:
        future, size = self._running.popleft()
        self._in_flight -= size
        for owner, number, digest in future.result():
            if number is None:
                owner.content = Content(digest, (), content_flags(self._rules.algorithm, self._rules.compression))
            else:
                self._chunks[id(owner)][2][number] = digest

    def _store_batch(self, batch: list[_Piece]) -> list[_Stored]:
        results = []
        for owner, number, data in batch:
            packed = pack(data, self._rules.algorithm, self._rules.compression)
            suffix = Suffix.FILE if number is None else Suffix.CHUNK
            self._store.put(packed.digest.object_path(suffix), packed.stored, count_new=self._count_new)
            results.append(_Stored(owner, number, packed.digest))
        return results

    def _count_new(self, size_bytes: int) -> None:
        with self._lock:
            self.new_objects += 1
            self.stored_bytes += size_bytes

    def _chunked(self, sizes: list[int], digests: dict[int, Digest]) -> Content:
        chunks = []
        offset = 0
        for number, size in enumerate(sizes):
            chunks.append(Chunk(offset, size, digests[number]))
            offset += size
        flags = content_flags(self._rules.algorithm, self._rules.compression, chunked=True)
        return Content(None, tuple(chunks), flags)
