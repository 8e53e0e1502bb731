"""Repairing a repository: objects that a replica still has, counters of catalogs, the reflog.

    1 the checker walks the newest revision; what is missing or damaged is fetched from the replica (`mender.py`)
    2 catalogs whose counters are wrong are written again: a new revision with the same tree
    3 a reflog that is missing, damaged or incomplete is made again from the storage, and the manifest is signed again

Nothing is guessed: bytes from a replica have the digest that they are asked for by, counters are counted, and the
reflog lists what is in the storage. A repair that is killed is repeated. Called by `cli/`.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from mica.digest import Digest, Suffix, parse_object_path
from mica.errors import IntegrityError, NotFoundError
from mica.fetch.download import Fetcher
from mica.fetch.revisions import all_revisions
from mica.publish.check import CheckProgress, check_repository
from mica.publish.manager import ReleaseManager
from mica.publish.mender import Mender
from mica.publish.rootcatalog import look_at_root, opened_catalog
from mica.publish.transaction import REFLOG, Transaction
from mica.repo.catalog import NestedCatalog
from mica.repo.history import KIND_OF_SUFFIX, Reflog, format_reflog, parse_reflog
from mica.repo.history import SIZE_LIMIT as DATABASE_LIMIT
from mica.store.base import read_pointer
from mica.texts import printable_path


class Step(NamedTuple):
    """Something that is repaired, or would be; `lost` is what cannot be."""

    kind: Literal["object", "lost", "counters", "reflog"]
    where: str
    sentence: str


Tell = Callable[[Step], object]
"""From any thread."""


@dataclass(frozen=True, slots=True)
class RepairRules:
    """`objects`: whether objects only have to exist, or are read too. With `dry_run` nothing is changed."""

    objects: Literal["exist", "hash"] = "exist"
    dry_run: bool = False


def repair(
    manager: ReleaseManager,
    replica: Fetcher | None,
    rules: RepairRules,
    *,
    tell: Tell,
    progress: Callable[[CheckProgress], None] | None = None,
) -> None:
    """Without a `replica` objects stay lost. Raises TemporaryError if another process publishes."""
    with tempfile.TemporaryDirectory(prefix="mica-repair-") as directory:
        work = Path(directory)
        _mend_objects(manager, replica, rules, work, tell, progress)
        try:
            _mend_pointers(manager, work, tell, dry_run=rules.dry_run)
        except NotFoundError as error:
            if not rules.dry_run:
                raise
            tell(Step("lost", "counters", f"They are counted when this is there: {error}"))


def _mend_pointers(manager: ReleaseManager, work: Path, tell: Tell, *, dry_run: bool) -> None:
    with manager.transaction() as transaction:
        transaction.keep_content()
        counted = _recount(transaction, tell)
        reflog = _whole_reflog(transaction, work, tell)
        if dry_run or (not counted and reflog is None):
            transaction.give_up()
            return
        if reflog is not None:
            former = read_pointer(manager.store, REFLOG, DATABASE_LIMIT)
            manager.store.replace(REFLOG, format_reflog(reflog), expected=former)
        if counted:
            transaction.change_content()


def _mend_objects(
    manager: ReleaseManager,
    replica: Fetcher | None,
    rules: RepairRules,
    work: Path,
    tell: Tell,
    progress: Callable[[CheckProgress], None] | None,
) -> None:
    mender = Mender(
        manager.store, replica, work, dry_run=rules.dry_run,
        mended=lambda path, where: tell(Step("object", path, f"It is fetched from {where}.")),
        lost=lambda path, why: tell(Step("lost", path, why)),
    )  # fmt: skip
    check = check_repository(
        mender, manager.fqrn, manager.keys.public_keys(), objects=rules.objects, work=work, progress=progress
    )
    for _ in check:
        pass
    manager.store.sync()


def _recount(transaction: Transaction, tell: Tell) -> bool:
    """Whether any counter is wrong."""
    wrong: list[bytes] = []

    def note(mountpoint: bytes) -> None:
        wrong.append(mountpoint)
        tell(Step("counters", printable_path(mountpoint), "The counters of its catalog are counted again."))

    transaction.catalogs.recount(note)
    return bool(wrong)


def _whole_reflog(transaction: Transaction, work: Path, tell: Tell) -> Reflog | None:
    """The reflog made again from the storage; None if the present one has all that it should have."""
    store, head = transaction.store, transaction.head
    assert head is not None, "only the first transaction has none"
    present, fault = Reflog(head.fqrn), ""
    try:
        data = read_pointer(store, REFLOG, DATABASE_LIMIT)
        present = Reflog(head.fqrn) if data is None else parse_reflog(data, "The reflog")
        fault = "It is missing." if data is None else ""
    except IntegrityError as error:
        fault = str(error)
    if present.fqrn != head.fqrn:
        present, fault = Reflog(head.fqrn), f"It belongs to {present.fqrn}."
    look = partial(look_at_root, store, work)
    roots = [tag.root_catalog for tag in all_revisions(head, lambda reference: look(reference)[0])]
    wanted = [*roots, *head.objects.values()]
    missing = next((digest for digest in wanted if digest not in present.refs), None)
    if not fault and missing is None:
        return None
    tell(Step("reflog", REFLOG, f"{fault or f'It does not list {missing}.'} It is made again from the storage."))
    return _scanned(transaction, work, present)


def _scanned(transaction: Transaction, work: Path, present: Reflog) -> Reflog:
    """With everything in the storage that a reflog lists. What it listed before keeps its time."""
    refs = dict(present.refs)
    for stored in transaction.store.entries("data/"):
        found = parse_object_path(stored.path)
        if found is None or found[1] not in KIND_OF_SUFFIX or found[0] in refs:
            continue
        digest, suffix = found
        if suffix != Suffix.CATALOG or _is_root(transaction, work, digest):
            refs[digest] = (KIND_OF_SUFFIX[suffix], int(stored.changed_at))
    return Reflog(present.fqrn, refs)


def _is_root(transaction: Transaction, work: Path, digest: Digest) -> bool:
    try:
        with opened_catalog(transaction.store, work, NestedCatalog(b"", digest, 0)) as catalog:
            return not catalog.root_prefix
    except (IntegrityError, NotFoundError):
        return False  # no revision can use it
