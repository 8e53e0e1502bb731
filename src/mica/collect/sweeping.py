"""Goes through all objects of a storage, and removes those that nobody needs and that have not changed for long.

One pass over a listing, a 256th at a time: memory does not grow with the storage. Every object's time is looked at once
more right before it is removed (`ObjectStore.delete_many`). An interrupted sweep leaves fewer objects, and the next one
finds the rest. The caller's thread, and a few that look at a part each.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mica.collect.objectmarks import PARTS, ObjectMarks, key_of, key_of_path
from mica.digest import Digest, Suffix
from mica.errors import TemporaryError
from mica.store.base import ObjectStore, StoredFile

ORPHAN: Final = 0xFFFFFFFF
"""Who needs an object that no mark names."""
_BATCH: Final = 1000
_THREADS: Final = 8
"""Removing 30,000 files took 18.5 s with 2 threads and 4.6 s with 8, on a disk that discards blocks at once."""
_CLOCK_SLACK_S: Final = 60.0


@dataclass(slots=True)
class Sum:
    """Objects, and their stored bytes."""

    objects: int = 0
    bytes: int = 0

    def add(self, other: "Sum") -> None:
        self.objects += other.objects
        self.bytes += other.bytes


@dataclass(slots=True)
class Survey:
    """What a pass met: `kept` and `condemned` by who needs them, `removed` of the latter; `young` needs nobody, but
    changed lately; `others` are files that are no objects of this format."""

    kept: dict[int, Sum] = field(default_factory=lambda: defaultdict(Sum))
    condemned: dict[int, Sum] = field(default_factory=lambda: defaultdict(Sum))
    removed: Sum = field(default_factory=Sum)
    young: Sum = field(default_factory=Sum)
    others: int = 0

    def add(self, other: "Survey") -> None:
        for mine, theirs in ((self.kept, other.kept), (self.condemned, other.condemned)):
            for owner, total in theirs.items():
                mine[owner].add(total)
        self.removed.add(other.removed)
        self.young.add(other.young)
        self.others += other.others


class _Condemned(NamedTuple):
    file: StoredFile
    owner: int


class Sweep:
    """`keeps` tells of those who need objects which of them count. `cut`: what changed since then stays, by the
    store's clock."""

    def __init__(
        self,
        store: ObjectStore,
        marks: ObjectMarks,
        keeps: Callable[[int], bool],
        cut: float,
        *,
        progress: Callable[[int], object] = lambda _objects: None,
    ) -> None:
        """`progress` gets the number of objects that were looked at since the last call, from any thread."""
        self._store = store
        self._marks = marks
        self._keeps = keeps
        self._cut = cut
        self._progress = progress
        self._began = store.clock()

    def look(self) -> Survey:
        """Only look: `removed` stays empty."""
        return self._all_parts(lambda _batch: Sum())

    def remove_roots(self, roots: Collection[Digest]) -> Survey:
        """Remove these root catalogs, before anything that they lead to: so no revision is ever there in part, neither
        for a replica that follows the revisions nor for someone who looks for one."""
        wanted = {key_of(root, Suffix.CATALOG) for root in roots}
        survey = Survey()
        for part in sorted({root.raw[0] for root in roots}):
            survey.add(self._one_part(part, self._remove, only=wanted))
        return survey

    def remove(self) -> Survey:
        return self._all_parts(self._remove)

    def _all_parts(self, act: Callable[[list[_Condemned]], Sum]) -> Survey:
        survey = Survey()
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="sweep") as pool:
            futures = [pool.submit(self._one_part, part, act) for part in range(PARTS)]
            try:
                for future in futures:
                    survey.add(future.result())
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return survey

    def _one_part(
        self, part: int, act: Callable[[list[_Condemned]], Sum], *, only: Collection[bytes] | None = None
    ) -> Survey:
        survey = Survey()
        batch = []
        for one in self._condemned(part, survey, only):
            batch.append(one)
            if len(batch) == _BATCH:
                survey.removed.add(act(batch))
                batch = []
        if batch:
            survey.removed.add(act(batch))
        return survey

    def _condemned(self, part: int, survey: Survey, only: Collection[bytes] | None) -> Iterator[_Condemned]:
        owners = self._marks.load(part)
        seen = 0
        for file in self._store.entries(f"data/{part:02x}/"):
            key = key_of_path(file.path)
            if only is not None and key not in only:
                continue
            seen += 1
            if key is None:
                survey.others += 1
                continue
            owner = owners.get(key, ORPHAN)
            if owner != ORPHAN and self._keeps(owner):
                _count(survey.kept[owner], file)
            elif file.changed_at >= self._cut:
                _count(survey.young, file)
            else:
                _count(survey.condemned[owner], file)
                yield _Condemned(file, owner)
        self._progress(seen)

    def _remove(self, batch: list[_Condemned]) -> Sum:
        self._check_clock()
        removed = self._store.delete_many((one.file.path for one in batch), unless_changed_since=self._cut)
        if removed != len(batch):
            # Some have changed in the last moment: which ones is worth a question, because it is rare.
            batch = [one for one in batch if not self._store.has(one.file.path)]
        return Sum(removed, sum(one.file.size_bytes for one in batch))

    def _check_clock(self) -> None:
        """Raises TemporaryError if the store's clock was put back: its times say nothing then."""
        if self._store.clock() < self._began - _CLOCK_SLACK_S:
            raise TemporaryError(
                f"The clock of {self._store.where} went back while garbage was collected.",
                hint="Try again when it is right: the times of objects tell which of them a publication may need.",
            )


def _count(total: Sum, file: StoredFile) -> None:
    total.objects += 1
    total.bytes += file.size_bytes
