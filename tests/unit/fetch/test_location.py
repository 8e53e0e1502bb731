"""From URLs, keys and proxies to a client, or to a sentence."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.repositories import FQRN, Repository, make_repository
from tests.support.webserver import serving

from mica.errors import IntegrityError, MicaError, NotFoundError, UserError
from mica.fetch.counters import TrafficCounter
from mica.fetch.location import RepositoryLocation, open_fetcher, open_repository, read_keys
from mica.repo.signing import new_key, public_pem


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path)


def location(repository: Repository, *urls: str, proxies: str = "DIRECT") -> RepositoryLocation:
    key = repository.keys / f"{FQRN}.pub"
    return RepositoryLocation(FQRN, urls or (str(repository.storage),), (key,), proxies)


def test_storage_directory(repository: Repository, tmp_path: Path) -> None:
    with open_repository(location(repository), tmp_path / "cache") as client:
        assert client.update().manifest.revision == 1


@pytest.mark.parametrize("end", ["", "/", "//"])
def test_url_with_the_name_filled_in(repository: Repository, tmp_path: Path, end: str) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / FQRN).symlink_to(repository.storage)
    counter = TrafficCounter()
    with serving(tmp_path / "web") as server:
        place = location(repository, f"{server.url}/@fqrn@{end}")
        with open_repository(place, tmp_path / "cache", counter=counter) as client:
            assert client.update().manifest.revision == 1
        assert {path.rpartition("/")[0] for path in server.requests if ".cvmfs" in path} == {f"/{FQRN}"}
    assert counter.read().requests == len(server.requests)


def test_opening_touches_no_server(repository: Repository, tmp_path: Path) -> None:
    with open_repository(location(repository, "http://nowhere.invalid/"), tmp_path / "cache"):
        pass


def test_any_of_several_keys_will_do(repository: Repository, tmp_path: Path) -> None:
    other = tmp_path / "other.pub"
    other.write_bytes(public_pem(new_key()))
    keys = (other, repository.keys / f"{FQRN}.pub")
    with open_repository(RepositoryLocation(FQRN, (str(repository.storage),), keys), tmp_path / "cache") as client:
        assert client.update().manifest.revision == 1
    place = RepositoryLocation(FQRN, (str(repository.storage),), (other,))
    with open_repository(place, tmp_path / "other cache") as client, pytest.raises(IntegrityError, match=FQRN):
        client.update()


def test_what_is_on_a_blacklist_is_refused_from_then_on(repository: Repository, tmp_path: Path) -> None:
    blacklist = tmp_path / "blacklist"
    blacklist.touch()
    place = replace(location(repository), blacklists=(blacklist,), trust=tmp_path / "trust")
    with open_repository(place, tmp_path / "cache") as client:
        assert client.update().manifest.revision == 1
        blacklist.write_text(f"<{FQRN} 2\n")
        with pytest.raises(IntegrityError, match="refuses all below 2"):
            client.update()
        blacklist.write_text("nonsense")
        with pytest.raises(UserError, match=f"Line 1 of the blacklist {blacklist}"):
            client.update()
        blacklist.unlink()
        with pytest.raises(UserError, match="Cannot read the blacklist"):
            client.update()
    assert (tmp_path / "trust" / FQRN).exists()


@pytest.mark.parametrize(
    ("urls", "error", "word"),
    [
        ((), UserError, "no URL"),
        (("ftp://host/x",), UserError, "'ftp://host/x' is not an http"),
        (("http://",), UserError, "is not an http"),
        (("http:///path",), UserError, "is not an http"),
        (("http://[::1",), UserError, "is not an http"),
        (("http://host:port/",), UserError, "is not an http"),
        (("http://host:99999/",), UserError, "is not an http"),
        (("http://host:0/",), UserError, "is not an http"),
        (("http://good/", "://"), UserError, "is not an http"),
        (("127.0.0.1:8000/cvmfs/a.example.org",), UserError, "neither a URL nor a directory"),
        (("stratum1.example.org/cvmfs/a.example.org",), UserError, "neither a URL nor a directory"),
        (("localhost:8000",), UserError, "neither a URL nor a directory"),
        (("../missing",), NotFoundError, "missing does not exist"),
        (("missing/directory",), NotFoundError, "missing/directory does not exist"),
        (("/", "http://host/"), UserError, "cannot be one of several"),
        (("a" * 300,), NotFoundError, "does not exist"),
    ],
)
def test_urls_that_are_none(
    repository: Repository, tmp_path: Path, urls: tuple[str, ...], error: type[MicaError], word: str
) -> None:
    place = RepositoryLocation(FQRN, urls, location(repository).keys)
    with pytest.raises(error, match=word.replace("[", r"\[")), open_repository(place, tmp_path / "cache"):
        pass


@pytest.mark.parametrize("proxies", ["", " ; | ", "ftp://x", "http://[x", "http://squid:99999", "squid:x"])
def test_proxies_that_are_none(repository: Repository, proxies: str) -> None:
    with (
        pytest.raises(UserError, match="prox"),
        open_fetcher(location(repository, "http://host/", proxies=proxies), TrafficCounter()),
    ):
        pass


@pytest.mark.parametrize("name", ["", "..", "a b", "a/b", "a" * 61, "ü.example.org", "a\n"])
def test_names_that_are_none(repository: Repository, name: str) -> None:
    place = RepositoryLocation(name, ("http://host/",), location(repository).keys)
    with pytest.raises(UserError, match="cannot be the name"):
        read_keys(place)


def test_keys_that_are_none(repository: Repository, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pub"
    bad.write_bytes(b"-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----\n")
    private = repository.keys / f"{FQRN}.masterkey"
    for keys, word in (
        ((), "no public key"),
        ((tmp_path / "missing.pub",), "missing.pub"),
        ((tmp_path,), "bad.pub"),
        ((repository.storage,), "has no public key"),
        ((bad,), "bad.pub"),
        ((private,), "masterkey"),
    ):
        with pytest.raises(UserError, match=word):
            read_keys(RepositoryLocation(FQRN, ("http://host/",), keys))


def test_keys_are_read_at_each_update_and_may_come_and_go(repository: Repository, tmp_path: Path) -> None:
    """A mount outlives a master key: the next one is put beside it, and it is taken away later."""
    keys, content = tmp_path / "clients", (repository.keys / f"{FQRN}.pub").read_bytes()
    keys.mkdir()
    (keys / "now.pub").write_bytes(public_pem(new_key()))
    single = tmp_path / "gone.pub"
    single.write_bytes(content)
    place = RepositoryLocation(FQRN, (str(repository.storage),), (single, keys))
    with open_repository(place, tmp_path / "cache") as client:
        assert client.update().manifest.revision == 1
        single.unlink()
        with pytest.raises(IntegrityError, match="not signed by any of the 1 keys"):
            client.update()
        (keys / "next.pub").write_bytes(content)
        assert client.update().manifest.revision == 1
        (keys / "now.pub").unlink()
        assert client.update().manifest.revision == 1
        (keys / "next.pub").unlink()
        with pytest.raises(UserError, match="has no public key"):
            client.update()
