"""Where repositories are: the command line before the configuration before what is published here."""

from pathlib import Path

import pytest
from tests.support.repositories import FQRN, Repository, make_repository

from mica.cli.places import Places
from mica.errors import NotFoundError, UserError

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
