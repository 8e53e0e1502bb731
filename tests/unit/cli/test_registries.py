"""Where logins, certificates and mirrors come from."""

import base64
import json
from pathlib import Path

import pytest

from mica.cli.registries import Access, _host_finder, _login_files
from mica.errors import UserError
from mica.oci.auth import Credential
from mica.oci.endpoints import NO_CONFIG
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
    find = _host_finder((tmp_path / "none", tmp_path))
    assert find("reg.example:5000").trust == Trust((tmp_path / "reg.example:5000" / "ca.crt",))
    assert find("port.example:5000").trust == Trust((tmp_path / "port.example_5000_" / "ca.crt",))
    assert [mirror.host for mirror in find("toml.example").mirrors] == ["mirror.example"]
    assert find("empty.example") == find("other.example") == NO_CONFIG
    (tmp_path / "_default").mkdir()
    (tmp_path / "_default" / "hosts.toml").write_text('[host."https://all.example"]')
    assert [mirror.host for mirror in _host_finder((tmp_path,))("other.example").mirrors] == ["all.example"]
