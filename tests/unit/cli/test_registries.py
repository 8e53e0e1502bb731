"""Where logins, certificates and mirrors come from."""

import base64
import functools
import json
from pathlib import Path

import pytest

from mica.cli.registries import Access, _find_host, _login_files
from mica.errors import UserError
from mica.oci.auth import Credential
from mica.oci.endpoints import NO_CONFIG
from mica.oci.reference import Reference
from mica.oci.transport import Trust


def login(user: str) -> dict[str, object]:
    return {"auth": base64.b64encode(f"{user}:pw".encode()).decode()}


def write(path: Path, logins: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": logins}))
    return path


def home(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}


def test_logins_of_podman_and_docker_are_found(tmp_path: Path) -> None:
    write(tmp_path / ".docker" / "config.json", {"a.example": login("docker"), "b.example": login("docker")})
    write(tmp_path / "run" / "containers" / "auth.json", {"a.example": login("podman")})
    find = Access().options(home(tmp_path)).find_credential
    assert find("a.example") == Credential("podman", "pw")
    assert find("b.example") == Credential("docker", "pw")
    assert find("c.example") is None


def test_one_file_instead_of_all(tmp_path: Path) -> None:
    own = write(tmp_path / "own.json", {"a.example": login("own")})
    write(tmp_path / ".docker" / "config.json", {"b.example": login("docker")})
    assert _login_files(None, {**home(tmp_path), "REGISTRY_AUTH_FILE": str(own)}) == [own]
    find = Access(authfile=own).options(home(tmp_path)).find_credential
    assert (find("a.example"), find("b.example")) == (Credential("own", "pw"), None)
    moved = write(tmp_path / "moved" / "config.json", {"b.example": login("moved")})
    find = Access().options({**home(tmp_path), "DOCKER_CONFIG": str(moved.parent)}).find_credential
    assert find("b.example") == Credential("moved", "pw")


def test_logins_of_the_environment_come_first(tmp_path: Path) -> None:
    stated = {"DUCC_AUTH_REGISTRIES": "A", "DUCC_A_IDENT": "a.example", "DUCC_A_USER": "u", "DUCC_A_PASS": "p"}
    assert Access().options({**home(tmp_path), **stated}).find_credential("a.example") == Credential("u", "p")
    by_namespace = {**stated, "DUCC_A_IDENT": "a.example/team"}
    find = Access().options({**home(tmp_path), **by_namespace}).find_credential
    assert (find("a.example/team/x"), find("a.example/x")) == (Credential("u", "p"), None)
    with pytest.raises(UserError, match="names 'B'"):
        Access().options({**home(tmp_path), "DUCC_AUTH_REGISTRIES": "B"})


@pytest.mark.parametrize("content", ["s3cret", "[]", '{"auths": "s3cret"}', "\0" * 10])
def test_broken_files_are_named_without_their_content(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError) as caught:
        Access(authfile=tmp_path / "x.json").options(home(tmp_path)).find_credential("a.example")
    assert "s3cret" not in str(caught.value)


def test_file_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="larger than 1 MiB"):
        Access(authfile=tmp_path / "x.json").options(home(tmp_path)).find_credential("a.example")


def test_directories_of_certificates(tmp_path: Path) -> None:
    for name in ("reg.example:5000", "port.example_5000_", "toml.example", "empty.example"):
        (tmp_path / name).mkdir()
    (tmp_path / "reg.example:5000" / "ca.crt").write_text("x")
    (tmp_path / "port.example_5000_" / "ca.crt").write_text("x")
    (tmp_path / "toml.example" / "hosts.toml").write_text('[host."https://mirror.example"]')
    find = functools.partial(_find_host, (tmp_path / "none", tmp_path))
    assert find("reg.example:5000").trust == Trust((tmp_path / "reg.example:5000" / "ca.crt",))
    assert find("port.example:5000").trust == Trust((tmp_path / "port.example_5000_" / "ca.crt",))
    assert [mirror.host for mirror in find("toml.example").mirrors] == ["mirror.example"]
    assert find("toml.example:5000") == NO_CONFIG, "another port is another registry"
    assert find("empty.example") == find("other.example") == NO_CONFIG
    (tmp_path / "_default").mkdir()
    (tmp_path / "_default" / "hosts.toml").write_text('[host."https://all.example"]')
    assert [mirror.host for mirror in _find_host((tmp_path,), "other.example").mirrors] == ["all.example"]


PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("environment", "url", "expected"),
    [
        ({"HTTPS_PROXY": PROXY}, "https://a.example/v2/", PROXY),
        ({"https_proxy": PROXY}, "https://a.example/v2/", PROXY),
        ({"HTTPS_PROXY": PROXY, "https_proxy": "http://other"}, "https://a.example/v2/", PROXY),
        ({"HTTP_PROXY": PROXY}, "https://a.example/v2/", ""),
        ({"http_proxy": "proxy.example:3128"}, "http://a.example/v2/", PROXY),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "a.example"}, "https://a.example/v2/", ""),
        ({"HTTPS_PROXY": PROXY, "no_proxy": "b.example"}, "https://a.example/v2/", PROXY),
        ({}, "https://a.example/v2/", ""),
    ],
)
def test_proxies_of_the_environment(tmp_path: Path, environment: dict[str, str], url: str, expected: str) -> None:
    (tmp_path / "none.toml").write_text("")
    access = Access(config=tmp_path / "none.toml")
    assert access.options({**home(tmp_path), **environment}).transport.proxies.proxy_of(url) == expected


