"""The messages of the kernel's FUSE protocol: bytes to values and back, nothing else.

It does not serve (`session.py`) and does not decide on answers (`dispatch.py`, `treefs.py`). Pure; any thread.
Names, numbers and layouts are those of include/uapi/linux/fuse.h, protocol 7.40 (Linux 6.9); little endian, as on
every machine that mica runs on. `parse_x` raises MalformedMessageError for a message that is too short or not what
its header says; `format_x` asserts nothing and lets struct.error through, which is a bug of the caller.
"""

import enum
import stat
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from mica.fuse.tree import Attributes

FUSE_KERNEL_VERSION: Final = 7
FUSE_KERNEL_MINOR_VERSION: Final = 40
# 7.31 (Linux 5.4): the last one to lengthen a message that we write.
OLDEST_MINOR_VERSION: Final = 31
FUSE_ROOT_ID: Final = 1
FUSE_MIN_READ_BUFFER: Final = 8192
NAME_MAX: Final = 255

FUSE_ASYNC_READ: Final = 1 << 0
FUSE_EXPORT_SUPPORT: Final = 1 << 4
FUSE_DO_READDIRPLUS: Final = 1 << 13
FUSE_READDIRPLUS_AUTO: Final = 1 << 14
FUSE_ASYNC_DIO: Final = 1 << 15
FUSE_NO_OPEN_SUPPORT: Final = 1 << 17
FUSE_PARALLEL_DIROPS: Final = 1 << 18
FUSE_POSIX_ACL: Final = 1 << 20
FUSE_ABORT_ERROR: Final = 1 << 21
FUSE_MAX_PAGES: Final = 1 << 22
FUSE_CACHE_SYMLINKS: Final = 1 << 23
FUSE_NO_OPENDIR_SUPPORT: Final = 1 << 24
FUSE_EXPLICIT_INVAL_DATA: Final = 1 << 25
FUSE_INIT_EXT: Final = 1 << 30
FUSE_HAS_EXPIRE_ONLY: Final = 1 << 35
FUSE_DIRECT_IO_ALLOW_MMAP: Final = 1 << 36
FUSE_PASSTHROUGH: Final = 1 << 37
FUSE_HAS_RESEND: Final = 1 << 39

FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PASSTHROUGH: Final = 1 << 7

FUSE_EXPIRE_ONLY: Final = 1 << 0

FUSE_NOTIFY_INVAL_INODE: Final = 2
FUSE_NOTIFY_INVAL_ENTRY: Final = 3
FUSE_NOTIFY_STORE: Final = 4
FUSE_NOTIFY_RESEND: Final = 7

# ioctl(2) on /dev/fuse, _IOW(229, 1, struct fuse_backing_map) and _IOW(229, 2, uint32_t).
FUSE_DEV_IOC_BACKING_OPEN: Final = 0x4010E501
FUSE_DEV_IOC_BACKING_CLOSE: Final = 0x4004E502

# Ordinary requests have even numbers; an INTERRUPT has the number of the interrupted request plus this bit
# (fs/fuse/dev.c).
FUSE_INT_REQ_BIT: Final = 1 << 0


