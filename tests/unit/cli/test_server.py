"""`mica server init` and `bundle`: everything below one directory, and nothing replaced unasked."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.support.cli import Outcome, mica
from tests.support.webserver import serving

FQRN = "images.example.org"
URL = f"http://server.example.org/cvmfs/{FQRN}"


def server(base: Path, *arguments: str | Path) -> Outcome:
    return mica(base / "state", "server", *arguments)


def init(base: Path, *options: str | Path) -> dict[str, Any]:
    done = server(base, "init", FQRN, "--url", URL, "--json", *options)
    assert done.code == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A repository with its server's files."""
    init(tmp_path, "--storage", tmp_path / "www")
    return tmp_path


def test_everything_is_below_the_directory_that_it_names(tmp_path: Path) -> None:
    facts = init(tmp_path, "--storage", tmp_path / "www")
    directory = tmp_path / "state/server"
    assert facts["directory"] == str(directory)
    assert {Path(path).relative_to(directory).parts[0] for path in facts["written"]} == {
        "nginx", "apache", "systemd", "clients",
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"state", "www"}
    assert (tmp_path / "www/.cvmfspublished").exists()
    for key in ("public_key", "master_key", "bundle"):
        assert Path(facts[key]).exists(), key
    assert facts["run_on_a_node"]["at_once"][1].startswith(f"mica mount {FQRN} /mnt --url {URL} --key ")
    for path in directory.rglob("*"):
        assert path.stat().st_mode & 0o007 in {0o004, 0o005}, "others may read all of it"
        assert b"PRIVATE" not in (path.read_bytes() if path.is_file() else b"")


def test_again_it_writes_nothing(base: Path) -> None:
    facts = init(base)
    assert (facts["written"], facts["kept"]) == ([], [])


def test_what_was_changed_is_kept_and_named(base: Path) -> None:
    site = base / "state/server/nginx/mica-server.example.org.conf"
    former = site.read_text()
    site.write_text("# with TLS\n")
    done = server(base, "init", FQRN)
    assert done.code == 0
    assert done.stderr == f"mica: {site} has other content and was kept; --replace replaces it\n"
    assert site.read_text() == "# with TLS\n"
    facts = init(base, "--replace")
    assert (facts["written"], facts["kept"]) == ([str(site)], [])
    assert site.read_text() == former
    assert site.with_name(f"{site.name}.old").read_text() == "# with TLS\n"


@pytest.mark.parametrize(("name", "site"), [("nginx", "nginx/conf.d"), ("apache", "apache2/sites-enabled")])
def test_installing_puts_the_site_and_the_timers_where_they_are_read(base: Path, name: str, site: str) -> None:
    facts = init(base, "--install", name, "--etc", base / "etc")
    names = {str(path.relative_to(base / "etc")) for path in (base / "etc").rglob("*") if path.is_file()}
    assert names == {
        f"{site}/mica-server.example.org.conf",
        *(f"systemd/system/{unit}" for unit in os.listdir(base / "state/server/systemd")),
    }
    assert f"systemctl enable --now mica-resign@{FQRN}.timer mica-server-status.timer" in facts["run_here"]


def test_two_repositories_share_a_site(base: Path) -> None:
    other = server(
        base, "init", "two.example.org", "--storage", base / "two", "--url", "http://server.example.org/cvmfs/@fqrn@",
        "--json",
    )  # fmt: skip
    assert other.code == 0, other.stderr
    facts = json.loads(other.stdout)
    assert facts["urls"] == ["http://server.example.org/cvmfs/two.example.org"]
    assert facts["kept"] == []
    place = base / "state/server/nginx"
    assert sorted(os.listdir(place)) == ["mica-server.example.org", "mica-server.example.org.conf"]
    assert sorted(os.listdir(place / "mica-server.example.org")) == [f"{FQRN}.conf", "two.example.org.conf"]


