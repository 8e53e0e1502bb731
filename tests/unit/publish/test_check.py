"""Checking a whole repository: each file of a sound one is removed, damaged or exchanged once, and named."""

import datetime
import json
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.catalogs import run_sql, some_digest
from tests.support.noise import noise
from tests.support.repositories import FQRN, Repository, findings, ingest, make_repository, shared_key_files
from tests.support.stockcatalogs import catalog_bytes
from tests.support.tars import END, member

from mica.digest import Algorithm, Digest, Suffix
from mica.errors import TemporaryError
from mica.fetch.download import Consumer, LocalFetcher, Result
from mica.publish.check import REFLOG, CheckProgress, Finding, check_repository
from mica.repo.catalog import Catalog
from mica.repo.history import TRUNK, History, Reflog, Tag, format_history, format_reflog, parse_history, parse_reflog
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import Manifest, parse_manifest, sign_manifest
from mica.repo.objects import Compression, pack, pack_stock
from mica.repo.signing import new_certificate, new_key, parse_private_key
from mica.repo.whitelist import NAME as WHITELIST
from mica.repo.whitelist import parse_whitelist, sign_whitelist
from mica.store.local import LocalStore

SMALL, LARGE = b"small content", 40_000


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository with a nested catalog in a nested catalog, a small file in each, and a large one."""
    repository = make_repository(tmp_path_factory.mktemp("published"))
    ingest(repository, member(b"file", SMALL) + END, nested=True)
    ingest(repository, member(b"large", noise(LARGE)) + member(b"file", b"a") + END, b"/outer", nested=True)
    ingest(repository, member(b"file", b"b") + END, b"/outer/inner", nested=True)
    return repository


@pytest.fixture
def repository(published: Repository) -> Iterator[Repository]:
    """The same for all tests, which is faster than a copy; each leaves it as it was."""
    before = contents(published)
    yield published
    after = contents(published)
    for path in after.keys() - before.keys():
        path.unlink()
    for path, content in before.items():
        if after.get(path) != content:
            path.write_bytes(content)


def contents(repository: Repository) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in repository.storage.rglob("*") if path.is_file()}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def found(repository: Repository, work: Path, *, in_full: bool = True) -> list[tuple[str, str]]:
    """Each finding without its severity, which must be an error's."""
    result = findings(repository, work, in_full=in_full)
    assert all(finding.severity == "error" for finding in result), result
    return [(finding.where, finding.sentence) for finding in result]


def warned(repository: Repository, work: Path) -> list[tuple[str, str]]:
    result = findings(repository, work)
    assert all(finding.severity == "warning" for finding in result), result
    return [(finding.where, finding.sentence) for finding in result]


def manifest_of(repository: Repository) -> Manifest:
    return parse_manifest((repository.storage / MANIFEST).read_bytes(), "manifest")[0]


def publish(repository: Repository, **changes: object) -> None:
    """Sign the manifest again with other values."""
    manifest = replace(manifest_of(repository), **changes)  # type: ignore[arg-type]
    key = parse_private_key(shared_key_files()["key"], "key")
    (repository.storage / MANIFEST).write_bytes(sign_manifest(manifest, key))


def put(repository: Repository, content: bytes, suffix: Suffix) -> Digest:
    packed = pack_stock(content, Algorithm.SHA1)
    (repository.storage / packed.digest.object_path(suffix)).write_bytes(packed.stored)
    return packed.digest


def listed(repository: Repository, digest: Digest, kind: int) -> None:
    """Put an object on the reflog."""
    path = repository.storage / REFLOG
    reflog = parse_reflog(path.read_bytes(), "reflog")
    reflog.refs[digest] = (kind, 0)
    path.write_bytes(format_reflog(reflog))


def catalog_of(repository: Repository, mountpoint: bytes) -> Digest:
    with LocalStore(repository.storage) as store:
        digest, path = manifest_of(repository).root_catalog, repository.state / "looked-at"
        while True:
            path.write_bytes(catalog_bytes(store, digest))
            with Catalog.open(path, "catalog") as catalog:
                if catalog.root_prefix == mountpoint:
                    return digest
                digest = next(one.digest for one in catalog.nested() if mountpoint.startswith(one.path))


