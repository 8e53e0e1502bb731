"""Replication: brings a replica to the newest revision of its source (docs/design/replication.md).

    with ReplicaHome(state, fqrn, destination).locked() …
    report = Replication(fetcher, store, fqrn, keys, home, …).run()

The order makes it safe to be killed at any moment: objects, then catalogs from the leaves to the root, then reflog,
whitelist and manifest. Whatever is there already is not fetched. The source may publish meanwhile: what is copied is
the revision that was the newest at the beginning. One thread calls it; others fetch.
"""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric import rsa

from mica.digest import Digest, Suffix
from mica.errors import IntegrityError, NotFoundError, UserError
from mica.fetch.documents import Documents, fetch_revision, read_whole
from mica.fetch.download import Fetcher
from mica.fetch.routes import without_password
from mica.replicate.interruption import remove_damaged
from mica.replicate.objectcopier import NeededObject, ObjectCopier
from mica.replicate.patience import PAUSES_S, PatientFetcher
from mica.replicate.record import ReplicaHome, ReplicaRecord, Unfinished, boot_id
from mica.replicate.replica import Replica
from mica.replicate.treecopier import MissingRootError, RootFacts, TreeCopier
from mica.repo.blacklist import Blacklist
from mica.repo.history import SIZE_LIMIT as DATABASE_LIMIT
from mica.repo.history import History, Tag, parse_history
from mica.repo.manifest import Manifest
from mica.repo.objects import unpack
from mica.repo.trust import NOTHING_KNOWN, TrustedRevision
from mica.store.base import ObjectStore, read_limited

MASTER_REPLICA: Final = ".cvmfs_master_replica"
_PERMISSION_LIMIT: Final = 64 << 10
_METAINFO_LIMIT: Final = 64 << 10
_ALTERNATIVE_LIMIT: Final = 256 << 20
_ATTEMPTS: Final = 3
_NOTHING_REFUSED: Final = Blacklist()


@dataclass(frozen=True, slots=True)
class ReplicationRules:
    """`tags`: also the tagged revisions, and those that were published since the last replication. `accept_older`: also
    a revision that is older than the replica's. `take_over`: also a destination that nobody has replicated into."""

    tags: bool = True
    accept_older: bool = False
    take_over: bool = False
    threads: int = 8
    pauses_s: Sequence[float] = PAUSES_S


class ReplicationReport(NamedTuple):
    """`former_revision` is 0 for the first one. `new` are objects and catalogs that were copied, `missing_tags` tags
    whose revisions the source does not have any more, `repaired` objects that a loss of power had damaged."""

    revision: int
    former_revision: int
    new_objects: int
    new_catalogs: int
    stored_bytes: int
    present_objects: int
    tags: int
    missing_tags: tuple[str, ...]
    repaired: int


@dataclass(slots=True)
class _Copying:
    """One attempt to copy a revision. `revisions` are root catalogs that are there at the end."""

    manifest: Manifest
    objects: ObjectCopier
    tree: TreeCopier
    revisions: set[Digest]
    missing: list[str]
    tags: int = 0


