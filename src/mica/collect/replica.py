"""Garbage of a replica: what its source no longer has goes (docs/design/replication.md, "Garbage").

A replica has no publishers, so nothing is weighed here: the source has decided which revisions stay. The caller holds
the replica's lock, which keeps replications out. One thread, and those of marking and sweeping.
"""

from pathlib import Path
from typing import Final, NamedTuple

from mica.collect.collection import Phase, silent_phase
from mica.collect.marking import Marker
from mica.collect.objectmarks import ObjectMarks
from mica.collect.rootrows import gone_rows, tell_status
from mica.collect.sweeping import Sweep
from mica.digest import Digest, Suffix, digest_of
from mica.errors import IntegrityError, LostRaceError, NotFoundError, UserError
from mica.fetch.documents import read_whole
from mica.fetch.download import Fetcher
from mica.publish.transaction import REFLOG, read_history
from mica.replicate.revisions import kept_revisions
from mica.repo.catalog import NestedCatalog
from mica.repo.history import SIZE_LIMIT as DATABASE_LIMIT
from mica.repo.history import SUFFIX_OF_KIND, RefKind, Reflog, format_reflog, parse_reflog
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import READ_LIMIT as MANIFEST_LIMIT
from mica.repo.manifest import Manifest, parse_manifest
from mica.store.base import ObjectStore, read_limited, read_pointer

GRACE_S: Final = 86400.0
_ALL: Final = 0


class ReplicaCollected(NamedTuple):
    """What was removed. `reflog_checksum` is the digest of the replica's reflog afterwards."""

    revisions: int
    objects: int
    stored_bytes: int
    reflog_checksum: str


def collect_replica(
    source: Fetcher, store: ObjectStore, work: Path, *, grace_s: float = GRACE_S, phase: Phase = silent_phase
) -> ReplicaCollected:
    """Remove what no revision needs that the source still has. What was put within `grace_s` seconds stays: a
    replication that was killed goes on with it. `work` is an existing directory.

    Raises UserError if the repository's garbage must not be collected or its source has no reflog, IntegrityError if a
    revision that stays is not complete; then nothing was removed. Raises LostRaceError if another host replicates into
    the same place.
    """
    shown = read_limited(store, MANIFEST, MANIFEST_LIMIT, fresh=True)
    manifest, _ = parse_manifest(shown, f"The manifest in {store.where}")
    if not manifest.garbage_collectable:
        raise UserError(f"{manifest.fqrn} says that its garbage must not be collected.")
    cut = store.clock() - grace_s
    theirs = _reflog_of(source, manifest)
    former = read_limited(store, REFLOG, DATABASE_LIMIT, fresh=True)
    reflog = parse_reflog(former, f"The reflog in {store.where}")
    keep = kept_revisions(manifest, read_history(store, manifest), theirs)
    (work / "marks").mkdir()
    marks = ObjectMarks(work / "marks")
    with phase("Mark") as seen, Marker(store, marks, work) as marker:
        marker.progress = seen
        _mark(marker, marks, manifest, theirs, keep)
    if read_pointer(store, MANIFEST, MANIFEST_LIMIT) != shown:
        raise LostRaceError(
            f"Another process replicates into {store.where}.", hint="Nothing was removed. Try again when it is done."
        )
    roots = [digest for digest, (kind, _) in reflog.refs.items() if kind == RefKind.CATALOG and digest not in keep]
    with phase("Sweep") as seen:
        sweep = Sweep(store, marks, lambda _owner: True, cut, progress=seen)
        survey = sweep.remove_roots(roots)
        revisions = survey.removed.objects
        store.sync()
        survey.add(sweep.remove())
        store.sync()
    data = _trimmed(store, reflog, former)
    tell_status(store)
    return ReplicaCollected(
        revisions, survey.removed.objects, survey.removed.bytes, digest_of(data, manifest.algorithm).text
    )


def _reflog_of(source: Fetcher, manifest: Manifest) -> Reflog:
    try:
        data = source.fetch(REFLOG, lambda stream: read_whole(stream, DATABASE_LIMIT), fresh=True)
    except NotFoundError as error:
        raise UserError(
            f"{source.where} has no reflog of {manifest.fqrn}: nothing tells which revisions it still has.",
            hint="Nothing was removed.",
        ) from error
    reflog = parse_reflog(data, f"The reflog of {manifest.fqrn} from {source.where}")
    if reflog.fqrn != manifest.fqrn:
        raise IntegrityError(f"The reflog from {source.where} belongs to another repository, {reflog.fqrn}.")
    return reflog


def _mark(marker: Marker, marks: ObjectMarks, manifest: Manifest, theirs: Reflog, keep: frozenset[Digest]) -> None:
    """Everything below the revisions that stay. A revision that was never copied is not there, which harms nothing."""
    for root in sorted(keep):
        tree = marker.mark(NestedCatalog(b"", root, 0), _ALL)
        if tree.faults and (tree.root is not None or root == manifest.root_catalog):
            raise IntegrityError(
                f"Nothing was removed, because revision {root} of {manifest.fqrn} is not complete: {tree.faults[0]}",
                hint="Remove that catalog from the replica, and replicate again.",
            )
    kept = {
        digest: SUFFIX_OF_KIND[kind]
        for digest, (kind, _) in theirs.refs.items()
        if kind != RefKind.CATALOG and kind in SUFFIX_OF_KIND
    }
    kept |= {digest: suffix for suffix, digest in manifest.objects.items() if suffix != Suffix.CATALOG}
    for digest, suffix in kept.items():
        marks.add(_ALL, digest, suffix)


def _trimmed(store: ObjectStore, reflog: Reflog, former: bytes) -> bytes:
    """The reflog without what is gone."""
    gone = gone_rows(store, reflog)
    there = {digest: row for digest, row in reflog.refs.items() if digest not in gone}
    if not gone:
        return former
    data = format_reflog(Reflog(reflog.fqrn, there))
    store.replace(REFLOG, data, expected=former)
    return data