def test_proxies_of_the_configuration_come_first(tmp_path: Path) -> None:
    stated = {**home(tmp_path), "HTTPS_PROXY": "http://other.example", "NO_PROXY": "a.example"}

    def proxy(text: str, *, named: bool) -> str:
        config = tmp_path / "config.toml"
        config.write_text(f"[registries]\n{text}")
        environment = stated if named else {**stated, "MICA_CONFIG": str(config)}
        options = Access(config=config if named else None).options(environment)
        return options.transport.proxies.proxy_of("https://a.example/v2/")

    for named in (True, False):
        assert proxy(f"proxy = '{PROXY}'\nno_proxy = ''", named=named) == PROXY
        assert proxy(f"proxy = '{PROXY}'", named=named) == "", "the environment says what is left out"
        assert proxy("no_proxy = 'b.example'", named=named) == "http://other.example"
        assert proxy("proxy = 'DIRECT'\nno_proxy = ''", named=named) == ""
    with pytest.raises(UserError, match=r"'proxy' in \[registries\] is not the address"):
        proxy("proxy = 'socks5://a:1'", named=True)


def registries_conf(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def location(prefix: str, location: str) -> str:
    return f"[[registry]]\nprefix = '{prefix}'\nlocation = '{location}'\n"


def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, **environment: str) -> list[str]:
    """Where an image is asked for, with a system's files of the test's own."""
    monkeypatch.setattr("mica.cli.registries._SYSTEM_REGISTRIES_CONF", tmp_path / "etc" / "registries.conf")
    (tmp_path / "certs").mkdir(exist_ok=True)
    options = Access(certs=tmp_path / "certs").options({**home(tmp_path), **environment})
    found = options.find_hosts(Reference.parse(name))
    return [one.host for one in (*found.mirrors, *([found.server] if found.server else []))]


def test_files_of_registries_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As containers-registries.conf(5) has it: the user's file takes the place of the system's and its drop-ins."""

    def ask(name: str, **environment: str) -> list[str]:
        return servers(tmp_path, monkeypatch, f"{name}/x:1", **environment)

    assert ask("a.example") == []
    registries_conf(tmp_path / "etc/registries.conf", location("a.example", "system.example"))
    registries_conf(tmp_path / "etc/registries.conf.d/20.conf", location("b.example", "second.example"))
    registries_conf(tmp_path / "etc/registries.conf.d/10.conf", location("b.example", "first.example"))
    registries_conf(tmp_path / "etc/registries.conf.d/30.other", "no TOML")
    user = tmp_path / ".config/containers/registries.conf"
    registries_conf(Path(f"{user}.d/x.conf"), location("c.example", "user.example"))
    assert [ask(name) for name in ("a.example", "b.example", "c.example")] == [
        ["system.example"], ["second.example"], ["user.example"],
    ]  # fmt: skip
    named = registries_conf(tmp_path / "named.conf", location("a.example", "named.example"))
    assert [ask(name, CONTAINERS_REGISTRIES_CONF=str(named)) for name in ("a.example", "b.example")] == [
        ["named.example"], ["second.example"],
    ]  # fmt: skip
    registries_conf(user, "")
    assert [ask(name) for name in ("a.example", "b.example", "c.example")] == [[], [], ["user.example"]]
    with pytest.raises(UserError, match=r"none\.conf"):
        ask("a.example", CONTAINERS_REGISTRIES_CONF=str(tmp_path / "none.conf"))
    registries_conf(user, "x = ")
    with pytest.raises(UserError, match=rf"{user} is wrong"):
        ask("a.example")


def test_hosts_toml_comes_before_registries_conf_and_certificates_count_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registries_conf(
        tmp_path / "etc/registries.conf", location("a.example", "m.example") + location("b.example", "m.example")
    )
    registries_conf(tmp_path / "certs/a.example/hosts.toml", '[host."https://toml.example"]')
    registries_conf(tmp_path / "certs/m.example/ca.crt", "x")
    assert servers(tmp_path, monkeypatch, "a.example/x:1") == ["toml.example"]
    assert servers(tmp_path, monkeypatch, "b.example/x:1") == ["m.example"]
    options = Access(certs=tmp_path / "certs").options(home(tmp_path))
    server = options.find_hosts(Reference.parse("b.example/x:1")).server
    assert server is not None
    assert server.trust == Trust((tmp_path / "certs/m.example/ca.crt",))


def test_what_is_blocked_is_so_whatever_else_is_said_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registries_conf(tmp_path / "etc/registries.conf", "[[registry]]\nlocation = 'a.example'\nblocked = true")
    registries_conf(tmp_path / "certs/a.example/hosts.toml", '[host."https://toml.example"]')
    with pytest.raises(UserError, match=r"registries\.conf blocks"):
        servers(tmp_path, monkeypatch, "a.example/x:1")


def test_short_names_of_registries_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mica.cli.registries._SYSTEM_REGISTRIES_CONF", tmp_path / "none.conf")
    registries_conf(tmp_path / ".config/containers/registries.conf", "[aliases]\napp = 'a.example/team/app'")
    options = Access().options(home(tmp_path))
    assert (options.find_names("app:1"), options.find_names("other")) == (("a.example/team/app:1",), ())


def test_certificates_are_asked_for_in_a_directory_that_is_there(tmp_path: Path) -> None:
    for access, environment in (
        (Access(certs=tmp_path / "missing"), {}), (Access(), {"MICA_CERTS": str(tmp_path / "missing")}),
    ):  # fmt: skip
        with pytest.raises(UserError, match="missing is not a directory of certificates"):
            access.options(environment)
    Access(certs=tmp_path).options({})


def test_messages_know_which_file_of_logins_was_named(tmp_path: Path) -> None:
    assert Access(authfile=tmp_path / "a").options({}).logins == str(tmp_path / "a")
    assert Access().options({"REGISTRY_AUTH_FILE": "/b"}).logins == "/b"
    assert Access().options(home(tmp_path)).logins == ""
