"""The node's configuration: what it says, and which key is wrong."""

from pathlib import Path

import pytest

from mica.config import NodeConfig, PortalConfig, load_config
from mica.errors import UserError
from mica.fetch.location import RepositoryLocation

WHOLE = """
[node]
cache = "/var/lib/mica/cache"
proxies = "http://squid:3128;DIRECT"

[repositories."images.example.org"]
urls = ["http://one.example.org/cvmfs/images.example.org", "http://two.example.org/cvmfs/images.example.org"]
keys = ["/etc/mica/keys/images.example.org.pub"]

[repositories."other.example.org"]
urls = ["/srv/cvmfs/other.example.org"]
keys = ["a.pub", "b.pub"]
proxies = "DIRECT"
external_urls = ["http://data.example.org/@fqrn@"]
external_proxies = "http://other:3128"
"""


def load(tmp_path: Path, text: str | bytes) -> NodeConfig:
    path = tmp_path / "config.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path)


def test_everything_at_once(tmp_path: Path) -> None:
    config = load(tmp_path, WHOLE)
    assert config.cache == Path("/var/lib/mica/cache")
    assert config.repositories == {
        "images.example.org": RepositoryLocation(
            "images.example.org",
            (
                "http://one.example.org/cvmfs/images.example.org",
                "http://two.example.org/cvmfs/images.example.org",
            ),
            (Path("/etc/mica/keys/images.example.org.pub"),),
            "http://squid:3128;DIRECT",
        ),
        "other.example.org": RepositoryLocation(
            "other.example.org",
            ("/srv/cvmfs/other.example.org",),
            (Path("a.pub"), Path("b.pub")),
            "DIRECT",
            external_urls=("http://data.example.org/@fqrn@",),
            external_proxies="http://other:3128",
        ),
    }


def test_nothing_is_needed(tmp_path: Path) -> None:
    assert load(tmp_path, "") == NodeConfig()


def test_system_s_configuration_need_not_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mica.config.SYSTEM_CONFIG", tmp_path / "config.toml")
    assert load_config(None) == NodeConfig()
    (tmp_path / "config.toml").write_text('[node]\ncache = "/x"')
    assert load_config(None).cache == Path("/x")


def test_configuration_that_was_asked_for_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read the configuration"):
        load_config(tmp_path / "missing.toml")
    with pytest.raises(UserError, match="Cannot read the configuration"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "paths"), [("", None), ("blacklists = []", ()), ("blacklists = ['/a', '/b']", (Path("/a"), Path("/b")))]
)
def test_blacklists(tmp_path: Path, text: str, paths: tuple[Path, ...] | None) -> None:
    assert load(tmp_path, f"[node]\n{text}").blacklists == paths


def test_limits_of_the_cache(tmp_path: Path) -> None:
    config = load(tmp_path, "[node]\nquota = '1.5T'\nkeep_free = 'none'")
    assert (config.quota_bytes, config.keep_free_bytes) == (3 << 39, 0)
    config = load(tmp_path, "[node]\nquota = '32M'\nkeep_free = '1K'")
    assert (config.quota_bytes, config.keep_free_bytes) == (32 << 20, 1 << 10)
    config = load(tmp_path, "[node]\ncache = '/x'")
    assert (config.quota_bytes, config.keep_free_bytes) == (None, None)


