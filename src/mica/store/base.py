"""The interface of every place that holds a repository's bytes.

Paths are those of the HTTP-visible layout, relative and made by us: `data/ab/cdef…C`, `.cvmfspublished`. Objects (below
`data/`) are immutable: putting one that exists changes nothing. Pointers (all other names) are replaced atomically: a
reader gets the old bytes or the new ones. All methods may be called from any thread.

Errors: NotFoundError for a path that is not there (nothing else), TemporaryError for what may go away by itself,
UserError with a sentence for the rest (no space, no permission).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from mica.errors import IntegrityError


class Readable(Protocol):
    """A stream of bytes; an empty result is its end."""

    def read(self, size: int, /) -> bytes: ...


class ObjectSource(Protocol):
    """A place to read from."""

    @property
    def where(self) -> str:
        """Host or directory, for messages."""
        ...

    def open(self, path: str, *, fresh: bool = False) -> AbstractContextManager[Readable]:
        """Stream the bytes under a path. `fresh` asks caches on the way to look again."""
        ...


class ObjectStore(ObjectSource, Protocol):
    """A place to publish into."""

    def put(self, path: str, data: bytes) -> bool:
        """Store an object; True if it was not there before. Durable only after `sync`."""
        ...

    def has(self, path: str) -> bool: ...

    def replace(self, path: str, data: bytes) -> None:
        """Replace a pointer, durably."""
        ...

    def delete(self, path: str) -> None:
        """Remove a path; one that is not there is no error."""
        ...

    def paths(self, prefix: str) -> Iterator[str]:
        """All paths that begin with a prefix ending in a slash, in no particular order."""
        ...

    def sync(self) -> None:
        """Return when everything that was put survives a power failure."""
        ...


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
