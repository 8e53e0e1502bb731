"""The release manager of one repository: creates it and opens transactions; `resigning` renews signatures with it.

It is the only writer of a repository's storage; a lock file keeps a second one out. Called by `cli/` and the converter.
"""

import contextlib
import datetime
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

from cryptography import x509

from mica.digest import Digest, Suffix, digest_of
from mica.errors import LostRaceError, UserError
from mica.files import locked, mapped_os_errors, remove_unfinished, removed_after_failure, replace_file
from mica.publish.catalogtree import CatalogTree, directory_entry
from mica.publish.duration import PublicationTimer
from mica.publish.keyfiles import KeyFiles, Signer
from mica.publish.settings import RepositorySettings, read_settings, state_directory, write_settings
from mica.publish.transaction import REFLOG, Publication, Transaction, publish_manifest
from mica.repo.catalog import NestedCatalog
from mica.repo.history import SIZE_LIMIT as DATABASE_LIMIT
from mica.repo.history import format_reflog, parse_reflog
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import READ_LIMIT as MANIFEST_LIMIT
from mica.repo.manifest import Manifest, is_fqrn
from mica.repo.objects import unpack
from mica.repo.signing import is_listed
from mica.repo.trust import CERTIFICATE_LIMIT, RevisionTrust
from mica.repo.whitelist import NAME as WHITELIST
from mica.repo.whitelist import SIZE_LIMIT as WHITELIST_LIMIT
from mica.repo.whitelist import VALIDITY_DAYS, Whitelist, parse_whitelist, sign_whitelist
from mica.store.base import read_limited, read_pointer
from mica.store.opening import local_directory, open_store, probe_storage

MASTER_REPLICA = ".cvmfs_master_replica"
_REFLOG_ATTEMPTS = 10
_METAINFO_LIMIT = 64 << 10


