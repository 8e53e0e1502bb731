"""Checking a whole repository: trust, history, reflog, every catalog of the newest revision, every object.

    for finding in check_repository(fetcher, fqrn, master_keys, objects="hash", work=directory):
        print(finding.severity, finding.where, finding.sentence)

Findings come during the walk. A repository without a finding of severity error is whole: every path of the newest
revision can be read. A server that does not answer is a TemporaryError, not a finding. The rules for one catalog are in
`checkcatalog.py` and `checkentry.py`. Old revisions are not walked; tags are looked up. The digest of the reflog in the
manifest is not compared, because it is stale after garbage collection and on replicas (docs/format/history.md).

Memory is bounded: catalogs are files in `work`, one open at a time; the objects met so far are a table there. The
caller's thread walks, a few threads look at objects.
"""

import json
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from cryptography.hazmat.primitives.asymmetric import rsa

from mica.digest import Digest, Suffix
from mica.errors import IntegrityError, NotFoundError
from mica.fetch.client import catalog_object
from mica.fetch.documents import read_whole
from mica.fetch.download import Fetcher
from mica.fetch.verify import copy_verified
from mica.publish.checkcatalog import CatalogCheck, Mountpoint, check_subtree
from mica.publish.checkobjects import Finding, Nowhere, ObjectCheck, Wanted
from mica.repo.catalog import CATALOG_LIMIT, COUNTERS, Catalog, NestedCatalog
from mica.repo.catalogwriter import NO_COUNTS, add_counts
from mica.repo.history import KIND_OF_SUFFIX, TRUNK, parse_history, parse_reflog
from mica.repo.history import SIZE_LIMIT as DATABASE_LIMIT
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import READ_LIMIT as MANIFEST_LIMIT
from mica.repo.manifest import Manifest
from mica.repo.objectname import ObjectName
from mica.repo.objects import Compression, unpack
from mica.repo.trust import CERTIFICATE_LIMIT, RevisionTrust
from mica.repo.whitelist import NAME as WHITELIST
from mica.repo.whitelist import SIZE_LIMIT as WHITELIST_LIMIT
from mica.streams import Readable
from mica.texts import printable_path

__all__ = ["CheckProgress", "Finding", "check_repository"]

REFLOG = ".cvmfsreflog"
_METAINFO_LIMIT = 64 << 10
_TELL_EVERY = 1024
_KINDS = ("regular", "symlink", "special", "dir")

# https://www.sqlite.org/fileformat.html#the_database_header
_HEADER_BYTES = 100
_ROLLBACK_JOURNAL = b"\1\1"  # versions for writing and for reading; 2 means write-ahead log
_UTF_8 = (1).to_bytes(4, "big")


class CheckProgress(NamedTuple):
    """The progress of a check. `of_entries` is what the root catalog says there are."""

    catalogs: int
    entries: int
    objects: int
    of_entries: int = 0


def check_repository(
    fetcher: Fetcher,
    fqrn: str,
    master_keys: Sequence[rsa.RSAPublicKey],
    *,
    objects: Literal["exist", "hash"] = "exist",
    work: Path,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    threads: int = 4,
    progress: Callable[[CheckProgress], None] | None = None,
) -> Iterator[Finding]:
    """All faults of the newest revision and of the files that belong to it.

    `objects`: "exist" asks for each data object, "hash" reads and unpacks it too; catalogs, history, certificate and
    meta-info are always verified. `work` is an existing directory on a disk with room for the largest catalog; files
    in it are removed when the iterator ends. Raises TemporaryError when the repository cannot be reached.
    """
    with (
        tempfile.TemporaryDirectory(prefix="check-", dir=work) as directory,
        ObjectCheck(fetcher, Path(directory) / "objects.sqlite", threads, in_full=objects == "hash") as data,
    ):
        manifest = yield from _check_trust(fetcher, fqrn, master_keys, now())
        if manifest is None:
            return
        yield from _check_metainfo(fetcher, manifest)
        yield from _check_history(fetcher, manifest, data)
        yield from _check_reflog(fetcher, manifest)
        if manifest.alternative_paths:
            yield from _check_alternative_paths(fetcher, manifest)
        walk = _CatalogWalk(fetcher, Path(directory), data, progress)
        yield from walk.run(manifest)
        yield from data.finish()
        walk.tell()


