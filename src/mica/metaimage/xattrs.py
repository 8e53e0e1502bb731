"""Extended attributes of metadata images: which there can be, and their bytes (docs/format/erofs-image.md). Pure.

Overlayfs is steered by `trusted.overlay.*`. What a layer says there never gets into an image, but for the sign of an
opaque directory; `metacopy` and `redirect` come from the writer alone.
"""

import functools
import operator
import stat
from struct import unpack_from

from mica.metaimage.erofs_abi import NAME_MAX, XATTR_ENTRY

OVERLAY_PREFIX = b"trusted.overlay."
OPAQUE = b"trusted.overlay.opaque"
METACOPY = b"trusted.overlay.metacopy"
REDIRECT = b"trusted.overlay.redirect"

SHARED_ENTRIES_MAX = 4096
"""Different attributes of one image that are stored once for all files."""
SHARED_BYTES_MAX = 1024
"""Of one such entry."""

_TRUSTED_INDEX = 4
_WHOLE_NAMES = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}
_PREFIXES = {b"user": 1, b"trusted": _TRUSTED_INDEX, b"security": 6}
_NAME_OF = {index: name for name, index in _WHOLE_NAMES.items()}
_PREFIX_OF = {index: prefix + b"." for prefix, index in _PREFIXES.items()}
_VALUE_MAX = 0xFFFF
_FILTER_SEED = 0x25BBE08F


def split_name(name: bytes) -> tuple[int, bytes]:
    """A name as EROFS has it: index of its prefix, and the rest. Raises ValueError where it has no way to say it."""
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
    """The inverse of `split_name`. Raises ValueError for what it never gives."""
    name = _PREFIX_OF.get(index, b"") + rest or _NAME_OF.get(index, b"")
    if split_name(name) != (index, rest):
        raise ValueError("not an attribute that EROFS can have")
    return name


def may_enter(name: bytes, value: bytes, mode: int) -> bool:
    """Whether an attribute that a layer gives to a file of this mode gets into the image."""
    if name.startswith(OVERLAY_PREFIX):
        return name == OPAQUE and value == b"y" and stat.S_ISDIR(mode)
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
    """Those of several names that `split_name` takes."""
    return functools.reduce(operator.or_, (filter_bit(*split_name(name)) for name in names), 0)


class FilterBits:
    """Bits of names, each computed once. A layer can have millions of names, and hashing one takes 10 µs: from the
    1025th on the answer is all bits, which is always right and makes the kernel look."""

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
