"""Large files in the cache while only some of their chunks are here.

    <cache>/parts/<name>         the file, sparse; a chunk has its place in it
    <cache>/parts/<name>.map     one byte for each chunk: 1 when all of it is in the file
    <cache>/lists/<digest>       its chunk list

A chunk is verified elsewhere, then copied to its place, then marked; a killed writer leaves it unmarked. Its writer
locks the blocks that it lies in meanwhile, since zeros may be written around it where nothing is marked. With the last
chunk the file gets its name among the whole objects. Its name here is removed only together with that one
(`remover.py`), because a file system that shows it relies on its inode number. A map is never older than its file: both
are opened, made and removed under a lock. Any thread, any number of processes.
"""

import bisect
import contextlib
import fcntl
import mmap
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Self

from mica import linux
from mica.cache.cache import Cache
from mica.cache.quota import NoRoomError
from mica.cache.readahead import ReadAhead
from mica.digest import Digest, digest_of
from mica.errors import IntegrityError
from mica.files import allocated_bytes, give_space, locked_in_turn, mapped_os_errors, owned_fd
from mica.repo.chunklist import parse_chunk_list
from mica.repo.entry import Chunk
from mica.repo.localname import LocalName, chunked_name
from mica.repo.objects import Compression

_MARK = b"\1"
_FULL_S = 1.0
"""How long reads of a file that fills most of the cache fail at once: a program that reads it tries again and again."""
_BLOCK_BYTES = 512 << 10
"""The kernel keeps a file in memory in pieces as large as the writes were, and aligned to their size. So a block is
written at once, also where only a part of it is known: docs/design/cache.md says what that gives, and why 512 KiB."""
_NEAR_BYTES = 8 * _BLOCK_BYTES
MARGIN_BYTES = 2 * _BLOCK_BYTES
"""How much more `put` may take on disk if it may fill up blocks: the first and the last block of a chunk."""
_ZEROS = memoryview(bytes(_BLOCK_BYTES))
SEAM_BYTES = 8 << 10
"""How much a chunk may take on disk beyond its size: the block that it shares with the next one, and one in which the
file system notes where the chunk lies."""


