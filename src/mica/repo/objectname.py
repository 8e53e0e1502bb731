"""Names of objects: all that is needed to fetch one and to check it. Pure values; any thread.

A digest alone is what catalogs and manifests write. What it stands for is told by the place where it is written, so
that place makes one of the two names that the rest of mica uses: `ObjectName` for an object as servers have it, and
`LocalName` (repo/localname.py) for its content as a file on this machine.
"""

from typing import NamedTuple

from mica.digest import Digest, Suffix
from mica.repo.entry import Chunk, Entry
from mica.repo.objects import Compression


class ObjectName(NamedTuple):
    """`size` is that of its content in bytes; None if unknown: then `limit` bounds it."""

    digest: Digest
    suffix: Suffix
    compression: Compression
    size: int | None
    limit: int = 0

    @property
    def most(self) -> int:
        return self.limit if self.size is None else self.size

    @property
    def path(self) -> str:
        """Where servers have it."""
        return self.digest.object_path(self.suffix)


def file_object(entry: Entry) -> ObjectName | None:
    """The content of a regular file as a whole; None if it is in chunks only. Raises ValueError for an entry with
    another compression than there is."""
    return None if entry.digest is None else ObjectName(entry.digest, Suffix.FILE, entry.compression, entry.size)


def chunk_object(chunk: Chunk, compression: Compression) -> ObjectName:
    """A chunk of a file whose chunks are compressed like that."""
    return ObjectName(chunk.digest, Suffix.CHUNK, compression, chunk.size)
