"""The interface of every place that holds a repository's bytes.

Paths are relative and those of the HTTP-visible layout; mica makes them: `data/ab/cdef…C`, `.cvmfspublished`. Objects
(below `data/`) are immutable: putting one that exists changes nothing but perhaps its time. Pointers (all other names)
are replaced atomically: a reader gets the old bytes or the new ones. All methods may be called from any thread.

A store is opened with `refresh_after_s`: `put` gives an object that was there already, and has not changed for so long,
the present time. So an object that a publication needs is never older than that, and whoever removes old objects can
leave alone what is younger (docs/design/publishing.md). Times are those of the store's own clock, seconds since 1970.

Errors: NotFoundError only for a path that is not there, LostRaceError for a pointer that somebody else replaced,
TemporaryError for failures that may go away by themselves, UserError with a sentence for all others (no space, no
permission).
"""

import enum
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple, Protocol, Self

from mica.errors import IntegrityError, LostRaceError, NotFoundError
from mica.streams import Readable


class Anything(enum.Enum):
    """The type of ANYTHING."""

    ANYTHING = enum.auto()


REFRESH_AFTER_S: Final = 86400.0

ANYTHING: Final = Anything.ANYTHING
"""Of a pointer that is replaced whatever it holds."""


class StoredFile(NamedTuple):
    """What a listing tells of a path. `changed_at` is when it was put, or last refreshed."""

    path: str
    size_bytes: int
    changed_at: float


CountNew = Callable[[int], object]


class ObjectSource(Protocol):
    """A place to read from."""

    @property
    def where(self) -> str:
        """Host or directory, for messages."""
        ...

    def open(self, path: str, *, fresh: bool = False) -> AbstractContextManager[Readable]:
        """Stream the bytes under a path. With `fresh` caches on the way ask the server again."""
        ...


class ObjectStore(ObjectSource, Protocol):
    """A place to publish into. Use it as a context manager, or close it."""

    def create(self) -> None:
        """Make the place ready for its first object; what is there stays."""
        ...

    def check_there(self) -> None:
        """Raises UserError if the place itself is missing."""
        ...

    def clear_unfinished(self) -> None:
        """Remove what a killed publisher left and no reader sees. The caller holds the repository's lock."""
        ...

    def put(self, path: str, data: bytes, *, count_new: CountNew | None = None) -> None:
        """Store an object. This store reads it at once; it is there for others, and lasts, only after `sync`, which
        also raises what went wrong after `put` returned. `count_new` gets the size of an object that was not there
        before, by then at the latest and from any thread."""
        ...

    def put_file(self, path: str, file: Path, *, count_new: CountNew | None = None) -> None:
        """The same for the content of a local file of any size, which is not read into memory. The file may be removed
        afterwards, but not changed."""
        ...

    def has(self, path: str) -> bool: ...

    def refresh(self, path: str) -> bool:
        """Give an object the present time, as if it had just been put; False if it is not there."""
        ...

    def replace(self, path: str, data: bytes, *, expected: bytes | Anything | None = ANYTHING) -> None:
        """Replace a pointer, durably. With `expected`, what was read from it or None if it was not there, only if it is
        still the same; else raises LostRaceError and changes nothing."""
        ...

    def delete(self, path: str) -> None:
        """Remove a path; a missing one is no error."""
        ...

    def delete_many(self, paths: Iterable[str], *, unless_changed_since: float | None = None) -> int:
        """Remove objects, but none that was put or refreshed since a time of the store's clock; returns how many were
        removed. The time of each is looked at right before it is removed."""
        ...

    def entries(self, prefix: str) -> Iterator[StoredFile]:
        """All that is below a prefix ending in a slash, or everything for an empty prefix, in no particular order.
        What is put or deleted meanwhile may or may not be among it."""
        ...

    def clock(self) -> float:
        """The present time of what stamps the objects."""
        ...

    def sync(self) -> None:
        """Return when all objects that were put are there and would survive a power failure."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def read_pointer(source: ObjectSource, path: str, limit: int) -> bytes | None:
    """The newest content of a pointer, as `replace` expects it; None if there is none."""
    try:
        return read_limited(source, path, limit, fresh=True)
    except NotFoundError:
        return None


def lost_race(path: str, where: str) -> LostRaceError:
    return LostRaceError(
        f"{path} in {where} was replaced by another process after it was read.",
        hint="Nothing of this one is published. Try again: it then builds on the other's revision.",
    )


def read_limited(source: ObjectSource, path: str, limit: int, *, fresh: bool = False) -> bytes:
    """The whole content under a path. Raises IntegrityError when there is more than `limit` bytes."""
    with source.open(path, fresh=fresh) as stream:
        parts = []
        left = limit + 1
        while left and (block := stream.read(min(left, 1 << 20))):
            parts.append(block)
            left -= len(block)
    if not left:
        raise IntegrityError(f"{path} from {source.where} has more than the {limit} bytes it may have.")
    return b"".join(parts)
