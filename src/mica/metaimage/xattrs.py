"""Extended attributes of metadata images: the possible ones, and their bytes (docs/format/erofs-image.md). Pure.

Overlayfs obeys `trusted.overlay.*`. Only two of a layer's attributes of that name get into an image, both of
directories: `opaque`, and an `origin` without a value, which says that the directory has whiteouts (ORIGIN). `metacopy`
and `redirect` come from the writer alone.
"""

import functools
import operator
import stat
from collections.abc import Callable, Iterable, Sequence
from struct import unpack_from

from mica.metaimage.erofs_abi import (
    NAME_MAX,
    SHARED_XATTRS_MAX,
    XATTR_BODY,
    XATTR_ENTRY,
    XATTR_ID,
    XATTR_ID_BYTES,
)
from mica.unionsigns import METACOPY, OPAQUE, ORIGIN, OVERLAY_PREFIX, REDIRECT

SHARED_ENTRIES_MAX = 4096
"""Most different attributes of one image that are stored once for all files."""
SHARED_BYTES_MAX = 1024
"""Most bytes of one such entry."""

_DIRECTORY_SIGNS = {(OPAQUE, b"y"), (ORIGIN, b"")}
_TRUSTED_INDEX = 4
_WHOLE_NAMES = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}
_PREFIXES = {b"user": 1, b"trusted": _TRUSTED_INDEX, b"security": 6}
_NAME_OF = {index: name for name, index in _WHOLE_NAMES.items()}
_PREFIX_OF = {index: prefix + b"." for prefix, index in _PREFIXES.items()}
_VALUE_MAX = 0xFFFF
_FILTER_SEED = 0x25BBE08F


def split_name(name: bytes) -> tuple[int, bytes]:
    """A name in EROFS's form: index of its prefix, and the rest. Raises ValueError if EROFS has no such prefix."""
    index = _WHOLE_NAMES.get(name)
    if index is not None:
        return index, b""
    prefix, _, rest = name.partition(b".")
    index = _PREFIXES.get(prefix)
    if index is None or not 0 < len(rest) <= NAME_MAX or b"\0" in rest:
        raise ValueError("not the name of an attribute that EROFS can have")
    return index, rest


@functools.lru_cache(1024)
def join_name(index: int, rest: bytes) -> bytes:
    """The inverse of `split_name`. Raises ValueError for pairs that it never gives."""
    name = _PREFIX_OF.get(index, b"") + rest or _NAME_OF.get(index, b"")
    if split_name(name) != (index, rest):
        raise ValueError("not an attribute that EROFS can have")
    return name


def is_directory_sign(name: bytes, value: bytes) -> bool:
    """Whether this is one of the two attributes that overlayfs acts upon and a layer may have."""
    return (name, value) in _DIRECTORY_SIGNS


def may_enter(name: bytes, value: bytes, mode: int) -> bool:
    """Whether an attribute that a layer gives to a file of this mode gets into the image."""
    if name.startswith(OVERLAY_PREFIX):
        return stat.S_ISDIR(mode) and is_directory_sign(name, value)
    try:
        split_name(name)
    except ValueError:
        return False
    return len(value) <= _VALUE_MAX


def format_xattr(index: int, rest: bytes, value: bytes) -> bytes:
    """An entry with its padding to four bytes."""
    return XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value + bytes(-(len(rest) + len(value)) & 3)


def filter_bit(index: int, rest: bytes) -> int:
    """The bit that stands for a name in the filter of an inode (erofs_getxattr in fs/erofs/xattr.c)."""
    return 1 << (xxh32(rest, (_FILTER_SEED + index) & _MASK) & 31)


@functools.lru_cache(256)
def filter_bits(names: tuple[bytes, ...]) -> int:
    """The filter bits of several names that `split_name` takes."""
    return functools.reduce(operator.or_, (filter_bit(*split_name(name)) for name in names), 0)


class FilterBits:
    """Bits of names, each computed once. A layer can have millions of names, and hashing one takes 10 µs. From the
    1025th on the answer is all bits, which is always right: the kernel then looks at the attributes."""

    _LIMIT = 1024

    def __init__(self) -> None:
        self._bits: dict[tuple[int, bytes], int] = {}

    def of(self, index: int, rest: bytes) -> int:
        key = index, rest
        bit = self._bits.get(key)
        if bit is None:
            if len(self._bits) >= self._LIMIT:
                return _MASK
            bit = self._bits[key] = filter_bit(index, rest)
        return bit


