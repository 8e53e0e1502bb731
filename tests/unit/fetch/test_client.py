"""The client: verified revisions, off line too; catalogs and objects through the cache."""

import datetime
import io
import json
import os
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.fixture import FQRN, Fixture, stock_fixture
from tests.support.repositories import QUICK, Repository, ingest, make_repository, opened_client
from tests.support.tars import END, member
from tests.support.webserver import Answer, serving

from mica.digest import Algorithm, Digest, Suffix, digest_of, path_hash
from mica.errors import IntegrityError, NotFoundError, TemporaryError
from mica.fetch import client as client_module
from mica.fetch.cache import Cache
from mica.fetch.client import ObjectName, RepositoryClient, copy_verified, read_whole
from mica.fetch.counters import TrafficCounter
from mica.fetch.download import HttpFetcher, LocalFetcher
from mica.fetch.routes import Routes
from mica.repo.catalog import NestedCatalog
from mica.repo.history import TRUNK
from mica.repo.manifest import Manifest
from mica.repo.objects import Compression
from mica.store.local import LocalStore

ARCHIVE = member(b"a/file", b"content") + member(b"b/.cvmfscatalog") + member(b"b/file", b"other") + END


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = make_repository(tmp_path / "repository")
    ingest(repository, ARCHIVE)
    return repository


def root_of(manifest: Manifest) -> NestedCatalog:
    return NestedCatalog(b"", manifest.root_catalog, manifest.root_catalog_size)


def test_the_newest_revision_is_verified_and_kept(repository: Repository, tmp_path: Path) -> None:
    with opened_client(repository, tmp_path / "cache") as client:
        assert client.update().manifest.revision == 2
        ingest(repository, member(b"new", b"x") + END)
        manifest = client.update().manifest
        assert manifest.revision == 3
        assert client.history(manifest).tags[TRUNK].root_catalog == manifest.root_catalog
    kept = tmp_path / "cache" / "repositories" / repository.fqrn
    assert set(json.loads(kept.read_text())) == {"manifest", "certificate", "whitelist"}
    assert kept.stat().st_mode & 0o777 == 0o600


