"""Rules for one entry of a catalog, by itself (docs/format/catalog.md). Pure; called by `checkcatalog.py`."""

import stat
from collections.abc import Iterator

from mica.repo.entry import XATTR_VERSIONS, Entry, Flag, flags_for, parse_xattrs

_KIND = Flag.DIRECTORY | Flag.FILE | Flag.LINK | Flag.SPECIAL
_CONTENT_BITS = 0x3F << 8
_TYPES = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}
_ROLES = (Flag.MOUNTPOINT, Flag.NESTED_ROOT, Flag.BIND_MOUNTPOINT)


def broken_rules(entry: Entry) -> Iterator[str]:
    """The faults of an entry, each as the second half of a sentence about it."""
    if stat.S_IFMT(entry.mode) not in _TYPES:
        yield f"has mode {entry.mode:o}, which is no type of file"
        return
    if entry.flags & _KIND != flags_for(entry.mode):
        yield f"has flags {entry.flags:#x}, which do not fit its mode {entry.mode:o}"
    if entry.target and not stat.S_ISLNK(entry.mode):
        yield "has a link target but is no symbolic link"
    if entry.xattrs is not None and not _is_sound_blob(entry.xattrs):
        yield "has extended attributes that cannot be read"
    if stat.S_ISREG(entry.mode):
        yield from _broken_file_rules(entry)
    else:
        yield from _broken_other_rules(entry)
    if stat.S_ISDIR(entry.mode):
        yield from _broken_directory_rules(entry)
    else:
        yield from _broken_link_rules(entry)


def _broken_file_rules(entry: Entry) -> Iterator[str]:
    if entry.digest is None and not entry.flags & Flag.CHUNKED:
        yield "has neither an object nor chunks"
    for what in ("algorithm", "compression"):
        try:
            getattr(entry, what)
        except ValueError:
            yield f"names an unknown {what} in its flags {entry.flags:#x}"


def _broken_other_rules(entry: Entry) -> Iterator[str]:
    if entry.digest is not None:
        yield "has an object though it is no regular file"
    for flag in (Flag.CHUNKED, Flag.EXTERNAL, Flag.DIRECT_IO):
        if entry.flags & flag:
            yield f"has the flag {flag.name} though it is no regular file"
    if entry.flags & _CONTENT_BITS:
        yield f"has flags {entry.flags:#x} about content though it is no regular file"
    if stat.S_ISLNK(entry.mode):
        if not entry.target:
            yield "is a symbolic link without a target"
        if entry.size not in {0, len(entry.target)}:  # the stock server's tar ingestion writes 0
            yield f"has size {entry.size} but a target of {len(entry.target)} bytes"
    elif (stat.S_ISFIFO(entry.mode) or stat.S_ISSOCK(entry.mode)) and entry.size:
        yield f"has size {entry.size} though it is a fifo or socket"


def _broken_directory_rules(entry: Entry) -> Iterator[str]:
    if entry.group:
        yield "is a directory in a hard link group"
    if sum(bool(entry.flags & role) for role in _ROLES) > 1:
        yield f"has flags {entry.flags:#x}, which name more than one role for one directory"


def _broken_link_rules(entry: Entry) -> Iterator[str]:
    if any(entry.flags & role for role in _ROLES):
        yield f"has flags {entry.flags:#x} of a mountpoint though it is no directory"
    if not entry.links:
        yield "has no link"
    elif entry.links > 1 and not entry.group:
        yield f"has {entry.links} links but belongs to no hard link group"


def _is_sound_blob(blob: bytes) -> bool:
    """Readers ignore trailing bytes, but not fewer attributes than announced."""
    return len(blob) >= 2 and blob[0] in XATTR_VERSIONS and len(parse_xattrs(blob)) == blob[1]
