"""An image that is kept in a repository, for a machine that it is not made for; what a conversion tells of itself."""

import json
from pathlib import Path

from tests.support.cli import mica
from tests.support.registry import scripted_registry
from tests.unit.oci.samples import digest_of, make_config, make_sample, make_tar, write_layout

from mica.oci import mediatypes
from mica.oci.models import Descriptor, format_manifest

FQRN = "platform.example.org"


def test_kept_image_is_refused_to_other_platforms(tmp_path: Path) -> None:
    state, tars = tmp_path / "state", [make_tar({"a": b"a"})]
    assert mica(state, "repo", "create", FQRN, "--storage", tmp_path / "storage").code == 0
    for name, architecture in (("one", "amd64"), ("open", "")):
        layout = write_layout(tmp_path / name, make_sample(tars, config=make_config(tars, architecture=architecture)))
        done = mica(state, "convert", f"oci:{layout}", FQRN, "--tag", f"site/{name}:1")
        assert done.code == 0, done.stderr
        assert "thin_image" not in done.stdout, "none was asked for"
        done = mica(state, "convert", f"oci:{layout}", FQRN, "--tag", f"site/{name}:1", "-o", f"oci:{tmp_path}/t:1")
        assert "thin_image" in done.stdout
    assert mica(state, "inspect", "site/one:1").code == 0
    assert mica(state, "inspect", "site/one:1", "--platform", "linux/amd64").code == 0
    refused = mica(state, "inspect", "site/one:1", "--platform", "linux/arm64")
    assert refused.code == 1
    assert f"site/one:1 in {FQRN} is made for linux/amd64, not for linux/arm64." in refused.stderr
    assert mica(state, "inspect", "site/open:1", "--platform", "linux/arm64").code == 0


def test_pattern_leaves_out_what_is_no_image(tmp_path: Path) -> None:
    state, sample = tmp_path / "state", make_sample()
    chart = format_manifest(Descriptor("application/vnd.cncf.helm.config.v1+json", digest_of(b"{}"), 2), ())
    assert mica(state, "repo", "create", FQRN, "--storage", tmp_path / "storage").code == 0
    with scripted_registry() as registry:
        registry.add_blobs({**sample.blobs, digest_of(b"{}"): b"{}"})
        registry.add_manifest("v1", mediatypes.OCI_MANIFEST, sample.blobs[sample.manifest.digest])
        registry.add_manifest("v1-chart", mediatypes.OCI_MANIFEST, chart)
        registry.tags = ["v1", "v1-chart"]
        name = f"docker://{registry.host}/team/image"
        done = mica(state, "convert", f"{name}:v*", FQRN, "--json")
        assert done.code == 0, done.stderr
        assert [one["image"] for one in json.loads(done.stdout)["images"]] == [f"{registry.host}/team/image:v1"]
        assert "v1-chart: left out: " in done.stderr
        assert "is not a container image but" in mica(state, "convert", f"{name}:v1-chart", FQRN).sentence