class ReleaseManager:
    """Use as a context manager. `state` is the directory with the settings of all repositories."""

    def __init__(self, state: Path, settings: RepositorySettings) -> None:
        self.settings = settings
        self.fqrn = settings.fqrn
        self.store = open_store(settings.storage, settings.s3)
        self.keys = KeyFiles(settings)
        self._home = state_directory(state, settings.fqrn)

    @classmethod
    def open(cls, state: Path, fqrn: str) -> Self:
        """Raises NotFoundError if there is no such repository under `state`."""
        return cls(state, read_settings(state, fqrn))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def head(self) -> Manifest:
        """The newest revision, verified from the storage with the repository's own public keys."""
        return self.verified(self.read_manifest(), self._read_whitelist(), _now())

    def read_manifest(self) -> bytes:
        """As it is published now, believed or not."""
        return read_limited(self.store, MANIFEST, MANIFEST_LIMIT, fresh=True)

    def certificate_of(self, manifest: bytes) -> x509.Certificate:
        """The certificate that signed it. Whether one may believe it is for the whitelist to say."""
        return self._signed_trust(manifest).certificate

    def verified(self, manifest: bytes, whitelist: bytes, now: datetime.datetime) -> Manifest:
        """Raises IntegrityError for a manifest that clients would not believe with this whitelist at this time."""
        trust = self._signed_trust(manifest)
        trust.take_whitelist(whitelist, now)
        return trust.verified().manifest

    def _signed_trust(self, manifest: bytes) -> RevisionTrust:
        trust = RevisionTrust(self.fqrn, self.keys.public_keys(), where=self.store.where)
        certificate = trust.take_manifest(manifest).certificate.object_path(Suffix.CERTIFICATE)
        trust.take_certificate(read_limited(self.store, certificate, CERTIFICATE_LIMIT))
        return trust

    @contextlib.contextmanager
    def transaction(self, *, wait_s: float = 0.0, timer: PublicationTimer | None = None) -> Iterator[Transaction]:
        """Change the repository; published when the block ends, dropped when it raises.

        `timer` runs since the first object was stored that the transaction needs, if that was before it began. Raises
        TemporaryError if another process publishes for longer than `wait_s`.
        """
        with self.locked(wait_s):
            data, whitelist, signer = self.read_manifest(), self._read_whitelist(), self.keys.signer()
            head = self.verified(data, whitelist, _now())
            self._require_listed(signer, whitelist)
            with self._transaction(head, self._metainfo(head), signer, replaces=data, timer=timer) as transaction:
                yield transaction

    def _require_listed(self, signer: Signer, whitelist: bytes) -> None:
        """Raises UserError: no client would believe what it signs."""
        fingerprints = parse_whitelist(whitelist, f"The whitelist of {self.fqrn}")[0].fingerprints
        if not is_listed(signer.certificate, fingerprints):
            raise UserError(
                f"The certificate {self.settings.key_path('crt')} is not on the whitelist of {self.fqrn}.",
                hint=f"Put it there: mica repo resign {self.fqrn}",
            )

    def _read_whitelist(self) -> bytes:
        return read_limited(self.store, WHITELIST, WHITELIST_LIMIT, fresh=True)

    @contextlib.contextmanager
    def _transaction(
        self,
        head: Manifest | None,
        metainfo: bytes,
        signer: Signer,
        *,
        replaces: bytes | None,
        timer: PublicationTimer | None = None,
    ) -> Iterator[Transaction]:
        publication = self._publication(metainfo, signer)
        transaction = Transaction(
            self.store, self._work, self.settings.objects, publication, head, replaces=replaces,
            reflog_checksum=self._reflog_checksum,
            garbage_collectable=self.settings.garbage_collectable,
            auto_tag=self.settings.auto_tag,
            catalog_rules=self.settings.catalogs,
            timer=timer,
        )  # fmt: skip
        try:
            yield transaction
            if transaction.is_wanted:
                transaction.publish()
        finally:
            transaction.abandon()
            self._clear_work()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[CatalogTree]:
        """The newest revision for reading; changes to it are not published."""
        head = self.head()
        with tempfile.TemporaryDirectory(prefix="mica-look-") as work:
            catalogs = CatalogTree(self.store, Path(work), self.settings.objects.algorithm)
            try:
                catalogs.load(NestedCatalog(b"", head.root_catalog, head.root_catalog_size))
                yield catalogs
            finally:
                catalogs.close()

    def directory(self, name: str) -> Path:
        """A directory for files that belong to this repository; the caller gives its name and makes it."""
        return self._home / name

    @contextlib.contextmanager
    def locked(self, wait_s: float = 0.0) -> Iterator[None]:
        """For the block nobody else publishes. Raises TemporaryError as `transaction` does."""
        with locked(self._home / "lock", what=f"Repository {self.fqrn}", wait_s=wait_s):
            self._clear_work()
            remove_unfinished(self._home)
            self.store.clear_unfinished()
            yield

    @property
    def _work(self) -> Path:
        return self._home / "work"

    @property
    def _reflog_checksum(self) -> Path:
        return self._home / "reflog.chksum"

    def _clear_work(self) -> None:
        with mapped_os_errors(f"empty {self._work}"):
            shutil.rmtree(self._work, ignore_errors=True)
            self._work.mkdir(parents=True, exist_ok=True)

    def begin(self, metainfo: dict[str, object]) -> Manifest:
        """The first publication of a repository whose keys exist: whitelist, empty root catalog, first revision."""
        self.store.create()
        with self.locked():
            signer, now = self.keys.signer(), _now().replace(microsecond=0)
            expires = now + datetime.timedelta(days=VALIDITY_DAYS)
            whitelist = sign_whitelist(
                Whitelist(self.fqrn, now, expires, (signer.fingerprint,)),
                self.keys.master_key(),
                self.settings.objects.algorithm,
            )
            self.store.replace(WHITELIST, whitelist, expected=read_pointer(self.store, WHITELIST, WHITELIST_LIMIT))
            self.store.replace(MASTER_REPLICA, b"This repository may be replicated.\n")
            document = json.dumps(metainfo, indent=1, sort_keys=True).encode("utf-8")
            with self._transaction(None, document, signer, replaces=None) as transaction:
                transaction.catalogs.begin(directory_entry(b"", mtime_s=int(_now().timestamp())))
        return self.head()

    def trim_reflog(self, gone: Mapping[Digest, tuple[int, int]]) -> None:
        """Remove rows, as they were read, from the reflog; what was listed again since stays. The caller holds the
        lock. Raises LostRaceError if release managers of other machines replace it all the time."""
        for attempt in range(1, _REFLOG_ATTEMPTS + 1):
            former = read_limited(self.store, REFLOG, DATABASE_LIMIT, fresh=True)
            reflog = parse_reflog(former, f"The reflog of {self.fqrn}")
            reflog.refs = {digest: row for digest, row in reflog.refs.items() if gone.get(digest) != row}
            data = format_reflog(reflog)
            if data == former:
                return
            try:
                self.store.replace(REFLOG, data, expected=former)
            except LostRaceError:
                if attempt == _REFLOG_ATTEMPTS:
                    raise
                continue
            checksum = digest_of(data, self.settings.objects.algorithm)
            with mapped_os_errors(f"write {self._reflog_checksum}"):
                replace_file(self._reflog_checksum, checksum.text.encode("ascii"))
            return

    def publish_again(self, head: Manifest, signer: Signer, *, replaces: bytes) -> Manifest:
        """The same revision, signed by this key now, in place of the manifest as it was read. The caller has verified
        it and holds the lock."""
        renewed = replace(head, published_at=max(head.published_at, int(_now().timestamp())))
        return publish_manifest(
            self.store, self.settings.objects, self._publication(self._metainfo(head), signer), renewed,
            replaces=replaces, reflog_checksum=self._reflog_checksum,
        )  # fmt: skip

    def _publication(self, metainfo: bytes, signer: Signer) -> Publication:
        return Publication(
            fqrn=self.fqrn,
            key=signer.key,
            certificate_pem=signer.certificate_pem,
            metainfo=metainfo,
            ttl_s=self.settings.ttl_s,
        )

    def _metainfo(self, head: Manifest) -> bytes:
        if head.metainfo is None:
            return b"{}"
        stored = read_limited(self.store, head.metainfo.object_path(Suffix.METAINFO), _METAINFO_LIMIT)
        return unpack(stored, head.metainfo, limit=_METAINFO_LIMIT)


