"""Rows of a catalog as files of a metadata image. Publishers and nodes share this way. Pure."""

import stat
from collections.abc import Sequence

from mica.digest import Digest
from mica.errors import UserError
from mica.metaimage.chunktable import LISTS_BYTES_MAX
from mica.metaimage.inode import NO_XATTRS, Inode
from mica.repo.chunklist import format_chunk_list
from mica.repo.entry import Chunk, Entry, Flag, parse_xattrs
from mica.repo.localname import LocalName, chunked_name


class InodeMaker:
    """Makes the inodes of one image and collects the chunk lists that it needs, for `write_image`."""

    def __init__(self) -> None:
        self.chunk_lists: dict[Digest, bytes] = {}
        self._bytes_left = LISTS_BYTES_MAX

    def make(self, entry: Entry, chunks: Sequence[Chunk], *, group: int, links: int) -> Inode:
        """`chunks` are those of a file that has the flag. `group` and `links` hold within the image.

        Raises ValueError for a row that is not a possible file, UserError for more chunks than an image can list.
        """
        kind = stat.S_IFMT(entry.mode)
        is_device = kind in {stat.S_IFCHR, stat.S_IFBLK}
        content = self._content(entry, chunks) if kind == stat.S_IFREG and entry.size else None
        return Inode(
            entry.mode, entry.uid, entry.gid, entry.mtime_s, entry.mtime_ns or 0,
            entry.size if kind == stat.S_IFREG else 0, content, entry.size if is_device else 0, entry.target,
            parse_xattrs(entry.xattrs) if entry.xattrs else NO_XATTRS, links, group,
        )  # fmt: skip

    def _content(self, entry: Entry, chunks: Sequence[Chunk]) -> LocalName:
        try:
            compression = entry.compression
        except ValueError as error:
            raise ValueError(f"has an {error}") from error
        if not entry.flags & Flag.CHUNKED:
            if entry.digest is None:
                raise ValueError("has neither an object nor chunks")
            return LocalName(entry.digest, compression, entry.size)
        if not chunks:
            raise ValueError("is said to have chunks but has none")
        name = chunked_name(chunks, compression)
        if name.size != entry.size:
            raise ValueError(f"has chunks of {name.size} bytes and says {entry.size}")
        if name.digest not in self.chunk_lists:
            data = self.chunk_lists[name.digest] = format_chunk_list(chunks)
            self._bytes_left -= len(data)
            if self._bytes_left < 0:
                raise UserError(f"The large files of a layer have chunk lists of more than {LISTS_BYTES_MAX} bytes.")
        return name
