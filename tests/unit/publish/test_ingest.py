"""Archives into a repository: merged into existing catalogs, or as a catalog of their own; the checker judges both."""

import io
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.support.memorystore import InjectedError, MemoryStore
from tests.support.noise import noise
from tests.support.repositories import SMALL_CHUNKS, Repository, Seen, findings, ingest, make_repository, read_back
from tests.support.tars import END, header, member, pax

from mica.digest import Algorithm
from mica.errors import UserError
from mica.publish import ingest as ingest_module
from mica.publish.catalogtree import SealedCatalog, directory_entry
from mica.publish.ingest import Archive, build_layer_catalog, merge_archive, read_archive
from mica.publish.layertree import LAYER, PLAIN
from mica.publish.objectwriter import ObjectWriter
from mica.publish.rules import ObjectRules
from mica.publish.storedfiles import store_marker
from mica.repo.entry import MARKER
from mica.tarstream import DEFAULT_LIMITS, Kind

RULES = ObjectRules(chunking=SMALL_CHUNKS)
LARGE = noise(60_000)


def directory(name: bytes, mode: bytes = b"0000755\0") -> bytes:
    return header(name, type_flag=b"5", mode=mode)


def link(name: bytes, target: bytes) -> bytes:
    return header(name, type_flag=b"2", link=target)


def hard_link(name: bytes, target: bytes) -> bytes:
    return header(name, type_flag=b"1", link=target)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


def look(repository: Repository, work: Path) -> Mapping[bytes, Seen]:
    """All paths, after the checker found the repository sound."""
    assert findings(repository, work) == []
    return read_back(repository, work / "cache")


# Reading


def test_progress_gets_the_bytes_of_content() -> None:
    told: list[int] = []
    store = MemoryStore()
    archive = directory(b"d") + member(b"d/a", b"12345") + link(b"l", b"d") + member(b"b", LARGE) + member(b"c") + END
    with ObjectWriter(store, RULES, threads=1) as objects:
        read = read_archive(
            io.BytesIO(archive), objects, mode=PLAIN, limits=DEFAULT_LIMITS, require_end=True, progress=told.append
        )
    assert told == [5, len(LARGE), 0]
    assert (read.report.bytes, read.report.counts[Kind.REGULAR.value]) == (5 + len(LARGE), 3)
    assert all(node.content is not None for _, node in read.tree.walk() if stat.S_ISREG(node.st_mode))


@pytest.mark.parametrize(
    ("archive", "sentence"),
    [
        (member(b"a", b"x"), "is truncated"),
        (member(b"a", b"x")[:-100], "is truncated"),
        (member(b"a", b"x") + b"x" * 512 + END, "does not match its checksum"),
        (header(b"a", checksum=b"000000\0 ") + END, "does not match its checksum"),
        (member(b"../a", b"x") + END, r"'\.\./a'"),
        (hard_link(b"a", b"missing") + END, "'missing'"),
        (pax([(b"size", b"-1")]) + member(b"a", b"x") + END, "size"),
    ],
    ids=range(7),
)
def test_a_damaged_or_hostile_archive_publishes_nothing(
    repository: Repository, tmp_path: Path, archive: bytes, sentence: str
) -> None:
    head = ingest(repository, member(b"before", b"x") + END)
    with pytest.raises(UserError, match=sentence):
        ingest(repository, archive)
    with repository.manager() as manager:
        assert manager.head() == head
    assert set(look(repository, tmp_path)) == {b"", b"/before"}


# Merging


