"""Repositories for tests: made in a directory of the test, filled from tars, read back as a client does."""

import functools
import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import rsa

from mica.cache.cache import Cache
from mica.fetch.client import RepositoryClient
from mica.fetch.counters import TrafficCounter
from mica.fetch.download import Fetcher, HttpFetcher, HttpLimits, LocalFetcher
from mica.fetch.routes import Routes
from mica.fetch.trustrecord import TrustRecord
from mica.fuse.tree import ROOT_INODE
from mica.mount.repotree import RepositoryTree
from mica.publish.check import Finding, check_repository
from mica.publish.ingest import merge_archive, read_archive
from mica.publish.keyfiles import KeyFiles
from mica.publish.layertree import PLAIN
from mica.publish.manager import ReleaseManager, create_repository
from mica.publish.rules import ObjectRules
from mica.publish.settings import RepositorySettings
from mica.repo.catalog import DEFAULT_TTL_S, NestedCatalog
from mica.repo.cutting import ChunkRule
from mica.repo.manifest import Manifest
from mica.repo.signing import parse_public_key
from mica.store.local import LocalStore
from mica.tarstream import DEFAULT_LIMITS

FQRN = "small.example.org"
SMALL_CHUNKS = ChunkRule(4096, 8192, 16384)


class Repository(NamedTuple):
    """`state` is the release manager's directory, `storage` what a web server shows."""

    fqrn: str
    state: Path
    storage: Path
    keys: Path

    @property
    def master_key(self) -> rsa.RSAPublicKey:
        return parse_public_key((self.keys / f"{self.fqrn}.pub").read_bytes(), "key")

    def manager(self) -> ReleaseManager:
        return ReleaseManager.open(self.state, self.fqrn)


class Seen(NamedTuple):
    """What a reader sees at a path; `content` is the SHA-256 of a file or the target of a link."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime: tuple[int, int]
    links: int
    rdev: int
    content: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]


@functools.cache
def shared_key_files() -> dict[str, bytes]:
    """Making RSA keys takes a while: the repositories of a test run share theirs."""
    with tempfile.TemporaryDirectory() as place:
        settings = RepositorySettings(FQRN, place, Path(place))
        KeyFiles(settings).make_missing()
        return {kind: settings.key_path(kind).read_bytes() for kind in ("masterkey", "pub", "key", "crt")}


def make_repository(
    directory: Path,
    *,
    fqrn: str = FQRN,
    rules: ObjectRules | None = None,
    auto_tag: bool = False,
    ttl_s: int = DEFAULT_TTL_S,
) -> Repository:
    repository = Repository(fqrn, directory / "state", directory / "storage", directory / "keys")
    rules = rules or ObjectRules(chunking=SMALL_CHUNKS)
    storage = str(repository.storage)
    settings = RepositorySettings(fqrn, storage, repository.keys, rules, ttl_s=ttl_s, auto_tag=auto_tag)
    repository.keys.mkdir(parents=True)
    for kind, content in shared_key_files().items():
        settings.key_path(kind).write_bytes(content)
    create_repository(repository.state, settings, {"description": "for tests"})
    return repository


def ingest(repository: Repository, archive: bytes, base: bytes = b"", *, nested: bool = False) -> Manifest:
    with repository.manager() as manager:
        with manager.transaction() as transaction:
            ingested = read_archive(
                io.BytesIO(archive), transaction.objects, mode=PLAIN, limits=DEFAULT_LIMITS, require_end=True
            )
            merge_archive(ingested, transaction.catalogs, base, nested=nested, marker=transaction.marker())
        return manager.head()


def findings(repository: Repository, work: Path, *, in_full: bool = True) -> list[Finding]:
    """What the checker says of a repository, from its storage."""
    with LocalStore(repository.storage) as store:
        return list(
            check_repository(
                LocalFetcher(store),
                repository.fqrn,
                [repository.master_key],
                objects="hash" if in_full else "exist",
                work=work,
            )
        )


@contextmanager
def opened_client(
    repository: Repository,
    cache: Path,
    *,
    url: str | None = None,
    limits: HttpLimits | None = None,
    external: Sequence[str] = (),
) -> Iterator[RepositoryClient]:
    """A client with a cache and a trust record of its own; by HTTP if there is a URL, else from the storage. `external`
    are the URLs of external files."""
    with ExitStack() as stack:
        counter = TrafficCounter()
        if url is None:
            fetcher: Fetcher = LocalFetcher(stack.enter_context(LocalStore(repository.storage)))
        else:
            http = HttpFetcher(Routes([url]), counter=counter, limits=limits or QUICK)
            stack.callback(http.close)
            fetcher = http
        outside = HttpFetcher(Routes(external), counter=counter, limits=limits or QUICK) if external else None
        if outside is not None:
            stack.callback(outside.close)
        client = RepositoryClient(
            repository.fqrn,
            fetcher,
            stack.enter_context(Cache(cache)),
            [repository.master_key],
            external=outside,
            record=trust_record(repository, cache),
            counter=counter,
        )
        yield stack.enter_context(client)


def trust_record(repository: Repository, cache: Path) -> TrustRecord:
    """What an opened client with this cache remembers, beside it."""
    return TrustRecord(Path(f"{cache}.trust"), repository.fqrn, former=cache / "repositories" / repository.fqrn)


QUICK = HttpLimits(timeout_direct_s=2, timeout_proxy_s=2, retries=0, backoff_s=0)


@contextmanager
def opened_tree(repository: Repository, cache: Path, *, url: str | None = None) -> Iterator[RepositoryTree]:
    """The newest revision."""
    with opened_client(repository, cache, url=url) as client:
        manifest = client.update().manifest
        yield RepositoryTree(client, NestedCatalog(b"", manifest.root_catalog, manifest.root_catalog_size))


def read_back(repository: Repository, cache: Path, *, url: str | None = None) -> dict[bytes, Seen]:
    """The whole newest revision as a client with an empty cache sees it."""
    with opened_tree(repository, cache, url=url) as tree:
        return dict(walk_tree(tree))


def find_path(tree: RepositoryTree, path: str) -> int:
    """The inode at a path. Raises FileNotFoundError."""
    inode = ROOT_INODE
    for name in os.fsencode(path).strip(b"/").split(b"/"):
        inode = tree.lookup(inode, name).inode
    return inode


def walk_tree(tree: RepositoryTree) -> Iterator[tuple[bytes, Seen]]:
    pending = [(b"", ROOT_INODE)]
    while pending:
        path, inode = pending.pop()
        attributes = tree.attributes(inode)
        content = b""
        if stat.S_ISREG(attributes.mode):
            content = hashlib.sha256(read_file(tree, inode)).digest()
        elif stat.S_ISLNK(attributes.mode):
            content = tree.readlink(inode)
        elif stat.S_ISDIR(attributes.mode):
            pending += [(path + b"/" + child.name, child.attributes.inode) for child in tree.children(inode)]
        yield (
            path,
            Seen(
                attributes.mode,
                attributes.uid,
                attributes.gid,
                attributes.size,
                (attributes.mtime_s, attributes.mtime_ns),
                attributes.links,
                attributes.rdev,
                content,
                tuple(sorted(tree.xattrs(inode).items())),
            ),
        )


def read_file(tree: RepositoryTree, inode: int) -> bytes:
    file = tree.open(inode)
    try:
        parts = []
        while block := file.read(sum(map(len, parts)), 1 << 20):
            parts.append(block)
        return b"".join(parts)
    finally:
        file.close()