class PartFile:
    """One large file, opened. It is closed by `close`, or with the last reference to it."""

    def __init__(self, cache: Cache, name: LocalName, chunks: Sequence[Chunk]) -> None:
        """Raises UserError if the cache cannot be written, or has no room for the map."""
        self.name = name
        self.chunks = chunks
        self._cache = cache
        self.read_ahead = ReadAhead()
        self._ends = list(accumulate(chunk.size for chunk in chunks))
        self._path = _path(cache, name)
        self._growing = threading.Lock()
        self._full_until = 0.0
        with contextlib.ExitStack() as stack, mapped_os_errors(f"write to the cache {cache.root}"):
            map_path = f"{self._path}.map"
            # Reserve room before the lock: making room removes parts under it. A part that exists needs none.
            is_here = os.path.exists(map_path) or os.path.exists(cache.path(name))
            room = stack.enter_context(cache.reserving(0 if is_here else len(chunks)))
            with locked_in_turn(cache.root / "parts"):
                is_known_whole = self._begin()
                self.fd = _sized(self._path, name.size)
                stack.callback(os.close, self.fd)
                with owned_fd(_sized(map_path, len(chunks))) as map_fd:
                    before = allocated_bytes(os.fstat(map_fd))
                    give_space(map_fd, len(chunks))
                    self._map = mmap.mmap(map_fd, len(chunks))
                    room.keep(allocated_bytes(os.fstat(map_fd)) - before)
            if is_known_whole:
                self._map[:] = _MARK * len(chunks)
            stack.pop_all()
        self._finalize = weakref.finalize(self, _close, self.fd, self._map)
        if self.is_whole:
            # The writer of the last chunk may have been killed before it gave the name.
            self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._finalize()

    @property
    def is_current(self) -> bool:
        """False once the file was removed from the cache: chunks that others fetch then go into another file."""
        return os.fstat(self.fd).st_nlink > 0

    @property
    def is_whole(self) -> bool:
        return self._map.find(b"\0") < 0

    def missing(self, offset: int, size: int) -> list[int]:
        """Numbers of the chunks that this range of bytes needs and that are not here."""
        return [number for number in self.covering(offset, size) if not self._map[number]]

    def covering(self, offset: int, size: int) -> range:
        """Numbers of the chunks in which a range of bytes lies."""
        if size <= 0 or offset >= self.name.size:
            return range(0)
        first = bisect.bisect_right(self._ends, offset)
        last = bisect.bisect_left(self._ends, min(offset + size, self.name.size))
        return range(first, last + 1)

    def has(self, number: int) -> bool:
        return bool(self._map[number])

    @contextlib.contextmanager
    def growing(self, numbers: Sequence[int]) -> Iterator[None]:
        """For a block that brings these chunks, which are not here. Raises UserError at once if they do not fit into
        the cache beside the chunks that are here, or did not a moment ago."""
        quota = self._cache.quota
        most = quota.limits.most
        if not most:
            yield
            return
        size = sum(self.chunks[number].size for number in numbers)
        held = allocated_bytes(os.fstat(self.fd))
        if held + size > most or time.monotonic() < self._full_until:
            raise quota.part_error(size, held=held, whole=self.name.size)
        try:
            yield
        except NoRoomError as error:
            held = allocated_bytes(os.fstat(self.fd))
            if held < most // 2:
                raise
            self._full_until = time.monotonic() + _FULL_S
            raise quota.part_error(size, held=held, whole=self.name.size) from error

    def is_filling_up(self, number: int) -> bool:
        """Whether there are chunks around this one. Scattered reads would only waste room on blocks that are never
        filled up."""
        chunk = self.chunks[number]
        return self._has_any(chunk.offset - _NEAR_BYTES, chunk.offset + chunk.size + _NEAR_BYTES)

    def put(self, number: int, content: int, *, fill: bool = False) -> int:
        """Copy a verified chunk from a descriptor that holds just it; with the last chunk, give the file its name.
        `fill`: blocks of which nothing is here yet may be filled up with zeros.

        Returns by how many bytes the file has grown on disk.
        """
        chunk = self.chunks[number]

        def read(place: int, size: int) -> bytes:
            data = os.pread(content, size, place)
            if size and not data:
                raise IntegrityError(f"Chunk {chunk.digest} has {place} bytes and not {chunk.size}.")
            return data

        return self._put(number, read, fill=fill)

    def put_bytes(self, number: int, content: bytes, *, fill: bool = False) -> int:
        """As `put`."""
        chunk = self.chunks[number]
        if len(content) != chunk.size:
            raise IntegrityError(f"Chunk {chunk.digest} has {len(content)} bytes and not {chunk.size}.")
        view = memoryview(content)
        return self._put(number, lambda place, size: view[place : place + size], fill=fill)

    def _put(self, number: int, read: Callable[[int, int], bytes | memoryview], *, fill: bool) -> int:
        chunk = self.chunks[number]
        start, end = chunk.offset, chunk.offset + chunk.size
        first, last = _block_of(start), _block_of(max(start, end - 1)) + _BLOCK_BYTES
        with self._growing, mapped_os_errors(f"write to the cache {self._cache.root}"), _alone(self.fd, first, last):
            before = allocated_bytes(os.fstat(self.fd))
            if fill and not self._has_any(first, first + _BLOCK_BYTES):
                start = first
            if fill and not self._has_any(last - _BLOCK_BYTES, last):
                end = min(last, self.name.size)
            _write(self.fd, range(start, end), chunk, read)
            self._map[number : number + 1] = _MARK
            grown = allocated_bytes(os.fstat(self.fd)) - before
        if self.is_whole:
            self._finish()
        return max(grown, 0)

    def _has_any(self, start: int, end: int) -> bool:
        """Whether a chunk that has bytes in this range is here."""
        numbers = self.covering(start, end - start)
        return self._map.find(_MARK, numbers.start, numbers.stop) >= 0

    def _begin(self) -> bool:
        """There must be no map without a file. If the whole file is here, begin with that."""
        if os.path.exists(self._path):
            return False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._path}.map")
        whole = self._cache.open_place(self._cache.path(self.name), self.name.size)
        if whole is None:
            return False
        with owned_fd(whole):
            self._cache.name_file(whole, self._path)
        return True

    def _finish(self) -> None:
        with mapped_os_errors(f"write to the cache {self._cache.root}"):
            self._cache.name_file(self.fd, self._cache.path(self.name))