def change_root(repository: Repository, change: Callable[[Path], object]) -> None:
    """Publish another root catalog."""
    path = repository.state / "changed.sqlite"
    with LocalStore(repository.storage) as store:
        path.write_bytes(catalog_bytes(store, manifest_of(repository).root_catalog))
    change(path)
    digest = put(repository, path.read_bytes(), Suffix.CATALOG)
    history = parse_history(stored(repository, manifest_of(repository).history, Suffix.HISTORY), "history")
    history.tags[TRUNK] = history.tags[TRUNK]._replace(root_catalog=digest, size=path.stat().st_size)
    listed(repository, digest, 0)
    publish(repository, root_catalog=digest, root_catalog_size=path.stat().st_size)
    publish_history(repository, history)


def publish_history(repository: Repository, history: History) -> str:
    digest = put(repository, format_history(history), Suffix.HISTORY)
    listed(repository, digest, 2)
    publish(repository, history=digest)
    return digest.object_path(Suffix.HISTORY)


def stored(repository: Repository, digest: Digest | None, suffix: Suffix) -> bytes:
    assert digest is not None
    return zlib.decompress((repository.storage / digest.object_path(suffix)).read_bytes())


def path_of(digest: Digest | None, suffix: Suffix) -> str:
    assert digest is not None
    return digest.object_path(suffix)


def test_a_sound_repository_has_no_finding(repository: Repository, work: Path) -> None:
    assert findings(repository, work) == []
    assert findings(repository, work, in_full=False) == []
    assert list(work.iterdir()) == []


def test_progress_tells_all_that_was_looked_at(repository: Repository, work: Path) -> None:
    told: list[CheckProgress] = []
    with LocalStore(repository.storage) as store:
        key = [repository.master_key]
        assert not list(check_repository(LocalFetcher(store), FQRN, key, work=work, progress=told.append))
    objects = {path for path in (repository.storage / "data").glob("??/*") if path.is_file()}
    kinds = {Suffix.CATALOG, Suffix.CERTIFICATE, Suffix.HISTORY, Suffix.METAINFO}
    data = {path for path in objects if path.name[-1] not in {str(kind) for kind in kinds}}
    tagged = 2  # the newest revision and the one before
    assert told[-1] == CheckProgress(catalogs=3, entries=11, objects=len(data) + tagged, of_entries=11)
    assert told == sorted(told)


# Trust


def test_without_a_manifest_there_is_nothing_to_check(repository: Repository, work: Path) -> None:
    (repository.storage / MANIFEST).unlink()
    assert found(repository, work) == [(MANIFEST, f"{MANIFEST} is not in {repository.storage}.")]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: b"", "The manifest of small.example.org"),
        (lambda data: data.replace(b"\nS4\n", b"\nS5\n"), "The manifest of small.example.org"),
        (lambda data: data.replace(b"\nN", b"\nQ"), "The manifest of small.example.org"),
        (lambda data: data + bytes(5000), "more than a manifest can have"),
        (lambda data: data + bytes(70_000), "more than the 65536 bytes"),
    ],
    ids=range(5),
)
def test_a_manifest_that_cannot_be_read_ends_the_check(
    repository: Repository, work: Path, damage: Callable[[bytes], bytes], sentence: str
) -> None:
    path = repository.storage / MANIFEST
    path.write_bytes(damage(path.read_bytes()))
    ((where, text),) = found(repository, work)
    assert where == MANIFEST
    assert sentence in text


def test_the_manifest_of_another_repository_ends_the_check(repository: Repository, work: Path) -> None:
    publish(repository, fqrn="other.example.org")
    ((where, sentence),) = found(repository, work)
    assert where == MANIFEST
    assert "belongs to another repository, other.example.org" in sentence


def test_a_manifest_signed_by_another_key_is_named_and_the_rest_is_checked(repository: Repository, work: Path) -> None:
    manifest = manifest_of(repository)
    (repository.storage / MANIFEST).write_bytes(sign_manifest(manifest, new_key()))
    small = pack(SMALL, Algorithm.SHA1, Compression.ZLIB).digest
    (repository.storage / small.object_path(Suffix.FILE)).unlink()
    wrong, missing = found(repository, work)
    assert wrong[0] == path_of(manifest.certificate, Suffix.CERTIFICATE)
    assert "has a wrong signature" in wrong[1]
    assert missing[0] == "/file"


