"""The client: verified revisions, off line too; catalogs and objects through the cache."""

import contextlib
import datetime
import io
import json
import os
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.fixture import FQRN, Fixture, stock_fixture
from tests.support.repositories import QUICK, Repository, ingest, make_repository, opened_client, trust_record
from tests.support.tars import END, member
from tests.support.webserver import Answer, serving

from mica.cache.cache import Cache
from mica.digest import Algorithm, Digest, Suffix, path_hash
from mica.errors import IntegrityError, NotFoundError, TemporaryError
from mica.fetch import client as client_module
from mica.fetch.client import RepositoryClient
from mica.fetch.counters import TrafficCounter
from mica.fetch.documents import Documents, read_whole
from mica.fetch.download import HttpFetcher, LocalFetcher
from mica.fetch.routes import Routes
from mica.repo.catalog import NestedCatalog
from mica.repo.history import TRUNK
from mica.repo.manifest import Manifest
from mica.repo.objectname import ObjectName
from mica.repo.signing import parse_private_key
from mica.repo.whitelist import parse_whitelist, sign_whitelist
from mica.store.local import LocalStore
from mica.texts import format_time

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
    kept = trust_record(repository, tmp_path / "cache").path
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
    kept = trust_record(repository, cache).path
    documents = json.loads(kept.read_text())
    documents["whitelist"] = documents["whitelist"][:-2] + "00"
    kept.write_text(json.dumps(documents))
    with opened_client(repository, cache, url=url) as client, pytest.raises(IntegrityError, match="not signed by any"):
        client.update()
    kept.unlink()
    with opened_client(repository, cache, url=url) as client, pytest.raises(TemporaryError):
        client.update()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"manifest": "zz"}', b"\xff"])
def test_what_cannot_be_read_is_not_as_good_as_nothing(repository: Repository, tmp_path: Path, content: bytes) -> None:
    with opened_client(repository, tmp_path / "cache") as client:
        client.update()
        kept = trust_record(repository, tmp_path / "cache").path
        kept.write_bytes(content)
        with pytest.raises(IntegrityError, match=f"trust record of {repository.fqrn} is damaged") as refusal:
            client.update()
        assert "Remove it only if" in refusal.value.hint
        assert kept.read_bytes() == content
        kept.unlink()
        assert client.update().manifest.revision == 2


def test_a_cache_that_is_gone_takes_no_knowledge_with_it(repository: Repository, tmp_path: Path) -> None:
    old = (repository.storage / ".cvmfspublished").read_bytes()
    with opened_client(repository, tmp_path / "cache") as client:
        _publish_at(repository, 1 << 31)
        client.update()
    shutil.rmtree(tmp_path / "cache")
    (repository.storage / ".cvmfspublished").write_bytes(old)
    with opened_client(repository, tmp_path / "cache") as client, pytest.raises(IntegrityError, match="already known"):
        client.update()


def test_a_refusal_says_what_to_do_if_the_repository_was_made_again(repository: Repository, tmp_path: Path) -> None:
    with opened_client(repository, tmp_path / "cache") as client:
        client.update()
    remade = make_repository(tmp_path / "remade")
    with opened_client(remade, tmp_path / "cache") as client:
        with pytest.raises(IntegrityError, match="of revision 1, and revision 2 is already known") as refusal:
            client.update()
        path = trust_record(remade, tmp_path / "cache").path
        assert f"remove {path}" in refusal.value.hint
        path.unlink()
        assert client.update().manifest.revision == 1


def test_an_older_whitelist_does_not_bring_a_revoked_certificate_back(repository: Repository, tmp_path: Path) -> None:
    """The newest one known counts, also if a server shows one before it that is still valid."""
    served = repository.storage / ".cvmfswhitelist"
    old, now = served.read_bytes(), datetime.datetime.now(datetime.UTC)
    master = parse_private_key((repository.keys / f"{repository.fqrn}.masterkey").read_bytes(), "key")
    whitelist, _ = parse_whitelist(old, "it")
    with opened_client(repository, tmp_path / "cache") as client:
        client.update()
        later = replace(whitelist, created=now + datetime.timedelta(hours=1))
        served.write_bytes(sign_whitelist(later, master))
        client.update()
        served.write_bytes(old)
        client.update()
        record = trust_record(repository, tmp_path / "cache")
        documents = record.read()
        assert documents is not None
        assert documents.whitelist == sign_whitelist(later, master)
        served.write_bytes(sign_whitelist(replace(later, fingerprints=(":".join(["AB"] * 20),), created=now), master))
        client.update()
        revoked = replace(later, fingerprints=(":".join(["AB"] * 20),))
        record.path.unlink()
        record.keep(documents._replace(whitelist=sign_whitelist(revoked, master)))
        served.write_bytes(old)
        with pytest.raises(IntegrityError, match="is not on its whitelist"):
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
        told = f"was published at {format_time(head.published_at)}, before the one already known "
        with pytest.raises(IntegrityError, match=re.escape(f"{told}({format_time(later)})")):
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