def open_part(cache: Cache, name: LocalName) -> PartFile:
    """A large file of which only the name is known: its chunk list has to be in the cache (`keep_list`).

    Raises IntegrityError if the list is not there, or does not belong to the name.
    """
    return PartFile(cache, name, _read_list(cache, name))


def _read_list(cache: Cache, name: LocalName) -> Sequence[Chunk]:
    path = _list_path(cache, name.digest)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise IntegrityError(f"The chunk list {name.digest} of a large file is not in the cache.") from error
    if digest_of(data, name.digest.algorithm) != name.digest:
        os.unlink(path)
        raise IntegrityError(f"The chunk list {name.digest} in the cache does not have that digest.")
    chunks = parse_chunk_list(data, name.digest.algorithm)
    if sum(chunk.size for chunk in chunks) != name.size:
        raise IntegrityError(f"The chunk list {name.digest} does not add up to the {name.size} bytes of its file.")
    return chunks


def local_chunks(cache: Cache, chunks: Sequence[Chunk], compression: Compression) -> list[Chunk]:
    """The chunks of a large file that are here; makes no part of it. Raises ValueError for impossible chunks."""
    name = chunked_name(chunks, compression)
    return list(chunks) if os.path.exists(cache.path(name)) else _marked(cache, name, chunks)


def _marked(cache: Cache, name: LocalName, chunks: Sequence[Chunk]) -> list[Chunk]:
    try:
        marks = Path(f"{_path(cache, name)}.map").read_bytes()
    except FileNotFoundError:
        return []
    return [chunk for chunk, mark in zip(chunks, marks, strict=False) if mark]


def keep_list(cache: Cache, digest: Digest, data: bytes) -> None:
    """Keep a chunk list, which the caller has verified, so that its file can be opened by name alone."""
    path = _list_path(cache, digest)
    if not cache.touch(path):
        cache.keep_bytes(Path(path), data)


def local_name_bytes(cache: Cache, name: LocalName) -> int:
    """How many bytes of this content are here. Changes nothing."""
    if os.path.exists(cache.path(name)):
        return name.size
    if not name.in_chunks:
        return 0
    try:
        chunks = _read_list(cache, name)
    except IntegrityError:
        return 0
    return sum(chunk.size for chunk in _marked(cache, name, chunks))


def _close(fd: int, marks: mmap.mmap) -> None:
    marks.close()
    os.close(fd)


def _path(cache: Cache, name: LocalName) -> str:
    return f"{cache.root}/parts/{name.flat}"


def _list_path(cache: Cache, digest: Digest) -> str:
    return f"{cache.root}/lists/{digest.text}"


def _sized(path: str, size: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size != size:
            os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def _alone(fd: int, start: int, end: int) -> Iterator[None]:
    """Lock a range against all other open descriptions of the file. Threads that share one need a lock of their own."""

    def lock(how: int, command: int) -> None:
        fcntl.fcntl(fd, command, linux.FLOCK.pack(how, os.SEEK_SET, start, end - start, 0))

    lock(fcntl.F_WRLCK, fcntl.F_OFD_SETLKW)
    try:
        yield
    finally:
        lock(fcntl.F_UNLCK, fcntl.F_OFD_SETLK)


def _block_of(place: int) -> int:
    return place - place % _BLOCK_BYTES


def _write(fd: int, places: range, chunk: Chunk, read: Callable[[int, int], bytes | memoryview]) -> None:
    """Write a chunk, with zeros around it as far as `places` reach, block by block."""
    place = places.start
    while place < places.stop:
        end = min(_block_of(place) + _BLOCK_BYTES, places.stop)
        known = range(max(place, chunk.offset), min(end, chunk.offset + chunk.size))
        data = read(known.start - chunk.offset, len(known))
        before = _ZEROS[: max(0, chunk.offset - place)]
        # The next turn reads what a short read left out.
        behind = _ZEROS[: end - max(place, known.stop)] if len(data) == len(known) else b""
        place += os.pwritev(fd, [before, data, behind], place)