def test_a_missing_or_damaged_certificate_is_named(repository: Repository, work: Path) -> None:
    where = path_of(manifest_of(repository).certificate, Suffix.CERTIFICATE)
    path = repository.storage / where
    path.write_bytes(b"damaged")
    ((place, sentence),) = found(repository, work)
    assert place == where
    assert "is not what the manifest names" in sentence
    path.unlink()
    assert found(repository, work) == [(where, f"{where} is not in {repository.storage}.")]


def test_a_certificate_that_is_not_on_the_whitelist_is_named(repository: Repository, work: Path) -> None:
    key = new_key()
    certificate = put(repository, new_certificate(key, FQRN, datetime.datetime.now(datetime.UTC)), Suffix.CERTIFICATE)
    listed(repository, certificate, 1)
    manifest = replace(manifest_of(repository), certificate=certificate)
    (repository.storage / MANIFEST).write_bytes(sign_manifest(manifest, key))
    ((where, sentence),) = found(repository, work)
    assert where == WHITELIST
    assert "is not on its whitelist" in sentence


@pytest.mark.parametrize(("hours", "is_expired"), [(0, True), (-1, False)])
def test_an_expired_whitelist_is_named(repository: Repository, work: Path, hours: int, *, is_expired: bool) -> None:
    whitelist, _ = parse_whitelist((repository.storage / WHITELIST).read_bytes(), "whitelist")
    with LocalStore(repository.storage) as store:
        key = [repository.master_key]
        now = whitelist.expires + datetime.timedelta(hours=hours)
        result = list(check_repository(LocalFetcher(store), FQRN, key, work=work, now=lambda: now))
    assert [(one.where, "expired at" in one.sentence) for one in result] == ([(WHITELIST, True)] if is_expired else [])


@pytest.mark.parametrize("kind", ["missing", "damaged", "another key"])
def test_a_wrong_whitelist_is_named(repository: Repository, work: Path, kind: str) -> None:
    path = repository.storage / WHITELIST
    whitelist, _ = parse_whitelist(path.read_bytes(), "whitelist")
    path.unlink()
    if kind == "damaged":
        path.write_bytes(b"damaged")
    if kind == "another key":
        path.write_bytes(sign_whitelist(whitelist, new_key(), Algorithm.SHA1))
    ((where, _),) = found(repository, work)
    assert where == WHITELIST


# Meta-info, history, reflog


@pytest.mark.parametrize("content", [b"not JSON", b"\xff", b"[" * 60_000, b'{"a": 1', b""], ids=range(5))
def test_meta_info_that_is_no_json_is_a_warning(repository: Repository, work: Path, content: bytes) -> None:
    digest = put(repository, content, Suffix.METAINFO)
    listed(repository, digest, 3)
    publish(repository, metainfo=digest)
    assert warned(repository, work) == [(path_of(digest, Suffix.METAINFO), "The meta-info is not JSON.")]


@pytest.mark.parametrize("document", [[], 1, None, "text"], ids=repr)
def test_meta_info_that_is_no_object_is_a_warning(repository: Repository, work: Path, document: object) -> None:
    digest = put(repository, json.dumps(document).encode(), Suffix.METAINFO)
    listed(repository, digest, 3)
    publish(repository, metainfo=digest)
    assert warned(repository, work) == [(path_of(digest, Suffix.METAINFO), "The meta-info is no JSON object.")]


@pytest.mark.parametrize(("field", "suffix"), [("metainfo", Suffix.METAINFO), ("history", Suffix.HISTORY)])
def test_a_missing_or_damaged_document_is_named(repository: Repository, work: Path, field: str, suffix: Suffix) -> None:
    where = path_of(getattr(manifest_of(repository), field), suffix)
    path = repository.storage / where
    path.write_bytes(b"damaged")
    ((place, sentence),) = found(repository, work)
    assert place == where
    assert "has other content" in sentence
    path.unlink()
    assert found(repository, work) == [(where, f"{where} is not in {repository.storage}.")]
    publish(repository, **{field: None})
    assert findings(repository, work) == []