class Opcode(enum.IntEnum):
    """enum fuse_opcode."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


class MalformedMessageError(ValueError):
    """The bytes are not the message they should be."""


Buffer = bytes | bytearray | memoryview

_ATTR = "QQQqqqIIIIIIIIII"
_ENTRY = "QQQQII"
_DIRENT = "QQII"

IN_HEADER: Final = struct.Struct("<IIQQIIIHH")
OUT_HEADER: Final = struct.Struct("<IiQ")
INIT_IN: Final = struct.Struct("<IIIII")
INIT_OUT: Final = struct.Struct("<IIIIHHIIHHIIH22x")
ATTR: Final = struct.Struct(f"<{_ATTR}")
ENTRY_OUT: Final = struct.Struct(f"<{_ENTRY}{_ATTR}")
ATTR_OUT: Final = struct.Struct(f"<QII{_ATTR}")
OPEN_IN: Final = struct.Struct("<II")
OPEN_OUT: Final = struct.Struct("<QIi")
READ_IN: Final = struct.Struct("<QQIIQII")
RELEASE_IN: Final = struct.Struct("<QIIQ")
DIRENT: Final = struct.Struct(f"<{_DIRENT}")
DIRENTPLUS: Final = struct.Struct(f"<{_ENTRY}{_ATTR}{_DIRENT}")
GETXATTR_IN: Final = struct.Struct("<II")
GETXATTR_OUT: Final = struct.Struct("<II")
STATFS_OUT: Final = struct.Struct("<QQQQQIII28x")
INTERRUPT_IN: Final = struct.Struct("<Q")
FORGET_IN: Final = struct.Struct("<Q")
FORGET_ONE: Final = struct.Struct("<QQ")
BATCH_FORGET_IN: Final = struct.Struct("<II")
BACKING_MAP: Final = struct.Struct("<iIQ")
BACKING_ID: Final = struct.Struct("<I")
NOTIFY_INVAL_INODE_OUT: Final = struct.Struct("<Qqq")
NOTIFY_INVAL_ENTRY_OUT: Final = struct.Struct("<QII")
NOTIFY_STORE_OUT: Final = struct.Struct("<QQI4x")

_BLOCK_SIZE = 4096
# Bytes from the end of a name of this length modulo 8 to the next record.
PADDING: Final = tuple(bytes(-length % 8) for length in range(8))


class InHeader(NamedTuple):
    """struct fuse_in_header. `pid` is the calling thread's, 0 if it is not in our pid namespace."""

    length: int
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    total_extlen: int = 0
    padding: int = 0


class OutHeader(NamedTuple):
    """struct fuse_out_header. `error` is 0 or a negative errno; in a notification its code, with unique 0."""

    length: int
    error: int
    unique: int


