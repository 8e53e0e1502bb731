"""Headers of a tar archive to one member: numbers, names, extended headers, sparse maps. Called by `tarstream` only.

Sources of the rules: POSIX.1-2017 "pax - ustar Interchange Format" and "pax Extended Header"; GNU tar manual,
"Tar Internals" (base-256 numbers, long names, sparse formats); Go's archive/tar, which engines unpack with.
"""

import base64
import binascii
import re
import struct
import urllib.parse
import zlib

from mica.errors import UserError
from mica.tarentry import (
    BLOCK_BYTES,
    INT64_MAX,
    INT64_MIN,
    NAME_MAX_BYTES,
    PATH_MAX_BYTES,
    Kind,
    Source,
    SparseData,
    TarEntry,
    TarLimits,
    truncated,
)
from mica.texts import quoted

HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32x32x8s8s155s12s")
_OCTAL = re.compile(rb"[0-7]*")
_DIGITS = 20
_DECIMAL = re.compile(rb"[0-9]{1,20}")
_SIGNED_DECIMAL = re.compile(rb"-?[0-9]{1,20}")
_TIME = re.compile(rb"(-?)([0-9]{1,20})(?:\.([0-9]*))?")
_RECORD = re.compile(rb"([0-9]{1,20}) ([^=\0]+)=")
_PAX_KEYS = frozenset(
    {
        b"path",
        b"linkpath",
        b"size",
        b"uid",
        b"gid",
        b"mtime",
        b"SCHILY.devmajor",
        b"SCHILY.devminor",
        b"GNU.sparse.major",
        b"GNU.sparse.minor",
        b"GNU.sparse.name",
        b"GNU.sparse.realsize",
        b"GNU.sparse.size",
        b"GNU.sparse.map",
    }
)
KINDS = {
    b"\0": Kind.REGULAR,
    b"0": Kind.REGULAR,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
    b"7": Kind.REGULAR,  # contiguous
    b"S": Kind.REGULAR,  # GNU sparse
}
_IDS = 2**32  # chown(2) takes 32 bits, of which writers make a signed or an unsigned number
_NO_ID = _IDS - 1  # and -1 says to leave the owner as it is; for a program that unpacks as root, that is root
_MAJOR_MAX = 2**12 - 1
_MINOR_MAX = 2**20 - 1
_LINKS = frozenset({Kind.SYMLINK, Kind.HARDLINK})
_DEVICES = frozenset({Kind.CHARACTER, Kind.BLOCK})
_XATTRS_MAX = 4096  # Linux lists at most 64 KiB of names
_NEWLINE = ord("\n")
_NS_PER_S = 10**9


def unsigned_sum(header: bytes) -> int:
    """Sum of a header's bytes with the checksum field taken as spaces.

    Adler-32 begun at 0 holds the sum of bytes modulo 65521 in its lower half, exact for up to 256 bytes: ten times
    as fast as sum().
    """
    return (
        256
        + (zlib.adler32(header[:148], 0) & 0xFFFF)
        + (zlib.adler32(header[156:334], 0) & 0xFFFF)
        + (zlib.adler32(header[334:], 0) & 0xFFFF)
    )


def _signed_sum(header: bytes) -> int:
    """The same with signed bytes, as some old Unix systems made it."""
    return unsigned_sum(header) - 256 * sum(byte > 127 for byte in header[:148] + header[156:])


class Headers:
    """What extended headers say: pax records, GNU long names; and what they cost so far."""

    __slots__ = ("cost", "long_link", "long_name", "pax", "sparse_pairs", "xattrs")

    def __init__(self) -> None:
        self.cost = 0
        self.pax: dict[bytes, bytes] = {}
        self.xattrs: dict[bytes, bytes] = {}
        self.sparse_pairs: list[bytes] = []
        self.long_name = b""
        self.long_link = b""

    def forget_sparse(self) -> None:
        """A sparse map is of one member; in a global header it would only cost time at every member."""
        self.pax = {key: value for key, value in self.pax.items() if not key.startswith(b"GNU.sparse.")}
        self.sparse_pairs.clear()