def test_absurdly_large_meta_info_is_named(repository: Repository, work: Path) -> None:
    for content in (b'"%b"' % bytes(70_000), noise(70_000)):
        digest = put(repository, content, Suffix.METAINFO)
        listed(repository, digest, 3)
        publish(repository, metainfo=digest)
        ((where, sentence),) = found(repository, work)
        assert where == path_of(digest, Suffix.METAINFO)
        assert "more than the 65536 bytes" in sentence


def history_of(repository: Repository) -> History:
    return parse_history(stored(repository, manifest_of(repository).history, Suffix.HISTORY), "history")


def test_the_history_of_another_repository_is_named(repository: Repository, work: Path) -> None:
    where = publish_history(repository, replace(history_of(repository), fqrn="other.example.org"))
    assert found(repository, work) == [(where, "The history belongs to another repository, other.example.org.")]


def test_a_history_that_is_no_database_is_named(repository: Repository, work: Path) -> None:
    digest = put(repository, b"no database", Suffix.HISTORY)
    listed(repository, digest, 2)
    publish(repository, history=digest)
    ((where, sentence),) = found(repository, work)
    assert where == path_of(digest, Suffix.HISTORY)
    assert "is not a readable database" in sentence


def test_a_trunk_that_is_not_the_newest_revision_is_a_warning(repository: Repository, work: Path) -> None:
    history = history_of(repository)
    former = history.tags["trunk-previous"]
    history.tags[TRUNK] = history.tags[TRUNK]._replace(root_catalog=former.root_catalog, size=former.size)
    where = publish_history(repository, history)
    sentence = f"Tag {TRUNK} names {former.root_catalog}, not the newest revision."
    assert warned(repository, work) == [(where, sentence)]


def test_a_tag_whose_catalog_is_gone_is_a_warning(repository: Repository, work: Path) -> None:
    history = history_of(repository)
    gone = some_digest("gone")
    history.tags["old"] = Tag("old", gone, 1, 0, "", 4096)
    publish_history(repository, history)
    where = path_of(gone, Suffix.CATALOG)
    assert warned(repository, work) == [("tag old", f"{where} is not in {repository.storage}.")]


@pytest.mark.parametrize("size", [-1, 1, 1 << 62])
def test_a_tag_with_a_wrong_size_is_named_in_full(repository: Repository, work: Path, size: int) -> None:
    history = history_of(repository)
    history.tags["old"] = history.tags["trunk-previous"]._replace(name="old", size=size)
    publish_history(repository, history)
    assert [where for where, _ in found(repository, work)] == ["tag old"]


def test_a_missing_reflog_is_an_error_where_the_manifest_knows_one(repository: Repository, work: Path) -> None:
    (repository.storage / REFLOG).unlink()
    sentence = f"{REFLOG} is not in {repository.storage}."
    assert found(repository, work) == [(REFLOG, sentence)]
    publish(repository, reflog=None)
    assert warned(repository, work) == [(REFLOG, sentence)]


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(4000)], ids=range(3))
def test_a_damaged_reflog_is_named(repository: Repository, work: Path, content: bytes) -> None:
    (repository.storage / REFLOG).write_bytes(content)
    ((where, sentence),) = found(repository, work)
    assert where == REFLOG
    assert sentence.startswith("The reflog is ")


def test_the_reflog_of_another_repository_is_named(repository: Repository, work: Path) -> None:
    path = repository.storage / REFLOG
    reflog = parse_reflog(path.read_bytes(), "reflog")
    path.write_bytes(format_reflog(Reflog("other.example.org", reflog.refs)))
    assert found(repository, work) == [(REFLOG, "The reflog belongs to another repository, other.example.org.")]


@pytest.mark.parametrize("field", ["root_catalog", "certificate", "history", "metainfo"])
@pytest.mark.parametrize("kind", [None, 9])
def test_what_the_reflog_does_not_list_is_named(
    repository: Repository, work: Path, field: str, kind: int | None
) -> None:
    digest = getattr(manifest_of(repository), field)
    path = repository.storage / REFLOG
    reflog = parse_reflog(path.read_bytes(), "reflog")
    del reflog.refs[digest]
    if kind is not None:
        reflog.refs[digest] = (kind, 0)
    path.write_bytes(format_reflog(reflog))
    sentence = f"The reflog does not list {digest}, which the manifest names."
    assert found(repository, work) == [(REFLOG, sentence)]


