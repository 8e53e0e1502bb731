"""From a real registry to a running container: converted once, run by every name a thin image can have."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from tests.support.cli import mica
from tests.support.registry import real_registry
from tests.support.tools import need, need_fuse
from tests.unit.oci.samples import make_sample, make_tar, write_layout

pytestmark = pytest.mark.engines
FQRN = "run.example.org"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """An image of two layers with busybox; the second deletes a file of the first."""
    busybox = Path(need("busybox", "busybox-static")).read_bytes()
    links = {f"bin/{name}": "busybox" for name in ("sh", "cat", "ls", "echo")}
    base = make_tar({"bin/busybox": busybox, "etc/gone": b"gone", "etc/kept": b"kept\n", **links})
    top = make_tar({"etc/.wh.gone": b"", "etc/new": b"new\n"})
    return write_layout(tmp_path / "image", make_sample([executable(base), top]))


def executable(tar: bytes) -> bytes:
    """The same archive with every file executable."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as source, tarfile.open(fileobj=buffer, mode="w") as target:
        for member in source:
            member.mode = 0o755
            target.addfile(member, source.extractfile(member) if member.isfile() else None)
    return buffer.getvalue()


def test_registry_to_container(layout: Path, tmp_path: Path) -> None:
    need_fuse()
    need("runc", "runc")
    skopeo = need("skopeo", "skopeo")
    state, thin = tmp_path / "state", tmp_path / "thin"
    (tmp_path / "registry").mkdir()
    with real_registry(tmp_path / "registry") as host:
        reference = f"{host}/test/busybox:1"
        copy = [skopeo, "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}", f"docker://{reference}"]
        subprocess.run(copy, check=True, capture_output=True)
        assert mica(state, "repo", "create", FQRN, "--storage", tmp_path / "storage").code == 0
        first = mica(state, "convert", f"docker://{reference}", FQRN, "-o", f"oci:{thin}:bb", "--json")
        assert first.code == 0, first.stderr
        again = mica(state, "convert", f"docker://{reference}", FQRN, "-o", f"oci-archive:{thin}.tar:bb", "--json")
        assert again.code == 0, again.stderr
    facts = [json.loads(outcome.stdout) for outcome in (first, again)]
    assert [(one["revision"], one["new_layers"]) for one in facts] == [(2, 2), (2, 0)]
    assert facts[0]["thin_image"] == facts[1]["thin_image"]
    for name in (reference, f"oci:{thin}:bb", str(thin), f"oci-archive:{thin}.tar:bb"):
        outcome = mica(
            state, "run", "-e", "A=b", name, "sh", "-c", "cat /etc/kept /etc/new; ls /etc/gone; echo $A; exit 7"
        )
        assert (outcome.code, outcome.stdout) == (7, "kept\nnew\nb\n"), outcome.stderr
        assert "/etc/gone: No such file" in outcome.stderr
    assert mica(state, "repo", "check", FQRN, "--hash").code == 0
    assert not list((state / "run").iterdir()) or not [p for p in (state / "run").iterdir() if p.is_dir()]


def test_two_conversions_anywhere_are_identical(layout: Path, tmp_path: Path) -> None:
    stored = []
    for turn in ("one", "two"):
        work = tmp_path / turn
        assert mica(work / "state", "repo", "create", FQRN, "--storage", work / "storage").code == 0
        source, output = f"oci:{layout}", f"oci:{work}/thin:bb"
        outcome = mica(work / "state", "convert", source, FQRN, "-t", "a/b:1", "-o", output, "--json")
        assert outcome.code == 0, outcome.stderr
        layers = mica(work / "state", "inspect", output, "--json").stdout
        trees = [layer["url"].split("/", 3)[3].rpartition("/")[0] for layer in json.loads(layers)["layers"]]
        beside = [
            f"{tree.rpartition('/')[0]}/{name}"
            for tree in trees
            for name in mica(work / "state", "repo", "ls", FQRN, f"/{tree.rpartition('/')[0]}").stdout.split()
            if name.startswith(f"{tree.rpartition('/')[2]}.")
        ]
        assert len(beside) == 2 * len(trees), "facts and a metadata image"
        nested = [
            json.loads(mica(work / "state", "repo", "stat", FQRN, f"/{path}", "--json").stdout) for path in beside
        ]
        objects = {path.name for path in (work / "storage/data").rglob("*") if path.name.endswith("C")}
        stored.append((json.loads(outcome.stdout)["thin_image"], [one["object"] for one in nested], objects))
    assert stored[0][:2] == stored[1][:2]
    assert len(stored[0][2] & stored[1][2]) >= 2, "the layers' catalogs have the same digests"