REPOSITORY = '[repositories."a.example.org"]\nurls = ["u"]\nkeys = ["k"]\n'


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("node", "document"),
        (b"\xff", "UTF-8"),
        ("[nodes]", "unknown key 'nodes' at the top"),
        ("node = 1", "'node' has to be a table"),
        ("repositories = []", "'repositories' has to be a table"),
        ("[node]\ncahce = '/x'", "unknown key 'cahce' in [node]; known are blacklists, cache,"),
        ("[node]\nmethod = 'fast'", "'fast' is not a method; known are auto, kernel,"),
        ("[node]\ndeadline_s = 'x'", "'deadline_s' has to be a number from 0 to 86400"),
        ("[node]\ncomplete_mb_s = -1", "'complete_mb_s' has to be a number from 0"),
        ("[node]\nquota = '20 GB'", "'quota': '20 GB' is not a size, such as 20G or 500M"),
        ("[node]\nquota = '0'", "'quota': '0' is not a limit; 'none' removes the limit"),
        ("[node]\nquota = ''", "'quota': '' is not a size"),
        ("[node]\nquota = '31M'", "'quota': '31M' is too small for a cache: it needs at least 32.0 MiB"),
        ("[node]\nkeep_free = 5", "'keep_free' has to be a text"),
        ("[node]\ncache = 1", "'cache' has to be a text"),
        ("[node]\nblacklists = '/x'", "'blacklists' in [node] has to be a list of texts"),
        ("[node]\nproxies = []", "'proxies' has to be a text"),
        ("[repositories]\na = 1", "'a' has to be a table"),
        ('[repositories."a.example.org"]\nkeys = ["k"]', "'urls' in [repositories.\"a.example.org\"]"),
        ('[repositories."a.example.org"]\nurls = ["u"]', "'keys'"),
        ('[repositories."a.example.org"]\nurls = []\nkeys = ["k"]', "'urls'"),
        ('[repositories."a.example.org"]\nurls = "u"\nkeys = ["k"]', "'urls'"),
        ('[repositories."a.example.org"]\nurls = ["u", 1]\nkeys = ["k"]', "'urls'"),
        ("[repositories.'../a']\nurls = ['u']\nkeys = ['k']", "'../a' in [repositories] cannot be the name of a repo"),
        ("[repositories.'']\nurls = ['u']\nkeys = ['k']", "'' in [repositories] cannot be the name of a repository"),
        ("[node]\nproxies = 'http://'", "'proxies' in [node]: 'http://' is not a proxy URL"),
        ("[node]\nproxies = ''", "'proxies' in [node]: The list of proxies is empty"),
        (f"{REPOSITORY}proxies = 'a b'", "'proxies' in [repositories.\"a.example.org\"]: 'a b' is not a proxy URL"),
        (f"{REPOSITORY}external_proxies = ';'", "'external_proxies' in [repositories.\"a.example.org\"]: The list"),
        (f'{REPOSITORY}url = "x"', "unknown key 'url'"),
        (f"{REPOSITORY}proxies = 1", "'proxies' has to be a text"),
        (f"{REPOSITORY}{REPOSITORY}", "wrong"),
    ],
)
def test_wrong_key_is_named(tmp_path: Path, text: str | bytes, word: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"The configuration {tmp_path / 'config.toml'} is wrong: ")
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


PORTAL = '[portal]\nrepository = "a.example.org"\nallow = ["docker.io/*"]\n'


def test_portal(tmp_path: Path) -> None:
    assert load(tmp_path, REPOSITORY).portal is None
    assert load(tmp_path, PORTAL).portal == PortalConfig("a.example.org", ("docker.io/*",))
    text = (
        PORTAL
        + """
        listen = "[::]:5000"
        platforms = ["linux/amd64", "linux/arm64"]
        certificate = "/c.pem"
        users = "/u"
        max_image_gib = 0.5
        patience_s = 10
        conversions = 4
        [portal.upstreams]
        here = "reg.example:5000"
    """
    )
    assert load(tmp_path, text).portal == PortalConfig(
        "a.example.org",
        ("docker.io/*",),
        "[::]:5000",
        ("linux/amd64", "linux/arm64"),
        Path("/c.pem"),
        users=Path("/u"),
        max_image_gib=0.5,
        patience_s=10.0,
        conversions=4,
        upstreams={"here": "reg.example:5000"},
    )


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[portal]", "'repository' is missing in [portal]"),
        ('[portal]\nrepository = "a/b"', "'repository' in [portal]: 'a/b' cannot be the name of a repository"),
        ('[portal]\nrepository = "a.b"', "'allow' in [portal] has to be a list"),
        (f"{PORTAL}colour = 1", "unknown key 'colour' in [portal]"),
        (f"{PORTAL}conversions = 0", "'conversions' has to be a number from 1 to 64"),
        (f"{PORTAL}conversions = true", "'conversions'"),
        (f"{PORTAL}max_image_gib = -1", "'max_image_gib' has to be a number above 0"),
        (f"{PORTAL}recheck_s = 'x'", "'recheck_s'"),
        (f"{PORTAL}users = 3", "'users' has to be a text"),
        (f"{PORTAL}[portal.upstreams]\na = 3", "'a' has to be a text"),
    ],
)
def test_wrong_portal_is_named(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert word in str(caught.value)
