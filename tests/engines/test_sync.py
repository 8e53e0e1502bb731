"""`mica sync` with a real registry: a recipe becomes a repository and pushed thin images, and stays so."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.cli import mica
from tests.support.registry import hanging_up_server, real_registry
from tests.support.tools import need
from tests.unit.oci.samples import make_sample, make_tar, write_layout

pytestmark = pytest.mark.engines
FQRN = "sync.example.org"
_PATIENCE_S = 60


class Site(NamedTuple):
    """A registry that asks for a password to push and pull, a repository, a recipe."""

    host: str
    state: Path
    recipe: Path
    environment: dict[str, str]

    def write(self, *lines: str, head: str = f"version: 1\nuser: user\ncvmfs_repo: {FQRN}") -> None:
        text = "".join(f"  - '{line.replace('HOST', self.host)}'\n" for line in lines)
        output = f"output_format: '$(scheme)://{self.host}/thin/$(image)'"
        self.recipe.write_text(f"{head}\n{output}\ninput:\n{text}")

    def push(self, tag: str, content: bytes) -> None:
        sample = make_sample([make_tar({"etc/name": b"base"}), make_tar({"top": content})])
        layout = write_layout(self.state.parent / f"image-{tag}-{content.decode()}", sample)
        skopeo = [need("skopeo", "skopeo"), "--insecure-policy", "copy", "--dest-tls-verify=false"]
        target = f"docker://{self.host}/team/image:{tag}"
        subprocess.run([*skopeo, "--dest-creds=user:s3cret", f"oci:{layout}", target], check=True, capture_output=True)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "registry").mkdir()
    assert mica(tmp_path / "state", "repo", "create", FQRN, "--storage", tmp_path / "storage").code == 0
    with real_registry(tmp_path / "registry", users={"user": "s3cret"}) as host:
        environment = {
            "DUCC_OUTPUT_REGISTRY_PASS": "s3cret",
            "DUCC_AUTH_REGISTRIES": "ONE",
            "DUCC_ONE_IDENT": host,
            "DUCC_ONE_USER": "user",
            "DUCC_ONE_PASS": "s3cret",
            "REGISTRY_AUTH_FILE": str(tmp_path / "none.json"),
        }
        (tmp_path / "none.json").write_text("{}")
        yield Site(host, tmp_path / "state", tmp_path / "recipe.yaml", environment)


def test_recipe_becomes_a_repository(site: Site, tmp_path: Path) -> None:
    site.push("1.0", b"one")
    site.push("1.1", b"two")
    site.write("http://HOST/team/image:1.*", "http://HOST/team/image:none", "nonsense")
    events = tmp_path / "events"
    outcome = mica(site.state, "sync", site.recipe, "--json", "--notify", events, **site.environment)
    assert outcome.code == 1, outcome.stderr
    told = {one["image"].rpartition(":")[2]: one for one in json.loads(outcome.stdout)["images"]}
    assert [told[name]["status"] for name in ("1.0", "1.1", "none", "nonsense")] == [
        *["converted"] * 2,
        *["failed"] * 2,
    ]
    assert "does not have" in told["none"]["error"]
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert sorted(line["status"] for line in lines) == ["done", "done", "failed", "failed"]
    login = {**site.environment, "MICA_AUTHFILE": str(tmp_path / "none.json")}
    thin = mica(site.state, "inspect", f"docker://{site.host}/thin/team/image:1.1", "--json", **login)
    assert len(json.loads(thin.stdout)["layers"]) == 2
    again = mica(site.state, "sync", site.recipe, **site.environment)
    assert again.code == 1
    assert again.stdout.count("unchanged") == 2
    assert mica(site.state, "repo", "check", FQRN, "--hash").code == 0


def test_loop_notices_changes_and_ends(site: Site) -> None:
    site.push("1", b"one")
    site.write("http://HOST/team/image:1")
    command = [sys.executable, "-m", "mica", "sync", str(site.recipe), "--loop", "--interval", "1", "--json"]
    environment = {**os.environ, **site.environment, "MICA_STATE": str(site.state)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            assert "converted" in _until(process, "converted")
            site.push("1", b"two")
            assert "converted" in _until(process, "converted")
        finally:
            process.send_signal(signal.SIGTERM)
            process.stdout.read()  # type: ignore[union-attr]
            assert process.wait(_PATIENCE_S) == 0


def _until(process: "subprocess.Popen[str]", word: str) -> str:
    assert process.stdout is not None
    deadline_s = time.monotonic() + _PATIENCE_S
    line = ""
    while word not in line and time.monotonic() < deadline_s:
        line = process.stdout.readline()
    return line


def test_bad_recipes_and_silent_registries(site: Site, tmp_path: Path) -> None:
    site.write("x", head=f"version: 1\ncvmfs_repo: {FQRN}\ncolour: red")
    outcome = mica(site.state, "sync", site.recipe)
    assert (outcome.code, outcome.sentence.endswith("it has the unknown key 'colour'.")) == (1, True)
    assert mica(site.state, "sync", tmp_path / "none.yaml").code == 1
    site.write("http://HOST/team/image:1", "ghcr.io/a", "nonsense")
    checked = mica(site.state, "sync", "--check", site.recipe)
    assert (checked.code, "3 lines, 2 wrong" in checked.stdout) == (1, True)
    with hanging_up_server() as silent:
        site.write(f"http://{silent}/a/b:1")
        outcome = mica(site.state, "sync", site.recipe, "--json", **site.environment)
    assert outcome.code == 4, outcome.stderr
    assert "broke off" in json.loads(outcome.stdout)["images"][0]["error"]
    no_password = {**site.environment, "DUCC_AUTH_REGISTRIES": "", "DUCC_OUTPUT_REGISTRY_PASS": ""}
    site.push("1", b"one")
    site.write("http://HOST/team/image:1")
    outcome = mica(site.state, "sync", site.recipe, "--json", **no_password)
    assert outcome.code == 1
    assert "does not let you read" in json.loads(outcome.stdout)["images"][0]["error"]
    assert mica(site.state, "repo", "check", FQRN).code == 0
