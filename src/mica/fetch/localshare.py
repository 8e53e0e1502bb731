"""How much of a repository's revision is in a cache: what can be read on this node without asking any server.

Looks only into catalogs that are in the cache themselves, and never downloads. Called by `mica status`, in a process of
its own, for it may take seconds: a stat(2) for each file of each of those catalogs. Changes nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

from mica.errors import IntegrityError
from mica.fetch.cache import Cache
from mica.fetch.client import catalog_object, open_cached_catalog
from mica.fetch.parts import local_chunks
from mica.repo.catalog import Catalog, NestedCatalog, Row
from mica.repo.entry import Flag


class LocalShare(NamedTuple):
    """Of a revision: its regular files and their bytes by the root catalog's own count, and how many of them are in the
    cache. A file is local when all of it is; bytes are those of all local objects and chunks, counted for each file
    that has them. What is in `unseen_catalogs` of the `catalogs` is not known to be local."""

    files: int
    local_files: int
    size_bytes: int
    local_bytes: int
    catalogs: int
    unseen_catalogs: int


def measure_local_share(
    cache: Cache, root: NestedCatalog, *, progress: Callable[[int], None] = lambda _bytes: None
) -> LocalShare | None:
    """None if not even the root catalog is in the cache. Raises IntegrityError for a catalog that is damaged.

    `progress` is called with the size in bytes of each file that was looked at.
    """
    meter = _Meter(cache, progress)
    pending, known, seen = [root], {root.digest}, 0
    declared: dict[str, int] = {}
    while pending:
        reference = pending.pop()
        if not _is_cached(cache, reference):
            continue
        with open_cached_catalog(cache, reference) as catalog:
            declared = declared or catalog.counters()
            meter.look_into(catalog)
            # A catalog names its own path, so none can rightly be in two places; one that is counts once.
            pending += (new := [nested for nested in catalog.nested() if nested.digest not in known])
        known |= {nested.digest for nested in new}
        seen += 1
    if not seen:
        return None
    catalogs = max(1 + _total(declared, "nested"), len(known))
    return LocalShare(
        files=max(_total(declared, "regular"), meter.files),
        local_files=meter.local_files,
        size_bytes=max(_total(declared, "file_size"), meter.size_bytes),
        local_bytes=meter.local_bytes,
        catalogs=catalogs,
        unseen_catalogs=catalogs - seen,
    )


class LocalContent(NamedTuple):
    """How much of one file is in the cache; of an empty file that is in it, all and 0 bytes."""

    size_bytes: int
    is_whole: bool


def is_counted(row: Row) -> bool:
    """Regular files count, but for those whose content is not in the repository."""
    return row.entry.is_regular and not row.entry.flags & Flag.EXTERNAL


def find_local(cache: Cache, catalog: Catalog, row: Row) -> LocalContent:
    """What of a file is here. Raises IntegrityError for a row that is malformed."""
    entry = row.entry
    try:
        if entry.digest is not None:
            is_here = cache.has(entry.digest, entry.compression, entry.size)
            return LocalContent(entry.size if is_here else 0, is_here)
        chunks = catalog.chunks(row)
        local = local_chunks(cache, chunks, entry.compression) if chunks else []
    except ValueError as error:
        raise IntegrityError(f"Catalog {catalog.name} has a malformed entry in row {row.rowid}: {error}.") from error
    return LocalContent(sum(chunk.size for chunk in local), len(local) == len(chunks))


class _Meter:
    def __init__(self, cache: Cache, progress: Callable[[int], None]) -> None:
        self._cache = cache
        self._progress = progress
        self.files = self.local_files = self.size_bytes = self.local_bytes = 0

    def look_into(self, catalog: Catalog) -> None:
        for row, _ in catalog.all_rows():
            if is_counted(row):
                local = find_local(self._cache, catalog, row)
                self.files += 1
                self.local_files += local.is_whole
                self.size_bytes += row.entry.size
                self.local_bytes += local.size_bytes
                self._progress(row.entry.size)


def _is_cached(cache: Cache, reference: NestedCatalog) -> bool:
    name = catalog_object(reference)
    return cache.has(name.digest, name.compression, name.size)


def _total(counters: dict[str, int], name: str) -> int:
    return counters.get(f"self_{name}", 0) + counters.get(f"subtree_{name}", 0)
