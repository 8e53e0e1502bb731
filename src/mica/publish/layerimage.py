"""The metadata image of a layer that is being published, from the same rows that its catalog gets."""

from collections.abc import Iterator
from typing import BinaryIO

from mica.metaimage.fromcatalog import InodeMaker
from mica.metaimage.inode import Inode
from mica.metaimage.writer import ImageReport, write_image
from mica.publish.ingest import Archive
from mica.publish.treerows import TreeRows
from mica.repo.entry import Flag


def write_layer_image(archive: Archive, file: BinaryIO) -> ImageReport:
    """Write it into an empty file that can seek. Raises UserError for what no image can hold."""
    maker = InodeMaker()
    return write_image(_inodes(TreeRows(archive.tree, b""), maker), file, maker.chunk_lists)


def _inodes(rows: TreeRows, maker: InodeMaker) -> Iterator[tuple[bytes, Inode]]:
    for path, entry in rows:
        chunks = rows.chunks[-1][1] if entry.flags & Flag.CHUNKED else ()
        yield path, maker.make(entry, chunks, group=entry.group, links=entry.links)