class InitIn(NamedTuple):
    """struct fuse_init_in, with flags2 as the upper half of `flags`."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class InitOut(NamedTuple):
    """struct fuse_init_out, with flags2 as the upper half of `flags` (heard only with FUSE_INIT_EXT)."""

    major: int = FUSE_KERNEL_VERSION
    minor: int = FUSE_KERNEL_MINOR_VERSION
    max_readahead: int = 0
    flags: int = 0
    max_background: int = 0
    congestion_threshold: int = 0
    max_write: int = 0
    time_gran: int = 1
    max_pages: int = 0
    map_alignment: int = 0
    max_stack_depth: int = 0
    request_timeout: int = 0


class Validity(NamedTuple):
    """How long the kernel may believe something."""

    seconds: int
    nanoseconds: int


class Entry(NamedTuple):
    """struct fuse_entry_out; `attributes` is None for a name that does not exist (nodeid 0)."""

    attributes: Attributes | None
    entry_valid: Validity
    attr_valid: Validity


class OpenOut(NamedTuple):
    """struct fuse_open_out; `backing_id` counts with FOPEN_PASSTHROUGH only."""

    fh: int
    open_flags: int
    backing_id: int = 0


class ReadIn(NamedTuple):
    fh: int
    offset: int
    size: int
    read_flags: int = 0
    lock_owner: int = 0
    flags: int = 0
    padding: int = 0


class ReleaseIn(NamedTuple):
    fh: int
    flags: int = 0
    release_flags: int = 0
    lock_owner: int = 0


class GetxattrIn(NamedTuple):
    """struct fuse_getxattr_in and the name behind it (empty in LISTXATTR); size 0 asks how long the answer is."""

    size: int
    name: bytes


class Dirent(NamedTuple):
    """struct fuse_dirent; `offset` is the place of the *next* entry, `kind` one of the DT_* constants."""

    inode: int
    offset: int
    kind: int
    name: bytes


class Forget(NamedTuple):
    nodeid: int
    lookups: int


class Statfs(NamedTuple):
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int = _BLOCK_SIZE
    namelen: int = NAME_MAX
    frsize: int = _BLOCK_SIZE


def _unpack(layout: struct.Struct, data: Buffer) -> tuple[int, ...]:
    try:
        return layout.unpack_from(data)
    except struct.error as error:
        raise MalformedMessageError(f"{len(data)} bytes where {layout.size} were expected.") from error


# Requests


def parse_in_header(message: Buffer) -> InHeader:
    """The length must be that of the message: one read(2) of the device gives exactly one request."""
    header = InHeader._make(_unpack(IN_HEADER, message))
    if header.length != len(message):
        raise MalformedMessageError(f"A request of {len(message)} bytes says that it has {header.length}.")
    return header


def format_request(header: InHeader, body: Buffer = b"") -> bytes:
    """A request as the kernel would send it; the length in the header is filled in."""
    return IN_HEADER.pack(IN_HEADER.size + len(body), *header[1:]) + body


def parse_init_in(body: Buffer) -> InitIn:
    """Before 7.36 the message ends after `flags`; a major version above ours may have anything behind it."""
    if len(body) == INIT_IN.size - 4:
        body = bytes(body) + bytes(4)
    major, minor, max_readahead, flags, flags2 = _unpack(INIT_IN, body)
    return InitIn(major, minor, max_readahead, flags | (flags2 << 32 if flags & FUSE_INIT_EXT else 0))


def format_init_in(value: InitIn) -> bytes:
    return INIT_IN.pack(value.major, value.minor, value.max_readahead, value.flags & 0xFFFFFFFF, value.flags >> 32) + (
        bytes(44)
    )


def parse_name(body: Buffer) -> bytes:
    """A name that fills the body and ends with one NUL."""
    name = bytes(body)
    if name.find(b"\0") != len(name) - 1 or not name:
        raise MalformedMessageError("A name without its final NUL, or with another.")
    return name[:-1]


def format_name(name: bytes) -> bytes:
    return name + b"\0"


def parse_open_flags(body: Buffer) -> int:
    """The flags of open(2) in a struct fuse_open_in."""
    return _unpack(OPEN_IN, body)[0]


def format_open_flags(flags: int) -> bytes:
    return OPEN_IN.pack(flags, 0)


def parse_read_in(body: Buffer) -> ReadIn:
    return ReadIn._make(_unpack(READ_IN, body))


def format_read_in(value: ReadIn) -> bytes:
    return READ_IN.pack(*value)


def parse_release_in(body: Buffer) -> ReleaseIn:
    return ReleaseIn._make(_unpack(RELEASE_IN, body))


def format_release_in(value: ReleaseIn) -> bytes:
    return RELEASE_IN.pack(*value)


def parse_getxattr_in(body: Buffer) -> GetxattrIn:
    return GetxattrIn(_unpack(GETXATTR_IN, body)[0], parse_name(body[GETXATTR_IN.size :]))


def format_getxattr_in(value: GetxattrIn) -> bytes:
    return GETXATTR_IN.pack(value.size, 0) + format_name(value.name)


def parse_listxattr_in(body: Buffer) -> int:
    """The size of the caller's buffer, 0 to ask for the length."""
    return _unpack(GETXATTR_IN, body)[0]


def format_listxattr_in(size: int) -> bytes:
    return GETXATTR_IN.pack(size, 0)


def parse_interrupt_in(body: Buffer) -> int:
    """The unique number of the request to be given up: offset 40 of the whole message."""
    return _unpack(INTERRUPT_IN, body)[0]


def format_interrupt_in(unique: int) -> bytes:
    return INTERRUPT_IN.pack(unique)


def parse_forget_in(body: Buffer) -> int:
    """How many lookups the kernel gives back."""
    return _unpack(FORGET_IN, body)[0]


def format_forget_in(lookups: int) -> bytes:
    return FORGET_IN.pack(lookups)


def parse_batch_forget_in(body: Buffer) -> list[Forget]:
    count = _unpack(BATCH_FORGET_IN, body)[0]
    items = memoryview(body)[BATCH_FORGET_IN.size :]
    if len(items) != count * FORGET_ONE.size:
        raise MalformedMessageError(f"{len(items)} bytes cannot hold {count} forgets.")
    return [Forget._make(item) for item in FORGET_ONE.iter_unpack(items)]


def format_batch_forget_in(forgets: list[Forget]) -> bytes:
    return BATCH_FORGET_IN.pack(len(forgets), 0) + b"".join(FORGET_ONE.pack(*forget) for forget in forgets)


