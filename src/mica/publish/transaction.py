"""A transaction: everything that becomes one new revision, published in the only safe order.

    1 objects of file data      2 catalogs, children first, the root last      3 history      4 certificate, meta-info
    5 reflog                    6 flush to disk                                7 the signed manifest, atomically

Everything is content-addressed, so readers see nothing before step 7; leaving the transaction with an error, or being
killed anywhere, leaves the old revision as it was (docs/design/publishing.md). One thread.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from mica.digest import Digest, Suffix, digest_of
from mica.errors import NotFoundError
from mica.files import replace_file
from mica.publish.catalogtree import CatalogTree
from mica.publish.objectwriter import ObjectRules, ObjectWriter
from mica.publish.storedfiles import store_file, store_marker
from mica.repo.catalog import NestedCatalog
from mica.repo.catalogwriter import Stamp
from mica.repo.entry import Entry
from mica.repo.history import SIZE_LIMIT as DATABASE_LIMIT
from mica.repo.history import History, RefKind, Reflog, Tag, format_history, format_reflog, parse_history, parse_reflog
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import Manifest, sign_manifest
from mica.repo.objects import Compression, pack, pack_stock, unpack
from mica.store.base import ObjectStore, read_limited

REFLOG = ".cvmfsreflog"


class Publication:
    """What signing needs besides the catalogs: keys and the documents that every revision refers to."""

    def __init__(
        self, *, fqrn: str, key: rsa.RSAPrivateKey, certificate_pem: bytes, metainfo: bytes, ttl_s: int
    ) -> None:
        self.fqrn = fqrn
        self.key = key
        self.certificate_pem = certificate_pem
        self.metainfo = metainfo
        self.ttl_s = ttl_s


class Transaction:
    """Made by the manager, which holds the lock; `objects` and `catalogs` are what publishers work with."""

    def __init__(
        self,
        store: ObjectStore,
        work: Path,
        rules: ObjectRules,
        publication: Publication,
        head: Manifest | None,
        *,
        reflog_checksum: Path,
        garbage_collectable: bool,
        auto_tag: bool,
    ) -> None:
        self.store = store
        self.work = work
        self.rules = rules
        self.head = head
        self.objects = ObjectWriter(store, rules)
        self.catalogs = CatalogTree(store, work, rules.algorithm)
        self.tags: list[Callable[[History], None]] = []
        self.published: Manifest | None = head
        self.is_wanted = True
        self._publication = publication
        self._reflog_checksum = reflog_checksum
        self._garbage_collectable = garbage_collectable
        self._auto_tag = auto_tag
        if head is not None:
            self.catalogs.load(NestedCatalog(b"", head.root_catalog, head.root_catalog_size))

    def store_file(self, name: bytes, data: bytes, *, mtime_s: int = 0) -> Entry:
        """Store a small file and return its entry."""
        return store_file(self.objects, name, data, mtime_s=mtime_s)

    def marker(self) -> Entry:
        """The empty file that a nested catalog must hold; its object is stored."""
        return store_marker(self.objects)

    def give_up(self) -> None:
        """End the block without a new revision: there was nothing to change."""
        self.is_wanted = False

    def abandon(self) -> None:
        self.objects.__exit__(None, None, None)
        self.catalogs.close()

    def publish(self) -> Manifest:
        """Steps 1 to 7. The transaction is over afterwards; `published` is the new head."""
        with self.objects:
            self.objects.finish()
        now = max(int(time.time()), self.head.published_at if self.head else 0)
        revision = self.head.revision + 1 if self.head else 1
        previous = self.head.root_catalog if self.head else None
        sealed = self.catalogs.commit(Stamp(revision, now, previous, self._publication.ttl_s))
        root = sealed.nested
        history = self._history(Tag("", root.digest, revision, now, "", root.size))
        self.published = publish_manifest(
            self.store, self.rules, self._publication,
            Manifest(
                root_catalog=root.digest,
                root_catalog_size=root.size,
                ttl_s=self._publication.ttl_s,
                revision=revision,
                fqrn=self._publication.fqrn,
                certificate=root.digest,  # replaced when the certificate is stored
                published_at=now,
                history=history,
                garbage_collectable=self._garbage_collectable,
            ),
            reflog_checksum=self._reflog_checksum,
        )  # fmt: skip
        return self.published

    def _history(self, head: Tag) -> Digest:
        history = read_history(self.store, self.head) if self.head else History(self._publication.fqrn)
        history.advance(head)
        if self._auto_tag:
            stamp = time.strftime("generic-%Y-%m-%dT%H:%M:%SZ", time.gmtime(head.timestamp))
            name = next(n for n in _numbered(stamp) if n not in history.tags)
            history.tags[name] = head._replace(name=name)
        for change in self.tags:
            change(history)
        history.previous = self.head.history if self.head else None
        return store_history(self.store, self.rules, history)


def _numbered(stamp: str) -> "list[str]":
    return [stamp, *(stamp.replace("generic-", f"generic_{number}-", 1) for number in range(1, 1000))]


def read_history(store: ObjectStore, manifest: Manifest) -> History:
    """The tags of a published revision; none if it has no history."""
    if manifest.history is None:
        return History(manifest.fqrn)
    stored = read_limited(store, manifest.history.object_path(Suffix.HISTORY), DATABASE_LIMIT)
    what = f"History {manifest.history} of {manifest.fqrn}"
    return parse_history(unpack(stored, manifest.history, limit=DATABASE_LIMIT), what)


def store_history(store: ObjectStore, rules: ObjectRules, history: History) -> Digest:
    packed = pack(format_history(history), rules.algorithm, Compression.ZLIB)
    store.put(packed.digest.object_path(Suffix.HISTORY), packed.stored)
    return packed.digest


def read_reflog(store: ObjectStore, fqrn: str) -> Reflog:
    try:
        return parse_reflog(read_limited(store, REFLOG, DATABASE_LIMIT), f"The reflog of {fqrn}")
    except NotFoundError:
        return Reflog(fqrn)


def publish_manifest(
    store: ObjectStore, rules: ObjectRules, publication: Publication, manifest: Manifest, *, reflog_checksum: Path
) -> Manifest:
    """Steps 4 to 7 for a manifest whose catalog and history are stored: also all that re-signing takes."""
    certificate = pack_stock(publication.certificate_pem, rules.algorithm)
    store.put(certificate.digest.object_path(Suffix.CERTIFICATE), certificate.stored)
    metainfo = pack_stock(publication.metainfo, rules.algorithm)
    store.put(metainfo.digest.object_path(Suffix.METAINFO), metainfo.stored)
    reflog = read_reflog(store, publication.fqrn)
    now = manifest.published_at
    reflog.refs[manifest.root_catalog] = (RefKind.CATALOG, now)
    reflog.refs[certificate.digest] = (RefKind.CERTIFICATE, now)
    reflog.refs[metainfo.digest] = (RefKind.METAINFO, now)
    if manifest.history is not None:
        reflog.refs[manifest.history] = (RefKind.HISTORY, now)
    data = format_reflog(reflog)
    checksum = digest_of(data, rules.algorithm)
    store.replace(REFLOG, data)
    replace_file(reflog_checksum, checksum.text.encode("ascii"))
    store.sync()
    final = replace(manifest, certificate=certificate.digest, metainfo=metainfo.digest, reflog=checksum)
    store.replace(MANIFEST, sign_manifest(final, publication.key))
    return final
