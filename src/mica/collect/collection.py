"""A collection of garbage: planned, shown, then done in two phases (docs/design/garbage-collection.md).

    with opened_collection(manager, rules) as collection:
        plan = collection.plan()            what goes, what waits, what stays, with objects and bytes
        report = collection.run()           first the newest revision lets go, then the storage

Publishers go on meanwhile. The repository's lock is held for the revision that lets go, and for a moment when the
reflog is written; never while anything is read or removed. One thread, and those of marking and sweeping.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from mica.collect.lastrun import LastRun, write_last_run
from mica.collect.links import linked_layers
from mica.collect.marking import Marker
from mica.collect.needs import Kind, Need, Needs
from mica.collect.objectmarks import ObjectMarks
from mica.collect.removals import Removals, plan_removals, read_unwanted, remove_due, write_unwanted
from mica.collect.report import CollectionReport
from mica.collect.retention import RetentionRules
from mica.collect.rootrows import gone_rows, tell_status
from mica.collect.staged import forget_old
from mica.collect.sweeping import Survey, Sweep
from mica.collect.wishes import read_recipes
from mica.convert.removal import files_of_layer
from mica.convert.staging import STAGING_DIRECTORY
from mica.digest import Digest, Suffix
from mica.errors import IntegrityError, LostRaceError, MicaError, NotFoundError, UserError
from mica.files import locked, mapped_os_errors, remove_unfinished
from mica.publish.catalogtree import CatalogTree
from mica.publish.manager import ReleaseManager
from mica.publish.transaction import REFLOG, read_history
from mica.repo.catalog import NestedCatalog
from mica.repo.history import SIZE_LIMIT as DATABASE_LIMIT
from mica.repo.history import SUFFIX_OF_KIND, RefKind, Reflog, parse_reflog
from mica.repo.manifest import Manifest
from mica.store.base import read_limited
from mica.thin.layout import layer_path

COLLECTION_DIRECTORY: Final = "gc"
"""Its name in a repository's directory (`ReleaseManager.directory`)."""
_ATTEMPTS: Final = 10
_LOCK_S: Final = 60.0
"""How long to wait for the lock at the end, when the work is done."""

Phase = Callable[[str], AbstractContextManager[Callable[[int], None]]]
"""Tells of a part of the work by name; the value is called with the number of objects that were looked at since."""


@contextlib.contextmanager
def silent_phase(name: str) -> Iterator[Callable[[int], None]]:  # noqa: ARG001
    yield lambda _objects: None


@contextlib.contextmanager
def opened_collection(
    manager: ReleaseManager, rules: RetentionRules, *, wait_s: float = 0.0, phase: Phase = silent_phase
) -> Iterator["GarbageCollection"]:
    """`wait_s`: how long to wait for a publisher. Raises TemporaryError if this host collects already."""
    home = manager.directory(COLLECTION_DIRECTORY)
    work = home / "work"
    with contextlib.ExitStack() as stack:
        with mapped_os_errors(f"prepare {home}", when_full="nothing was removed"):
            stack.enter_context(locked(home / "lock", what=f"The garbage collection of {manager.fqrn}"))
            remove_unfinished(home)
            shutil.rmtree(work, ignore_errors=True)
            (work / "marks").mkdir(parents=True)
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        marks = ObjectMarks(work / "marks")
        marker = stack.enter_context(Marker(manager.store, marks, work))
        yield GarbageCollection(manager, rules, marks, marker, work, wait_s=wait_s, phase=phase)


