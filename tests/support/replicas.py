"""Replicas for tests: made of a repository's storage or server, and judged by what readers find in them."""

import contextlib
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from tests.support.repositories import FQRN

from mica.digest import Digest, Suffix
from mica.fetch.counters import TrafficCounter
from mica.fetch.download import Fetcher, HttpFetcher, HttpLimits, LocalFetcher
from mica.fetch.routes import Routes
from mica.publish.check import Finding, check_repository
from mica.replicate.record import ReplicaHome
from mica.replicate.replication import Replication, ReplicationReport, ReplicationRules
from mica.repo.catalog import Catalog
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import parse_manifest
from mica.store.base import ObjectStore, read_limited, read_pointer
from mica.store.local import LocalStore

HASTY = ReplicationRules(pauses_s=(), threads=4)
_LIMITS = HttpLimits(timeout_direct_s=2, retries=0, backoff_s=0)
_MOST = 64 << 20


@contextlib.contextmanager
def http_fetcher(*urls: str, limits: HttpLimits = _LIMITS) -> Iterator[HttpFetcher]:
    with contextlib.closing(HttpFetcher(Routes(urls), counter=TrafficCounter(), limits=limits)) as fetcher:
        yield fetcher


def replicate(
    source: Fetcher | Path,
    store: ObjectStore,
    key: rsa.RSAPublicKey,
    state: Path,
    *,
    fqrn: str = FQRN,
    rules: ReplicationRules = HASTY,
    **more: Any,
) -> ReplicationReport:
    """From a server or a storage directory into a store."""
    home = ReplicaHome(state, fqrn, store.where)
    with contextlib.ExitStack() as stack:
        if isinstance(source, Path):
            source = LocalFetcher(stack.enter_context(LocalStore(source)))
        stack.enter_context(home.locked())
        return Replication(source, store, fqrn, [key], home, store.where, rules=rules, **more).run()


def shown_revision(store: ObjectStore) -> int:
    """0 if there is none."""
    data = read_pointer(store, MANIFEST, 4096)
    return 0 if data is None else parse_manifest(data, "manifest")[0].revision


def errors_in(store: ObjectStore, keys: Sequence[rsa.RSAPublicKey], work: Path, *, fqrn: str = FQRN) -> list[Finding]:
    """What the checker finds in the shown revision, over all of its objects."""
    found = check_repository(LocalFetcher(store), fqrn, keys, objects="hash", work=work)
    return [finding for finding in found if finding.severity == "error"]


def broken_catalogs(store: ObjectStore) -> list[str]:
    """What any catalog in a store names and the store has not, or has with other content: a catalog that is there
    implies its whole subtree."""
    broken = []
    present = {entry.path for entry in store.entries("data/")}
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "catalog"
        for path in sorted(present):
            if not path.endswith(Suffix.CATALOG):
                continue
            file.write_bytes(zlib.decompress(read_limited(store, path, _MOST)))
            with Catalog.open(file, path) as catalog:
                named = [(found.digest, found.suffix) for found in catalog.objects()]
                named += [(nested.digest, Suffix.CATALOG) for nested in catalog.nested()]
            broken += [f"{path} names {needed}" for needed in map(_path, named) if needed not in present]
    return broken


def _path(named: tuple[Digest, Suffix]) -> str:
    return named[0].object_path(named[1])
