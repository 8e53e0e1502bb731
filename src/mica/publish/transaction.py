"""A transaction: everything that becomes one new revision, published in the only safe order.

    1 objects of file data      2 catalogs, children first, the root last      3 history      4 certificate, meta-info
    5 reflog                    6 flush to disk                                7 the signed manifest, atomically

Everything is content-addressed, so readers see nothing before step 7. An error in the transaction, or a kill at any
step, leaves the old revision as it was (docs/design/publishing.md). One thread.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from mica.digest import Digest, Suffix, digest_of
from mica.errors import LostRaceError
from mica.files import mapped_os_errors, replace_file
from mica.publish import tagdirectories
from mica.publish.catalogtree import CatalogTree
from mica.publish.duration import PublicationTimer
from mica.publish.objectwriter import ObjectWriter
from mica.publish.rootcatalog import look_at_root
from mica.publish.rules import STANDARD_CATALOGS, CatalogRules, ObjectRules
from mica.publish.storedfiles import store_file, store_marker
from mica.repo.catalog import NestedCatalog
from mica.repo.catalogwriter import Stamp
from mica.repo.entry import Entry
from mica.repo.history import SIZE_LIMIT as DATABASE_LIMIT
from mica.repo.history import History, RefKind, Reflog, Tag, extend_reflog, format_history, format_reflog, parse_history
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import SIZE_LIMIT, Manifest, sign_manifest
from mica.repo.objects import Compression, pack, pack_stock, unpack
from mica.store.base import ObjectStore, lost_race, read_limited, read_pointer

REFLOG = ".cvmfsreflog"
_REFLOG_ATTEMPTS = 10


class Publication:
    """Input of signing besides the catalogs: keys and the documents that every revision refers to."""

    def __init__(
        self, *, fqrn: str, key: rsa.RSAPrivateKey, certificate_pem: bytes, metainfo: bytes, ttl_s: int
    ) -> None:
        self.fqrn = fqrn
        self.key = key
        self.certificate_pem = certificate_pem
        self.metainfo = metainfo
        self.ttl_s = ttl_s


class Transaction:
    """Made by the manager, which holds the lock; publishers work with `objects` and `catalogs`."""

    def __init__(
        self,
        store: ObjectStore,
        work: Path,
        rules: ObjectRules,
        publication: Publication,
        head: Manifest | None,
        *,
        replaces: bytes | None,
        reflog_checksum: Path,
        garbage_collectable: bool,
        auto_tag: bool,
        catalog_rules: CatalogRules = STANDARD_CATALOGS,
        timer: PublicationTimer | None = None,
    ) -> None:
        """`replaces` is the manifest of `head` as it was read: only that one is replaced. `timer` runs since the first
        object was stored for it; by default it begins now."""
        self.store = store
        self.work = work
        self.rules = rules
        self.head = head
        self.objects = ObjectWriter(store, rules)
        self.catalogs = CatalogTree(store, work, rules.algorithm)
        self.names: dict[str, str] = {}
        """Names for the new revision, with their descriptions."""
        self.published: Manifest | None = head
        self.is_wanted = True
        self._keeps_content = False
        self._history: History | None = None
        self._publication = publication
        self._timer = timer or PublicationTimer(store)
        self._replaces = replaces
        self._reflog_checksum = reflog_checksum
        self._garbage_collectable = garbage_collectable
        self._auto_tag = auto_tag
        self._catalog_rules = catalog_rules
        if head is not None:
            self.catalogs.load(NestedCatalog(b"", head.root_catalog, head.root_catalog_size))
        self.has_tag_directories = head is not None and tagdirectories.are_shown(self.catalogs)
        """Whether the new revision has tag directories."""

    def store_file(self, name: bytes, data: bytes, *, mtime_s: int = 0) -> Entry:
        """Store a small file and return its entry."""
        return store_file(self.objects, name, data, mtime_s=mtime_s)

    def marker(self) -> Entry:
        """The empty file that a nested catalog must hold; its object is stored."""
        return store_marker(self.objects)

    def give_up(self) -> None:
        """End the block without a new revision: there was nothing to change."""
        self.is_wanted = False

    def keep_content(self) -> None:
        """Only the tags change: the newest revision stays, unless its tag directories have to follow."""
        self._keeps_content = True

    def change_content(self) -> None:
        """There is a new revision after all."""
        self._keeps_content = False

    def abandon(self) -> None:
        self.objects.__exit__(None, None, None)
        self.catalogs.close()

    @property
    def history(self) -> History:
        """The tags, which publishers may change."""
        if self._history is None:
            self._history = read_history(self.store, self.head) if self.head else History(self._publication.fqrn)
        return self._history

    def begin_again(self, root: NestedCatalog) -> None:
        """Take the content of another revision instead of the newest one's."""
        self.catalogs.close()
        self.catalogs.load(root)

    @property
    def next_revision(self) -> int:
        """The number of the first revision that has what this transaction publishes."""
        return self.head.revision + 1 if self.head else 1

    def publish(self) -> Manifest:
        """Steps 1 to 7. The transaction is over afterwards; `published` is the new head. Raises LostRaceError if
        another release manager has published meanwhile."""
        with self.objects:
            is_new = self._follow_tags() or not self._keeps_content
            self.objects.finish()
            self._timer.check()
            if self.head is not None and not is_new:
                return self._publish_tags(self.head)
            heads = [self._commit(self.head)]
            self._name(heads[0])
            if self.has_tag_directories and tagdirectories.name_one(self.history.tags.values(), heads[0].root_catalog):
                # A catalog cannot hold itself: the next revision, which is published at once, shows the one just named.
                self.catalogs.load(NestedCatalog(b"", heads[0].root_catalog, heads[0].size))
                self._follow_tags()
                self.objects.finish()
                heads.append(self._commit(heads[0]))
        self._timer.check()
        head = heads[-1]
        self.history.advance(head)
        self.history.previous = self.head.history if self.head else None
        self.published = publish_manifest(
            self.store, self.rules, self._publication,
            Manifest(
                root_catalog=head.root_catalog,
                root_catalog_size=head.size,
                ttl_s=self._publication.ttl_s,
                revision=head.revision,
                fqrn=self._publication.fqrn,
                certificate=head.root_catalog,  # replaced when the certificate is stored
                published_at=head.timestamp,
                history=store_history(self.store, self.rules, self.history),
                garbage_collectable=self._garbage_collectable,
            ),
            replaces=self._replaces,
            reflog_checksum=self._reflog_checksum,
            other_roots=[former.root_catalog for former in heads[:-1]],
        )  # fmt: skip
        return self.published

    def _publish_tags(self, head: Manifest) -> Manifest:
        """Sign the newest revision again, with another history if somebody has asked for it."""
        history = head.history
        if self._history is not None:
            self._history.previous = head.history
            history = store_history(self.store, self.rules, self._history)
        manifest = replace(head, history=history, published_at=max(int(time.time()), head.published_at))
        self.published = publish_manifest(
            self.store, self.rules, self._publication, manifest,
            replaces=self._replaces, reflog_checksum=self._reflog_checksum,
        )  # fmt: skip
        return self.published

    def _commit(self, before: "Manifest | Tag | None") -> Tag:
        """Store the catalogs as the revision after another one."""
        revision = before.revision + 1 if before else 1
        previous = before.root_catalog if before else None
        now = max(int(time.time()), self.head.published_at if self.head else 0)
        self.catalogs.balance(self._catalog_rules, self.marker)
        root = self.catalogs.commit(Stamp(revision, now, previous, self._publication.ttl_s)).nested
        return Tag("", root.digest, revision, now, "", root.size)

    def _name(self, head: Tag) -> None:
        if self._auto_tag and not self._keeps_content:
            stamp = time.strftime("generic-%Y-%m-%dT%H:%M:%SZ", time.gmtime(head.timestamp))
            self.names[next(n for n in _numbered(stamp) if n not in self.history.tags)] = ""
        for name, description in self.names.items():
            self.history.add(head._replace(name=name, description=description), move=True)

    def _follow_tags(self) -> bool:
        """Let the tag directories follow the tags, if there are any; whether anything changed."""
        is_new = not tagdirectories.are_shown(self.catalogs)
        if not self.has_tag_directories:
            tagdirectories.end(self.catalogs)
            return not is_new
        if is_new:
            tagdirectories.begin(self.catalogs, self.marker(), now_s=int(time.time()))
        look = partial(look_at_root, self.store, self.work)
        return tagdirectories.follow(self.catalogs, self.history.tags.values(), look) or is_new


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


