"""Where repositories are: the command line before the configuration before what is published here."""

from pathlib import Path

import pytest
from tests.support.repositories import FQRN, Repository, make_repository
from tests.support.webserver import serving

from mica.cache.cache import Cache
from mica.cache.ledger import Limits
from mica.cli.places import Places
from mica.errors import NotFoundError, TemporaryError, UsageError, UserError

URL = "http://command.example.org/cvmfs/x"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(f"""
[node]
cache = "/configured/cache"
proxies = "http://squid:3128"
[repositories."{FQRN}"]
urls = ["http://configured.example.org/cvmfs/x"]
keys = ["/configured/key.pub"]
[repositories."other.example.org"]
urls = ["http://other/"]
keys = ["/other.pub"]
""")
    return path


@pytest.fixture(autouse=True)
def no_system_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mica.config.SYSTEM_CONFIG", tmp_path / "none.toml")


def test_published_here(repository: Repository) -> None:
    places = Places(repository.state)
    found = places.locate(FQRN)
    assert (found.urls, found.keys) == ((str(repository.storage),), (repository.keys / f"{FQRN}.pub",))
    assert found.proxies == "DIRECT"
    assert places.known == [FQRN]
    assert places.cache == repository.state / "cache"


def test_what_is_known_is_kept_with_the_state_and_not_in_the_cache(repository: Repository, tmp_path: Path) -> None:
    places = Places(repository.state, cache=tmp_path / "cache")
    assert places.locate(FQRN).trust == repository.state / "trust"