class Member:
    """The header of one member together with all that was said about it before."""

    def __init__(self, header: bytes, offset: int, global_headers: Headers, headers: Headers) -> None:
        self._header = header
        self._fields: tuple[bytes, ...] = HEADER.unpack(header)
        self._offset = offset
        self._headers = headers
        # An empty value takes back what a global header said: the header's own field counts again (POSIX pax).
        self._pax = {**global_headers.pax, **headers.pax} if global_headers.pax else headers.pax
        self._xattrs = {**global_headers.xattrs, **headers.xattrs} if global_headers.xattrs else headers.xattrs
        self._name = self._find_name()

    def entry(self, kind: Kind, stored: int, source: Source, limits: TarLimits) -> TarEntry:
        stored = self._decimal(b"size", stored)
        if kind is not Kind.REGULAR:
            # No data follows, whatever the size field says: the rule of Go's archive/tar.
            return self._make(kind, 0, source)
        if self._name.endswith(b"/"):
            # How v7 archives say directory, kept by all readers; its data, if any, is skipped.
            entry = self._make(Kind.DIRECTORY, 0, source)
            sparse: SparseData | None = SparseData([], stored)
        else:
            sparse, size = self._sparse(stored, source, limits)
            entry = self._make(kind, size, source)
        entry.store(stored, sparse)
        return entry

    def _make(self, kind: Kind, size: int, source: Source) -> TarEntry:
        _, mode, uid, gid, _, mtime, *_ = self._fields
        has_device = kind in _DEVICES
        mtime_s, mtime_ns = self._mtime(mtime)
        return TarEntry(
            self._name,
            kind,
            self._field(mode, "mode") & 0o7777,
            self._owner(b"uid", uid),
            self._owner(b"gid", gid),
            size,
            mtime_s,
            mtime_ns,
            self._find_link(kind) if kind in _LINKS else b"",
            self._device(b"SCHILY.devmajor", 10, _MAJOR_MAX) if has_device else 0,
            self._device(b"SCHILY.devminor", 11, _MINOR_MAX) if has_device else 0,
            self._xattrs,
            self._offset,
            source,
        )

    # Names

    def _find_name(self) -> bytes:
        name = self._pax.get(b"GNU.sparse.name") or self._pax.get(b"path") or self._headers.long_name
        name = name or self._plain_name()
        self._check_path(name, name)
        if max(map(len, name.split(b"/"))) > NAME_MAX_BYTES:
            raise UserError(
                f"Archive member {quoted(name)} at byte {self._offset} has a name longer than {NAME_MAX_BYTES} bytes."
            )
        return name

    def _plain_name(self) -> bytes:
        """Name field and, in POSIX archives only, the prefix (shorter in star's variant, which has times behind)."""
        header = self._header
        name = field_text(self._fields[0])
        if header[257:263] != b"ustar\0":
            return name
        prefix = field_text(header[345:476] if header[508:] == b"tar\0" else header[345:500])
        return prefix + b"/" + name if prefix else name

    def _find_link(self, kind: Kind) -> bytes:
        link = self._pax.get(b"linkpath") or self._headers.long_link or field_text(self._fields[8])
        if not link:
            raise UserError(
                f"Archive member {quoted(self._name)} at byte {self._offset} is a {kind.value} without a target."
            )
        self._check_path(link, self._name)
        return link

    def _check_path(self, path: bytes, member: bytes) -> None:
        if path and len(path) <= PATH_MAX_BYTES and b"\0" not in path:
            return
        what = "an empty name" if not path else "a zero byte in its name or link"
        if len(path) > PATH_MAX_BYTES:
            what = f"a name or link longer than {PATH_MAX_BYTES} bytes"
        raise UserError(f"Archive member {quoted(member)} at byte {self._offset} has {what}.")

    # Numbers

    def _field(self, field: bytes, what: str) -> int:
        return self._bounded(_signed_number(field, what, self._name, self._offset), INT64_MAX, what)

    def _decimal(self, key: bytes, other: bytes | int) -> int:
        """A number of the extended header, or else the header's own."""
        value = self._pax.get(key)
        if value:
            return self._parse_decimal(value, key.decode())
        return other if isinstance(other, int) else self._field(other, key.decode())

    def _owner(self, key: bytes, field: bytes) -> int:
        """A user or group id as chown(2) understands it: -2 is 4294967294, the nobody of macOS and old NFS."""
        value = self._pax.get(key)
        if not value:
            number = _signed_number(field, key.decode(), self._name, self._offset)
        elif _SIGNED_DECIMAL.fullmatch(value):
            number = int(value)
        else:
            raise self._absurd(key.decode())
        if not -_IDS // 2 <= number < _IDS:
            raise self._absurd(key.decode())
        number %= _IDS
        return 0 if number == _NO_ID else number

    def _parse_decimal(self, value: bytes, what: str) -> int:
        if not _DECIMAL.fullmatch(value):
            raise self._absurd(what)
        return self._bounded(int(value), INT64_MAX, what)

    def _bounded(self, number: int, maximum: int, what: str) -> int:
        if not 0 <= number <= maximum:
            raise self._absurd(what)
        return number

    def _absurd(self, what: str) -> UserError:
        return _absurd(what, self._name, self._offset)

    def _device(self, key: bytes, place: int, maximum: int) -> int:
        """The fields exist since ustar; in v7 headers these bytes mean nothing."""
        field = self._fields[place] if self._header[257:262] == b"ustar" else b""
        return self._bounded(self._decimal(key, field), maximum, "device number")

    def _mtime(self, field: bytes) -> tuple[int, int]:
        """Seconds rounded down and the nanoseconds above them; digits behind the ninth are cut towards the past."""
        value = self._pax.get(b"mtime")
        if not value:
            return _signed_number(field, "mtime", self._name, self._offset), 0
        match = _TIME.fullmatch(value)
        if match is None:
            raise self._absurd("mtime")
        sign, whole, fraction = match.groups(b"")
        seconds = int(whole)
        nanoseconds = int(fraction[:9].ljust(9, b"0"))
        if sign:
            nanoseconds = -nanoseconds - bool(fraction[9:].strip(b"0"))
            seconds = -seconds - (nanoseconds < 0)
            nanoseconds %= _NS_PER_S
        if not INT64_MIN <= seconds <= INT64_MAX:
            raise self._absurd("mtime")
        return seconds, nanoseconds

    # Sparse files (GNU tar manual, "Storing Sparse Files")

    def _sparse(self, stored: int, source: Source, limits: TarLimits) -> tuple[SparseData | None, int]:
        """How the stored bytes lie in the file, and the file's size; nothing for an ordinary file."""
        pax = self._pax
        stored_data = stored
        if self._fields[7] == b"S":
            numbers = self._old_sparse_numbers(source, limits)
            size = self._field(self._header[483:495], "size")
        elif pax.get(b"GNU.sparse.major") == b"1" and pax.get(b"GNU.sparse.minor") == b"0":
            size = self._decimal(b"GNU.sparse.realsize", -1)
            numbers, map_bytes = self._read_sparse_map(stored, source, limits)
            stored_data -= map_bytes
        elif b"GNU.sparse.size" in pax:
            size = self._decimal(b"GNU.sparse.size", -1)
            texts = pax[b"GNU.sparse.map"].split(b",") if pax.get(b"GNU.sparse.map") else self._headers.sparse_pairs
            numbers = [self._parse_decimal(text, "sparse map") for text in texts]
        elif b"GNU.sparse.major" in pax:
            raise UserError(f"Archive member {quoted(self._name)} at byte {self._offset} has an unknown sparse format.")
        else:
            return None, stored
        segments = self._checked_segments(numbers, size, stored_data)
        return SparseData(segments, stored_data), size

    def _checked_segments(self, numbers: list[int], size: int, stored: int) -> list[tuple[int, int]]:
        if len(numbers) % 2 or size < 0:
            raise self._absurd("sparse map")
        segments = list(zip(numbers[::2], numbers[1::2], strict=True))
        end = 0
        for start, length in segments:
            if start < end or start + length > size:
                raise self._absurd("sparse map")
            end = start + length
        if sum(numbers[1::2]) != stored:
            raise self._absurd("sparse map")
        return [segment for segment in segments if segment[1]]

    def _old_sparse_numbers(self, source: Source, limits: TarLimits) -> list[int]:
        """Four pairs in the header, 21 in each extension block that follows it."""
        numbers = self._old_pairs(self._header[386:482])
        goes_on = self._header[482]
        cost = BLOCK_BYTES
        while goes_on:
            block = source.take(BLOCK_BYTES)
            cost += BLOCK_BYTES
            if len(block) != BLOCK_BYTES:
                raise truncated(f"in the sparse map of {quoted(self._name)}", source.offset)
            if cost > limits.max_header_bytes:
                raise self._absurd("sparse map")
            numbers += self._old_pairs(block[:504])
            goes_on = block[504]
        return numbers

    def _old_pairs(self, table: bytes) -> list[int]:
        """Offsets and lengths up to the first unused place."""
        numbers = []
        for place in range(0, len(table), 24):
            if not table[place + 12]:
                break
            numbers.append(self._field(table[place : place + 12], "sparse map"))
            numbers.append(self._field(table[place + 12 : place + 24], "sparse map"))
        return numbers

    def _read_sparse_map(self, stored: int, source: Source, limits: TarLimits) -> tuple[list[int], int]:
        """Format 1.0: the map is text before the data, one number a line, the first says how many pairs."""
        map_bytes = 0
        wanted = 1
        lines: list[bytes] = []
        rest = b""
        while len(lines) < wanted:
            map_bytes += BLOCK_BYTES
            if map_bytes > min(stored, limits.max_header_bytes) or len(rest) > _DIGITS:
                raise self._absurd("sparse map")
            block = source.take(BLOCK_BYTES)
            if len(block) != BLOCK_BYTES:
                raise truncated(f"in the sparse map of {quoted(self._name)}", source.offset)
            *complete, rest = (rest + block).split(b"\n")
            lines += complete
            if lines:
                wanted = 1 + 2 * self._parse_decimal(lines[0], "sparse map")
        return [self._parse_decimal(line, "sparse map") for line in lines[1:wanted]], map_bytes


