"""The pointers of a replica: what readers see of it, and what a replication leaves for the next one.

    .cvmfs_is_snapshotting      the time at which a replication began; gone when it ended
    .cvmfsreflog                every root object that is in this storage, for its own garbage collection
    .cvmfswhitelist             copied
    .cvmfspublished             copied, after everything it refers to
    .cvmfs_last_snapshot        the time at which the last replication ended
    .cvmfs_status.json          the same, for programs

As a stratum 1 of the stock server has them (docs/format/replica.md). One thread.
"""

import datetime
import time
from collections.abc import Callable, Iterable
from typing import Final

from mica.digest import Digest, Suffix, digest_of
from mica.errors import IntegrityError, NotFoundError, UserError
from mica.fetch.documents import Documents
from mica.repo.history import KIND_OF_SUFFIX, RefKind, Reflog, format_reflog, parse_reflog
from mica.repo.history import SIZE_LIMIT as DATABASE_LIMIT
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import READ_LIMIT as MANIFEST_LIMIT
from mica.repo.manifest import Manifest, parse_manifest
from mica.repo.objects import unpack
from mica.repo.signing import is_listed, parse_certificate
from mica.repo.statusfile import NAME as STATUS
from mica.repo.statusfile import SIZE_LIMIT as STATUS_LIMIT
from mica.repo.statusfile import updated_status
from mica.repo.trust import CERTIFICATE_LIMIT, NOTHING_KNOWN, KnownRevision
from mica.repo.whitelist import NAME as WHITELIST
from mica.repo.whitelist import SIZE_LIMIT as WHITELIST_LIMIT
from mica.repo.whitelist import parse_whitelist
from mica.store.base import ObjectStore, read_limited, read_pointer

REFLOG: Final = ".cvmfsreflog"
RUNNING: Final = ".cvmfs_is_snapshotting"
LAST: Final = ".cvmfs_last_snapshot"


def format_moment(seconds: float) -> str:
    """As `date --utc` prints it in the C locale."""
    moment = time.gmtime(seconds)
    day = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[moment.tm_wday]
    months = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
    month = months[moment.tm_mon - 1]
    return f"{day} {month} {moment.tm_mday:2} {time.strftime('%H:%M:%S', moment)} UTC {moment.tm_year}"


class Replica:
    """`where` is what messages call it."""

    def __init__(self, store: ObjectStore, fqrn: str, *, now: Callable[[], float] = time.time) -> None:
        """Reads what is there. Raises IntegrityError for a manifest that cannot be read, UserError for another
        repository's."""
        self._store = store
        self._fqrn = fqrn
        self._now = now
        self._manifest_bytes = read_pointer(store, MANIFEST, MANIFEST_LIMIT)
        self._whitelist_bytes = read_pointer(store, WHITELIST, WHITELIST_LIMIT)
        self.reflog_checksum = ""
        self.manifest: Manifest | None = None
        if self._manifest_bytes is not None:
            self.manifest, _ = parse_manifest(self._manifest_bytes, f"The manifest in {store.where}")
            if self.manifest.fqrn != fqrn:
                raise UserError(f"{store.where} holds another repository, {self.manifest.fqrn}.")

    @property
    def was_replicated(self) -> bool:
        """Whether a replication ended or began here before."""
        return self._store.has(LAST) or self._store.has(RUNNING)

    @property
    def known(self) -> KnownRevision:
        """What a source must not be older than."""
        if self.manifest is None:
            return NOTHING_KNOWN
        return KnownRevision(
            self.manifest.published_at,
            self.manifest.revision,
            self._whitelist_bytes or b"",
            remedy="If the repository's owner has put back an older state, say --accept-older.",
        )

    def begin(self) -> None:
        self._store.replace(RUNNING, self._moment())

    def end(self) -> None:
        """However the replication ended."""
        self._store.delete(RUNNING)

    def publish(self, documents: Documents, manifest: Manifest, revisions: Iterable[Digest]) -> bool:
        """Show a revision whose objects are all there to stay; `revisions` are the root catalogs that came with it.
        False if it is shown already. Afterwards `reflog_checksum` is set. Raises LostRaceError if another process has
        changed a pointer meanwhile."""
        is_new = documents.manifest != self._manifest_bytes
        self._list_in_reflog(manifest, revisions)
        steps = [self._show_whitelist, self._show_manifest]
        if is_new and self._has_to_change_first(documents):
            steps.reverse()
        for step in steps:
            step(documents)
        return is_new

    def succeed(self) -> None:
        """Tell that the last replication was complete."""
        moment = self._moment()
        self._store.replace(LAST, moment)
        former = read_pointer(self._store, STATUS, STATUS_LIMIT)
        now = datetime.datetime.fromtimestamp(self._now(), datetime.UTC)
        try:
            status = updated_status(former, STATUS, last_snapshot=now)
        except IntegrityError:  # it is for monitoring only, and begins anew
            status = updated_status(None, STATUS, last_snapshot=now)
        self._store.replace(STATUS, status)

    def _show_whitelist(self, documents: Documents) -> None:
        if documents.whitelist != self._whitelist_bytes:
            self._store.replace(WHITELIST, documents.whitelist, expected=self._whitelist_bytes)
            self._whitelist_bytes = documents.whitelist

    def _show_manifest(self, documents: Documents) -> None:
        if documents.manifest != self._manifest_bytes:
            self._store.replace(MANIFEST, documents.manifest, expected=self._manifest_bytes)
            self._manifest_bytes = documents.manifest

    def _has_to_change_first(self, documents: Documents) -> bool:
        """Whether the manifest does. Usually the whitelist is copied first, as the stock server does. If it no longer
        names the certificate of the replica's revision, and the replica's own names that of the new one, readers find
        a signer that is on the whitelist at any time only if the manifest comes first."""
        if self.manifest is None or self._whitelist_bytes is None:
            return False
        try:
            path = self.manifest.certificate.object_path(Suffix.CERTIFICATE)
            former = read_limited(self._store, path, CERTIFICATE_LIMIT)
            return not _names(documents.whitelist, former) and _names(self._whitelist_bytes, documents.certificate)
        except (IntegrityError, NotFoundError):  # then readers cannot verify the replica's revision anyway
            return False

    def _list_in_reflog(self, manifest: Manifest, revisions: Iterable[Digest]) -> None:
        former = read_pointer(self._store, REFLOG, DATABASE_LIMIT)
        reflog = Reflog(self._fqrn) if former is None else parse_reflog(former, f"The reflog in {self._store.where}")
        known = len(reflog.refs)
        now = int(self._now())
        for digest in revisions:
            reflog.refs.setdefault(digest, (RefKind.CATALOG, now))
        for suffix, digest in manifest.objects.items():
            reflog.refs.setdefault(digest, (KIND_OF_SUFFIX[suffix], now))
        data = format_reflog(reflog) if former is None or len(reflog.refs) > known else former
        if data is not former:
            self._store.replace(REFLOG, data, expected=former)
        self.reflog_checksum = digest_of(data, manifest.algorithm).text

    def _moment(self) -> bytes:
        return format_moment(self._now()).encode("ascii") + b"\n"


def _names(whitelist: bytes, certificate: bytes) -> bool:
    """Whether a whitelist names a stored certificate."""
    pem = unpack(certificate, digest_of(certificate), limit=CERTIFICATE_LIMIT)
    fingerprints = parse_whitelist(whitelist, "The whitelist")[0].fingerprints
    return is_listed(parse_certificate(pem, "The certificate"), fingerprints)