def _check_trust(
    fetcher: Fetcher, fqrn: str, master_keys: Sequence[rsa.RSAPublicKey], now: datetime
) -> Generator[Finding, None, Manifest | None]:
    """The manifest; also when something in the chain of signatures is wrong, as long as it can be read."""
    trust = RevisionTrust(fqrn, master_keys, where=fetcher.where)
    step, manifest = MANIFEST, None
    try:
        manifest = trust.take_manifest(_fetch(fetcher, MANIFEST, MANIFEST_LIMIT, fresh=True))
        step = manifest.certificate.object_path(Suffix.CERTIFICATE)
        trust.take_certificate(_fetch(fetcher, step, CERTIFICATE_LIMIT))
        step = WHITELIST
        trust.take_whitelist(_fetch(fetcher, WHITELIST, WHITELIST_LIMIT, fresh=True), now)
        trust.verified()
    except (IntegrityError, NotFoundError) as error:
        yield Finding("error", step, str(error))
    return manifest


def _check_metainfo(fetcher: Fetcher, manifest: Manifest) -> Iterator[Finding]:
    if manifest.metainfo is None:
        return
    path = manifest.metainfo.object_path(Suffix.METAINFO)
    try:
        document = json.loads(_fetch_object(fetcher, manifest.metainfo, Suffix.METAINFO, _METAINFO_LIMIT))
    except (IntegrityError, NotFoundError) as error:
        yield Finding("error", path, str(error))
    except (ValueError, RecursionError):
        yield Finding("warning", path, "The meta-info is not JSON.")
    else:
        if not isinstance(document, dict):
            yield Finding("warning", path, "The meta-info is no JSON object.")


def _check_history(fetcher: Fetcher, manifest: Manifest, data: ObjectCheck) -> Iterator[Finding]:
    if manifest.history is None:
        return
    path = manifest.history.object_path(Suffix.HISTORY)
    try:
        stored = _fetch_object(fetcher, manifest.history, Suffix.HISTORY, DATABASE_LIMIT)
        history = parse_history(stored, f"History {manifest.history}")
    except (IntegrityError, NotFoundError) as error:
        yield Finding("error", path, str(error))
        return
    if history.fqrn != manifest.fqrn:
        yield Finding("error", path, f"The history belongs to another repository, {history.fqrn}.")
    trunk = history.tags.get(TRUNK)
    if trunk is not None and trunk.root_catalog != manifest.root_catalog:
        yield Finding("warning", path, f"Tag {TRUNK} names {trunk.root_catalog}, not the newest revision.")
    for tag in history.tags.values():
        name = catalog_object(NestedCatalog(b"", tag.root_catalog, tag.size))
        yield from data.ask(Wanted(f"tag {tag.name}", name, missing="warning"))


def _check_reflog(fetcher: Fetcher, manifest: Manifest) -> Iterator[Finding]:
    try:
        reflog = parse_reflog(_fetch(fetcher, REFLOG, DATABASE_LIMIT, fresh=True), "The reflog")
    except NotFoundError as error:
        yield Finding("error" if manifest.reflog else "warning", REFLOG, str(error))
        return
    except IntegrityError as error:
        yield Finding("error", REFLOG, str(error))
        return
    if reflog.fqrn != manifest.fqrn:
        yield Finding("error", REFLOG, f"The reflog belongs to another repository, {reflog.fqrn}.")
    for suffix, digest in manifest.objects.items():
        if reflog.refs.get(digest, (None, 0))[0] != KIND_OF_SUFFIX[suffix]:
            yield Finding("error", REFLOG, f"The reflog does not list {digest}, which the manifest names.")


def _check_alternative_paths(fetcher: Fetcher, manifest: Manifest) -> Iterator[Finding]:
    for suffix, digest in manifest.objects.items():
        path = f".cvmfsalt-{digest}{suffix}"
        name = ObjectName(digest, suffix, Compression.ZLIB, None, CATALOG_LIMIT)
        try:
            fetcher.fetch(path, partial(copy_verified, sink=Nowhere(), name=name))
        except (IntegrityError, NotFoundError) as error:
            yield Finding("error", path, str(error))


