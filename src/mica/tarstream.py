"""A tar archive read once, front to back, strictly enough for a hostile archive.

Reads v7, ustar, GNU and pax archives from anything with `.read(n)`; every header's checksum is verified and every
refusal is a UserError that names the member and the byte offset. It interprets nothing: what a name, a link or a `.wh.`
marker means is decided by `publish/layertree.py`. Decompression is the caller's, and so are errors of `stream`. It
reads ahead; a caller that digests the whole stream reads the rest of it afterwards. Called by publishing and by package
formats. One reader belongs to one thread. Why not the standard library's reader: docs/adr/0001-own-tar-reader.md.

Sources of the rules: POSIX.1-2017 "pax - ustar Interchange Format" and "pax Extended Header"; GNU tar manual,
"Tar Internals" (base-256 numbers, long names, sparse formats); Go's archive/tar, which engines unpack with.
"""

import re
from collections.abc import Iterator

from mica.errors import UserError
from mica.streams import Readable
from mica.tarentry import BLOCK_BYTES, BLOCK_MASK, DEFAULT_LIMITS, Kind, Source, TarEntry, TarLimits, truncated
from mica.tarheader import HEADER, KINDS, Headers, Member, check_sum, field_text, parse_pax, size_number, unsigned_sum
from mica.texts import quoted

__all__ = ["DEFAULT_LIMITS", "Kind", "TarEntry", "TarLimits", "read_tar"]

# What GNU tar, Go, Python and libarchive write for a regular file in the ustar and GNU formats, from `mode` on.
_PLAIN = re.compile(
    rb"([0-7]{7})\0([0-7]{7})\0([0-7]{7})\0([0-7]{11})\0([0-7]{11})\0([0-7]{6})\0 0.{100}ustar[\0 ]", re.DOTALL
)
_ZERO_BLOCK = bytes(BLOCK_BYTES)
_SLASH = ord("/")
_VOLUME_LABEL = b"V"  # GNU: names the archive, not a file


def read_tar(stream: Readable, *, limits: TarLimits = DEFAULT_LIMITS, require_end: bool) -> Iterator[TarEntry]:
    """The members of an archive in its order.

    `require_end` refuses an archive without its end-of-archive block as truncated; otherwise one that ends behind
    a whole member is accepted. Whatever follows the end is ignored. Raises UserError.
    """
    return _Reader(stream, limits, require_end=require_end).entries()


