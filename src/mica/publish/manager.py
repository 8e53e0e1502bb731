"""The release manager of one repository: creates it, opens transactions, renews signatures.

The only writer of a repository's storage; a lock file keeps a second one out. Called by `cli/` and by the converter.
"""

import contextlib
import datetime
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric import rsa

from mica.digest import Suffix
from mica.errors import NotFoundError, UserError
from mica.files import locked, mapped_os_errors, remove_unfinished, replace_file
from mica.publish.catalogtree import CatalogTree, directory_entry
from mica.publish.settings import RepositorySettings, read_settings, state_directory, write_settings
from mica.publish.transaction import Publication, Transaction, publish_manifest
from mica.repo.catalog import NestedCatalog
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import Manifest, is_fqrn
from mica.repo.objects import unpack
from mica.repo.signing import (
    fingerprint,
    new_certificate,
    new_key,
    parse_certificate,
    parse_private_key,
    parse_public_key,
    private_pem,
    public_pem,
)
from mica.repo.trust import CERTIFICATE_LIMIT, RevisionTrust
from mica.repo.whitelist import NAME as WHITELIST
from mica.repo.whitelist import SIZE_LIMIT as WHITELIST_LIMIT
from mica.repo.whitelist import VALIDITY_DAYS, Whitelist, sign_whitelist
from mica.store.base import read_limited
from mica.store.local import LocalStore

MASTER_REPLICA = ".cvmfs_master_replica"
_MANIFEST_LIMIT = 64 << 10
_METAINFO_LIMIT = 64 << 10


