"""Moves a repository to another storage, while it is published and read from the present one.

    1 try the new place                                    4 under the lock: what came since; all else but the manifest
    2 copy all objects, several at a time, each verified   5 the manifest, then look at it as a reader does
    3 flush                                                6 the repository's settings name the new storage

Until step 6 everything works as before, so a move that failed or was killed is simply repeated: it copies what is not
there yet. The old storage stays as it was; its readers see no new revisions from then on. Called by `cli/`; it uses
threads of its own.
"""

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from mica.digest import Digest, digest_of, new_hasher
from mica.errors import IntegrityError, UserError
from mica.files import mapped_os_errors
from mica.publish.manager import MASTER_REPLICA, ReleaseManager
from mica.publish.settings import RepositorySettings, write_settings
from mica.publish.transaction import REFLOG
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import SIZE_LIMIT as MANIFEST_LIMIT
from mica.repo.manifest import Manifest, parse_manifest
from mica.repo.whitelist import NAME as WHITELIST
from mica.store.base import ObjectStore, StoredFile, read_pointer
from mica.store.opening import open_store, probe_storage
from mica.store.s3access import NO_OPTIONS, S3Options
from mica.streams import Readable

Progress = Callable[[int], object]
"""Gets the bytes that were copied since."""

_AT_ONCE: Final = 16
_WHOLE_BYTES: Final = 8 << 20
_BLOCK_BYTES: Final = 1 << 20
_POINTER_LIMIT: Final = 512 << 20
_OTHERS: Final = (
    MASTER_REPLICA, ".cvmfs_last_snapshot", ".cvmfs_status.json", f"{WHITELIST}.pkcs7", WHITELIST, REFLOG,
)  # fmt: skip
_OBJECT = re.compile(r"data/([0-9a-f]{2})/([0-9a-f]{38}(?:-rmd160|-shake128)?)[A-Z]?")


class Move(NamedTuple):
    """What was copied this time, and what was there already from an earlier attempt."""

    head: Manifest
    old_storage: str
    new_storage: str
    copied_objects: int
    copied_bytes: int
    present_objects: int


def move_repository(
    state: Path, fqrn: str, storage: str, options: S3Options = NO_OPTIONS, *, progress: Progress | None = None
) -> Move:
    """`storage` as `parse_storage` returned it.

    Raises UserError for a place that holds another repository or a newer revision, IntegrityError for an object of the
    present storage that is damaged, LostRaceError if another release manager publishes into the present storage in the
    last moment.
    """
    with ReleaseManager.open(state, fqrn) as manager:
        old = manager.settings
        if storage == old.storage:
            raise UserError(f"{fqrn} is in {storage} already.")
        manager.head()
        new = replace(old, storage=storage, s3=NO_OPTIONS)
        with contextlib.closing(_new_place(storage, options)) as place:
            new = replace(new, s3=place.options)
            _require_ours(manager, place.store)
            copier = _Copier(manager.store, place.store, progress)
            copier.copy_objects()
            place.store.sync()
            with manager.locked():
                copier.copy_objects()
                place.store.sync()
                head = _copy_pointers(manager, place.store)
                _verify(state, new)
                write_settings(state, new)
    return Move(head, old.storage, storage, copier.copied_objects, copier.copied_bytes, copier.present_objects)


class _Place(NamedTuple):
    store: ObjectStore
    options: S3Options

    def close(self) -> None:
        self.store.close()


def _new_place(storage: str, options: S3Options) -> _Place:
    options = probe_storage(storage, options)
    store = open_store(storage, options)
    try:
        store.create()
    except BaseException:
        store.close()
        raise
    return _Place(store, options)


def _require_ours(manager: ReleaseManager, target: ObjectStore) -> None:
    """Whatever is there must be an older state of the same repository."""
    there = read_pointer(target, MANIFEST, MANIFEST_LIMIT)
    if there is None:
        return
    found, _ = parse_manifest(there, f"The manifest in {target.where}")
    if found.fqrn != manager.fqrn:
        raise UserError(f"{target.where} holds another repository, {found.fqrn}.", hint="Choose another storage.")
    present = manager.head().revision
    if found.revision > present:
        raise UserError(
            f"{target.where} holds revision {found.revision} of {manager.fqrn}, which is newer than {present}.",
            hint="Is that the storage in use?",
        )


