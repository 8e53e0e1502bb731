"""Names and times of a layer archive's members, as engines understand them. Pure."""

from typing import Final

from mica.errors import UserError
from mica.tarstream import TarEntry
from mica.texts import quoted
from mica.unionsigns import AUFS_PREFIX, OPAQUE_MARKER

_TIME_S: Final = 2**63 // 10**9
"""Nanoseconds leave 64 bits in the years 1677 and 2262. Beyond that Docker and containerd take 1970 instead, other
engines an arbitrary time."""


def path_parts(name: bytes) -> list[bytes]:
    """Components of a member's name inside the root. `..` is refused, never resolved."""
    parts = name.split(b"/")
    if b".." in parts:
        raise UserError(f"Archive member {quoted(name)} has '..' in its path.")
    if b"" in parts or b"." in parts:
        parts = [part for part in parts if part not in {b"", b"."}]
    return parts


def is_aufs(parts: list[bytes]) -> bool:
    """AUFS's own files, dropped at the end; until then hard links may point into `.wh..wh.plnk`, as in old images."""
    return any(part.startswith(AUFS_PREFIX) and part != OPAQUE_MARKER for part in parts)


def engine_time(entry: TarEntry) -> tuple[int, int]:
    """Seconds and nanoseconds of a layer's member as engines unpack it: 1970 for times that they cannot represent."""
    return (entry.mtime_s, entry.mtime_ns) if -_TIME_S < entry.mtime_s < _TIME_S else (0, 0)