class ReleaseManager:
    """Use as a context manager. `state` is the directory that holds the settings of all repositories."""

    def __init__(self, state: Path, settings: RepositorySettings) -> None:
        self.settings = settings
        self.fqrn = settings.fqrn
        self.store = LocalStore(settings.storage)
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
        """The newest revision, verified from the storage with the repository's own public key."""
        trust = RevisionTrust(self.fqrn, [self._public_key()], where=self.store.where)
        manifest = trust.take_manifest(read_limited(self.store, MANIFEST, _MANIFEST_LIMIT))
        certificate = manifest.certificate.object_path(Suffix.CERTIFICATE)
        trust.take_certificate(read_limited(self.store, certificate, CERTIFICATE_LIMIT))
        whitelist = read_limited(self.store, WHITELIST, WHITELIST_LIMIT)
        trust.take_whitelist(whitelist, _now())
        return trust.verified().manifest

    @contextlib.contextmanager
    def transaction(self, *, wait_s: float = 0.0) -> Iterator[Transaction]:
        """Change the repository; published when the block ends, dropped when it raises.

        Raises TemporaryError if somebody else publishes for longer than `wait_s`.
        """
        with self._locked(wait_s):
            head = self.head()
            with self._transaction(head, self._metainfo(head)) as transaction:
                yield transaction

    @contextlib.contextmanager
    def _transaction(self, head: Manifest | None, metainfo: bytes) -> Iterator[Transaction]:
        transaction = Transaction(
            self.store, self._work, self.settings.objects, self._publication(metainfo), head,
            reflog_checksum=self._reflog_checksum,
            garbage_collectable=self.settings.garbage_collectable,
            auto_tag=self.settings.auto_tag,
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
        """The newest revision to look at; changes to it go nowhere."""
        head = self.head()
        with tempfile.TemporaryDirectory(prefix="mica-look-") as work:
            catalogs = CatalogTree(self.store, Path(work), self.settings.objects.algorithm)
            try:
                catalogs.load(NestedCatalog(b"", head.root_catalog, head.root_catalog_size))
                yield catalogs
            finally:
                catalogs.close()

    @property
    def layers(self) -> Path:
        """Directory of layers that are being made or wait for a revision; see thin/staging.py."""
        return self._home / "layers"

    @property
    def sync(self) -> Path:
        """Directory of what recipes have brought into the repository; see sync/state.py."""
        return self._home / "sync"

    @property
    def thin(self) -> Path:
        """Directory of thin images that were made on demand; see portal/shelf.py."""
        return self._home / "thin"

    @contextlib.contextmanager
    def _locked(self, wait_s: float = 0.0) -> Iterator[None]:
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
        """First life of a repository whose keys exist: whitelist, empty root catalog, first revision."""
        self.store.create()
        with self._locked():
            self._write_whitelist()
            self.store.replace(MASTER_REPLICA, b"This repository may be replicated.\n")
            document = json.dumps(metainfo, indent=1, sort_keys=True).encode("utf-8")
            with self._transaction(None, document) as transaction:
                transaction.catalogs.begin(directory_entry(b"", mtime_s=int(_now().timestamp())))
        return self.head()

    def resign(self, *, days: int = VALIDITY_DAYS) -> Manifest:
        """Renew the whitelist, and sign the manifest anew with the present key and certificate."""
        with self._locked():
            self._write_whitelist(days)
            head = self.head()
            renewed = replace(head, published_at=max(head.published_at, int(_now().timestamp())))
            publication = self._publication(self._metainfo(head))
            return publish_manifest(
                self.store, self.settings.objects, publication, renewed, reflog_checksum=self._reflog_checksum
            )

    def _write_whitelist(self, days: int = VALIDITY_DAYS) -> None:
        now = _now().replace(microsecond=0)
        certificate = parse_certificate(self._key_bytes("crt"), f"Certificate of {self.fqrn}")
        whitelist = Whitelist(self.fqrn, now, now + datetime.timedelta(days=days), (fingerprint(certificate),))
        master = parse_private_key(self._key_bytes("masterkey"), f"The master key of {self.fqrn}")
        self.store.replace(WHITELIST, sign_whitelist(whitelist, master, self.settings.objects.algorithm))

    def _publication(self, metainfo: bytes) -> Publication:
        return Publication(
            fqrn=self.fqrn,
            key=parse_private_key(self._key_bytes("key"), f"The key of {self.fqrn}"),
            certificate_pem=self._key_bytes("crt"),
            metainfo=metainfo,
            ttl_s=self.settings.ttl_s,
        )

    def _metainfo(self, head: Manifest) -> bytes:
        if head.metainfo is None:
            return b"{}"
        stored = read_limited(self.store, head.metainfo.object_path(Suffix.METAINFO), _METAINFO_LIMIT)
        return unpack(stored, head.metainfo, limit=_METAINFO_LIMIT)

    def _public_key(self) -> rsa.RSAPublicKey:
        return parse_public_key(self._key_bytes("pub"), f"The public key of {self.fqrn}")

    def _key_bytes(self, kind: str) -> bytes:
        path = self.settings.key_path(kind)
        with mapped_os_errors(f"read the key file {path}"):
            try:
                return path.read_bytes()
            except FileNotFoundError as error:
                raise NotFoundError(f"The key file {path} of {self.fqrn} is missing.") from error


def create_repository(state: Path, settings: RepositorySettings, metainfo: dict[str, object]) -> Manifest:
    """Make keys (existing ones are used), settings, storage and the first revision. Raises UserError and leaves what
    exists alone if there is a repository of that name or in that storage already."""
    if not is_fqrn(settings.fqrn) or "." not in settings.fqrn:
        raise UserError(
            f"{settings.fqrn!r} cannot be the name of a repository.",
            hint="A fully qualified name such as images.example.org: letters, digits, '-_.', at most 60.",
        )
    home = state_directory(state, settings.fqrn)
    if (home / "repository.toml").exists():
        raise UserError(f"Repository {settings.fqrn} exists already under {state}.")
    if (settings.storage / MANIFEST).exists():
        raise UserError(
            f"{settings.storage} already holds a published repository.",
            hint="Choose another storage directory, or remove this one if it is no longer wanted.",
        )
    with mapped_os_errors(f"create the directories of {settings.fqrn}"):
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        _make_keys(settings)
    with ReleaseManager(state, settings) as manager:
        manifest = manager.begin(metainfo)
    write_settings(state, settings)
    return manifest


def _make_keys(settings: RepositorySettings) -> None:
    for private, public in (("masterkey", "pub"), ("key", "crt")):
        if settings.key_path(private).exists() and settings.key_path(public).exists():
            continue
        key = new_key()
        document = public_pem(key) if public == "pub" else new_certificate(key, settings.fqrn, _now())
        replace_file(settings.key_path(private), private_pem(key), mode=0o400)
        replace_file(settings.key_path(public), document, mode=0o444)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
