"""Where repositories are: the command line before the configuration before what is published here."""

from pathlib import Path

import pytest
from tests.support.repositories import FQRN, Repository, make_repository

from mica.cli.places import Places
from mica.errors import NotFoundError, UsageError, UserError
from mica.fetch.cache import Cache
from mica.fetch.ledger import Limits

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
    with pytest.raises(NotFoundError, match="Nothing tells where"):
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
