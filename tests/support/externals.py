"""External files: rows in a repository whose content lies on a server of its own, by path."""

import os
import zlib
from pathlib import Path

from tests.support.repositories import Repository

from mica.digest import Algorithm, digest_of
from mica.repo.entry import Chunk, Entry, Flag, content_flags
from mica.repo.objects import Compression


def add_external(
    repository: Repository,
    data: Path,
    path: bytes,
    content: bytes,
    *,
    chunk_bytes: int = 0,
    compression: Compression = Compression.NONE,
) -> None:
    """Publish the row as the stock server does with CVMFS_EXTERNAL_DATA, and put the content where a server has it; in
    chunks if they have a size."""
    stored = content if compression is Compression.NONE else zlib.compress(content)
    place = Path(os.fsdecode(os.fsencode(data) + path))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(stored)
    chunks = [
        Chunk(at, len(content[at : at + chunk_bytes]), digest_of(content[at : at + chunk_bytes], Algorithm.SHA1))
        for at in (range(0, len(content), chunk_bytes) if chunk_bytes else ())
    ]
    flags = Flag.FILE | Flag.EXTERNAL | content_flags(Algorithm.SHA1, compression, chunked=bool(chunks))
    digest = None if chunks else digest_of(stored, Algorithm.SHA1)
    entry = Entry(path.rpartition(b"/")[2], 0o100644, len(content), 0, None, 0, 0, int(flags), digest)
    with repository.manager() as manager, manager.transaction() as transaction:
        transaction.catalogs.put(path, entry, chunks)