@dataclass(slots=True)
class _Frame:
    """A catalog whose nested catalogs are being checked: its counters for them, and their sum so far."""

    path: bytes
    stated: tuple[int, ...]
    pending: list[Mountpoint]
    sums: tuple[int, ...] = NO_COUNTS
    all_were_read: bool = True


class _CatalogWalk:
    """All catalogs of a revision, depth first; each is a file only while it is looked at."""

    def __init__(
        self,
        fetcher: Fetcher,
        work: Path,
        data: ObjectCheck,
        progress: Callable[[CheckProgress], None] | None,
    ) -> None:
        self._fetcher = fetcher
        self._path = work / "catalog.sqlite"
        self._data = data
        self._progress = progress
        self._catalogs = 0
        self._entries = 0
        self._of_entries = 0

    def run(self, manifest: Manifest) -> Iterator[Finding]:
        reference = NestedCatalog(b"", manifest.root_catalog, manifest.root_catalog_size)
        root = yield from self._check_catalog(reference, None, manifest.revision)
        frames = [root[0]] if root else []
        while frames:
            frame = frames[-1]
            if not frame.pending:
                frames.pop()
                if frame.all_were_read:
                    yield from check_subtree(frame.path, frame.stated, frame.sums)
                continue
            mountpoint = frame.pending.pop()
            opened = yield from self._check_catalog(mountpoint.reference, mountpoint, None)
            if opened is None:
                frame.all_were_read = False
                continue
            child, total = opened
            frame.sums = add_counts([frame.sums, total])
            frames.append(child)

    def _check_catalog(
        self, reference: NestedCatalog, mountpoint: Mountpoint | None, revision: int | None
    ) -> Generator[Finding, None, tuple[_Frame, tuple[int, ...]] | None]:
        """Check one catalog. Returns the work left below it, and its total counters; None if it cannot be read."""
        where = printable_path(reference.path)
        name = catalog_object(reference)
        try:
            self._fetcher.fetch(name.path, partial(self._store, name))
            with Catalog.open(self._path.absolute(), f"{reference.digest} of {where}") as catalog:
                yield from self._check_file(where)
                if revision is not None and catalog.revision != revision:
                    sentence = f"The root catalog has revision {catalog.revision}, the manifest {revision}."
                    yield Finding("error", where, sentence)
                check = CatalogCheck(catalog, mountpoint)
                if mountpoint is None:
                    self._of_entries = sum(check.total[COUNTERS.index(kind)] for kind in _KINDS)
                yield from self._run(check)
                return _Frame(reference.path, check.below, check.mountpoints), check.total
        except (IntegrityError, NotFoundError) as error:
            yield Finding("error", where, str(error))
            return None

    def _run(self, check: CatalogCheck) -> Iterator[Finding]:
        for number, found in enumerate(check.run()):
            if isinstance(found, Finding):
                yield found
                continue
            yield from self._data.ask(found)
            if not (number + 1) % _TELL_EVERY:
                self.tell(check.entries)
        self._catalogs += 1
        self._entries += check.entries
        self.tell()

    def tell(self, more_entries: int = 0) -> None:
        if self._progress is not None:
            self._progress(
                CheckProgress(self._catalogs, self._entries + more_entries, self._data.looked_at, self._of_entries)
            )

    def _store(self, name: ObjectName, stream: Readable) -> None:
        with self._path.open("wb") as file:
            copy_verified(stream, file, name)

    def _check_file(self, where: str) -> Iterator[Finding]:
        with self._path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        if header[18:20] != _ROLLBACK_JOURNAL:
            yield Finding("error", where, "Its catalog is in write-ahead mode, which readers cannot open.")
        if header[56:60] != _UTF_8:
            yield Finding("error", where, "Its catalog does not store text as UTF-8.")


def _fetch(fetcher: Fetcher, path: str, limit: int, *, fresh: bool = False) -> bytes:
    return fetcher.fetch(path, partial(read_whole, limit=limit), fresh=fresh)


def _fetch_object(fetcher: Fetcher, digest: Digest, suffix: Suffix, limit: int) -> bytes:
    """The plain content of a small object."""

    def consume(stream: Readable) -> bytes:
        return unpack(read_whole(stream, limit), digest, limit=limit)

    return fetcher.fetch(digest.object_path(suffix), consume)