def object_of_file(repository: Repository, cache: Path, path: bytes = b"/a/file") -> ObjectName:
    with opened_client(repository, cache) as client:
        row = client.catalog(root_of(client.update().manifest)).find(path)
    assert row is not None
    assert row.entry.digest is not None
    return ObjectName(row.entry.digest, Suffix.FILE, row.entry.compression, row.entry.size)


def read_object(client: RepositoryClient, name: ObjectName) -> bytes:
    with os.fdopen(client.open_object(name), "rb") as file:
        return file.read()


def opened_below(directory: Path) -> list[str]:
    """What this process has open there."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [path for path in found if path.startswith(f"{directory}/")]


def test_an_object_that_was_fetched_is_in_the_cache_and_nothing_stays_open(
    repository: Repository, tmp_path: Path
) -> None:
    name = object_of_file(repository, tmp_path / "other")
    with serving(repository.storage) as server, opened_client(repository, tmp_path / "cache", url=server.url) as client:
        for _ in range(3):
            client.fetch_object(name)
        assert opened_below(tmp_path / "cache" / "objects") == []
        with open(client.open_object(name), "rb"):
            assert len(opened_below(tmp_path / "cache" / "objects")) == 1
        traffic = client.counter.read()
        assert (traffic.objects_fetched, traffic.cache_hits, traffic.requests) == (1, 3, 1)
        assert read_object(client, name) == b"content"


def test_objects_are_downloaded_once_and_counted(repository: Repository, tmp_path: Path) -> None:
    name = object_of_file(repository, tmp_path / "other")
    with serving(repository.storage) as server, opened_client(repository, tmp_path / "cache", url=server.url) as client:
        assert [read_object(client, name) for _ in range(3)] == [b"content"] * 3
        traffic = client.counter.read()
        assert (traffic.objects_fetched, traffic.cache_hits, traffic.requests) == (1, 2, 1)
        assert traffic.transferred_bytes == (repository.storage / name.digest.object_path(Suffix.FILE)).stat().st_size


def test_waiters_share_a_download_and_its_failure(repository: Repository, tmp_path: Path) -> None:
    name = object_of_file(repository, tmp_path / "other")
    path = "/" + name.digest.object_path(Suffix.FILE)
    with serving(repository.storage) as server, opened_client(repository, tmp_path / "cache", url=server.url) as client:
        server.answers[path] = Answer(hang_s=0.3)
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(lambda _: read_object(client, name), range(6))) == [b"content"] * 6
        assert server.requests.count(path) == 1


def test_missing_objects_are_not_found(repository: Repository, tmp_path: Path) -> None:
    name = object_of_file(repository, tmp_path / "other")
    (repository.storage / name.digest.object_path(Suffix.FILE)).unlink()
    with serving(repository.storage) as server, opened_client(repository, tmp_path / "cache", url=server.url) as client:
        with pytest.raises(NotFoundError, match=f"{name.digest.text[2:]} is not at {server.host}"):
            read_object(client, name)
        assert not any((tmp_path / "cache" / "txn").iterdir())


@pytest.mark.parametrize("size", [0, 6, 8])
def test_a_row_that_lies_about_the_size_gets_nothing(repository: Repository, tmp_path: Path, size: int) -> None:
    """Also when the object is in the cache already, for a row that says the truth, which keeps its file."""
    name = object_of_file(repository, tmp_path / "other")
    with opened_client(repository, tmp_path / "cache") as client:
        assert read_object(client, name) == b"content"
        with pytest.raises(IntegrityError, match=str(name.digest)):
            read_object(client, name._replace(size=size))
        assert read_object(client, name) == b"content"


def test_read_whole_has_a_limit() -> None:
    assert read_whole(io.BytesIO(b"12345"), 5) == b"12345"
    with pytest.raises(IntegrityError, match="more than the 4 bytes"):
        read_whole(io.BytesIO(b"12345"), 4)


def test_another_digest_algorithm_is_another_object(repository: Repository, tmp_path: Path) -> None:
    name = object_of_file(repository, tmp_path / "other")
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
        record = trust_record(repository, cache.root)
        with RepositoryClient(repository.fqrn, fetcher, cache, [repository.master_key], record=record) as client:
            if document == "outdated":
                record.keep(_documents(good.root, certificate))
            assert client.update().manifest.published_at >= oldest
        assert fetcher.where == good.host
        fetcher.close()


def _documents(storage: Path, certificate: str) -> Documents:
    return Documents(
        *((storage / name).read_bytes() for name in (".cvmfspublished", certificate[1:], ".cvmfswhitelist"))
    )


def test_closing_waits_for_nobody_and_may_be_repeated(repository: Repository, tmp_path: Path) -> None:
    with opened_client(repository, tmp_path / "cache") as client:
        client.catalog(root_of(client.update().manifest)).children(path_hash(b""))
        client.close()
        client.close()
    assert threading.active_count() < 50
