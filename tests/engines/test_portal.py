"""Real clients pull on demand: each makes the portal convert, or gets what it made."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.certificates import write_certificate
from tests.support.cli import mica
from tests.support.podmans import podman_in
from tests.support.registry import real_registry
from tests.support.tools import need, need_root
from tests.unit.oci.samples import make_sample, make_tar, write_layout

pytestmark = pytest.mark.engines
FQRN = "portal.example.org"
SAMPLE = make_sample([make_tar({"etc/name": b"first"}), make_tar({"usr/share/x": b"x" * 200_000})])
_PATIENCE_S = 60


class Site(NamedTuple):
    """A portal, the registry behind it, and a directory for clients."""

    host: str
    upstream: str
    work: Path

    @property
    def image(self) -> str:
        return f"{self.host}/here/team/image:1"


def run(command: list[str], **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def portal(work: Path, upstream: str, more: str = "") -> Iterator[str]:
    """HOST:PORT of `mica portal`."""
    config = work / "config.toml"
    upstreams = f'[portal.upstreams]\nhere = "{upstream}"\n'
    config.write_text(f'[portal]\nrepository = "{FQRN}"\nallow = ["here/team/*"]\nrecheck_s = 0\n{more}\n{upstreams}')
    command = [sys.executable, "-m", "mica", "portal", "--config", str(config), "--listen", "127.0.0.1:0"]
    environment = {**os.environ, "MICA_STATE": str(work / "state")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip().partition("://")[2]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(_PATIENCE_S) == 0


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "registry").mkdir()
    assert mica(tmp_path / "state", "repo", "create", FQRN, "--storage", tmp_path / "storage").code == 0
    with real_registry(tmp_path / "registry") as host:
        layout = write_layout(tmp_path / "image", SAMPLE)
        skopeo = need("skopeo", "skopeo")
        copy = [skopeo, "--insecure-policy", "copy", "--dest-tls-verify=false"]
        run([*copy, f"oci:{layout}", f"docker://{host}/team/image:1"])
        yield host


@pytest.fixture
def site(tmp_path: Path, upstream: str) -> Iterator[Site]:
    with portal(tmp_path, upstream) as host:
        yield Site(host, upstream, tmp_path)


def revision(site: Site) -> int:
    listed = json.loads(mica(site.work / "state", "repo", "history", FQRN, "--json").stdout)
    return max(one["revision"] for one in (listed if isinstance(listed, list) else listed["tags"]))


def test_skopeo_copies_and_the_image_runs_nowhere_else(site: Site) -> None:
    target = site.work / "copy"
    skopeo = [need("skopeo", "skopeo"), "--insecure-policy"]
    run([*skopeo, "copy", "--src-tls-verify=false", f"docker://{site.image}", f"oci:{target}:thin"])
    told = json.loads(mica(site.work / "state", "inspect", f"oci:{target}:thin", "--json").stdout)
    assert [layer["digest"] for layer in told["layers"]] == [layer.digest[7:] for layer in SAMPLE.layers]
    assert told["config"]["config"] == SAMPLE.config["config"]
    assert mica(site.work / "state", "repo", "check", FQRN, "--hash").code == 0


def test_ten_clients_at_once_are_one_conversion(site: Site) -> None:
    before = revision(site)
    skopeo = [need("skopeo", "skopeo"), "--insecure-policy", "inspect", "--tls-verify=false", f"docker://{site.image}"]
    digests: list[str] = []
    threads = [threading.Thread(target=lambda: digests.append(json.loads(run(skopeo))["Digest"])) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 10
    assert len(set(digests)) == 1
    assert revision(site) == before + 1


def test_podman_pulls(site: Site) -> None:
    with podman_in(site.work) as podman:
        told = podman.pull(site.image)
    assert told["Config"]["Cmd"] == SAMPLE.config["config"]["Cmd"]
    assert len(told["RootFS"]["Layers"]) == 1


@contextlib.contextmanager
def daemon(command: list[str], work: Path, socket: Path) -> Iterator[None]:
    with (
        (work / "daemon.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            deadline_s = time.monotonic() + _PATIENCE_S
            while not socket.exists() and process.poll() is None and time.monotonic() < deadline_s:
                time.sleep(0.05)
            assert socket.exists(), (work / "daemon.log").read_text()
            yield
        finally:
            process.terminate()


def test_containerd_pulls(site: Site, tmp_path: Path) -> None:
    need_root()
    containerd = need("containerd", "containerd")
    socket = tmp_path / "c.sock"
    config = tmp_path / "containerd.toml"
    config.write_text(f"""
        version = 2
        root = "{tmp_path}/c-root"
        state = "{tmp_path}/c-state"
        disabled_plugins = ["io.containerd.grpc.v1.cri"]
        [grpc]
        address = "{socket}"
        [ttrpc]
        address = "{tmp_path}/t.sock"
    """)
    ctr = [str(Path(containerd).with_name("ctr")), "--address", str(socket)]
    with daemon([containerd, "--config", str(config)], tmp_path, socket):
        run([*ctr, "images", "pull", "--plain-http", "--snapshotter=native", site.image])
        listed = run([*ctr, "images", "list"])
    assert site.image in listed
    assert "application/vnd.oci.image.manifest.v1+json" in listed


def test_docker_pulls(site: Site, tmp_path: Path) -> None:
    need_root()
    dockerd = need("dockerd", "docker.io")
    need("containerd", "containerd")
    socket = tmp_path / "d.sock"
    command = [
        dockerd, f"--host=unix://{socket}", f"--data-root={tmp_path}/d-root", f"--exec-root={tmp_path}/d-exec",
        f"--pidfile={tmp_path}/d.pid", "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false",
        "--storage-driver=vfs", f"--config-file={tmp_path}/d.json",
    ]  # fmt: skip
    (tmp_path / "d.json").write_text("{}")
    client = Path(dockerd).parents[1] / "bin" / "docker"
    docker = [str(client), f"--host=unix://{socket}"]
    with daemon(command, tmp_path, socket):
        run([*docker, "pull", site.image])
        (told,) = json.loads(run([*docker, "image", "inspect", site.image]))
    assert told["Config"]["Cmd"] == SAMPLE.config["config"]["Cmd"]
    assert len(told["RootFS"]["Layers"]) == 1


def test_tls_and_password(tmp_path: Path, upstream: str) -> None:
    certificate = write_certificate(tmp_path / "portal.pem")
    users = tmp_path / "users"
    users.write_text("user:s3cret\n")
    users.chmod(0o600)
    skopeo = [need("skopeo", "skopeo"), "--insecure-policy", "inspect"]
    with portal(tmp_path, upstream, f'certificate = "{certificate}"\nusers = "{users}"') as host:
        certs = tmp_path / "certs"
        certs.mkdir()
        (certs / "ca.crt").write_bytes(certificate.read_bytes())
        image = f"docker://{host}/here/team/image:1"
        told = run([*skopeo, f"--cert-dir={certs}", "--creds=user:s3cret", image])
        assert json.loads(told)["Digest"].startswith("sha256:")
        refused = subprocess.run([*skopeo, f"--cert-dir={certs}", "--no-creds", image], capture_output=True, text=True)
    assert refused.returncode != 0
    assert "authentication required" in refused.stderr or "Log in" in refused.stderr or "401" in refused.stderr


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("", "has no [portal]"),
        ('[portal]\nrepository = "none.example.org"\nallow = ["*"]', "There is no repository none.example.org"),
        (f'[portal]\nrepository = "{FQRN}"\nallow = ["*"]\nusers = "/dev/null"', "can be read by others"),
        (f'[portal]\nrepository = "{FQRN}"\nallow = ["*"]\ncertificate = "/nonexistent"', "cannot be used"),
        (f'[portal]\nrepository = "{FQRN}"\nallow = ["*"]\nlisten = "x"', "is not HOST:PORT"),
    ],
)
def test_bad_configurations_are_one_sentence(tmp_path: Path, config: str, words: str) -> None:
    assert mica(tmp_path / "state", "repo", "create", FQRN, "--storage", tmp_path / "storage").code == 0
    (tmp_path / "c.toml").write_text(config)
    outcome = mica(tmp_path / "state", "portal", "--config", tmp_path / "c.toml")
    assert outcome.code in {1, 2}
    assert words in outcome.sentence
