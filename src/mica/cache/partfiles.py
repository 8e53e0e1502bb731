"""Large files in the cache while only some of their chunks are here.

    <cache>/parts/<name>         the file, sparse; a chunk has its place in it
    <cache>/parts/<name>.map     one byte for each chunk: 1 when all of it is in the file
    <cache>/lists/<digest>       its chunk list

A chunk is verified elsewhere, then copied to its place, then marked; a killed writer leaves it unmarked. Writers of one
chunk write the same bytes, so they need no lock. With the last chunk the file gets its name among the whole objects;
its name here goes with that one (`removal.py`), because a file system that shows it counts on its inode number. A map
is never older than its file: both are opened, made and removed under a lock. Any thread, any number of processes.
"""

import bisect
import contextlib
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Self

from mica.digest import Digest, digest_of
from mica.errors import IntegrityError
from mica.fetch.cache import Cache
from mica.fetch.readahead import ReadAhead
from mica.files import allocated_bytes, locked_in_turn, mapped_os_errors, owned_fd, replace_file
from mica.repo.entry import Chunk
from mica.repo.localname import LocalName, chunked_name, parse_chunk_list
from mica.repo.objects import Compression

_MARK = b"\1"
_BLOCK_BYTES = 1 << 20
SEAM_BYTES = 8 << 10
"""What a chunk may take on disk beyond its size: the block it shares with the next one, and the map's."""


class PartFile:
    """One large file, opened. It is closed by `close`, or with the last reference to it."""

    def __init__(self, cache: Cache, name: LocalName, chunks: Sequence[Chunk]) -> None:
        """Raises UserError if the cache cannot be written."""
        self.name = name
        self.chunks = chunks
        self._cache = cache
        self.read_ahead = ReadAhead()
        self._ends = list(accumulate(chunk.size for chunk in chunks))
        self._path = _path(cache, name)
        self._growing = threading.Lock()
        with contextlib.ExitStack() as stack, mapped_os_errors(f"write to the cache {cache.root}"):
            with locked_in_turn(cache.root / "parts"):
                is_known_whole = self._begin()
                self.fd = _sized(self._path, name.size)
                stack.callback(os.close, self.fd)
                with owned_fd(_sized(f"{self._path}.map", len(chunks))) as map_fd:
                    self._map = mmap.mmap(map_fd, len(chunks))
            if is_known_whole:
                self._map[:] = _MARK * len(chunks)
            stack.pop_all()
        self._finalize = weakref.finalize(self, _close, self.fd, self._map)
        if self.is_whole:
            # Whoever had the last chunk may have been killed before the name was given.
            self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._finalize()

    @property
    def inode(self) -> int:
        return os.fstat(self.fd).st_ino

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

    def put(self, number: int, content: int) -> int:
        """Take a verified chunk from a descriptor that holds just it, and the file's name when it is the last one.

        Returns by how many bytes the file has grown on disk.
        """
        return self._put(number, lambda: _copy(content, self.fd, self.chunks[number]))

    def put_bytes(self, number: int, content: bytes) -> int:
        """As `put`."""
        chunk = self.chunks[number]
        if len(content) != chunk.size:
            raise IntegrityError(f"Chunk {chunk.digest} has {len(content)} bytes and not {chunk.size}.")
        return self._put(number, lambda: _write(content, self.fd, chunk))

    def _put(self, number: int, write: Callable[[], None]) -> int:
        with self._growing:
            before = self._allocated()
            with mapped_os_errors(f"write to the cache {self._cache.root}"):
                write()
            self._map[number : number + 1] = _MARK
            grown = self._allocated() - before
        if self.is_whole:
            self._finish()
        return max(grown, 0)

    def _allocated(self) -> int:
        """With the map."""
        size = allocated_bytes(os.fstat(self.fd))
        with contextlib.suppress(FileNotFoundError):
            size += allocated_bytes(os.stat(f"{self._path}.map"))
        return size

    def _begin(self) -> bool:
        """Without a file there must be no map. Begin with the file that is here as a whole, if there is one."""
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
    """A large file of which nothing is known but its name: the chunk list has to be here (`keep_list`).

    Raises IntegrityError if it is not, or is not what the name says.
    """
    return PartFile(cache, name, _read_list(cache, name))


def _read_list(cache: Cache, name: LocalName) -> list[Chunk]:
    path = _list_path(cache, name.digest)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise IntegrityError(f"The chunk list {name.digest} of a large file is not in the cache.") from error
    if digest_of(data, name.digest.algorithm) != name.digest:
        os.unlink(path)
        raise IntegrityError(f"The chunk list {name.digest} in the cache has other content.")
    chunks = parse_chunk_list(data, name.digest.algorithm)
    if sum(chunk.size for chunk in chunks) != name.size:
        raise IntegrityError(f"The chunk list {name.digest} is of another file than one of {name.size} bytes.")
    return chunks


def local_chunks(cache: Cache, chunks: Sequence[Chunk], compression: Compression) -> list[Chunk]:
    """Those chunks of a large file that are here; nothing is begun for it. Raises ValueError for impossible chunks."""
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
        with mapped_os_errors(f"write to the cache {cache.root}"):
            replace_file(Path(path), data, mode=0o600, durable=False)
        cache.account(path)


def local_name_bytes(cache: Cache, name: LocalName) -> int:
    """How much of some content is here. Changes nothing."""
    if os.path.exists(cache.path(name)):
        return name.size
    if not name.in_chunks:
        return 0
    try:
        chunks = _read_list(cache, name)
    except IntegrityError:
        return 0
    return sum(chunk.size for chunk in _marked(cache, name, chunks))


def find_part(cache: Cache, inode: int) -> LocalName | None:
    """The file of an inode number, by looking at all of them: for who has lost what it knew."""
    for entry in _part_files(cache):
        if entry.inode() == inode:
            return LocalName.parse(f"{entry.name[:2]}/{entry.name[2:]}")
    return None


def _part_files(cache: Cache) -> list[os.DirEntry[str]]:
    with os.scandir(cache.root / "parts") as entries:
        return [entry for entry in entries if not entry.name.endswith(".map")]


def _close(fd: int, marks: mmap.mmap) -> None:
    marks.close()
    os.close(fd)


def _path(cache: Cache, name: LocalName) -> str:
    return f"{cache.root}/parts/{str(name).replace('/', '', 1)}"


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


def _write(content: bytes, target: int, chunk: Chunk) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(target, memoryview(content)[done:], chunk.offset + done)


def _copy(source: int, target: int, chunk: Chunk) -> None:
    """By hand: copy_file_range(2) refuses to leave the file system."""
    done = 0
    while done < chunk.size:
        # Aligned in the file: then the kernel keeps it in memory in large pieces, which mmap(2) finds faster.
        aligned = _BLOCK_BYTES - (chunk.offset + done) % _BLOCK_BYTES
        data = os.pread(source, min(aligned, chunk.size - done), done)
        if not data:
            raise IntegrityError(f"Chunk {chunk.digest} has {done} bytes and not {chunk.size}.")
        done += os.pwrite(target, data, chunk.offset + done)
