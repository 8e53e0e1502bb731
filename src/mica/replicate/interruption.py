"""What a replication that did not end may have left wrong, and making it right.

A program that is killed leaves whole objects, but a machine that loses power may leave files that are empty or cut,
since objects are flushed only now and then. So a replication writes down when it began and in which run of the kernel
(`record.py`), and after a restart the next one reads all objects that were put since, and removes what is wrong.
"""

from collections.abc import Iterator
from typing import Final

from mica.digest import new_hasher, parse_object_path
from mica.errors import NotFoundError
from mica.store.base import ObjectStore

_BLOCK_BYTES: Final = 1 << 20
_CLOCKS_S: Final = 3600.0
"""By which clocks may have been put back."""


def remove_damaged(store: ObjectStore, since: float) -> int:
    """Remove the objects that were put since a time of the store's clock and have other content than their names say;
    returns how many they were."""
    wrong = [path for path in _changed_since(store, since - _CLOCKS_S) if not _is_right(store, path)]
    for path in wrong:
        store.delete(path)
    return len(wrong)


def _changed_since(store: ObjectStore, since: float) -> Iterator[str]:
    for entry in store.entries("data/"):
        if entry.changed_at >= since:
            yield entry.path


def _is_right(store: ObjectStore, path: str) -> bool:
    """True also for what is no object, and for what is gone."""
    found = parse_object_path(path)
    if found is None:
        return True
    digest, _ = found
    hasher = new_hasher(digest.algorithm)
    try:
        with store.open(path) as stream:
            while block := stream.read(_BLOCK_BYTES):
                hasher.update(block)
    except NotFoundError:
        return True
    return hasher.finish() == digest
