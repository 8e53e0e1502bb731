"""Caches for tests: filled by hand, with files as old as a test wants them."""

import os
import time
from pathlib import Path

from mica.cache.cache import Cache
from mica.cache.inventory import Kind
from mica.digest import Algorithm, Suffix
from mica.repo.localname import LocalName
from mica.repo.objectname import ObjectName
from mica.repo.objects import Compression, pack

NOTHING_FRESH = dict.fromkeys(Kind, 0.0)
"""Everything may leave at once."""


def put(cache: Cache, content: bytes, *, age_s: float = 0) -> LocalName:
    """An object by its right name, which came some time ago."""
    packed = pack(content, Algorithm.SHA1, Compression.ZLIB)
    name = LocalName(packed.digest, Compression.ZLIB, len(content))
    with cache.adding(ObjectName(name.digest, Suffix.FILE, name.compression, name.size)) as new:
        new.write(content)
        os.close(new.commit())
    let_age(Path(cache.path(name)), age_s)
    return name


def let_age(path: Path, age_s: float) -> None:
    """Pretend that a file was last used so long ago, and that nobody has read it since."""
    moment = time.time() - age_s
    os.utime(path, (moment, moment))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_usage(root: Path) -> int:
    """Allocated bytes of the content, each file once, as du(1) counts; empty ones have none."""
    seen: dict[int, int] = {}
    for name in ("objects", "handover", "parts", "lists", "images", "unsized"):
        for path in (root / name).rglob("*"):
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            if path.is_file():
                seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values())