def test_a_repository_that_exists_gets_its_files(tmp_path: Path) -> None:
    assert mica(tmp_path / "state", "repo", "create", FQRN, "--storage", tmp_path / "www").code == 0
    before = (tmp_path / "www/.cvmfspublished").read_bytes()
    assert init(tmp_path)["written"]
    assert (tmp_path / "www/.cvmfspublished").read_bytes() == before
    done = server(tmp_path, "init", FQRN, "--storage", tmp_path / "elsewhere")
    assert (done.code, done.sentence) == (
        1, f"Repository {FQRN} exists and has another storage, {tmp_path / 'www'}.",
    )  # fmt: skip
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        ((), 2, "Give the storage"),
        (("--storage", "s", "--url", "server/x"), 1, "is not the URL of a repository"),
        (("--storage", "s", "--install", "lighttpd"), 2, "is not one of nginx, apache"),
    ],
)
def test_what_is_wrong_makes_nothing(tmp_path: Path, options: tuple[str, ...], code: int, word: str) -> None:
    done = server(tmp_path, "init", FQRN, *options)
    assert (done.code, word in done.sentence) == (code, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_bundle_follows_the_keys(base: Path) -> None:
    away, clients = base / "away", base / "state/server/clients" / FQRN
    away.mkdir()
    assert mica(base, "key", "new", away / "next.masterkey").code == 0
    done = mica(base / "state", "repo", "resign", FQRN, "--next-key", away / "next.pub")
    assert done.code == 0, done.stderr
    done = server(base, "bundle", FQRN, "--json")
    assert json.loads(done.stdout)["public_keys"] == [f"{FQRN}.pub", f"{FQRN}.next.pub"]
    assert (clients / f"{FQRN}.next.pub").read_bytes() == (away / "next.pub").read_bytes()
    done = mica(base / "state", "repo", "resign", FQRN, "--master-key", away / "next.masterkey")
    assert done.code == 0, done.stderr
    done = server(base, "bundle", FQRN)
    assert done.code == 0, done.stderr
    assert [path.name for path in clients.glob("*.pub")] == [f"{FQRN}.pub"]
    assert (clients / f"{FQRN}.pub").read_bytes() == (away / "next.pub").read_bytes()


def test_a_bundle_needs_a_url_once(tmp_path: Path) -> None:
    assert mica(tmp_path / "state", "repo", "create", FQRN, "--storage", tmp_path / "www").code == 0
    done = server(tmp_path, "bundle", FQRN)
    assert (done.code, done.sentence) == (1, f"It is not known where clients find {FQRN}.")
    assert server(tmp_path, "bundle", FQRN, "--url", URL).code == 0
    assert server(tmp_path, "bundle", FQRN).code == 0


def test_the_status_of_what_is_published_here(tmp_path: Path) -> None:
    empty = server(tmp_path, "status")
    assert (empty.code, empty.stdout) == (0, "No repository is published here.\n")
    config = tmp_path / "config.toml"
    config.write_text('[server]\nfree = "none"\nfree_warn = "none"\n')
    for name in ("one.example.org", "two.example.org"):
        assert mica(tmp_path / "state", "repo", "create", name, "--storage", tmp_path / name).code == 0
    done = server(tmp_path, "status", "--config", config)
    assert (done.code, done.stdout.count(" ok ")) == (0, 2), done.stdout + done.stderr
    # Warnings leave the exit code 0, what is unhealthy does not.
    config.write_text('[server]\nfree = "none"\nfree_warn = "4000P"\n')
    done = server(tmp_path, "status", "--config", config)
    assert (done.code, done.stdout.count("\nwarning: ")) == (0, 2)
    config.write_text('[server]\nfree = "none"\nfree_warn = "none"\nwhitelist = "40d"\nwhitelist_warn = "40d"\n')
    done = server(tmp_path, "status", "two.example.org", "--config", config, "--json")
    (facts,) = json.loads(done.stdout)
    assert (done.code, facts["repository"], facts["health"]) == (1, "two.example.org", "unhealthy")
    assert [finding["check"] for finding in facts["findings"]] == ["whitelist"]
    unknown = server(tmp_path, "status", "three.example.org")
    assert (unknown.code, unknown.sentence) == (
        1, f"There is no repository three.example.org under {tmp_path / 'state'}.",
    )  # fmt: skip


def test_one_that_cannot_be_opened_does_not_hide_the_others(tmp_path: Path) -> None:
    for name in ("one.example.org", "two.example.org"):
        assert mica(tmp_path / "state", "repo", "create", name, "--storage", tmp_path / name).code == 0
    (tmp_path / "state/repositories/one.example.org/repository.toml").write_text("")
    done = server(tmp_path, "status", "--json")
    assert done.code == 1
    first, second = json.loads(done.stdout)
    assert [finding["check"] for finding in first["findings"]] == ["settings"]
    assert second["revision"] == 1


def test_replicas_of_the_configuration_are_asked(tmp_path: Path) -> None:
    name = "one.example.org"
    assert mica(tmp_path / "state", "repo", "create", name, "--storage", tmp_path / "www/cvmfs" / name).code == 0
    config = tmp_path / "config.toml"
    with serving(tmp_path / "www") as replica:
        config.write_text(
            '[server]\nfree = "none"\nfree_warn = "none"\n'
            f'[server.replicas]\n"{name}" = ["{replica.url}/cvmfs/@fqrn@"]\n'
        )
        done = server(tmp_path, "status", "--config", config, "--json")
        (facts,) = json.loads(done.stdout)
        assert (done.code, [one["revision"] for one in facts["replicas"]]) == (0, [1]), done.stdout
        gone = server(tmp_path, "status", "--config", config, "--replica", f"{replica.url}/other")
        assert (gone.code, f"{replica.url}/other: " in gone.stdout) == (1, True)
        assert " 1 of 2 up to date " in gone.stdout


def test_the_status_tells_of_the_queue(base: Path) -> None:
    config = base / "config.toml"
    config.write_text(f"[workers]\nqueue = 'sqlite:///{base}/queue.db'\n")
    (facts,) = json.loads(server(base, "status", "--config", config, "--json").stdout)
    assert facts["queue"] == {}
    config.write_text(f"[workers]\nqueue = 'sqlite:///{base}/config.toml/queue.db'\n")
    done = server(base, "status", "--config", config, "--json")
    (facts,) = json.loads(done.stdout)
    assert done.code == 1
    assert [finding["level"] for finding in facts["findings"] if finding["check"] == "queue"] == ["unhealthy"]
