"""A reader of a storage that fetches what is missing or damaged in it from a replica, and puts it there.

The checker reads through it, so every object that the newest revision needs passes. Any thread.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from mica.digest import Digest, new_hasher, parse_object_path
from mica.errors import IntegrityError, MicaError, NotFoundError
from mica.fetch.download import Connection, Consumer, Fetcher, LocalFetcher, Result
from mica.files import mapped_os_errors
from mica.store.base import ObjectStore
from mica.streams import Readable

_BLOCK: Final = 1 << 20
_MOST_BYTES: Final = 16 << 30
"""Of one object. Larger ones are not made by any publisher, which cuts large files."""


class Mender:
    """A `Fetcher`. `mended` gets the path of an object and where it came from, `lost` a path and a sentence; each is
    called once for an object, from any thread."""

    def __init__(
        self,
        store: ObjectStore,
        replica: Fetcher | None,
        work: Path,
        *,
        dry_run: bool,
        mended: Callable[[str, str], object],
        lost: Callable[[str, str], object],
    ) -> None:
        self._store = store
        self._local = LocalFetcher(store)
        self._replica = replica
        self._work = work
        self._dry_run = dry_run
        self._mended = mended
        self._lost = lost
        self._told: set[str] = set()

    @property
    def where(self) -> str:
        return self._local.where

    @property
    def connection(self) -> Connection:
        return self._local.connection

    def fetch(self, path: str, consume: Consumer[Result], *, fresh: bool = False) -> Result:
        try:
            return self._local.fetch(path, consume, fresh=fresh)
        except (NotFoundError, IntegrityError) as error:
            found = parse_object_path(path)
            if found is None or (isinstance(error, IntegrityError) and self._is_sound(path, found[0])):
                raise
            return self._mend(path, found[0], consume, error)

    def _is_sound(self, path: str, digest: Digest) -> bool:
        """Whether the stored bytes are the right ones: then what refers to the object is wrong, not the object."""
        return self._local.fetch(path, partial(_hash, digest)) == digest

    def _mend(self, path: str, digest: Digest, consume: Consumer[Result], error: MicaError) -> Result:
        if self._replica is None:
            self._tell(self._lost, path, str(error))
            raise error
        with mapped_os_errors(f"write into {self._work}"):
            file = tempfile.NamedTemporaryFile(prefix="mend-", dir=self._work)  # noqa: SIM115 - closed below
        with file:
            place = Path(file.name)
            try:
                self._replica.fetch(path, partial(_download, digest, place))
            except (NotFoundError, IntegrityError) as failure:
                self._tell(self._lost, path, f"{error} {failure}")
                raise error from failure
            if not self._dry_run:
                if isinstance(error, IntegrityError):
                    self._store.delete(path)  # an object that is there is never replaced
                self._store.put_file(path, place)
            self._tell(self._mended, path, self._replica.where)
            with place.open("rb") as stream:
                return consume(stream)

    def _tell(self, tell: Callable[[str, str], object], path: str, text: str) -> None:
        """A catalog may be asked for twice: as a tag names it, and to be looked into."""
        if path not in self._told:
            self._told.add(path)
            tell(path, text)


def _hash(digest: Digest, stream: Readable) -> Digest:
    hasher = new_hasher(digest.algorithm)
    while block := stream.read(_BLOCK):
        hasher.update(block)
    return hasher.finish()


def _download(digest: Digest, place: Path, stream: Readable) -> None:
    hasher = new_hasher(digest.algorithm)
    left = _MOST_BYTES
    with mapped_os_errors(f"write {place}"), place.open("wb") as file:
        while block := stream.read(_BLOCK):
            left -= len(block)
            if left < 0:
                raise IntegrityError(f"Object {digest} has more than {_MOST_BYTES} bytes.")
            hasher.update(block)
            file.write(block)
    if (found := hasher.finish()) != digest:
        raise IntegrityError(f"Object {digest} has other content: its bytes hash to {found}.")
