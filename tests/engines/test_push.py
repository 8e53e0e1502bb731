"""Convert, push and pull back through a real registry with a password and a certificate of its own."""

import base64
import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.certificates import write_certificate
from tests.support.cli import docker2cvmfs, mica
from tests.support.registry import real_registry
from tests.support.tools import need
from tests.unit.oci.samples import make_sample, make_tar, write_layout

pytestmark = pytest.mark.engines
FQRN = "push.example.org"
SAMPLE = make_sample([make_tar({"etc/name": b"first"}), make_tar({"usr/share/x": b"x" * 200_000})])


class Site(NamedTuple):
    """A registry with an image, how commands reach it, and a repository."""

    host: str
    environment: dict[str, str]
    state: Path
    work: Path

    def skopeo(self, *arguments: str) -> str:
        program = need("skopeo", "skopeo")
        command = [program, "--insecure-policy", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    certificate = write_certificate(tmp_path / "server.pem")
    (tmp_path / "registry").mkdir()
    with contextlib.ExitStack() as stack:
        registry = real_registry(tmp_path / "registry", users={"user": "s3cret"}, certificate=certificate)
        host = stack.enter_context(registry)
        certs = tmp_path / "certs.d" / host
        certs.mkdir(parents=True)
        (certs / "ca.crt").write_bytes(certificate.read_bytes())
        logins = {"auths": {host: {"auth": base64.b64encode(b"user:s3cret").decode()}}}
        (tmp_path / "auth.json").write_text(json.dumps(logins))
        environment = {"MICA_CERTS": str(tmp_path / "certs.d"), "MICA_AUTHFILE": str(tmp_path / "auth.json")}
        site = Site(host, environment, tmp_path / "state", tmp_path)
        layout = write_layout(tmp_path / "image", SAMPLE)
        to = ["--dest-creds=user:s3cret", "--dest-tls-verify=false"]
        site.skopeo("copy", *to, f"oci:{layout}", f"docker://{host}/team/image:3.1")
        site.skopeo("copy", *to, f"oci:{layout}", f"docker://{host}/team/image:3.2")
        assert mica(site.state, "repo", "create", FQRN, "--storage", tmp_path / "storage").code == 0
        yield site


def pulled_thin(site: Site, name: str) -> dict[str, object]:
    """`thin.json` of an image, as skopeo and tar see it."""
    target = site.work / "pulled"
    source = f"docker://{site.host}/{name}"
    site.skopeo("copy", "--src-creds=user:s3cret", "--src-tls-verify=false", source, f"dir:{target}")
    (layer,) = json.loads((target / "manifest.json").read_text())["layers"]
    command = ["tar", "-xzOf", str(target / layer["digest"].partition(":")[2]), "thin.json"]
    document: dict[str, object] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return document


def test_convert_and_push_with_tls_and_password(site: Site) -> None:
    source = f"docker://{site.host}/team/image:3.1"
    plan = mica(site.state, "convert", source, FQRN, "--dry-run", "--json", **site.environment)
    assert plan.code == 0, plan.stderr
    told = json.loads(plan.stdout)
    assert told["download_bytes"] == sum(layer.size for layer in SAMPLE.layers)
    assert [layer["state"] for layer in told["layers"]] == ["missing", "missing"]
    first = mica(
        site.state, "convert", source, FQRN, "-o", f"docker://{site.host}/thin/image", "--json", **site.environment
    )
    assert first.code == 0, first.stderr
    second = mica(site.state, "push", f"{site.host}/team/image:3.1", f"{site.host}/thin/again:1", **site.environment)
    assert second.code == 0, second.stderr
    assert json.loads(first.stdout)["thin_image"] in second.stdout, "made of the record, it is the same image"
    third = mica(
        site.state, "push", f"docker://{site.host}/thin/again:1", f"{site.host}/thin/copy:1", **site.environment
    )
    assert third.code == 0, third.stderr
    for name in ("thin/image:3.1", "thin/again:1", "thin/copy:1"):
        thin = pulled_thin(site, name)
        assert [layer["digest"] for layer in thin["layers"]] == [layer.digest[7:] for layer in SAMPLE.layers]  # type: ignore[attr-defined]
    assert mica(site.state, "repo", "check", FQRN, "--hash").code == 0


def test_tags_by_pattern(site: Site) -> None:
    source, output = f"docker://{site.host}/team/image:3.*", f"oci:{site.work}/thin"
    outcome = mica(site.state, "convert", source, FQRN, "-o", output, "--json", **site.environment)
    assert outcome.code == 0, outcome.stderr
    images = json.loads(outcome.stdout)["images"]
    assert [one["image"].rpartition(":")[2] for one in images] == ["3.1", "3.2"]
    assert [one["new_layers"] for one in images] == [2, 0]
    refused = mica(site.state, "convert", source, FQRN, "-t", "a/b:1", **site.environment)
    assert refused.code == 2
    assert "stands for 2 images" in refused.sentence


def test_verbs_of_docker2cvmfs(site: Site) -> None:
    registry = ("--registry", f"https://{site.host}/v2")

    def run(*arguments: str) -> str:
        outcome = docker2cvmfs(site.state, *registry, *arguments, **site.environment)
        assert outcome.code == 0, outcome.stderr
        return outcome.stdout

    assert json.loads(run("manifest", "team/image:3.1")) == json.loads(SAMPLE.blobs[SAMPLE.manifest.digest])
    assert json.loads(run("config", "team/image:3.1")) == SAMPLE.config
    expected = json.loads(run("thin", "team/image:3.1", f"{FQRN}/layers"))
    assert [layer["digest"] for layer in expected["layers"]] == [layer.digest[7:] for layer in SAMPLE.layers]
    assert json.loads(run("pull", "team/image:3.1", FQRN))["new_layers"] == 2
    out = f"{site.host}/thin/made:1"
    assert (
        json.loads(run("make-thin", "-i", "team/image:3.1", "-o", out, "-r", FQRN, "-s", "layers/"))["new_layers"] == 0
    )
    expected["revisions"] = {FQRN: 2}  # known when it is published
    assert pulled_thin(site, "thin/made:1") == expected
    run("push", f"docker://{out}", f"{site.host}/thin/pushed:1")
    assert pulled_thin(site, "thin/pushed:1") == expected


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("convert", "docker://{host}/team/image:none", FQRN), 1, "does not have the manifest"),
        (("convert", "docker://{host}/Team:1", FQRN), 1, "is not an image name"),
        (("convert", "docker://{host}/team/image:9.*", FQRN), 1, "has no tag that matches"),
        (("convert", "docker://{host}/team/image:3.1", "none.example.org"), 1, "There is no repository"),
        (("convert", "docker://{host}/team/image:3.1", FQRN, "-o", "docker://{host}/X:1"), 1, "is not an image name"),
        (("convert", "docker://{host}/team/image:3.1", FQRN, "-o", "nowhere"), 1, "is not oci:DIR"),
        (("push", "docker://{host}/team/image:3.1", "{host}/thin/x:1"), 1, "is an ordinary image"),
        (("push", "oci:{work}/none:1", "{host}/thin/x:1"), 1, "no directory"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(site: Site, arguments: tuple[str, ...], code: int, words: str) -> None:
    filled = [argument.format(host=site.host, work=site.work) for argument in arguments]
    outcome = mica(site.state, *filled, **site.environment)
    assert outcome.code == code, outcome.stderr
    assert words in outcome.sentence
    assert "s3cret" not in outcome.stderr


def test_missing_and_wrong_passwords_and_certificates_are_named(site: Site) -> None:
    source = f"docker://{site.host}/team/image:3.1"
    empty, wrong = site.work / "empty.json", site.work / "wrong.json"
    empty.write_text("{}")
    login = base64.b64encode(b"user:wr0ng").decode()
    wrong.write_text(json.dumps({"auths": {site.host: {"auth": login}}}))
    for changes, words in (
        ({"MICA_AUTHFILE": str(empty)}, "does not let you read"),
        ({"MICA_AUTHFILE": str(wrong)}, "does not let you read"),
        ({"MICA_AUTHFILE": "/nonexistent"}, "Cannot read the logins"),
    ):
        outcome = mica(site.state, "convert", source, FQRN, **{**site.environment, **changes})
        assert outcome.code == 1
        assert words in outcome.sentence
        assert "wr0ng" not in outcome.stderr
    (site.work / "certs.d" / site.host / "ca.crt").write_bytes(write_certificate(site.work / "x.pem").read_bytes())
    outcome = mica(site.state, "convert", source, FQRN, **site.environment)
    assert outcome.code == 1
    assert "not trusted here" in outcome.sentence
    assert mica(site.state, "repo", "check", FQRN).code == 0