# Answers


def parse_out_header(message: Buffer) -> OutHeader:
    return OutHeader._make(_unpack(OUT_HEADER, message))


def format_answer(unique: int, payload: Buffer = b"", *, error: int = 0) -> bytes:
    """A whole answer; `error` is a positive errno, and then there is no payload."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(payload), -error, unique) + payload


def parse_init_out(body: Buffer) -> InitOut:
    major, minor, max_readahead, flags, *middle, flags2, max_stack_depth, timeout = _unpack(INIT_OUT, body)
    return InitOut._make((major, minor, max_readahead, flags | flags2 << 32, *middle, max_stack_depth, timeout))


def format_init_out(value: InitOut) -> bytes:
    return INIT_OUT.pack(
        value.major,
        value.minor,
        value.max_readahead,
        value.flags & 0xFFFFFFFF,
        value.max_background,
        value.congestion_threshold,
        value.max_write,
        value.time_gran,
        value.max_pages,
        value.map_alignment,
        value.flags >> 32,
        value.max_stack_depth,
        value.request_timeout,
    )


def attr_fields(attributes: Attributes) -> tuple[int, ...]:
    """The sixteen fields of struct fuse_attr. Access and change time are the modification time.

    Times are two's complement: the kernel assigns its u64 to a time64_t (fuse_change_attributes_common). Device
    numbers are those of stat(2), which for 12-bit majors and 20-bit minors equal the kernel's new_encode_dev().
    """
    inode, mode, links, uid, gid, rdev, size, mtime_s, mtime_ns = attributes
    return (
        inode, size, (size + 511) >> 9, mtime_s, mtime_s, mtime_s, mtime_ns, mtime_ns, mtime_ns,
        mode, links, uid, gid, rdev, _BLOCK_SIZE, 0,
    )  # fmt: skip


def _attributes_of(fields: tuple[int, ...]) -> Attributes:
    inode, size, _, _, mtime_s, _, _, mtime_ns, _, mode, links, uid, gid, rdev, _, _ = fields
    return Attributes(inode, mode, links, uid, gid, rdev, size, mtime_s, mtime_ns)


def validity(seconds: float) -> Validity:
    whole = int(seconds)
    return Validity(whole, int((seconds - whole) * 1e9))


def parse_attr_out(body: Buffer) -> tuple[Attributes, Validity]:
    seconds, nanoseconds, _, *fields = _unpack(ATTR_OUT, body)
    return _attributes_of(tuple(fields)), Validity(seconds, nanoseconds)


def format_attr_out(attributes: Attributes, valid: Validity) -> bytes:
    return ATTR_OUT.pack(*valid, 0, *attr_fields(attributes))


def parse_entry_out(body: Buffer) -> Entry:
    nodeid, _, entry_s, attr_s, entry_ns, attr_ns, *fields = _unpack(ENTRY_OUT, body)
    attributes = _attributes_of(tuple(fields)) if nodeid else None
    return Entry(attributes, Validity(entry_s, entry_ns), Validity(attr_s, attr_ns))


def format_entry_out(entry: Entry) -> bytes:
    """The node number is the inode number, the generation 0: an inode number is never used again by a tree."""
    attributes, (entry_s, entry_ns), (attr_s, attr_ns) = entry
    if attributes is None:
        return ENTRY_OUT.pack(0, 0, entry_s, attr_s, entry_ns, attr_ns, *(0,) * 16)
    return ENTRY_OUT.pack(attributes[0], 0, entry_s, attr_s, entry_ns, attr_ns, *attr_fields(attributes))


def parse_open_out(body: Buffer) -> OpenOut:
    return OpenOut._make(_unpack(OPEN_OUT, body))


def format_open_out(value: OpenOut) -> bytes:
    return OPEN_OUT.pack(*value)


def dirent_size(name: bytes) -> int:
    """FUSE_DIRENT_SIZE: records are aligned to 8 bytes."""
    return (DIRENT.size + len(name) + 7) & ~7


def direntplus_size(name: bytes) -> int:
    return (DIRENTPLUS.size + len(name) + 7) & ~7


def format_dirent(value: Dirent) -> bytes:
    inode, offset, kind, name = value
    length = len(name)
    return DIRENT.pack(inode, offset, length, kind) + name + PADDING[length & 7]


def parse_dirents(body: Buffer) -> list[Dirent]:
    """The entries of an answer, read as parse_dirfile() in fs/fuse/readdir.c does."""
    view = memoryview(body)
    dirents = []
    while view:
        inode, offset, length, kind = _unpack(DIRENT, view)
        dirents.append(Dirent(inode, offset, kind, _dirent_name(view[DIRENT.size :], length)))
        view = view[dirent_size(dirents[-1].name) :]
    return dirents


def format_direntplus(value: Dirent, entry: Entry | None) -> bytes:
    """Without an entry (nodeid 0, for `.` and `..`) the kernel takes the name only (fuse_direntplus_link)."""
    head = bytes(ENTRY_OUT.size) if entry is None else format_entry_out(entry)
    return head + format_dirent(value)


def parse_direntpluses(body: Buffer) -> list[tuple[Dirent, Entry]]:
    view = memoryview(body)
    result = []
    while view:
        entry = parse_entry_out(view)
        inode, offset, length, kind = _unpack(DIRENT, view[ENTRY_OUT.size :])
        dirent = Dirent(inode, offset, kind, _dirent_name(view[DIRENTPLUS.size :], length))
        result.append((dirent, entry))
        view = view[direntplus_size(dirent.name) :]
    return result


def _dirent_name(view: memoryview, length: int) -> bytes:
    if not 0 < length <= len(view):
        raise MalformedMessageError(f"A directory entry with a name of {length} bytes.")
    return bytes(view[:length])


def dirent_kind(mode: int) -> int:
    """DT_* of a mode: its file type bits."""
    return stat.S_IFMT(mode) >> 12


def parse_getxattr_out(body: Buffer) -> int:
    return _unpack(GETXATTR_OUT, body)[0]


def format_getxattr_out(size: int) -> bytes:
    return GETXATTR_OUT.pack(size, 0)


def parse_xattr_names(body: Buffer) -> list[bytes]:
    return bytes(body).split(b"\0")[:-1]


def format_xattr_names(names: Iterable[bytes]) -> bytes:
    return b"".join(name + b"\0" for name in names)


def parse_statfs_out(body: Buffer) -> Statfs:
    return Statfs._make(_unpack(STATFS_OUT, body))


def format_statfs_out(value: Statfs) -> bytes:
    return STATFS_OUT.pack(*value)


# Arguments of the device's ioctls. Mutable, for ioctl(2) in Python gives its result back only with such a buffer


def format_backing_map(fd: int) -> bytearray:
    return bytearray(BACKING_MAP.pack(fd, 0, 0))


def format_backing_id(backing_id: int) -> bytearray:
    return bytearray(BACKING_ID.pack(backing_id))


# Notifications: answers to nothing (unique 0), with the code in the place of the error


def format_inval_inode(inode: int, *, offset: int = 0, length: int = 0) -> bytes:
    """Forget attributes and cached pages from `offset` on (length 0: to the end; offset -1: attributes only)."""
    body = NOTIFY_INVAL_INODE_OUT.pack(inode, offset, length)
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), FUSE_NOTIFY_INVAL_INODE, 0) + body


def format_inval_entry(parent: int, name: bytes, *, flags: int = 0) -> bytes:
    body = NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), flags) + name + b"\0"
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), FUSE_NOTIFY_INVAL_ENTRY, 0) + body


def format_store(inode: int, content: bytes) -> bytes:
    """Give the kernel's cache the content of a file from its beginning: up to its end, or whole pages."""
    head = NOTIFY_STORE_OUT.pack(inode, 0, len(content))
    length = OUT_HEADER.size + len(head) + len(content)
    return OUT_HEADER.pack(length, FUSE_NOTIFY_STORE, 0) + head + content


def format_resend() -> bytes:
    """Ask for the requests that a dead server had read and not answered (7.40; dataplane: 16, 7, 0)."""
    return OUT_HEADER.pack(OUT_HEADER.size, FUSE_NOTIFY_RESEND, 0)