_MASK = 0xFFFFFFFF
_PRIME_1, _PRIME_2, _PRIME_3, _PRIME_4, _PRIME_5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393


def xxh32(data: bytes, seed: int) -> int:
    """XXH32 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md)."""
    position = 0
    if len(data) >= 16:
        lanes = [(seed + _PRIME_1 + _PRIME_2) & _MASK, (seed + _PRIME_2) & _MASK, seed, (seed - _PRIME_1) & _MASK]
        while position + 16 <= len(data):
            words = unpack_from("<4I", data, position)
            lanes = [
                _rotated((lane + word * _PRIME_2) & _MASK, 13) * _PRIME_1 & _MASK
                for lane, word in zip(lanes, words, strict=True)
            ]
            position += 16
        total = sum(_rotated(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
    else:
        total = seed + _PRIME_5
    total = (total + len(data)) & _MASK
    while position + 4 <= len(data):
        (word,) = unpack_from("<I", data, position)
        total = _rotated((total + word * _PRIME_3) & _MASK, 17) * _PRIME_4 & _MASK
        position += 4
    for byte in data[position:]:
        total = _rotated((total + byte * _PRIME_5) & _MASK, 11) * _PRIME_1 & _MASK
    total = (total ^ total >> 15) * _PRIME_2 & _MASK
    total = (total ^ total >> 13) * _PRIME_3 & _MASK
    return total ^ total >> 16


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (32 - bits)) & _MASK


_METACOPY = split_name(METACOPY)
_REDIRECT = split_name(REDIRECT)


class XattrBodies:
    """Makes bodies for the inodes of one image. `store` puts a shared entry into the image and returns its place."""

    def __init__(self, store: Callable[[bytes], int]) -> None:
        self._store = store
        self._bits = FilterBits()
        self._shared: dict[bytes, int] = {}
        metacopy = self._id_of(format_xattr(*_METACOPY, b""))
        assert metacopy is not None
        self._stub_ids = (metacopy,)
        self._stub_bits = self._bits.of(*_METACOPY) | self._bits.of(*_REDIRECT)
        self._stub_head = _head(self._stub_bits, self._stub_ids)

    def of_stub(self, redirect: bytes, xattrs: Sequence[tuple[bytes, bytes]]) -> bytes:
        """The body for a stub."""
        entry = format_xattr(*_REDIRECT, redirect)
        if not xattrs:
            return self._stub_head + entry
        return self._body(xattrs, list(self._stub_ids), [entry], self._stub_bits, shares=True)

    def of_file(self, xattrs: Sequence[tuple[bytes, bytes]], *, shares: bool = True) -> bytes:
        """The body for any other file; empty if it has no attributes."""
        return self._body(xattrs, [], [], 0, shares=shares) if xattrs else b""

    def _body(
        self, xattrs: Sequence[tuple[bytes, bytes]], ids: list[int], entries: list[bytes], bits: int, *, shares: bool
    ) -> bytes:
        for name, value in xattrs:
            index, rest = split_name(name)
            bits |= self._bits.of(index, rest)
            entry = format_xattr(index, rest, value)
            shared = self._id_of(entry) if shares and len(ids) < SHARED_XATTRS_MAX else None
            if shared is None:
                entries.append(entry)
            else:
                ids.append(shared)
        return _head(bits, ids) + b"".join(entries)

    def _id_of(self, entry: bytes) -> int | None:
        """Number of a shared entry; None for a large one, and for a new one when there are many already."""
        known = self._shared.get(entry)
        if known is None and len(entry) <= SHARED_BYTES_MAX and len(self._shared) < SHARED_ENTRIES_MAX:
            known = self._shared[entry] = self._store(entry) // XATTR_ID_BYTES
        return known


def _head(bits: int, ids: Iterable[int]) -> bytes:
    ids = tuple(ids)
    return XATTR_BODY.pack(~bits & 0xFFFFFFFF, len(ids)) + b"".join(map(XATTR_ID.pack, ids))