# Fields


def field_text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _absurd(what: str, name: bytes, offset: int) -> UserError:
    return UserError(f"Archive member {quoted(field_text(name))} at byte {offset} has an absurd {what}.")


def size_number(field: bytes, what: str, name: bytes, offset: int) -> int:
    number = _signed_number(field, what, name, offset)
    if number < 0:
        raise _absurd(what, name, offset)
    return number


def _signed_number(field: bytes, what: str, name: bytes, offset: int) -> int:
    """Octal text, or GNU's base-256: big-endian two's complement whose top bit is the mark, not the sign."""
    if field[:1] >= b"\x80":
        bits = 8 * len(field) - 1
        number = int.from_bytes(field, "big") & ((1 << bits) - 1)
        if field[0] & 0x40:
            number -= 1 << bits
        if not INT64_MIN <= number <= INT64_MAX:
            raise _absurd(what, name, offset)
        return number
    digits = field_text(field.strip(b" \0")).rstrip(b" ")
    if not _OCTAL.fullmatch(digits):
        raise _absurd(what, name, offset)
    return int(digits or b"0", 8)


def check_sum(header: bytes, offset: int) -> None:
    try:
        stated = _signed_number(header[148:156], "checksum", header[:100], offset)
    except UserError:
        stated = -1
    if stated != unsigned_sum(header) and stated != _signed_sum(header):
        raise UserError(
            f"The archive is damaged at byte {offset}: the header of {quoted(field_text(header[:100]))}"
            " does not match its checksum."
        )


