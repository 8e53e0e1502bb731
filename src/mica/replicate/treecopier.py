"""Copies revisions: the tree of catalogs below a root, with all objects that they name.

A catalog that is in the store implies that its whole subtree is (docs/format/replica.md). So it is not looked into
again, and a catalog is put only when its objects and its nested catalogs are there to stay: finished catalogs are held
back as files in `work`, and from time to time the objects are flushed, then the held catalogs, children before parents.

    tree = TreeCopier(fetcher, store, copier, work)
    tree.copy(root)         # may be called for several revisions
    tree.finish()           # now all of them are there

One thread walks; some others fetch catalogs ahead of it, and the object copier has its own.
"""

import itertools
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Self

from mica.digest import Digest, Suffix
from mica.errors import NotFoundError
from mica.fetch.client import catalog_object
from mica.fetch.download import Fetcher, LocalFetcher
from mica.fetch.verify import copy_verified
from mica.files import mapped_os_errors
from mica.replicate.objectcopier import Copied, NeededObject, ObjectCopier
from mica.repo.catalog import Catalog, NestedCatalog
from mica.store.base import ObjectStore
from mica.streams import Readable
from mica.texts import printable_path

_AHEAD: Final = 8
_PUT_WHOLE_BYTES: Final = 1 << 20
_FLUSH_OBJECTS: Final = 200_000
_FLUSH_BYTES: Final = 4 << 30
_FLUSH_CATALOG_BYTES: Final = 256 << 20
"""What is copied at most until catalogs are put, so that a run that was killed need not look at much again."""


class MissingRootError(NotFoundError):
    """A revision's root catalog is not at the source. Nothing was asked for: other revisions are not concerned."""


class RootFacts(NamedTuple):
    """Of a root catalog that was copied."""

    revision: int
    previous: Digest | None


class _Fetched(NamedTuple):
    """Files of a catalog: as it is stored, and unpacked."""

    stored: Path
    plain: Path


@dataclass(slots=True)
class _Frame:
    """A catalog that was read, while its nested catalogs are copied. `height` is 0 for one without nested ones."""

    reference: NestedCatalog
    stored: Path
    pending: deque[NestedCatalog]
    coming: deque[tuple[NestedCatalog, Future[_Fetched | None]]] = field(default_factory=deque)
    height: int = 0


class _Held(NamedTuple):
    """A catalog whose subtree is in the store, or on its way into it."""

    file: Path
    height: int