class _Reader:
    def __init__(self, stream: Readable, limits: TarLimits, *, require_end: bool) -> None:
        self._source = Source(stream)
        self._limits = limits
        self._require_end = require_end
        self._entries = 0
        self._bytes = 0
        self._globals = Headers()
        self._next = Headers()
        self._next_is_described = False
        self._all_are_described = False

    def entries(self) -> Iterator[TarEntry]:
        source = self._source
        plain = _PLAIN.match
        while True:
            if len(source.buffer) - source.position < BLOCK_BYTES and source.fill() < BLOCK_BYTES:
                self._check_end()
                return
            match = plain(source.buffer, source.position + 100)
            entry = self._plain_entry(match.groups()) if match is not None else None
            if entry is None:
                offset = source.offset
                header = source.take(BLOCK_BYTES)
                if header == _ZERO_BLOCK:
                    self._check_after_zero_block()
                    return
                entry = self._entry(header, offset)
                if entry is None:
                    continue
            self._count(entry)
            yield entry
            self._leave(entry)

    def _plain_entry(self, fields: tuple[bytes, ...]) -> TarEntry | None:
        """A regular file whose header has the common form and no extended headers; None sends it the long way."""
        source = self._source
        start = source.position
        header = source.buffer[start : start + BLOCK_BYTES]
        mode, uid, gid, size, mtime, checksum = fields
        if header[345] or self._next_is_described or self._all_are_described:
            return None
        name = header[:100].partition(b"\0")[0]
        if not name or name[-1] == _SLASH or int(checksum, 8) != unsigned_sum(header):
            return None
        source.position = start + BLOCK_BYTES
        return TarEntry(
            name,
            Kind.REGULAR,
            int(mode, 8) & 0o7777,
            int(uid, 8),
            int(gid, 8),
            int(size, 8),
            int(mtime, 8),
            0,
            b"",
            0,
            0,
            None,
            source.offset - BLOCK_BYTES,
            source,
        )

    def _count(self, entry: TarEntry) -> None:
        self._entries += 1
        if self._entries > self._limits.max_entries:
            raise UserError(f"The archive has more than {self._limits.max_entries} members.")
        self._bytes += entry.size
        if self._bytes > self._limits.max_bytes:
            raise UserError(
                f"The archive unpacks to more than {self._limits.max_bytes} bytes"
                f" with {quoted(entry.name)} at byte {entry.offset}."
            )

    def _leave(self, entry: TarEntry) -> None:
        """Skip what was not read of a member and its padding, and end its right to read."""
        rest = entry.leave()
        source = self._source
        if rest and (position := source.position + rest) <= len(source.buffer):
            source.position = position
        elif rest and not source.skip(rest):
            raise truncated(f"in the data of {quoted(entry.name)}", source.offset)

    # The end

    def _check_end(self) -> None:
        """The stream is over where a header is due."""
        source = self._source
        if source.buffer:
            raise truncated("in a header", source.offset)
        if self._next_is_described:
            raise truncated("behind an extended header", source.offset)
        if self._require_end:
            raise truncated("before its end-of-archive block", source.offset)

    def _check_after_zero_block(self) -> None:
        """POSIX ends an archive with two zero blocks; one at the very end is accepted, as everybody does.

        Members behind a single zero block would be seen by some readers only: refused.
        """
        source = self._source
        if self._next_is_described:
            raise truncated("behind an extended header", source.offset)
        second = source.take(BLOCK_BYTES)
        if second.strip(b"\0"):
            raise UserError(
                f"The archive has more data behind a single zero block (byte {source.offset - len(second)})."
            )

    # The long way

    def _entry(self, header: bytes, offset: int) -> TarEntry | None:
        """A member of any format, or None for a header that describes the next one."""
        fields = HEADER.unpack(header)
        check_sum(header, offset)
        type_flag = fields[7]
        size = size_number(fields[4], "size", fields[0], offset)
        if type_flag in b"xXgLK":
            self._read_extended(type_flag, size, offset)
            return None
        if type_flag == _VOLUME_LABEL:
            self._entries += 1
            return None
        kind = KINDS.get(type_flag)
        if kind is None:
            raise UserError(
                f"Archive member {quoted(field_text(fields[0]))} at byte {offset} has the unknown type"
                f" {quoted(type_flag)}."
            )
        member = Member(header, offset, self._globals, self._next)
        entry = member.entry(kind, size, self._source, self._limits)
        self._next = Headers()
        self._next_is_described = False
        return entry

    def _read_extended(self, type_flag: bytes, size: int, offset: int) -> None:
        target = self._globals if type_flag == b"g" else self._next
        target.cost += BLOCK_BYTES + size
        if target.cost > self._limits.max_header_bytes:
            raise UserError(
                f"The extended headers at byte {offset} of the archive exceed {self._limits.max_header_bytes} bytes."
            )
        data = self._source.take(size)
        if len(data) != size or not self._source.skip(-size & BLOCK_MASK):
            raise truncated("in an extended header", self._source.offset)
        if type_flag == b"L":
            target.long_name = field_text(data)
        elif type_flag == b"K":
            target.long_link = field_text(data)
        else:
            parse_pax(data, target, offset)
        if type_flag == b"g":
            target.forget_sparse()
            self._all_are_described = bool(target.pax or target.xattrs)
        else:
            self._next_is_described = True