def test_without_a_server_what_was_verified_counts(repository: Repository, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with serving(repository.storage) as server:
        url = server.url
        with opened_client(repository, cache, url=url) as client:
            assert client.update().manifest.revision == 2
            client.catalog(root_of(client.update().manifest))
    with opened_client(repository, cache, url=url) as client:
        manifest = client.update().manifest
        assert manifest.revision == 2
        assert client.catalog(root_of(manifest)).find(b"/a/file") is not None
    with opened_client(repository, tmp_path / "empty", url=url) as client, pytest.raises(TemporaryError):
        client.update()


def test_what_is_kept_is_verified_again(repository: Repository, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with serving(repository.storage) as server:
        url = server.url
        with opened_client(repository, cache, url=url) as client:
            client.update()
    kept = cache / "repositories" / repository.fqrn
    documents = json.loads(kept.read_text())
    documents["whitelist"] = documents["whitelist"][:-2] + "00"
    kept.write_text(json.dumps(documents))
    with opened_client(repository, cache, url=url) as client, pytest.raises(IntegrityError, match="not signed by any"):
        client.update()
    kept.write_text("{")
    with opened_client(repository, cache, url=url) as client, pytest.raises(TemporaryError):
        client.update()


def test_an_older_manifest_is_refused(repository: Repository, tmp_path: Path) -> None:
    pointer = repository.storage / ".cvmfspublished"
    with opened_client(repository, tmp_path / "cache") as client:
        old = pointer.read_bytes()
        with repository.manager() as manager:
            head = manager.head()
        later = head.published_at + 100
        _publish_at(repository, later)
        assert client.update().manifest.published_at == later
        pointer.write_bytes(old)
        with pytest.raises(IntegrityError, match=f"was published at {head.published_at}, before the one already known"):
            client.update()


def _publish_at(repository: Repository, seconds: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: float(seconds))
        ingest(repository, member(b"later", b"x") + END)


def stock_client(stock: Fixture, cache: Cache, now: datetime.datetime) -> RepositoryClient:
    return RepositoryClient(FQRN, LocalFetcher(stock.store), cache, [stock.master_key], now=lambda: now)


def test_the_clock_is_asked(tmp_path: Path) -> None:
    stock = stock_fixture()
    with Cache(tmp_path / "cache") as cache:
        early = datetime.datetime(2126, 10, 30, 17, 59, tzinfo=datetime.UTC)
        assert stock_client(stock, cache, early).update().manifest.revision == 11
        late = datetime.datetime(2126, 10, 30, 18, 0, tzinfo=datetime.UTC)
        with pytest.raises(IntegrityError, match="expired at 2126-10-30 18:11 UTC"):
            stock_client(stock, cache, late).update()


def test_catalogs_that_were_let_go_can_still_be_read(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread opens many while this one reads: nothing may be closed under it."""
    monkeypatch.setattr(client_module, "_OPEN_CATALOGS", 1)
    with opened_client(repository, tmp_path / "cache") as client:
        root = client.catalog(root_of(client.update().manifest))
        (nested,) = root.nested()
        below = client.catalog(nested)
        assert root.find(b"/a/file") is not None
        assert below.find(b"/b/file") is not None
        assert client.catalog(nested) is below


def test_catalogs_are_downloaded_once_for_many_threads(repository: Repository, tmp_path: Path) -> None:
    with serving(repository.storage) as server, opened_client(repository, tmp_path / "cache", url=server.url) as client:
        reference = root_of(client.update().manifest)
        server.requests.clear()
        with ThreadPoolExecutor(8) as pool:
            catalogs = list(pool.map(lambda _: client.catalog(reference), range(16)))
        assert len(set(map(id, catalogs))) == 1
        assert all(catalog.find(b"/a/file") for catalog in catalogs)
        assert server.requests == ["/" + reference.digest.object_path(Suffix.CATALOG)]


def file_object(repository: Repository, cache: Path, path: bytes = b"/a/file") -> ObjectName:
    with opened_client(repository, cache) as client:
        row = client.catalog(root_of(client.update().manifest)).find(path)
    assert row is not None
    assert row.entry.digest is not None
    return ObjectName(row.entry.digest, Suffix.FILE, row.entry.compression, row.entry.size)


def read_object(client: RepositoryClient, name: ObjectName) -> bytes:
    with os.fdopen(client.open_object(name), "rb") as file:
        return file.read()


def test_objects_are_downloaded_once_and_counted(repository: Repository, tmp_path: Path) -> None:
    name = file_object(repository, tmp_path / "other")
    with serving(repository.storage) as server, opened_client(repository, tmp_path / "cache", url=server.url) as client:
        assert [read_object(client, name) for _ in range(3)] == [b"content"] * 3
        traffic = client.counter.read()
        assert (traffic.objects_fetched, traffic.cache_hits, traffic.requests) == (1, 2, 1)
        assert traffic.transferred_bytes == (repository.storage / name.digest.object_path(Suffix.FILE)).stat().st_size


def test_waiters_share_a_download_and_its_failure(repository: Repository, tmp_path: Path) -> None:
    name = file_object(repository, tmp_path / "other")
    path = "/" + name.digest.object_path(Suffix.FILE)
    with serving(repository.storage) as server, opened_client(repository, tmp_path / "cache", url=server.url) as client:
        server.answers[path] = Answer(hang_s=0.3)
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(lambda _: read_object(client, name), range(6))) == [b"content"] * 6
        assert server.requests.count(path) == 1


def test_missing_objects_are_not_found(repository: Repository, tmp_path: Path) -> None:
    name = file_object(repository, tmp_path / "other")
    (repository.storage / name.digest.object_path(Suffix.FILE)).unlink()
    with serving(repository.storage) as server, opened_client(repository, tmp_path / "cache", url=server.url) as client:
        with pytest.raises(NotFoundError, match=f"{name.digest.text[2:]} is not at {server.host}"):
            read_object(client, name)
        assert not any((tmp_path / "cache" / "txn").iterdir())


@pytest.mark.parametrize("size", [0, 6, 8])
def test_a_row_that_lies_about_the_size_gets_nothing(repository: Repository, tmp_path: Path, size: int) -> None:
    """Also when the object is in the cache already, for a row that says the truth, which keeps its file."""
    name = file_object(repository, tmp_path / "other")
    with opened_client(repository, tmp_path / "cache") as client:
        assert read_object(client, name) == b"content"
        with pytest.raises(IntegrityError, match=str(name.digest)):
            read_object(client, name._replace(size=size))
        assert read_object(client, name) == b"content"


def verified(stored: bytes, **changes: object) -> bytes:
    name = ObjectName(digest_of(stored), Suffix.FILE, Compression.ZLIB, None, 1000)._replace(**changes)  # type: ignore[arg-type]
    sink = io.BytesIO()
    copy_verified(io.BytesIO(stored), sink, name)
    return sink.getvalue()


def test_streams_are_unpacked_while_they_are_hashed() -> None:
    plain = os.urandom(600_000) + bytes(2_000_000)
    assert verified(zlib.compress(plain), size=len(plain)) == plain
    assert verified(plain, compression=Compression.NONE, size=len(plain)) == plain
    assert verified(zlib.compress(b"")) == b""
    digest = digest_of(zlib.compress(b"x"), Algorithm.SHAKE128)
    assert verified(zlib.compress(b"x"), digest=digest) == b"x"


@pytest.mark.parametrize(
    ("stored", "changes", "sentence"),
    [
        (zlib.compress(b"x" * 100)[:-1], {}, "is cut short"),
        (zlib.compress(b"x" * 100)[:1], {}, "is cut short"),
        (b"", {}, "is cut short"),
        (zlib.compress(b"x") + b"y", {}, "is followed by other bytes"),
        (zlib.compress(b"x" * 300_000) + b"y", {"size": 300_000}, "is followed by other bytes"),
        (b"no stream", {}, "is not a zlib stream"),
        (zlib.compress(b"x" * 1001), {}, "unpacks to more than the 1000 bytes"),
        (zlib.compress(bytes(64 << 20)), {}, "unpacks to more than the 1000 bytes"),
        (zlib.compress(b"x" * 5), {"size": 6}, "unpacks to 5 bytes and not to 6"),
        (zlib.compress(b"x" * 5), {"size": 4}, "unpacks to more than the 4 bytes"),
        (zlib.compress(b"x"), {"size": 0}, "unpacks to more than the 0 bytes"),
        (b"12345", {"compression": Compression.NONE, "size": 4}, "unpacks to more than the 4 bytes"),
        (b"123", {"compression": Compression.NONE, "size": 4}, "unpacks to 3 bytes and not to 4"),
        (b"other", {"digest": digest_of(b"content")}, "has other content: its bytes hash to"),
    ],
)
def test_wrong_streams_are_refused(stored: bytes, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(IntegrityError, match=sentence):
        verified(stored, **changes)


def test_the_sink_never_gets_more_than_allowed() -> None:
    got: list[int] = []

    class Sink:
        def write(self, data: bytes, /) -> None:
            got.append(len(data))

    bomb = zlib.compress(bytes(32 << 20))
    name = ObjectName(digest_of(bomb), Suffix.FILE, Compression.ZLIB, 70_000)
    with pytest.raises(IntegrityError):
        copy_verified(io.BytesIO(bomb), Sink(), name)
    assert sum(got) <= 70_000


def test_read_whole_has_a_limit() -> None:
    assert read_whole(io.BytesIO(b"12345"), 5) == b"12345"
    with pytest.raises(IntegrityError, match="more than the 4 bytes"):
        read_whole(io.BytesIO(b"12345"), 4)


def test_another_digest_algorithm_is_another_object(repository: Repository, tmp_path: Path) -> None:
    name = file_object(repository, tmp_path / "other")
    changed = name._replace(digest=Digest(name.digest.raw, Algorithm.RIPEMD160))
    with opened_client(repository, tmp_path / "cache") as client:
        assert read_object(client, name) == b"content"
        with pytest.raises(NotFoundError):
            read_object(client, changed)


def test_a_repository_of_another_name_is_refused(repository: Repository, tmp_path: Path) -> None:
    with (
        LocalStore(repository.storage) as store,
        Cache(tmp_path / "cache") as cache,
        RepositoryClient("other.example.org", LocalFetcher(store), cache, [repository.master_key]) as client,
        pytest.raises(IntegrityError, match="belongs to another repository, small"),
    ):
        client.update()


@pytest.mark.parametrize("document", ["manifest", "signature", "certificate", "whitelist", "outdated"])
def test_a_bad_host_is_left_for_a_good_one(repository: Repository, tmp_path: Path, document: str) -> None:
    """Documents that do not hold: all are asked of the second host, and the revision is served."""
    pointer = (repository.storage / ".cvmfspublished").read_bytes()
    with repository.manager() as manager:
        certificate = "/" + manager.head().certificate.object_path(Suffix.CERTIFICATE)
    oldest = 0
    with serving(repository.storage) as bad, serving(repository.storage) as good, Cache(tmp_path / "cache") as cache:
        if document == "outdated":
            bad.answers["/.cvmfspublished"] = Answer(body=pointer)
            with repository.manager() as manager:
                oldest = manager.head().published_at + 100
            _publish_at(repository, oldest)
        bad.answers |= {
            "manifest": {"/.cvmfspublished": Answer(body=b"no manifest")},
            "signature": {"/.cvmfspublished": Answer(body=pointer[:-1] + b"\0")},
            "certificate": {certificate: Answer(body=b"no certificate")},
            "whitelist": {"/.cvmfswhitelist": Answer(body=b"no whitelist")},
            "outdated": {},
        }[document]
        fetcher = HttpFetcher(Routes([bad.url, good.url]), counter=TrafficCounter(), limits=QUICK)
        with RepositoryClient(repository.fqrn, fetcher, cache, [repository.master_key]) as client:
            if document == "outdated":
                client._keep_documents(_documents(good.root, certificate))
            assert client.update().manifest.published_at >= oldest
        assert fetcher.where == good.host
        fetcher.close()


def _documents(storage: Path, certificate: str) -> dict[str, bytes]:
    places = {"manifest": ".cvmfspublished", "certificate": certificate[1:], "whitelist": ".cvmfswhitelist"}
    return {name: (storage / place).read_bytes() for name, place in places.items()}


def test_closing_waits_for_nobody_and_may_be_repeated(repository: Repository, tmp_path: Path) -> None:
    with opened_client(repository, tmp_path / "cache") as client:
        client.catalog(root_of(client.update().manifest)).children(path_hash(b""))
        client.close()
        client.close()
    assert threading.active_count() < 50