class GarbageCollection:
    """Made by `opened_collection`. `plan` comes first, then `run`, if at all."""

    def __init__(
        self,
        manager: ReleaseManager,
        rules: RetentionRules,
        marks: ObjectMarks,
        marker: Marker,
        work: Path,
        *,
        wait_s: float,
        phase: Phase,
    ) -> None:
        self._manager = manager
        self._store = manager.store
        self._rules = rules
        self._marks = marks
        self._marker = marker
        self._work = work
        self._wait_s = wait_s
        self._phase = phase
        self._home = manager.directory(COLLECTION_DIRECTORY)
        self._needs = Needs()
        self._marked = b""
        self._warnings: list[str] = []

    def plan(self) -> CollectionReport:
        """Look at everything and change nothing."""
        self._prepare()
        with self._phase("Look") as seen:
            survey = self._sweep(seen).look()
        return self._report(survey, is_done=False)

    def run(self) -> CollectionReport:
        """Do it. Raises TemporaryError if a publisher holds the repository for too long, or publishes so often that no
        revision can be looked at in peace."""
        began = time.time()
        with self._manager.locked(self._wait_s):
            pass  # what an earlier one was about to remove when it was killed is listed again
        self._prepare()
        self._let_go()
        self._mark_newest()
        forget_old(self._manager.directory(STAGING_DIRECTORY), self._rules.grace_s)
        reflog = self._reflog
        with self._phase("Sweep") as seen:
            sweep = self._sweep(seen)
            roots = [digest for digest in reflog.refs if self._is_condemned(digest, reflog)]
            survey = sweep.remove_roots(roots)
            self._store.sync()
            survey.add(sweep.remove())
            self._store.sync()
        report = self._report(survey, is_done=True)
        # Removed last: until then another collection, by any tool, finds what this one left.
        gone = gone_rows(self._store, reflog)
        with self._manager.locked(max(self._wait_s, _LOCK_S)):
            self._manager.trim_reflog(gone)
            with contextlib.suppress(LostRaceError):  # of another collection, which writes the same
                tell_status(self._store)
            write_last_run(self._home.parent, LastRun(began, time.time(), report.to_json()))
        return report

    # What stays, and what goes

    def _prepare(self) -> None:
        self._now = self._store.clock()
        self._cut = self._now - self._rules.grace_s
        manifest = self._manager.read_manifest()
        head = self._head = self._manager.head()
        if not head.garbage_collectable:
            raise UserError(
                f"{head.fqrn} says that its garbage must not be collected.",
                hint="Set garbage_collectable in its repository.toml, and publish a revision.",
            )
        self._reflog = self._read_reflog()
        reference = NestedCatalog(b"", head.root_catalog, head.root_catalog_size)
        self._since = read_unwanted(self._home / "unwanted.json")
        try:
            self._removals = self._plan_removals(head, reference)
        except (NotFoundError, IntegrityError) as error:
            raise _incomplete(head, error) from error
        with self._phase("Mark") as seen, self._manager.snapshot() as catalogs:
            self._marker.progress = seen
            beside = self._mark_layers(catalogs)
            layers = {layer_path(f":{layer.hex}") for layer in self._removals.layers}
            expired = frozenset(tag.name for tag in self._removals.tags)
            self._mark_revisions(head, without_tags=expired, without=layers, without_objects=beside)
            self._mark_condemned(head)
        self._marked = manifest

    def _read_reflog(self) -> Reflog:
        hint = f"Without it nothing tells which revisions there were: mica repo repair {self._manager.fqrn}"
        try:
            data = read_limited(self._store, REFLOG, DATABASE_LIMIT, fresh=True)
            return parse_reflog(data, f"The reflog of {self._manager.fqrn}")
        except (NotFoundError, IntegrityError) as error:
            raise type(error)(str(error), hint=hint) from error

    def _plan_removals(self, head: Manifest, root: NestedCatalog) -> Removals:
        home = self._home.parent
        linked = linked_layers(self._store, root, self._work)
        with self._manager.snapshot() as catalogs:
            return plan_removals(
                catalogs, self._store, read_history(self._store, head),
                head=head.root_catalog, recipes=read_recipes(home, self._now), linked=linked, since=self._since,
                rules=self._rules, now=self._now,
            )  # fmt: skip

    def _mark_layers(self, catalogs: CatalogTree) -> set[tuple[Digest, Suffix]]:
        """Give the layers that nobody wants needs of their own, so that the plan tells how much each of them takes.
        Returns the objects of the files beside them."""
        beside: set[tuple[Digest, Suffix]] = set()
        for layer in self._removals.layers:
            owner = self._needs.add(Need(Kind.LAYER, layer.hex, image=layer.image, due_s=layer.due_s))
            nested = catalogs.nested_at(layer_path(f":{layer.hex}"))
            if nested is not None:
                self._marker.mark(nested, owner)
            files = [path for path in files_of_layer(layer.hex) if catalogs.find(path) is not None]
            objects = {one for path in files for one in _objects_of(catalogs, path)}
            self._marks.add_many(owner, objects)
            beside |= objects
        return beside

    def _mark_revisions(
        self,
        head: Manifest,
        *,
        without_tags: Collection[str] = (),
        without: Collection[bytes] = (),
        without_objects: Collection[tuple[Digest, Suffix]] = (),
    ) -> None:
        """All that stays with a manifest: its own tree, those of tags, and predecessors."""
        wanted, older = self._needs.wanted, self._needs.older
        root = NestedCatalog(b"", head.root_catalog, head.root_catalog_size)
        tree = self._marker.mark(root, wanted, without=without, without_objects=without_objects)
        if tree.faults or tree.root is None:
            raise _incomplete(head, tree.faults[0])
        self._needs.keep_revision(head.root_catalog)
        for bound in tree.bound:
            self._mark_older(bound._replace(path=b""), wanted, f"what {bound.path.decode('utf-8', 'replace')} shows")
        history = read_history(self._store, head)
        for tag in history.tags.values():
            if tag.name not in without_tags:
                self._mark_older(NestedCatalog(b"", tag.root_catalog, tag.size), wanted, f"tag {tag.name}")
        oldest = self._mark_predecessors(tree.root.previous, tree.root.last_modified)
        reflog = self._reflog
        for digest, (kind, timestamp) in reflog.refs.items():
            if timestamp >= min(oldest, self._cut) and kind in SUFFIX_OF_KIND:
                if kind != RefKind.CATALOG:
                    self._marks.add(older, digest, SUFFIX_OF_KIND[kind])
                elif timestamp >= self._cut:
                    # Perhaps of a publication that is about to replace the manifest, perhaps of one that was killed.
                    self._mark_older(NestedCatalog(b"", digest, 0), older, "")
        for suffix, document in head.objects.items():
            if suffix != Suffix.CATALOG:
                self._marks.add(wanted, document, suffix)

    def _mark_predecessors(self, previous: Digest | None, replaced_at: int) -> int:
        """Returns when the oldest revision that stays was published."""
        place, oldest = 1, replaced_at
        while previous is not None and self._rules.keeps(place, replaced_at, self._now):
            tree = self._marker.mark(NestedCatalog(b"", previous, 0), self._needs.older)
            if tree.root is None:
                break  # an earlier collection removed it
            if tree.faults:
                self._warn(f"Revision {tree.root.revision} is not complete: {tree.faults[0]}")
            self._needs.keep_revision(previous)
            previous, replaced_at = tree.root.previous, tree.root.last_modified
            oldest = min(oldest, replaced_at)
            place += 1
        return oldest

    def _mark_older(self, root: NestedCatalog, owner: int, what: str) -> None:
        """A tree that stays as far as it is there. Only its root may be missing: what is below a catalog that is
        missing is not known, so nothing could be removed."""
        tree = self._marker.mark(root, owner)
        if tree.root is None:
            if what:
                self._warn(f"The root catalog of {what} cannot be read: {tree.faults[0]}")
            return
        self._needs.keep_revision(root.digest)
        if tree.faults and what:
            raise IntegrityError(
                f"Nothing was removed, because {what} is not complete: {tree.faults[0]}",
                hint=f"mica repo repair {self._manager.fqrn}, or remove the tag.",
            )

    def _mark_condemned(self, head: Manifest) -> None:
        """Revisions that nothing keeps, the newest first: whatever only they have goes with them."""
        history = read_history(self._store, head)
        names = {tag.root_catalog: tag.name for tag in history.tags.values()}
        rows = [(time_s, digest) for digest, (kind, time_s) in self._reflog.refs.items() if kind == RefKind.CATALOG]
        for _, digest in sorted(rows, reverse=True):
            if self._needs.keeps_revision(digest):
                continue
            kind = Kind.TAG if digest in names else Kind.REVISION
            owner = self._needs.add(need := Need(kind, names.get(digest, digest.text), root=digest))
            tree = self._marker.mark(NestedCatalog(b"", digest, 0), owner)
            if tree.root is not None:
                need.revision = tree.root.revision
                need.published_s = tree.root.last_modified

    def _is_condemned(self, digest: Digest, reflog: Reflog) -> bool:
        return reflog.refs[digest][0] == RefKind.CATALOG and not self._needs.keeps_revision(digest)

    # Changes

    def _let_go(self) -> None:
        """The first phase: a revision without what nobody has wanted for long enough, if there is anything."""
        removals = self._removals
        if removals.is_anything_due:
            with self._manager.transaction(wait_s=self._wait_s) as transaction:
                expired = {tag.name for tag in removals.tags}
                has_changed = remove_due(transaction, removals)
                dropped = [transaction.history.remove(name) for name in expired & transaction.history.tags.keys()]
                if not has_changed:
                    transaction.keep_content()
                    if not dropped:
                        transaction.give_up()
            for image in removals.due_images:
                self._since.images.pop(image.reference, None)
            for layer in removals.due_layers:
                self._since.layers.pop(layer.hex, None)
        write_unwanted(self._home / "unwanted.json", self._since)

    def _mark_newest(self) -> None:
        """Mark what was published meanwhile, until nothing was: what is published from then on needs only what is
        marked or young."""
        for _ in range(_ATTEMPTS):
            manifest = self._manager.read_manifest()
            if manifest == self._marked:
                return
            head = self._manager.head()
            self._reflog = self._read_reflog()
            with self._phase("Mark") as seen:
                self._marker.progress = seen
                self._mark_revisions(head)
            self._head, self._marked = head, manifest
        raise LostRaceError(
            f"Others publish into {self._manager.fqrn} so often that its garbage cannot be collected now.",
            hint="Nothing was removed. Try again later.",
        )

    def _sweep(self, seen: Callable[[int], None]) -> Sweep:
        return Sweep(self._store, self._marks, self._needs.keeps, self._cut, progress=seen)

    def _warn(self, sentence: str) -> None:
        if sentence not in self._warnings:
            self._warnings.append(sentence)

    def _report(self, survey: Survey, *, is_done: bool) -> CollectionReport:
        return CollectionReport(
            self._manager.fqrn, self._head.revision, self._removals, self._needs, survey, tuple(self._warnings),
            is_done=is_done,
        )  # fmt: skip


def _incomplete(head: Manifest, fault: MicaError) -> MicaError:
    return IntegrityError(
        f"Nothing was removed, because revision {head.revision} of {head.fqrn} is not complete: {fault}",
        hint=f"mica repo check --hash {head.fqrn} tells what is wrong with it.",
    )


def _objects_of(catalogs: CatalogTree, path: bytes) -> Iterator[tuple[Digest, Suffix]]:
    entry = catalogs.find(path)
    if entry is not None and entry.digest is not None:
        yield entry.digest, Suffix.FILE
    for chunk in catalogs.chunks(path):
        yield chunk.digest, Suffix.CHUNK
