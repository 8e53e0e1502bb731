"""What a loss of power may leave, and who finds it."""

from tests.support.memorystore import MemoryStore

from mica.digest import Suffix, digest_of
from mica.replicate.interruption import remove_damaged


def test_damaged_objects_of_an_interrupted_run_are_removed() -> None:
    now = 1_000_000.0
    store = MemoryStore(now=lambda: now)
    right, empty, cut, old = (
        digest_of(text).object_path(Suffix.CHUNK) for text in (b"right", b"empty", b"cut", b"old")
    )
    for path, data in ((right, b"right"), (empty, b""), (cut, b"cu"), (old, b"damaged long ago"), ("data/aa/x", b"?")):
        store.put(path, data)
    store.put(".cvmfspublished", b"no object")
    store.age(old, 7200)
    assert remove_damaged(store, now) == 2
    assert set(store.contents()) == {right, old, "data/aa/x", ".cvmfspublished"}
