"""Stores and reads single files that mica itself makes. Runs in the thread of the object writer's caller."""

from mica.errors import IntegrityError, UserError
from mica.publish.catalogtree import CatalogTree
from mica.publish.objectwriter import Content, ObjectWriter
from mica.publish.treerows import file_entry
from mica.repo.cutting import ChunkRule
from mica.repo.entry import MARKER, Chunk, Entry
from mica.repo.objectname import chunk_object, file_object
from mica.repo.objects import unpack
from mica.store.base import ObjectStore, read_limited
from mica.streams import Readable
from mica.texts import quoted_path


class _Holder:
    content: Content | None = None


def store_file(objects: ObjectWriter, name: bytes, data: bytes, *, mtime_s: int = 0) -> Entry:
    """Store a small file and return its entry."""
    holder = _Holder()
    objects.add_bytes(holder, data)
    objects.finish()
    assert holder.content is not None
    return file_entry(name, len(data), holder.content, mtime_s=mtime_s)


def store_stream(
    objects: ObjectWriter, name: bytes, stream: Readable, size: int, rule: ChunkRule
) -> tuple[Entry, tuple[Chunk, ...]]:
    """Store a file of any size, cut by a rule; return its entry and its chunks."""
    holder = _Holder()
    objects.add(holder, stream, size, rule=rule)
    objects.finish()
    assert holder.content is not None
    return file_entry(name, size, holder.content), holder.content.chunks


def store_marker(objects: ObjectWriter) -> Entry:
    """The empty file that a nested catalog must hold; its object is stored."""
    return store_file(objects, MARKER, b"")


def load_file(catalogs: CatalogTree, store: ObjectStore, path: bytes, *, limit: int) -> bytes | None:
    """The content of a published file of at most `limit` bytes; None if it does not exist. Raises UserError for a
    larger file, IntegrityError for a damaged one."""
    entry = catalogs.find(path)
    if entry is None or not entry.is_regular:
        return None
    if entry.size > limit:
        raise UserError(f"{quoted_path(path)} has {entry.size} bytes, more than the {limit} that are read.")
    try:
        compression = entry.compression
    except ValueError as error:
        raise IntegrityError(f"{quoted_path(path)} has an unknown compression.") from error
    pieces = [chunk_object(chunk, compression) for chunk in catalogs.chunks(path)]
    if not pieces and (whole := file_object(entry)) is not None:
        pieces = [whole]
    content = b"".join(
        unpack(
            read_limited(store, piece.path, 2 * limit + 64),
            piece.digest,
            limit=piece.most,
            compression=piece.compression,
        )
        for piece in pieces
    )
    if len(content) != entry.size:
        raise IntegrityError(f"{quoted_path(path)} has {len(content)} bytes and not {entry.size}.")
    return content