def publish_manifest(
    store: ObjectStore,
    rules: ObjectRules,
    publication: Publication,
    manifest: Manifest,
    *,
    replaces: bytes | None,
    reflog_checksum: Path,
    other_roots: Sequence[Digest] = (),
) -> Manifest:
    """Steps 4 to 7 for a manifest whose catalog and history are stored; signing again needs only these. `other_roots`
    are root catalogs that were stored besides. Raises LostRaceError if the present manifest is no longer `replaces`."""
    certificate = pack_stock(publication.certificate_pem, rules.algorithm)
    store.put(certificate.digest.object_path(Suffix.CERTIFICATE), certificate.stored)
    metainfo = pack_stock(publication.metainfo, rules.algorithm)
    store.put(metainfo.digest.object_path(Suffix.METAINFO), metainfo.stored)
    now = manifest.published_at
    refs = dict.fromkeys((*other_roots, manifest.root_catalog), (RefKind.CATALOG, now))
    refs |= {certificate.digest: (RefKind.CERTIFICATE, now), metainfo.digest: (RefKind.METAINFO, now)}
    if manifest.history is not None:
        refs[manifest.history] = (RefKind.HISTORY, now)
    checksum = digest_of(_list_in_reflog(store, publication.fqrn, refs, replaces=replaces), rules.algorithm)
    with mapped_os_errors(f"write {reflog_checksum}", when_full="nothing was published"):
        replace_file(reflog_checksum, checksum.text.encode("ascii"))
    store.sync()
    final = replace(manifest, certificate=certificate.digest, metainfo=metainfo.digest, reflog=checksum)
    store.replace(MANIFEST, sign_manifest(final, publication.key), expected=replaces)
    return final


def _list_in_reflog(
    store: ObjectStore, fqrn: str, refs: Mapping[Digest, tuple[int, int]], *, replaces: bytes | None
) -> bytes:
    """The new reflog. Who replaces it at the same moment is a collection of garbage, or a publisher of which only one
    can win; so it is read again, and the manifest decides."""
    for attempt in range(_REFLOG_ATTEMPTS):
        former = read_pointer(store, REFLOG, DATABASE_LIMIT)
        known = format_reflog(Reflog(fqrn)) if former is None else former
        data = extend_reflog(known, refs, f"The reflog of {fqrn}")
        if read_pointer(store, MANIFEST, SIZE_LIMIT) != replaces:
            break
        try:
            store.replace(REFLOG, data, expected=former)
        except LostRaceError:
            if attempt == _REFLOG_ATTEMPTS - 1:
                raise
        else:
            return data
    raise lost_race(MANIFEST, store.where)