class TreeCopier:
    """Use as a context manager. `work` is an existing directory on a disk, for this one alone."""

    def __init__(self, fetcher: Fetcher, store: ObjectStore, copier: ObjectCopier, work: Path) -> None:
        self._fetcher = fetcher
        self._store = store
        self._copier = copier
        self._work = work
        self._numbers = itertools.count()
        self._held: dict[Digest, _Held] = {}
        self._held_bytes = 0
        self._flushed = Copied()
        self._pool = ThreadPoolExecutor(_AHEAD, thread_name_prefix="catalogs")
        self.catalogs = 0
        self.stored_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        is_interrupted = kind is not None and not issubclass(kind, Exception)
        self._pool.shutdown(wait=not is_interrupted, cancel_futures=True)

    def copy(self, root: Digest, size: int = 0) -> RootFacts | None:
        """Copy a revision; what of it is there is left out. None if its root catalog is there.

        Raises MissingRootError. After any other NotFoundError, IntegrityError or TemporaryError, here or in `finish`,
        all that was copied since the last `finish` has to be forgotten.
        """
        reference = NestedCatalog(b"", root, size)
        try:
            fetched = self._fetch(reference)
        except NotFoundError as error:
            raise MissingRootError(str(error), hint=error.hint) from error
        if fetched is None:
            return None
        frame, facts = self._read(reference, fetched)
        frames = [frame]
        while frames:
            frame = frames[-1]
            self._look_ahead(frame)
            if not frame.coming:
                frames.pop()
                self._hold(frame)
                if frames:
                    frames[-1].height = max(frames[-1].height, frame.height + 1)
                continue
            child, future = frame.coming.popleft()
            arrived = future.result()
            if arrived is not None:
                frames.append(self._read(child, arrived)[0])
            elif (held := self._held.get(child.digest)) is not None:
                frame.height = max(frame.height, held.height + 1)
        return facts

    def look_into(self, root: Digest) -> RootFacts:
        """Of a root catalog that is in the store."""
        fetched = self._fetch_from(LocalFetcher(self._store), NestedCatalog(b"", root, 0))
        with Catalog.open(fetched.plain.absolute(), f"{root} of /") as catalog:
            facts = RootFacts(catalog.revision, catalog.previous_revision)
        fetched.plain.unlink()
        fetched.stored.unlink()
        return facts

    def finish(self) -> None:
        """All that was copied is in the store, and lasts."""
        self._copier.drain()
        self._store.sync()
        by_height = sorted(self._held.items(), key=lambda item: item[1].height)
        for _, level in itertools.groupby(by_height, key=lambda item: item[1].height):
            for digest, held in level:
                self._put(digest, held.file)
            self._store.sync()
        self._held.clear()
        self._held_bytes = 0
        self._flushed = self._copier.counts

    def forget(self) -> None:
        """Drop what is not finished, after a failure."""
        self._copier.forget()
        for held in self._held.values():
            held.file.unlink(missing_ok=True)
        self._held.clear()
        self._held_bytes = 0

    def _look_ahead(self, frame: _Frame) -> None:
        while frame.pending and len(frame.coming) < _AHEAD:
            child = frame.pending.popleft()
            frame.coming.append((child, self._pool.submit(self._fetch, child)))

    def _fetch(self, reference: NestedCatalog) -> _Fetched | None:
        """None if it is there, or held. Any thread."""
        digest = reference.digest
        if digest in self._held or self._store.has(digest.object_path(Suffix.CATALOG)):
            return None
        return self._fetch_from(self._fetcher, reference)

    def _fetch_from(self, fetcher: Fetcher, reference: NestedCatalog) -> _Fetched:
        digest = reference.digest
        path = digest.object_path(Suffix.CATALOG)
        number = next(self._numbers)
        fetched = _Fetched(self._work / f"{number}.stored", self._work / f"{number}.plain")
        name = catalog_object(reference)

        def consume(stream: Readable) -> None:
            with (
                mapped_os_errors(f"write into {self._work}"),
                fetched.stored.open("wb") as stored,
                fetched.plain.open("wb") as plain,
            ):
                copy_verified(_Tee(stream, stored), plain, name)

        try:
            fetcher.fetch(path, consume)
        except NotFoundError as error:
            where = printable_path(reference.path)
            raise NotFoundError(f"{error} It is the catalog of {where}.", hint=error.hint) from error
        return fetched

    def _read(self, reference: NestedCatalog, fetched: _Fetched) -> tuple[_Frame, RootFacts]:
        """Ask for the objects that a catalog names."""
        where = printable_path(reference.path)
        owner = f"The catalog of {where}"
        with Catalog.open(fetched.plain.absolute(), f"{reference.digest} of {where}") as catalog:
            for found in catalog.objects():
                self._copier.ask(NeededObject(found.digest, found.suffix, found.size, owner))
            frame = _Frame(reference, fetched.stored, deque(catalog.nested()))
            facts = RootFacts(catalog.revision, catalog.previous_revision)
        fetched.plain.unlink()
        return frame, facts

    def _hold(self, frame: _Frame) -> None:
        size = frame.stored.stat().st_size
        self._held[frame.reference.digest] = _Held(frame.stored, frame.height)
        self._held_bytes += size
        self.catalogs += 1
        self.stored_bytes += size
        done = self._copier.counts
        if (
            done.objects - self._flushed.objects >= _FLUSH_OBJECTS
            or done.stored_bytes - self._flushed.stored_bytes >= _FLUSH_BYTES
            or self._held_bytes >= _FLUSH_CATALOG_BYTES
        ):
            self.finish()

    def _put(self, digest: Digest, file: Path) -> None:
        path = digest.object_path(Suffix.CATALOG)
        with mapped_os_errors(f"read {file}"):
            if file.stat().st_size <= _PUT_WHOLE_BYTES:
                self._store.put(path, file.read_bytes())
            else:
                self._store.put_file(path, file)
        file.unlink()


class _Tee:
    """Writes what is read into a file too."""

    def __init__(self, stream: Readable, file: BinaryIO) -> None:
        self._stream = stream
        self._file = file

    def read(self, size: int, /) -> bytes:
        block = self._stream.read(size)
        self._file.write(block)
        return block