def create_repository(state: Path, settings: RepositorySettings, metainfo: dict[str, object]) -> Manifest:
    """Make keys (existing ones are used), settings, storage and the first revision: all of it, or nothing. Raises
    UserError and leaves what exists alone if there is a repository of that name or in that storage already."""
    if not is_fqrn(settings.fqrn) or "." not in settings.fqrn:
        raise UserError(
            f"{settings.fqrn!r} cannot be the name of a repository.",
            hint="A fully qualified name such as images.example.org: letters, digits, '-_.', at most 60.",
        )
    home = state_directory(state, settings.fqrn)
    doing = f"create the directories of {settings.fqrn}"
    with contextlib.ExitStack() as stack:
        with mapped_os_errors(doing):
            lock = home.with_name(f".{settings.fqrn}.lock")
            stack.enter_context(locked(lock, what=f"Repository {settings.fqrn}", transient=True))
            _check_new(state, settings)
            settings = replace(settings, s3=probe_storage(settings.storage, settings.s3))
            # The next attempt would take left-over keys for the user's own, and use them.
            directory = local_directory(settings.storage)
            stack.enter_context(removed_after_failure(home, settings.keys, *([directory] if directory else [])))
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            settings.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
            KeyFiles(settings).make_missing()
        with ReleaseManager(state, settings) as manager:
            manifest = manager.begin(metainfo)
            try:
                write_settings(state, settings)
            except BaseException:
                manager.store.delete(MANIFEST)
                raise
        return manifest


def _check_new(state: Path, settings: RepositorySettings) -> None:
    if (state_directory(state, settings.fqrn) / "repository.toml").exists():
        raise UserError(f"Repository {settings.fqrn} exists already under {state}.")
    directory = local_directory(settings.storage)
    if directory is not None and not directory.is_dir():
        return
    with open_store(settings.storage, settings.s3) as store:
        if store.has(MANIFEST):
            raise UserError(
                f"{settings.storage} already holds a published repository.",
                hint="Choose another storage, or remove this one if it is no longer wanted.",
            )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
