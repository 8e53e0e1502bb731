"""Objects on their way from a source into a store."""

import io
from pathlib import Path

import pytest
from tests.support.memoryfetcher import MemoryFetcher
from tests.support.memorystore import InjectedError, MemoryStore
from tests.support.noise import noise

from mica.digest import Suffix, digest_of
from mica.errors import IntegrityError, NotFoundError
from mica.replicate import objectcopier
from mica.replicate.objectcopier import NeededObject, ObjectCopier, verified_blocks


def stored(source: MemoryFetcher, content: bytes) -> NeededObject:
    """An object that is stored as it is."""
    digest = digest_of(content)
    source.objects[digest.object_path(Suffix.FILE)] = content
    return NeededObject(digest, Suffix.FILE, len(content), "The catalog of /")


def copy_all(source: MemoryFetcher, store: MemoryStore, work: Path, needed: list[NeededObject]) -> ObjectCopier:
    with ObjectCopier(source, store, work, threads=3) as copier:
        for one in needed:
            copier.ask(one)
        copier.drain()
    return copier


def test_objects_are_copied_byte_by_byte(tmp_path: Path) -> None:
    source, store = MemoryFetcher(), MemoryStore()
    needed = [stored(source, b"%d" % number) for number in range(100)]
    copier = copy_all(source, store, tmp_path, needed)
    assert store.contents() == source.objects
    assert copier.counts == (100, sum(len(data) for data in source.objects.values()), 0)


def test_what_is_there_is_not_fetched(tmp_path: Path) -> None:
    source, store = MemoryFetcher(), MemoryStore()
    needed = [stored(source, b"%d" % number) for number in range(50)]
    copy_all(source, store, tmp_path, needed[:30])
    source.asked.clear()
    copier = copy_all(source, store, tmp_path, needed)
    assert len(source.asked) == 20
    assert copier.counts.present == 30


def test_large_content_passes_through_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectcopier, "_IN_MEMORY_BYTES", 1000)
    source, store = MemoryFetcher(), MemoryStore()
    needed = stored(source, noise(5_000_000))
    files: list[int] = []
    put_file = store.put_file

    def watched(path: str, file: Path, **more: object) -> None:
        files.append(file.stat().st_size)
        put_file(path, file, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "put_file", watched)
    copy_all(source, store, tmp_path, [needed])
    assert files == [5_000_000]
    assert store.contents() == source.objects
    assert not list(tmp_path.iterdir())


def test_content_that_waits_for_its_store_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectcopier, "_BUDGET_BYTES", 250)
    source, store = MemoryFetcher(), MemoryStore()
    needed = [stored(source, bytes([number]) * 100) for number in range(60)]
    needed.append(stored(source, bytes(1000)))  # alone it gets what it needs
    copy_all(source, store, tmp_path, needed)
    assert store.contents() == source.objects


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data[:-1], "other content"),
        (lambda data: data[:-1] + b"x", "other content"),
        (lambda data: b"", "other content"),
        (lambda data: data + bytes(1 << 20), "more stored bytes"),
    ],
)
def test_wrong_bytes_are_not_stored(tmp_path: Path, change: object, sentence: str) -> None:
    source, store = MemoryFetcher(), MemoryStore()
    good = [stored(source, b"%d" % number) for number in range(40)]
    bad = stored(source, b"a content")
    source.objects[bad.path] = change(source.objects[bad.path])  # type: ignore[operator]
    with pytest.raises(IntegrityError, match=sentence):
        copy_all(source, store, tmp_path, [*good, bad])
    assert bad.path not in store.contents()


def test_an_endless_answer_ends(tmp_path: Path) -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1, /) -> bytes:
            self.given += size
            return bytes(size)

    endless = Endless()
    with pytest.raises(IntegrityError, match="more stored bytes"):
        list(verified_blocks(endless, NeededObject(digest_of(b""), Suffix.FILE, 5000, "")))
    assert endless.given < 4 << 20


def test_a_missing_object_names_who_needs_it(tmp_path: Path) -> None:
    source, store = MemoryFetcher(), MemoryStore()
    needed = stored(source, b"content")
    del source.objects[needed.path]

    def refuse(path: str) -> None:
        raise NotFoundError(f"{path} is not at host.")

    source.before = refuse
    with pytest.raises(NotFoundError, match=r"is not at host\. The catalog of / needs it\."):
        copy_all(source, store, tmp_path, [needed])


def test_a_store_that_fails_ends_it(tmp_path: Path) -> None:
    source, store = MemoryFetcher(), MemoryStore()
    needed = [stored(source, b"%d" % number) for number in range(400)]
    store.fail_at(50)
    with pytest.raises(InjectedError):
        copy_all(source, store, tmp_path, needed)


def test_what_was_forgotten_raises_nothing(tmp_path: Path) -> None:
    source, store = MemoryFetcher(), MemoryStore()
    needed = [stored(source, b"%d" % number) for number in range(12)]
    source.objects.clear()
    with ObjectCopier(source, store, tmp_path, threads=2) as copier:
        for one in needed:
            copier.ask(one)
        copier.forget()
        copier.drain()
    assert not store.contents()