def test_alternative_paths_have_to_exist_and_to_have_the_content(repository: Repository, work: Path) -> None:
    publish(repository, alternative_paths=True)
    manifest = manifest_of(repository)
    objects = {
        ".cvmfsalt-" + digest.text + suffix: repository.storage / digest.object_path(suffix)
        for digest, suffix in (
            (manifest.root_catalog, Suffix.CATALOG),
            (manifest.certificate, Suffix.CERTIFICATE),
            (manifest.history or manifest.certificate, Suffix.HISTORY),
            (manifest.metainfo or manifest.certificate, Suffix.METAINFO),
        )
    }
    missing = [(name, f"{name} is not in {repository.storage}.") for name in objects]
    assert found(repository, work) == missing
    for name, path in objects.items():
        shutil.copy(path, repository.storage / name)
    assert findings(repository, work) == []
    for name in objects:
        right = (repository.storage / name).read_bytes()
        (repository.storage / name).write_bytes(right[:-1] + b"!")
        ((where, sentence),) = found(repository, work)
        assert where == name
        assert "has other content" in sentence
        (repository.storage / name).write_bytes(right)
    publish(repository, metainfo=None)
    (repository.storage / list(objects)[-1]).unlink()
    assert findings(repository, work) == []


# Catalogs


@pytest.mark.parametrize("mountpoint", [b"", b"/outer", b"/outer/inner"])
@pytest.mark.parametrize("in_full", [True, False])
def test_a_missing_or_damaged_catalog_is_named_once(
    repository: Repository, work: Path, mountpoint: bytes, *, in_full: bool
) -> None:
    """What the catalog above counts below it cannot be compared then, and is not."""
    digest = catalog_of(repository, mountpoint)
    path = repository.storage / digest.object_path(Suffix.CATALOG)
    where = mountpoint.decode() or "/"
    right = path.read_bytes()
    path.write_bytes(right[:-1] + b"!")
    seen = [one for one in found(repository, work, in_full=in_full) if not one[0].startswith("tag ")]
    assert [place for place, _ in seen] == [where]
    assert "has other content" in seen[0][1]
    path.unlink()
    seen = [(one.where, one.sentence) for one in findings(repository, work, in_full=in_full) if one.severity == "error"]
    assert seen == [(where, f"{digest.object_path(Suffix.CATALOG)} is not in {repository.storage}.")]


def test_files_of_a_catalog_beside_a_missing_one_are_still_checked(repository: Repository, work: Path) -> None:
    (repository.storage / catalog_of(repository, b"/outer/inner").object_path(Suffix.CATALOG)).unlink()
    packed = pack(b"a", Algorithm.SHA1, Compression.ZLIB)
    (repository.storage / packed.digest.object_path(Suffix.FILE)).unlink()
    assert sorted(place for place, _ in found(repository, work)) == ["/outer/file", "/outer/inner"]


def test_a_root_catalog_of_another_revision_is_named(repository: Repository, work: Path) -> None:
    publish(repository, revision=9)
    assert found(repository, work) == [("/", "The root catalog has revision 4, the manifest 9.")]


def test_a_root_catalog_of_another_size_is_named(repository: Repository, work: Path) -> None:
    size = manifest_of(repository).root_catalog_size
    publish(repository, root_catalog_size=size + 4096)
    ((where, sentence),) = found(repository, work)
    assert where == "/"
    assert f"unpacks to {size} bytes and not to {size + 4096}" in sentence
    publish(repository, root_catalog_size=0)
    assert findings(repository, work) == [], "0 means that it is not known"


def test_a_catalog_that_is_no_database_is_named(repository: Repository, work: Path) -> None:
    change_root(repository, lambda path: path.write_bytes(b"no database" * 1000))
    ((where, sentence),) = found(repository, work)
    assert where == "/"
    assert "not a readable catalog" in sentence


def test_a_catalog_with_more_than_tables_is_named(repository: Repository, work: Path) -> None:
    change_root(repository, lambda path: run_sql(path, "CREATE VIEW v AS SELECT 1"))
    ((where, sentence),) = found(repository, work)
    assert where == "/"
    assert "holds more than tables and indexes" in sentence