def test_directories_keep_their_other_entries_and_all_else_is_replaced(repository: Repository, tmp_path: Path) -> None:
    ingest(
        repository,
        directory(b"d")
        + member(b"d/kept", b"kept") + member(b"d/file", b"old") + member(b"file-to-directory", LARGE)
        + directory(b"directory-to-file") + member(b"directory-to-file/below", b"gone")
        + link(b"link-to-directory", b"d") + directory(b"directory-to-link") + END,
    )  # fmt: skip
    ingest(
        repository,
        directory(b"d", b"0000700\0")
        + member(b"d/file", b"new content") + directory(b"file-to-directory") + member(b"file-to-directory/x", b"x")
        + member(b"directory-to-file", b"file") + directory(b"link-to-directory")
        + link(b"directory-to-link", b"d") + END,
    )  # fmt: skip
    seen = look(repository, tmp_path)
    assert set(seen) == {
        b"", b"/d", b"/d/kept", b"/d/file", b"/file-to-directory", b"/file-to-directory/x", b"/directory-to-file",
        b"/link-to-directory", b"/directory-to-link",
    }  # fmt: skip
    assert stat.S_IMODE(seen[b"/d"].mode) == 0o700
    assert seen[b"/d/file"].size == len(b"new content")
    assert stat.S_ISDIR(seen[b"/file-to-directory"].mode)
    assert stat.S_ISREG(seen[b"/directory-to-file"].mode)
    assert stat.S_ISDIR(seen[b"/link-to-directory"].mode)
    assert stat.S_ISLNK(seen[b"/directory-to-link"].mode)


def test_an_archive_below_a_new_path_gives_it_its_root_s_attributes(repository: Repository, tmp_path: Path) -> None:
    archive = directory(b"./", b"0000700\0") + member(b"file", b"x") + END
    ingest(repository, archive, b"/a/b")
    seen = look(repository, tmp_path)
    assert stat.S_IMODE(seen[b"/a/b"].mode) == 0o700
    assert stat.S_IMODE(seen[b"/a"].mode) == 0o755
    ingest(repository, directory(b"./", b"0000711\0") + END, b"/a/b")
    assert stat.S_IMODE(read_back(repository, tmp_path / "later")[b"/a/b"].mode) == 0o700, "it was there before"


def test_a_path_with_a_catalog_of_its_own(repository: Repository, tmp_path: Path) -> None:
    for turn in range(2):
        ingest(repository, member(b"file%d" % turn, b"x") + END, b"/a/b", nested=True)
    assert set(look(repository, tmp_path)) == {b"", b"/a", b"/a/b", b"/a/b/file0", b"/a/b/file1", b"/a/b/.cvmfscatalog"}
    with repository.manager() as manager, manager.snapshot() as catalogs:
        assert [nested.path for nested in catalogs.root_catalog.nested()] == [b"/a/b"]


def test_each_marker_makes_a_catalog_and_merging_over_it_keeps_it(repository: Repository, tmp_path: Path) -> None:
    archive = member(b"d/.cvmfscatalog") + member(b"d/e/.cvmfscatalog") + member(b"d/e/file", b"1") + END
    ingest(repository, archive)
    ingest(repository, member(b"d/e/file", b"22") + directory(b"d/e", b"0000700\0") + END)
    seen = look(repository, tmp_path)
    assert seen[b"/d/e/file"].size == 2
    assert stat.S_IMODE(seen[b"/d/e"].mode) == 0o700
    with repository.manager() as manager, manager.snapshot() as catalogs:
        assert [nested.path for nested in catalogs.root_catalog.nested()] == [b"/d"]
    ingest(repository, member(b"d", b"a file") + END)
    with repository.manager() as manager, manager.snapshot() as catalogs:
        assert catalogs.root_catalog.nested() == []
    assert findings(repository, tmp_path) == []


def test_hard_links_of_two_archives_do_not_become_one_file(repository: Repository, tmp_path: Path) -> None:
    for name, content in ((b"one", b"1"), (b"two", b"22"), (b"one", b"333")):
        ingest(repository, member(name, content) + hard_link(name + b"-again", name) + END, b"/d")
    seen = look(repository, tmp_path)
    assert {path: (one.size, one.links) for path, one in seen.items() if path.startswith(b"/d/")} == {
        b"/d/one": (3, 2), b"/d/one-again": (3, 2), b"/d/two": (2, 2), b"/d/two-again": (2, 2),
    }  # fmt: skip


def test_a_large_file_replaces_another_with_its_chunks(repository: Repository, tmp_path: Path) -> None:
    for content in (LARGE, noise(80_000), b"small", LARGE):
        ingest(repository, member(b"file", content) + END)
        assert findings(repository, tmp_path) == []
    assert look(repository, tmp_path)[b"/file"].size == len(LARGE)


def test_more_rows_than_are_written_at_a_time(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "_ROWS_AT_ONCE", 7)
    names = [b"d%d/f%d" % (number % 3, number) for number in range(60)]
    ingest(repository, b"".join(member(name, b"x") for name in names) + END)
    assert {b"/" + name for name in names} <= set(look(repository, tmp_path))


