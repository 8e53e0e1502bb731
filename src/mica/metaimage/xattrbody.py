"""The attributes of one inode as bytes behind it; what many have in common is stored once, as far as that pays."""

from collections.abc import Callable, Iterable, Sequence

from mica.metaimage.erofs_abi import (
    SHARED_XATTRS_MAX,
    XATTR_BODY,
    XATTR_ID,
    XATTR_ID_BYTES,
)
from mica.metaimage.xattrs import (
    METACOPY,
    REDIRECT,
    SHARED_BYTES_MAX,
    SHARED_ENTRIES_MAX,
    FilterBits,
    format_xattr,
    split_name,
)

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
        """For a file whose content is elsewhere."""
        entry = format_xattr(*_REDIRECT, redirect)
        if not xattrs:
            return self._stub_head + entry
        return self._body(xattrs, list(self._stub_ids), [entry], self._stub_bits, shares=True)

    def of_file(self, xattrs: Sequence[tuple[bytes, bytes]], *, shares: bool = True) -> bytes:
        """For anything else; nothing if it has no attributes."""
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
        """Number of a shared entry; None for one that is new when there are many already, or large."""
        known = self._shared.get(entry)
        if known is None and len(entry) <= SHARED_BYTES_MAX and len(self._shared) < SHARED_ENTRIES_MAX:
            known = self._shared[entry] = self._store(entry) // XATTR_ID_BYTES
        return known


def _head(bits: int, ids: Iterable[int]) -> bytes:
    ids = tuple(ids)
    return XATTR_BODY.pack(~bits & 0xFFFFFFFF, len(ids)) + b"".join(map(XATTR_ID.pack, ids))