# Extended headers


def parse_pax(data: bytes, headers: Headers, offset: int) -> None:
    """Records `length key=value newline`, the length counting itself; unknown keys are not kept."""
    place = 0
    while place < len(data):
        match = _RECORD.match(data, place)
        end = place + int(match[1]) if match is not None else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1] != _NEWLINE:
            if not data[place:].strip(b"\0"):
                return  # some writers count the padding in
            raise UserError(f"The extended header at byte {offset} of the archive has a damaged record.")
        _keep_record(match[2], data[match.end() : end - 1], headers, offset)
        place = end


def _keep_record(key: bytes, value: bytes, headers: Headers, offset: int) -> None:
    if key in _PAX_KEYS:
        headers.pax[key] = value
    elif key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
        headers.sparse_pairs.append(value)
    elif key.startswith(b"SCHILY.xattr."):
        # GNU tar writes = and % of a name as %3D and %25.
        headers.xattrs[key[13:].replace(b"%3D", b"=").replace(b"%25", b"%")] = value
    elif key.startswith(b"LIBARCHIVE.xattr."):
        headers.xattrs.setdefault(urllib.parse.unquote_to_bytes(key[17:]), _base64(value, offset))
    if len(headers.xattrs) > _XATTRS_MAX:
        raise UserError(f"The extended header at byte {offset} has more than {_XATTRS_MAX} attributes.")


def _base64(value: bytes, offset: int) -> bytes:
    """Decode as libarchive encodes: without padding."""
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise UserError(f"The extended header at byte {offset} has an attribute that is not base64.") from error