def _copy_pointers(manager: ReleaseManager, target: ObjectStore) -> Manifest:
    """The manifest last. The lock keeps out all release managers of this machine, and only those."""
    data, former = manager.read_manifest(), read_pointer(target, MANIFEST, MANIFEST_LIMIT)
    for path in _OTHERS:
        content = read_pointer(manager.store, path, _POINTER_LIMIT)
        if content is not None:
            target.replace(path, content)
    target.replace(MANIFEST, data, expected=former)
    # Whoever published since then would be forgotten; if this fails, the settings still name the present storage.
    manager.store.replace(MANIFEST, data, expected=data)
    return parse_manifest(data, "The manifest")[0]


def _verify(state: Path, settings: RepositorySettings) -> None:
    """The newest revision is believed from the new storage. Raises IntegrityError."""
    with ReleaseManager(state, settings) as moved:
        moved.head()


class _Copier:
    """Copies objects that are not there, one directory `data/xx` after the other: memory is bounded by the largest."""

    def __init__(self, source: ObjectStore, target: ObjectStore, progress: Progress | None) -> None:
        self._source = source
        self._target = target
        self._progress = progress
        self.copied_objects = 0
        self.copied_bytes = 0
        self.present_objects = 0

    def copy_objects(self) -> None:
        first_time = not self.copied_objects
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="move") as pool:
            for number in range(256):
                prefix = f"data/{number:02x}/"
                there = {entry.path: entry.size_bytes for entry in self._target.entries(prefix)}
                missing = (entry for entry in self._source.entries(prefix) if not self._is_there(entry, there))
                while some := list(islice(missing, _AT_ONCE * 8)):
                    for size in pool.map(self._copy, some):
                        self.copied_objects += 1
                        self.copied_bytes += size
                        if self._progress is not None:
                            self._progress(size)
                if first_time:
                    self.present_objects += len(there)

    def _is_there(self, entry: StoredFile, there: dict[str, int]) -> bool:
        if entry.path in there and there[entry.path] != entry.size_bytes:
            self._target.delete(entry.path)  # damaged, and `put` would leave it alone
            return False
        return entry.path in there

    def _copy(self, entry: StoredFile) -> int:
        digest = _digest_of_path(entry.path)
        with self._source.open(entry.path) as stream:
            if entry.size_bytes <= _WHOLE_BYTES:
                data = b"".join(_blocks(stream))
                _require(digest_of(data, digest.algorithm), digest, self._source.where)
                self._target.put(entry.path, data)
                return len(data)
            return self._copy_by_file(entry.path, digest, stream)

    def _copy_by_file(self, path: str, digest: Digest, stream: Readable) -> int:
        size, hasher = 0, new_hasher(digest.algorithm)
        with tempfile.NamedTemporaryFile(prefix="mica-move-") as file:
            with mapped_os_errors(f"write {file.name}", when_full="nothing was moved"):
                for block in _blocks(stream):
                    hasher.update(block)
                    file.write(block)
                    size += len(block)
                file.flush()
            _require(hasher.finish(), digest, self._source.where)
            self._target.put_file(path, Path(file.name))
        return size


def _blocks(stream: Readable) -> Iterator[bytes]:
    while block := stream.read(_BLOCK_BYTES):
        yield block


def _digest_of_path(path: str) -> Digest:
    match = _OBJECT.fullmatch(path)
    if match is None:
        raise UserError(f"{path} is no object of a repository.", hint="Remove it from the storage.")
    return Digest.parse(match[1] + match[2])


def _require(found: Digest, expected: Digest, where: str) -> None:
    if found != expected:
        raise IntegrityError(
            f"Object {expected} in {where} has other content: its bytes hash to {found}.",
            hint="mica repo check --hash tells whether a revision needs it; remove it if none does.",
        )