@pytest.mark.parametrize(
    ("archive", "base", "sentence"),
    [
        (member(b"x") + END, b"/.cvmfs", "'/.cvmfs' cannot be published: the name is reserved"),
        (member(b"x") + END, b"/.cvmfs/snapshots", "'/.cvmfs/snapshots' cannot be published: the name is reserved"),
        (member(b".cvmfs") + END, b"", "'/.cvmfs' cannot be published: the name is reserved"),
        (directory(b".cvmfs") + END, b"", "'/.cvmfs' cannot be published: the name is reserved"),
        (member(b".cvmfs/snapshots/x") + END, b"", "'/.cvmfs' cannot be published: the name is reserved"),
        (directory(b"d/.cvmfscatalog") + END, b"", "'/d/.cvmfscatalog' is not a regular file, which a catalog marker"),
        (link(b"d/.cvmfscatalog", b"x") + END, b"", "'/d/.cvmfscatalog' is not a regular file, which a catalog marker"),
        (member(b"x") + END, b"/old", "'/old' in the repository is not a directory"),
        (member(b"x") + END, b"/old/below", "'/old' in the repository is not a directory"),
        (member(b"x") + END, b"/link", "'/link' in the repository is not a directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_published_is_refused_and_nothing_is(
    repository: Repository, tmp_path: Path, archive: bytes, base: bytes, sentence: str
) -> None:
    head = ingest(repository, member(b"old", b"x") + link(b"link", b"d") + directory(b"d") + END)
    with pytest.raises(UserError, match=sentence):
        ingest(repository, archive, base)
    with repository.manager() as manager:
        assert manager.head() == head
    assert set(look(repository, tmp_path)) == {b"", b"/old", b"/link", b"/d"}


@pytest.mark.parametrize("name", [b".cvmfsdirtab", b".cvmfs-x", b"d/.cvmfs"])
def test_names_like_the_reserved_one_are_published(repository: Repository, tmp_path: Path, name: bytes) -> None:
    ingest(repository, member(name, b"x") + END)
    assert b"/" + name in look(repository, tmp_path)


# A catalog of its own


MOUNTPOINT = b"/layers/one"


def read_layer(objects: ObjectWriter, archive: bytes) -> Archive:
    return read_archive(io.BytesIO(archive), objects, mode=LAYER, limits=DEFAULT_LIMITS, require_end=False)


def build(store: MemoryStore, work: Path, archive: bytes, rules: ObjectRules = RULES) -> SealedCatalog:
    with ObjectWriter(store, rules, threads=1) as objects:
        read = read_layer(objects, archive)
        marker = store_marker(objects)
        return build_layer_catalog(read, MOUNTPOINT, b"layerfs", [marker], store=store, work=work)


LAYER_TAR = (
    directory(b"d") + member(b"d/small", b"x", mtime=b"00000000144\0") + member(b"large", LARGE)
    + hard_link(b"other", b"large") + link(b"link", b"d") + END
)  # fmt: skip


def attached(repository: Repository, archive: bytes) -> None:
    """Publish an archive as a layer."""
    with repository.manager() as manager, manager.transaction() as transaction:
        read = read_layer(transaction.objects, archive)
        marker = transaction.marker()
        sealed = build_layer_catalog(read, MOUNTPOINT, b"layerfs", [marker], store=manager.store, work=transaction.work)
        transaction.catalogs.make_directories(b"/layers", directory_entry(b""))
        transaction.catalogs.attach(MOUNTPOINT, sealed)


def test_a_layer_is_whole_in_a_catalog_of_its_own(repository: Repository, tmp_path: Path) -> None:
    attached(repository, LAYER_TAR)
    seen = look(repository, tmp_path)
    below = {path.removeprefix(MOUNTPOINT) for path in seen if path.startswith(MOUNTPOINT)}
    assert below == {
        b"", b"/.cvmfscatalog", b"/layerfs", b"/layerfs/d", b"/layerfs/d/small", b"/layerfs/large", b"/layerfs/other",
        b"/layerfs/link",
    }  # fmt: skip
    assert seen[MOUNTPOINT + b"/layerfs/large"].links == 2
    with repository.manager() as manager, manager.snapshot() as catalogs:
        assert [nested.path for nested in catalogs.root_catalog.nested()] == [MOUNTPOINT]


@pytest.mark.parametrize(
    "marker",
    [member(b"d/e/.cvmfscatalog", b"of the image"), directory(b"d/e/.cvmfscatalog"), link(b"d/e/.cvmfscatalog", b"x")],
    ids=["file", "directory", "link"],
)
def test_a_marker_s_name_in_a_layer_gets_a_catalog_and_stays(
    repository: Repository, tmp_path: Path, marker: bytes
) -> None:
    attached(repository, member(b"d/.cvmfscatalog") + marker + member(b".cvmfscatalog", b"top") + LAYER_TAR)
    tree = MOUNTPOINT + b"/layerfs"
    seen = look(repository, tmp_path)
    assert {tree + b"/d/e/.cvmfscatalog", tree + b"/d/small", tree + b"/large", tree + b"/.cvmfscatalog"} <= set(seen)
    assert seen[tree + b"/.cvmfscatalog"].size == 3


@pytest.mark.parametrize(("most", "is_refused"), [(2, True), (3, False)])
def test_too_many_markers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, *, is_refused: bool
) -> None:
    monkeypatch.setattr(ingest_module, "MARKERS_MAX", most)
    archive = b"".join(member(b"d%d/.cvmfscatalog" % number) for number in range(3))
    if not is_refused:
        build(MemoryStore(), tmp_path, archive)
        return
    with pytest.raises(UserError, match=r"has 3 directories with a \.cvmfscatalog, more than 2"):
        build(MemoryStore(), tmp_path, archive)


def test_the_same_archive_gives_the_same_objects_whatever_was_before(tmp_path: Path) -> None:
    once, again = MemoryStore(), MemoryStore()
    first = build(once, tmp_path, LAYER_TAR)
    build(again, tmp_path, member(b"other", noise(50_000)))
    assert build(again, tmp_path, LAYER_TAR) == first
    assert once.contents().items() <= again.contents().items()
    assert list(tmp_path.iterdir()) == []


def test_a_catalog_has_the_algorithm_of_the_files(tmp_path: Path) -> None:
    for algorithm in Algorithm:
        sealed = build(MemoryStore(), tmp_path, LAYER_TAR, ObjectRules(algorithm, chunking=SMALL_CHUNKS))
        assert sealed.nested.digest.algorithm is algorithm


def test_counters_are_those_of_the_layer(tmp_path: Path) -> None:
    sealed = build(MemoryStore(), tmp_path, member(b"d/.cvmfscatalog") + member(b"d/a", b"123") + member(b"b", b"4"))
    regular, directories, nested, size = (sealed.counters.total[number] for number in (0, 3, 4, 7))
    assert regular == 4, "the marker of the layer, that of d, and two files"
    assert directories == 4, "the layer, its tree, and d in both catalogs"
    assert (nested, size) == (1, 4)


@pytest.mark.parametrize("number", [1, 2])
def test_a_store_that_fails_leaves_no_file(tmp_path: Path, number: int) -> None:
    """The catalog of a marked directory, and that of the layer."""
    archive = member(b"d/.cvmfscatalog") + END
    store = MemoryStore()
    with ObjectWriter(store, RULES, threads=1) as objects:
        read = read_layer(objects, archive)
        marker = store_marker(objects)
        store.fail_at(number)
        with pytest.raises(InjectedError):
            build_layer_catalog(read, MOUNTPOINT, b"layerfs", [marker], store=store, work=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_merging_and_reading_share_no_state(repository: Repository, tmp_path: Path) -> None:
    """One archive at two paths of one transaction."""
    with repository.manager() as manager, manager.transaction() as transaction:
        archive = read_archive(
            io.BytesIO(LAYER_TAR), transaction.objects, mode=PLAIN, limits=DEFAULT_LIMITS, require_end=True
        )
        for base in (b"/one", b"/two"):
            merge_archive(archive, transaction.catalogs, base, nested=False, marker=transaction.marker())
    seen = look(repository, tmp_path)
    assert seen[b"/one/large"].content == seen[b"/two/large"].content
    assert MARKER not in {path.rpartition(b"/")[2] for path in seen}
