"""Members of a tar archive as bytes: ustar headers, with pax records for values that do not fit into them. Pure.

The same member gives the same bytes. Sources: POSIX.1-2017 "ustar Interchange Format" and "pax Extended Header";
SCHILY.xattr.* as Go's archive/tar reads it. Read back by `tarstream.py`.
"""

from mica.errors import UserError
from mica.tarentry import BLOCK_BYTES, BLOCK_MASK, PATH_MAX_BYTES, Kind, TarEntry
from mica.tarheader import HEADER
from mica.texts import quoted

END = bytes(2 * BLOCK_BYTES)
_FLAGS = {
    Kind.REGULAR: b"0", Kind.HARDLINK: b"1", Kind.SYMLINK: b"2", Kind.CHARACTER: b"3", Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5", Kind.FIFO: b"6",
}  # fmt: skip
_PAX = b"x"
_NAME_BYTES = 100
_SHORT_MAX = 0o7777777
_LONG_MAX = 0o77777777777
_NO_TEXT = b""


def format_member(entry: TarEntry) -> bytes:
    """The headers of a member; `padding` follows its content. Times are whole seconds, as engines write them.

    Raises UserError for a name that no reader would accept.
    """
    name = entry.name + b"/" if entry.kind is Kind.DIRECTORY else entry.name
    if len(name) > PATH_MAX_BYTES:
        raise UserError(f"{quoted(entry.name)} has a longer path than an archive can hold.")
    records = [*_records(entry, name)]
    header = _header(
        name, entry.link, _FLAGS[entry.kind], entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_s,
        entry.device_major, entry.device_minor,
    )  # fmt: skip
    if not records:
        return header
    data = b"".join(map(_record, records))
    described = _header(b"PaxHeaders/" + name[:80], _NO_TEXT, _PAX, 0o644, 0, 0, len(data), 0, 0, 0)
    return described + data + padding(len(data)) + header


def padding(size: int) -> bytes:
    return bytes(-size & BLOCK_MASK)


def _records(entry: TarEntry, name: bytes) -> list[tuple[bytes, bytes]]:
    """The pax records for values that do not fit into the header, sorted by key."""
    records = [
        (key, b"%d" % value)
        for key, value, limit in (
            (b"gid", entry.gid, _SHORT_MAX),
            (b"mtime", entry.mtime_s, _LONG_MAX),
            (b"size", entry.size, _LONG_MAX),
            (b"uid", entry.uid, _SHORT_MAX),
        )
        if not 0 <= value <= limit
    ]
    for key, text in ((b"linkpath", entry.link), (b"path", name)):
        if len(text) > _NAME_BYTES or not text.isascii():
            records.append((key, text))
    records += [(b"SCHILY.xattr." + key, value) for key, value in entry.xattrs.items()]
    return sorted(records)


def _record(record: tuple[bytes, bytes]) -> bytes:
    rest = b" %s=%s\n" % record
    size = len(rest) + 1
    while len(b"%d" % size) + len(rest) != size:
        size = len(b"%d" % size) + len(rest)
    return b"%d" % size + rest


def _header(
    name: bytes,
    link: bytes,
    flag: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime_s: int,
    major: int,
    minor: int,
) -> bytes:
    fields = [
        name[:_NAME_BYTES], _octal(mode, 7), _octal(uid, 7), _octal(gid, 7), _octal(size, 11), _octal(mtime_s, 11),
        b" " * 8, flag, link[:_NAME_BYTES], b"ustar\x0000", _octal(major, 7), _octal(minor, 7), b"", b"",
    ]  # fmt: skip
    fields[6] = b"%06o\0 " % sum(HEADER.pack(*fields))
    return HEADER.pack(*fields)


def _octal(value: int, digits: int) -> bytes:
    """0 for a number that does not fit: a pax record has it."""
    return b"%0*o" % (digits, value if 0 <= value < 8**digits else 0)
