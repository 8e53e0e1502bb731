"""An image is converted from a registry that wants TLS and a password, its thin image pushed there, pulled and run."""

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.certificates import write_certificate
from tests.support.cli import mica
from tests.support.dockers import base_layers, driven_engine, short_directory
from tests.support.nodes import Publication, served
from tests.support.podmans import podman_in
from tests.support.registry import real_registry
from tests.support.tools import need, need_root
from tests.unit.oci.samples import make_sample, write_layout

pytestmark = pytest.mark.engines
FQRN = "pushed.example.org"
_USER, _PASSWORD = "user", "s3cret"


@pytest.fixture
def work() -> Iterator[Path]:
    need_root()
    with short_directory() as work:
        yield work


@pytest.fixture
def host(work: Path) -> Iterator[str]:
    """HOST:PORT of a registry with an image."""
    certificate = write_certificate(work / "server.pem")
    (work / "registry").mkdir()
    with real_registry(work / "registry", users={_USER: _PASSWORD}, certificate=certificate) as host:
        layout = write_layout(work / "image", make_sample(base_layers()))
        skopeo("copy", f"--dest-creds={_USER}:{_PASSWORD}", "--dest-tls-verify=false", f"oci:{layout}",
               f"docker://{host}/team/image:1")  # fmt: skip
        (work / "certs.d" / host).mkdir(parents=True)
        (work / "certs.d" / host / "ca.crt").write_bytes(certificate.read_bytes())
        yield host


def skopeo(*arguments: str) -> str:
    command = [need("skopeo", "skopeo"), "--insecure-policy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def converted(work: Path, host: str) -> Publication:
    """The image in a repository, and its thin image in the registry."""
    login = {"auth": base64.b64encode(f"{_USER}:{_PASSWORD}".encode()).decode()}
    (work / "auth.json").write_text(json.dumps({"auths": {host: login}}))
    state, thin = work / "state", f"docker://{host}/thin/image:1"
    assert mica(state, "repo", "create", FQRN, "--storage", work / "www" / FQRN).code == 0
    done = mica(
        state, "convert", f"docker://{host}/team/image:1", FQRN, "-o", thin,
        MICA_CERTS=str(work / "certs.d"), MICA_AUTHFILE=str(work / "auth.json"),
    )  # fmt: skip
    assert done.code == 0, done.stderr
    return Publication(state, work / "www", thin, {}, FQRN)


def test_a_pushed_thin_image_is_pulled_by_everyone_and_runs(work: Path, host: str) -> None:
    publication = converted(work, host)
    thin, ordinary = f"{host}/thin/image:1", f"{host}/team/image:1"
    credentials = f"{_USER}:{_PASSWORD}"
    told = json.loads(skopeo("inspect", "--config", f"--creds={credentials}", "--tls-verify=false", f"docker://{thin}"))
    with podman_in(work) as podman:
        assert podman.pull(thin, f"--creds={credentials}")["RootFS"]["Layers"] == told["rootfs"]["diff_ids"]
    with served(publication) as image, driven_engine(work, image) as (_, docker):
        docker.fails("pull", thin)
        docker("login", "--username", _USER, "--password-stdin", host, stdin=_PASSWORD.encode())
        for name in (thin, ordinary):
            docker("pull", name)
        assert json.loads(docker.inspect(thin, "{{json .RootFS.Layers}}")) == told["rootfs"]["diff_ids"]
        assert docker.run(thin, "cat", "/data/1") == "replaced"
        assert docker.tree(thin) == docker.tree(ordinary)