def test_a_catalog_in_write_ahead_mode_is_named(repository: Repository, work: Path) -> None:
    change_root(repository, lambda path: run_sql(path, "PRAGMA journal_mode = WAL"))
    sentence = "Its catalog is in write-ahead mode, which readers cannot open."
    assert ("/", sentence) in found(repository, work)


def test_a_catalog_whose_text_is_not_utf_8_is_named(repository: Repository, work: Path) -> None:
    def mark_as_utf_16(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[56:60] = (2).to_bytes(4, "big")
        path.write_bytes(data)

    change_root(repository, mark_as_utf_16)
    places = [where for where, text in found(repository, work) if where == "/" and "catalog" in text.lower()]
    assert places


def test_a_broken_rule_in_a_catalog_is_a_finding(repository: Repository, work: Path) -> None:
    change_root(repository, lambda path: run_sql(path, "UPDATE catalog SET hardlinks = 2 WHERE name = 'file'"))
    assert found(repository, work) == [("/file", "It has 2 links but belongs to no hard link group.")]


def test_counters_that_are_not_the_sum_of_the_catalogs_below_are_named(repository: Repository, work: Path) -> None:
    statement = "UPDATE statistics SET value = value + 1 WHERE counter = 'subtree_regular'"
    change_root(repository, lambda path: run_sql(path, statement))
    with LocalStore(repository.storage) as store:
        (repository.state / "x").write_bytes(catalog_bytes(store, manifest_of(repository).root_catalog))
    with sqlite3.connect(repository.state / "x") as database:
        (stated,) = database.execute("SELECT value FROM statistics WHERE counter = 'subtree_regular'").fetchone()
    database.close()
    sentence = f"Its catalog counts {stated} regular in the catalogs below it, they say {stated - 1}."
    assert found(repository, work) == [("/", sentence)]


# Objects


def object_files(repository: Repository) -> Iterator[Path]:
    """Of the data of files."""
    for path in (repository.storage / "data").rglob("*"):
        if path.is_file() and (len(path.name) == 38 or path.name.endswith("P")):
            yield path


def test_each_missing_object_is_named_and_each_damaged_one_in_full(repository: Repository, work: Path) -> None:
    """The empty object of the markers belongs to three files, and is named once."""
    for path in list(object_files(repository)):
        right = path.read_bytes()
        path.write_bytes(b"damaged")
        ((_, sentence),) = found(repository, work)
        assert "has other content" in sentence
        assert found(repository, work, in_full=False) == []
        path.unlink()
        ((_, sentence),) = found(repository, work, in_full=False)
        assert sentence == f"{path.relative_to(repository.storage)} is not in {repository.storage}."
        path.write_bytes(right)
    assert len(list(object_files(repository))) > 5


class Failing:
    """A server that stops to answer after some requests."""

    where = "a server"

    def __init__(self, inner: LocalFetcher, answers: int) -> None:
        self._inner = inner
        self._left = answers
        self.connection = inner.connection

    def fetch(self, path: str, consume: Consumer[Result], *, fresh: bool = False) -> Result:
        self._left -= 1
        if self._left < 0:
            raise TemporaryError(f"{path} could not be fetched.")
        return self._inner.fetch(path, consume, fresh=fresh)


def test_a_server_that_stops_to_answer_is_no_finding(repository: Repository, work: Path) -> None:
    with LocalStore(repository.storage) as store:
        for answers in range(12):
            fetcher = Failing(LocalFetcher(store), answers)
            with pytest.raises(TemporaryError, match="could not be fetched"):
                list(check_repository(fetcher, FQRN, [repository.master_key], work=work))
            assert list(work.iterdir()) == []


def test_a_check_that_is_given_up_leaves_nothing(repository: Repository, work: Path) -> None:
    (repository.storage / REFLOG).unlink()
    with LocalStore(repository.storage) as store:
        walk = check_repository(LocalFetcher(store), FQRN, [repository.master_key], work=work)
        assert isinstance(next(walk), Finding)
        assert list(work.iterdir())
        walk.close()  # type: ignore[attr-defined]
    assert list(work.iterdir()) == []
