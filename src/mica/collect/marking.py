"""Finds the objects that revisions need: every catalog of each tree, and the files in it.

Of several trees that share catalogs only the first pays for them, unless the later one's owner is lower. Catalogs are
local files for the moment that they are looked at; a few threads look at several. Old revisions that are bound into a
tree (`/.cvmfs/snapshots`) are not entered. The caller's side is one thread.
"""

import itertools
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final, NamedTuple, Self

from mica.collect.objectmarks import ObjectMarks
from mica.digest import Digest, Suffix
from mica.errors import IntegrityError, MicaError, NotFoundError
from mica.fetch.revisions import RootFacts, root_facts
from mica.publish.rootcatalog import opened_catalog
from mica.repo.catalog import Catalog, NestedCatalog
from mica.store.base import ObjectSource

_THREADS: Final = 4
_AT_ONCE: Final = 8192


class MarkedTree(NamedTuple):
    """`faults`: catalogs that are missing or damaged. Without `root` the root catalog is one of them. `bound`: old
    revisions that catalogs show which were marked only now."""

    root: RootFacts | None
    faults: tuple[MicaError, ...]
    bound: tuple[NestedCatalog, ...]


class _Looked(NamedTuple):
    digest: Digest
    facts: RootFacts | None = None
    nested: Sequence[NestedCatalog] = ()
    bound: Sequence[NestedCatalog] = ()
    fault: MicaError | None = None


class Marker:
    """Use as a context manager. `work` is a directory with room for the largest catalogs."""

    def __init__(
        self,
        source: ObjectSource,
        marks: ObjectMarks,
        work: Path,
    ) -> None:
        """`progress` may be set: it gets the number of digests that were read since the last call, from any thread."""
        self._source = source
        self._marks = marks
        self._work = work
        self.progress: Callable[[int], object] = lambda _objects: None
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="mark")
        self._seen: dict[Digest, int] = {}
        self._facts: dict[Digest, RootFacts] = {}
        self._faults: dict[Digest, MicaError] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def mark(
        self,
        root: NestedCatalog,
        owner: int,
        *,
        without: Collection[bytes] = (),
        without_objects: Collection[tuple[Digest, Suffix]] = (),
    ) -> MarkedTree:
        """All objects of a tree, but for nested catalogs at some paths, and for some objects. Raises TemporaryError and
        UserError if the storage cannot be read, or the disk is full."""
        faults: list[MicaError] = []
        bound: list[NestedCatalog] = []
        pending = [root]
        running: set[Future[_Looked]] = set()
        while pending or running:
            while pending and len(running) < 2 * _THREADS:
                reference = pending.pop()
                if self._seen.get(reference.digest, owner + 1) <= owner or reference.path in without:
                    if (fault := self._faults.get(reference.digest)) is not None:
                        faults.append(fault)
                    continue
                self._seen[reference.digest] = owner
                running.add(self._pool.submit(self._look, reference, owner, without_objects))
            if not running:
                continue
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                looked = future.result()
                pending += looked.nested
                bound += looked.bound
                if looked.fault is not None:
                    faults.append(looked.fault)
                    self._faults[looked.digest] = looked.fault
                if looked.facts is not None:
                    self._facts[looked.digest] = looked.facts
        return MarkedTree(self._facts.get(root.digest), tuple(faults), tuple(bound))

    def _look(self, reference: NestedCatalog, owner: int, without: Collection[tuple[Digest, Suffix]]) -> _Looked:
        self._marks.add(owner, reference.digest, Suffix.CATALOG)
        try:
            with opened_catalog(self._source, self._work, reference) as catalog:
                self._mark_contents(catalog, owner, without)
                facts = None if reference.path else root_facts(catalog, reference.digest)
                return _Looked(reference.digest, facts, catalog.nested(), catalog.bind_mountpoints())
        except (NotFoundError, IntegrityError) as error:
            return _Looked(reference.digest, fault=error)

    def _mark_contents(self, catalog: Catalog, owner: int, without: Collection[tuple[Digest, Suffix]]) -> None:
        named = ((digest, suffix) for digest, suffix, _ in catalog.objects())
        while some := list(itertools.islice(named, _AT_ONCE)):
            self._marks.add_many(owner, [one for one in some if one not in without] if without else some)
            self.progress(len(some))
