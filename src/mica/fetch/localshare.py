"""How much of a repository's revision is in a cache: what can be read on this node without asking any server.

Looks only into catalogs that are in the cache themselves, and never downloads. `mica status` calls it in a process of
its own, since it may take seconds: a stat(2) for each file of each of those catalogs. Changes nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

from mica.cache.cache import Cache
from mica.cache.partfiles import local_chunks
from mica.errors import IntegrityError
from mica.fetch.client import catalog_object, open_cached_catalog
from mica.repo.catalog import Catalog, NestedCatalog, Row
from mica.repo.entry import Flag
from mica.repo.objectname import file_object


class LocalShare(NamedTuple):
    """A revision's regular files and their bytes, as its root catalog counts them, and how many of them are in the
    cache. A file is local when all of it is; local bytes are those of all local objects and chunks, counted for each
    file that has them. `unseen_catalogs` of the `catalogs` are not in the cache: their files do not count as local."""

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
            # A catalog names its own path, so one catalog in two places is an error; it counts once.
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
    """How much of one file is in the cache. An empty file that is in it has all of its 0 bytes."""

    size_bytes: int
    is_whole: bool


def is_counted(row: Row) -> bool:
    """Regular files count, except external ones: their content is not in the repository."""
    return row.entry.is_regular and not row.entry.flags & Flag.EXTERNAL


def find_local(cache: Cache, catalog: Catalog, row: Row) -> LocalContent:
    """How much of a file is in the cache. Raises IntegrityError for a malformed row."""
    entry = row.entry
    try:
        name = file_object(entry)
        if name is not None:
            is_here = cache.has(name)
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
    return cache.has(catalog_object(reference))


def _total(counters: dict[str, int], name: str) -> int:
    return counters.get(f"self_{name}", 0) + counters.get(f"subtree_{name}", 0)
