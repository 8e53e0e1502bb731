"""Repositories on a real S3 server, filled and looked at as those of tests/support/repositories.py."""

import contextlib
import io
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric import rsa
from tests.support.repositories import FQRN, SMALL_CHUNKS, shared_key_files
from tests.support.seaweed import S3Server

from mica.fetch.download import LocalFetcher
from mica.publish.check import check_repository
from mica.publish.ingest import merge_archive, read_archive
from mica.publish.layertree import PLAIN
from mica.publish.manager import ReleaseManager, create_repository
from mica.publish.rules import ObjectRules
from mica.publish.settings import RepositorySettings, read_settings, write_settings
from mica.publish.transaction import Transaction
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import Manifest, parse_manifest
from mica.repo.signing import parse_public_key
from mica.store.base import read_limited
from mica.store.opening import open_store
from mica.store.s3 import S3Store
from mica.store.s3access import S3Options, parse_place
from mica.store.s3client import S3Client, S3Limits
from mica.tarstream import DEFAULT_LIMITS

QUICK: Final = S3Limits(connect_s=2, request_s=10, retries=4, retry_s=20)


class S3Repository(NamedTuple):
    """`state` is the release manager's directory; `direct` are the options of a client without a proxy before it."""

    fqrn: str
    state: Path
    storage: str
    keys: Path
    direct: S3Options

    @property
    def master_key(self) -> rsa.RSAPublicKey:
        return parse_public_key((self.keys / f"{self.fqrn}.pub").read_bytes(), "key")

    def by(self, endpoint: str) -> "S3Repository":
        """From now on its release manager comes by another URL."""
        settings = read_settings(self.state, self.fqrn)
        write_settings(self.state, replace(settings, s3=replace(settings.s3, endpoint=endpoint)))
        return self

    @contextlib.contextmanager
    def manager(self, limits: S3Limits = QUICK) -> Iterator[ReleaseManager]:
        with ReleaseManager.open(self.state, self.fqrn) as manager:
            options = manager.settings.s3
            manager.store.close()
            client = S3Client(parse_place(self.storage), options, limits=limits)
            manager.store = S3Store(client, has_conditions=options.has_conditions)
            yield manager

    def head(self) -> Manifest:
        with open_store(self.storage, self.direct) as store:
            return parse_manifest(read_limited(store, MANIFEST, 1 << 16, fresh=True), "The manifest")[0]

    def errors(self, work: Path) -> list[str]:
        """What the checker finds when it reads every object."""
        with open_store(self.storage, self.direct) as store:
            found = check_repository(LocalFetcher(store), self.fqrn, [self.master_key], objects="hash", work=work)
            return [finding.sentence for finding in found if finding.severity == "error"]

    def names(self, path: bytes = b"") -> set[bytes]:
        with ReleaseManager.open(self.state, self.fqrn) as manager, manager.snapshot() as catalogs:
            return {entry.name for entry in catalogs.children(path)}


def make_s3_repository(directory: Path, server: S3Server, *, has_conditions: bool = True) -> S3Repository:
    options = replace(server.options(), has_conditions=has_conditions)
    repository = S3Repository(FQRN, directory / "state", server.new_storage(FQRN), directory / "keys", options)
    settings = RepositorySettings(
        FQRN, repository.storage, repository.keys, ObjectRules(chunking=SMALL_CHUNKS), s3=options
    )
    repository.keys.mkdir(parents=True)
    for kind, content in shared_key_files().items():
        settings.key_path(kind).write_bytes(content)
    create_repository(repository.state, settings, {"description": "for tests"})
    if not has_conditions:
        write_settings(repository.state, settings)
    return repository


def copied(template: S3Repository, directory: Path, server: S3Server) -> S3Repository:
    """A repository of its own with the same content and keys; making one anew takes much longer."""
    copy = template._replace(state=directory / "state", storage=server.new_storage(FQRN))
    with open_store(template.storage, template.direct) as source, open_store(copy.storage, copy.direct) as target:
        for path in sorted((entry.path for entry in source.entries("")), key=lambda path: path.startswith(".")):
            content = read_limited(source, path, 1 << 20)
            if path.startswith("data/"):
                target.put(path, content)
            else:
                target.replace(path, content)
        target.sync()
    shutil.copytree(template.state, copy.state)
    write_settings(copy.state, replace(read_settings(copy.state, FQRN), storage=copy.storage))
    return copy


def add_archive(transaction: Transaction, archive: bytes, base: bytes) -> None:
    ingested = read_archive(
        io.BytesIO(archive), transaction.objects, mode=PLAIN, limits=DEFAULT_LIMITS, require_end=True
    )
    merge_archive(ingested, transaction.catalogs, base, nested=True, marker=transaction.marker())


def publish_archive(repository: S3Repository, archive: bytes, base: bytes) -> Manifest:
    with repository.manager() as manager:
        with manager.transaction() as transaction:
            add_archive(transaction, archive, base)
        assert transaction.published is not None
        return transaction.published
