"""Single files of ours into the store, and their entries. The thread of the object writer's caller."""

from mica.publish.objectwriter import Content, ObjectWriter
from mica.publish.treerows import file_entry
from mica.repo.chunking import ChunkRule
from mica.repo.entry import MARKER, Chunk, Entry
from mica.store.base import Readable


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
