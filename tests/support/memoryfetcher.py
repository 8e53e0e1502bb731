"""A server in memory, with objects under their right names."""

import io
from collections.abc import Callable
from typing import NamedTuple

from mica.digest import Algorithm, Suffix
from mica.errors import TemporaryError
from mica.fetch.download import Connection, Consumer, Result
from mica.repo.entry import Chunk
from mica.repo.localname import LocalName, chunked_name
from mica.repo.objectname import ObjectName
from mica.repo.objects import Compression, pack


class InChunks(NamedTuple):
    """A large file: its local name and its chunks."""

    name: LocalName
    chunks: list[Chunk]


class MemoryFetcher:
    """Objects by path. `before` runs ahead of every answer."""

    where = "memory"
    connection = Connection("memory", None)

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.before: Callable[[str], None] = lambda path: None

    def fetch(self, path: str, consume: Consumer[Result], *, fresh: bool = False) -> Result:
        self.asked.append(path)
        self.before(path)
        if path not in self.objects:
            raise TemporaryError(f"{path} is not in memory.")
        return consume(io.BytesIO(self.objects[path]))

    def publish(self, content: bytes) -> LocalName:
        packed = pack(content, Algorithm.SHA1, Compression.ZLIB)
        self.objects[packed.digest.object_path(Suffix.FILE)] = packed.stored
        return LocalName(packed.digest, Compression.ZLIB, len(content))

    def publish_in_chunks(self, content: bytes, size: int) -> InChunks:
        chunks = []
        for offset in range(0, len(content), size):
            piece = content[offset : offset + size]
            packed = pack(piece, Algorithm.SHA1, Compression.ZLIB)
            self.objects[packed.digest.object_path(Suffix.CHUNK)] = packed.stored
            chunks.append(Chunk(offset, len(piece), packed.digest))
        return InChunks(chunked_name(chunks, Compression.ZLIB), chunks)


def object_name(name: LocalName) -> ObjectName:
    """What a client is asked for."""
    return ObjectName(name.digest, Suffix.FILE, name.compression, name.size)