def test_blacklists(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    monkeypatch.setattr("mica.cli.places.BLACKLISTS", (here, there))
    there.touch()
    assert Places(repository.state).locate(FQRN).blacklists == (there,)
    (tmp_path / "c.toml").write_text(f'[node]\nblacklists = ["{here}"]')
    assert Places(repository.state, config=tmp_path / "c.toml").locate(FQRN).blacklists == (here,)


def test_images_are_looked_for_where_the_url_leads(repository: Repository, config: Path, tmp_path: Path) -> None:
    """Not in every repository that is known, as if all were at that URL."""
    known = ["other.example.org", FQRN]
    assert Places(repository.state, config=config).searched == known
    assert Places(repository.state, config=config, urls=[str(repository.storage)]).searched == [FQRN]
    with serving(repository.storage) as server:
        url = server.url
        assert Places(tmp_path / "none", config=config, urls=[url]).searched == [FQRN]
        assert Places(tmp_path / "none", config=config, urls=[f"{url}/@fqrn@"]).searched == known
        with pytest.raises(NotFoundError, match="cvmfspublished"):
            _ = Places(tmp_path / "none", config=config, urls=[f"{url}/elsewhere"]).searched
    assert Places(tmp_path / "none", config=config, urls=[url]).searched == known, "off line"


def test_where_external_files_are(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line before the stock client's variables before the configuration."""
    config.write_text(f"""
[repositories."{FQRN}"]
urls = ["http://x/"]
keys = ["/k.pub"]
external_urls = ["http://configured/"]
""")

    def told(urls: list[str] | None = None, proxies: str | None = None) -> tuple[tuple[str, ...], str]:
        found = Places(tmp_path, config=config, external_urls=urls, external_proxies=proxies).locate(FQRN)
        return found.external_urls, found.external_proxies

    assert told() == (("http://configured/",), "DIRECT")
    monkeypatch.setenv("CVMFS_EXTERNAL_URL", "http://one/; http://two/")
    monkeypatch.setenv("CVMFS_EXTERNAL_HTTP_PROXY", "http://squid:3128")
    assert told() == (("http://one/", "http://two/"), "http://squid:3128")
    assert told(["http://mine/"], "DIRECT") == (("http://mine/",), "DIRECT")


def test_configuration_comes_before_what_is_published_here(repository: Repository, config: Path) -> None:
    places = Places(repository.state, config=config)
    found = places.locate(FQRN)
    assert found.urls == ("http://configured.example.org/cvmfs/x",)
    assert found.keys == (Path("/configured/key.pub"),)
    assert found.proxies == "http://squid:3128"
    assert places.known == ["other.example.org", FQRN]
    assert places.cache == Path("/configured/cache")


def test_command_line_comes_first(repository: Repository, config: Path) -> None:
    key, cache = Path("/my.pub"), Path("/my/cache")
    places = Places(repository.state, config=config, urls=[URL], keys=[key], proxies="DIRECT", cache=cache)
    found = places.locate(FQRN)
    assert (found.urls, found.keys, found.proxies) == ((URL,), (key,), "DIRECT")
    assert places.cache == cache


def test_what_the_command_line_leaves_out_is_filled_in(repository: Repository, config: Path) -> None:
    found = Places(repository.state, config=config, urls=[URL]).locate(FQRN)
    assert (found.urls, found.keys, found.proxies) == ((URL,), (Path("/configured/key.pub"),), "http://squid:3128")
    found = Places(repository.state, config=config, keys=[Path("/my.pub")]).locate(FQRN)
    assert found.urls == ("http://configured.example.org/cvmfs/x",)
    assert found.keys == (Path("/my.pub"),)


def test_unknown_repository_with_a_url_has_no_key(repository: Repository) -> None:
    assert Places(repository.state, urls=[URL]).locate("new.example.org").keys == ()


@pytest.mark.parametrize("name", ["new.example.org", "", "..", "../../etc", "a/b"])
def test_unknown_repository_without_a_url(repository: Repository, name: str) -> None:
    with pytest.raises(NotFoundError, match="is neither configured nor published"):
        Places(repository.state).locate(name)


def test_nothing_is_known_without_a_state(tmp_path: Path) -> None:
    assert Places(tmp_path / "missing").known == []


def test_damaged_settings_are_named(repository: Repository) -> None:
    settings = repository.state / "repositories" / FQRN / "repository.toml"
    for content in (b"\xff\xfe", b"fqrn = ", b"fqrn = 1"):
        settings.write_bytes(content)
        with pytest.raises(UserError, match=r"repository\.toml is not a valid"):
            Places(repository.state).locate(FQRN)


def test_limits_come_into_force_with_the_first_use_of_the_cache(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"[node]\ncache = '{tmp_path / 'cache'}'\nquota = '20G'\nkeep_free = '1G'\n")
    places = Places(tmp_path, config=config)
    assert places.cache_path == tmp_path / "cache"
    assert not places.cache_path.exists(), "only looked at"
    assert limits_of(places.cache) == Limits(20 << 30, 1 << 30)
    assert limits_of(Places(tmp_path, config=config, quota="5G").cache) == Limits(5 << 30, 1 << 30)
    assert limits_of(Places(tmp_path, cache=tmp_path / "cache").cache) == Limits(5 << 30, 1 << 30), "no others"
    assert limits_of(Places(tmp_path, cache=tmp_path / "cache", quota="none").cache) == Limits(0, 1 << 30)


def limits_of(path: Path) -> Limits:
    with Cache(path) as cache:
        return cache.quota.limits


@pytest.mark.parametrize("quota", ["lots", "0", "-1G", ""])
def test_a_quota_that_is_none_is_refused(tmp_path: Path, quota: str) -> None:
    with pytest.raises(UsageError, match="--quota"):
        Places(tmp_path, quota=quota)


def test_without_an_answer_of_the_url_all_that_are_known_are_searched(repository: Repository, tmp_path: Path) -> None:
    nobody = ["http://127.0.0.1:9/cvmfs/x"]
    assert Places(repository.state, urls=nobody).searched == [FQRN]
    with pytest.raises(TemporaryError, match=r"127\.0\.0\.1:9"):
        _ = Places(tmp_path / "none", urls=nobody).searched