class Replication:
    """The caller holds the lock of `home`."""

    def __init__(
        self,
        fetcher: Fetcher,
        store: ObjectStore,
        fqrn: str,
        master_keys: Sequence[rsa.RSAPublicKey],
        home: ReplicaHome,
        destination: str,
        *,
        rules: ReplicationRules = ReplicationRules(),
        blacklist: Blacklist = _NOTHING_REFUSED,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
        progress: Callable[[int], None] = lambda _bytes: None,
        boot: Callable[[], str] = boot_id,
        has_conditions: bool = True,
    ) -> None:
        """`destination` is what the record calls the store, `has_conditions` what it remembers of it; `progress` is
        called from any thread with the bytes that were copied since; `boot` tells the present run of the kernel."""
        self._fetcher = PatientFetcher(fetcher, rules.pauses_s)
        self._store = store
        self._fqrn = fqrn
        self._master_keys = master_keys
        self._home = home
        self._destination = destination
        self._rules = rules
        self._blacklist = blacklist
        self._now = now
        self._progress = progress
        self._boot = boot
        self._has_conditions = has_conditions

    def run(self) -> ReplicationReport:
        """Raises UserError if the source must not be replicated or the destination is none; NotFoundError,
        IntegrityError or TemporaryError for what the source does not deliver, LostRaceError for a replica that another
        process changed. The replica then shows its former revision."""
        self._require_permission()
        self._store.create()
        self._store.clear_unfinished()
        record = self._home.read() or ReplicaRecord(self._fqrn, "", self._destination)
        replica = Replica(self._store, self._fqrn, now=lambda: self._now().timestamp())
        self._require_replica(replica, record)
        repaired = self._repair(record)
        former = replica.manifest.revision if replica.manifest else 0
        record = self._begin(record)
        replica.begin()
        try:
            documents, copying = self._copy_newest(replica)
            replica.publish(documents, copying.manifest, copying.revisions)
            self._home.write_reflog_checksum(replica.reflog_checksum)
            replica.succeed()
        finally:
            replica.end()
        revision = copying.manifest.revision
        ended_at = int(self._now().timestamp())
        self._home.write(replace(record, revision=revision, ended_at=ended_at, unfinished=None))
        counts = copying.objects.counts
        return ReplicationReport(
            revision=revision,
            former_revision=former,
            new_objects=counts.objects,
            new_catalogs=copying.tree.catalogs,
            stored_bytes=counts.stored_bytes + copying.tree.stored_bytes,
            present_objects=counts.present,
            tags=copying.tags,
            missing_tags=tuple(copying.missing),
            repaired=repaired,
        )

    def _require_permission(self) -> None:
        try:
            self._fetcher.fetch(MASTER_REPLICA, lambda stream: read_whole(stream, _PERMISSION_LIMIT), fresh=True)
        except NotFoundError as error:
            raise UserError(
                f"{self._fetcher.where} does not permit to replicate {self._fqrn}: it has no {MASTER_REPLICA}.",
                hint="Its owner permits it with that file. Or the URL is not that of a repository.",
            ) from error

    def _require_replica(self, replica: Replica, record: ReplicaRecord) -> None:
        if replica.manifest is None or replica.was_replicated or record.revision or self._rules.take_over:
            return
        raise UserError(
            f"{self._store.where} holds {self._fqrn}, but it was never replicated to there.",
            hint="A release manager may publish into it. If it is a copy that shall become a replica, say --take-over.",
        )

    def _repair(self, record: ReplicaRecord) -> int:
        """After a replication that did not end, in an earlier run of the kernel."""
        if record.unfinished is None or record.unfinished.boot == self._boot():
            return 0
        return remove_damaged(self._store, record.unfinished.since)

    def _begin(self, record: ReplicaRecord) -> ReplicaRecord:
        """What earlier ones in this run of the kernel have put may not be flushed either."""
        unfinished, boot = record.unfinished, self._boot()
        if unfinished is None or unfinished.boot != boot:
            unfinished = Unfinished(self._store.clock(), boot)
        source = without_password(self._fetcher.connection.host)
        record = replace(record, source=source, unfinished=unfinished, has_conditions=self._has_conditions)
        self._home.write(record)
        return record

    def _copy_newest(self, replica: Replica) -> tuple[Documents, _Copying]:
        """The source may remove an old revision while it is copied: then the newer one is copied instead."""
        attempts = 0
        documents, revision = self._newest(replica)
        while True:
            attempts += 1
            try:
                return documents, self._copy(documents, revision.manifest, replica)
            except NotFoundError as error:
                newer, revision = self._newest(replica)
                if newer.manifest == documents.manifest or attempts == _ATTEMPTS:
                    kept = f"keeps revision {replica.manifest.revision}" if replica.manifest else "stays unfinished"
                    hint = f"The replica {kept}. The repository's owner finds what is wrong by `mica repo check`."
                    raise NotFoundError(str(error), hint=hint) from error
                documents = newer

    def _newest(self, replica: Replica) -> tuple[Documents, TrustedRevision]:
        known = replica.known
        if self._rules.accept_older:
            known = NOTHING_KNOWN._replace(whitelist=known.whitelist)
        documents, revision = self._fetcher.insist(
            lambda: fetch_revision(
                self._fetcher.impatient,
                self._fqrn,
                self._master_keys,
                known=known,
                blacklist=self._blacklist,
                now=self._now,
            )
        )
        mine, theirs = replica.manifest, revision.manifest
        is_other = mine is not None and mine.revision == theirs.revision and mine.root_catalog != theirs.root_catalog
        if is_other and not self._rules.accept_older:
            raise IntegrityError(
                f"{self._fetcher.where} has another revision {theirs.revision} of {self._fqrn} than the replica.",
                hint=known.hint,
            )
        return documents, revision

    def _copy(self, documents: Documents, manifest: Manifest, replica: Replica) -> _Copying:
        with (
            ObjectCopier(
                self._fetcher,
                self._store,
                self._home.work,
                threads=self._rules.threads,
                progress=self._progress,
            ) as objects,
            TreeCopier(self._fetcher, self._store, objects, self._home.work) as tree,
        ):
            copying = _Copying(manifest, objects, tree, {manifest.root_catalog}, [])
            self._store.put(manifest.certificate.object_path(Suffix.CERTIFICATE), documents.certificate)
            self._copy_documents(copying)
            head = tree.copy(manifest.root_catalog, manifest.root_catalog_size)
            if self._rules.tags:
                self._copy_tags(copying)
            tree.finish()
            if self._rules.tags and replica.manifest is not None:
                self._copy_earlier(copying, head or tree.look_into(manifest.root_catalog), replica.manifest)
            self._copy_alternatives(manifest)
            self._store.sync()
            return copying

    def _copy_documents(self, copying: _Copying) -> None:
        manifest = copying.manifest
        if manifest.metainfo is not None:
            owner = "The manifest"
            copying.objects.copy(NeededObject(manifest.metainfo, Suffix.METAINFO, _METAINFO_LIMIT, owner))
        if manifest.history is not None:
            copying.objects.copy(NeededObject(manifest.history, Suffix.HISTORY, DATABASE_LIMIT, "The manifest"))

    def _copy_tags(self, copying: _Copying) -> None:
        manifest = copying.manifest
        seen = set(copying.revisions)
        for tag in self._tags(manifest):
            if tag.root_catalog not in seen:
                seen.add(tag.root_catalog)
                try:
                    copying.tree.copy(tag.root_catalog, tag.size)
                except MissingRootError:
                    if not manifest.garbage_collectable:
                        raise
                    copying.missing.append(tag.name)
                    continue
                copying.revisions.add(tag.root_catalog)
            copying.tags += tag.root_catalog in copying.revisions

    def _tags(self, manifest: Manifest) -> list[Tag]:
        """The newest first."""
        if manifest.history is None:
            return []
        path = manifest.history.object_path(Suffix.HISTORY)
        what = f"History {manifest.history} of {manifest.fqrn}"
        stored = read_limited(self._store, path, DATABASE_LIMIT)
        history: History = parse_history(unpack(stored, manifest.history, limit=DATABASE_LIMIT), what)
        return sorted(history.tags.values(), key=lambda tag: (-tag.revision, tag.name))

    def _copy_earlier(self, copying: _Copying, head: RootFacts, shown: Manifest) -> None:
        """The revisions between the replica's and the newest: clients that have one of them come to the replica too.
        The source may have removed any."""
        found: list[Digest] = []
        facts = head
        try:
            while facts.previous is not None and facts.revision > shown.revision + 1:
                found.append(facts.previous)
                facts = copying.tree.copy(facts.previous) or copying.tree.look_into(facts.previous)
        except MissingRootError:
            found.pop()
        except NotFoundError:
            copying.tree.forget()
            return
        try:
            copying.tree.finish()
        except NotFoundError:
            copying.tree.forget()
            return
        copying.revisions.update(found)

    def _copy_alternatives(self, manifest: Manifest) -> None:
        """Copies beside the manifest, for servers that protect `data/`."""
        if not manifest.alternative_paths:
            return
        for suffix, digest in manifest.objects.items():
            stored = read_limited(self._store, digest.object_path(suffix), _ALTERNATIVE_LIMIT)
            self._store.replace(f".cvmfsalt-{digest}{suffix}", stored)
