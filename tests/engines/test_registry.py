"""Real registry, real pusher: what skopeo pushes is what we pull, byte for byte."""

import contextlib
import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.certificates import write_certificate
from tests.support.registry import real_registry
from tests.support.tools import need
from tests.unit.oci.samples import make_sample, make_tar, read_all, write_layout

from mica.errors import UserError
from mica.oci import mediatypes
from mica.oci.auth import Credential
from mica.oci.endpoints import parse_certificate_directory
from mica.oci.layoutwriter import LayoutWriter, open_layout_archive_writer
from mica.oci.push import RegistryWriter, copy_image
from mica.oci.reference import Reference
from mica.oci.registry import open_registry
from mica.oci.session import RegistryOptions
from mica.oci.source import SourceOptions, open_image

pytestmark = pytest.mark.engines


def skopeo(*arguments: str) -> str:
    program = need("skopeo", "skopeo")
    done = subprocess.run([program, "--insecure-policy", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pulled(source: str, options: SourceOptions | None = None) -> tuple[str, bytes, list[bytes]]:
    with open_image(source, options=options) as image:
        tars = []
        for layer in image.layers:
            with image.open_layer(layer, 1 << 30) as stream:
                tars.append(read_all(stream, 1 << 16))
        return image.manifest_digest, image.config.raw, tars


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_pull_equals_what_was_pushed(tmp_path: Path, kind: str) -> None:
    sample = make_sample([make_tar({"big": os.urandom(3_000_000)}), make_tar({"small": b"x"})], kind=kind)
    layout = write_layout(tmp_path / "layout", sample)
    with real_registry(tmp_path) as host:
        skopeo("copy", "--dest-tls-verify=false", f"oci:{layout}", f"docker://{host}/team/image:v1")
        digest, config, tars = pulled(f"docker://{host}/team/image:v1")
        by_digest = pulled(f"docker://{host}/team/image@{digest}")
        with open_registry() as client:
            assert client.tags(Reference.parse(f"{host}/team/image")) == ["v1"]
    assert tars == sample.tars
    assert config in sample.blobs.values()
    assert digest == sample.manifest.digest
    assert by_digest == (digest, config, tars)


def test_docker_media_types(tmp_path: Path) -> None:
    sample = make_sample()
    layout = write_layout(tmp_path / "layout", sample)
    with real_registry(tmp_path) as host:
        target = f"docker://{host}/image:v2s2"
        skopeo("copy", "--dest-tls-verify=false", "--format", "v2s2", f"oci:{layout}", target)
        with open_image(target) as image:
            assert image.manifest.media_type == mediatypes.DOCKER_MANIFEST
        assert pulled(target)[2] == sample.tars


def test_pull_with_a_password(tmp_path: Path) -> None:
    sample = make_sample()
    layout = write_layout(tmp_path / "layout", sample)
    with real_registry(tmp_path, users={"user": "s3cret"}) as host:
        target = f"docker://{host}/private:v1"
        skopeo("copy", "--dest-tls-verify=false", "--dest-creds", "user:s3cret", f"oci:{layout}", target)
        with pytest.raises(UserError, match="does not let you read"):
            pulled(target)
        options = SourceOptions(registry=RegistryOptions(find_credential=lambda _: Credential("user", "s3cret")))
        assert pulled(target, options)[2] == sample.tars


def test_skopeo_reads_the_layouts_that_we_write(tmp_path: Path) -> None:
    sample = make_sample()
    layout = LayoutWriter(tmp_path / "layout")
    with open_layout_archive_writer(tmp_path / "image.tar") as archive:
        for writer in (layout, archive):
            for blob in sample.blobs.values():
                writer.put_blob(blob, mediatypes.OCI_LAYER)
            writer.put_image(sample.manifest, tag="v1")
    for source in (f"oci:{tmp_path / 'layout'}:v1", f"oci-archive:{tmp_path / 'image.tar'}:v1"):
        assert json.loads(skopeo("inspect", source))["Digest"] == sample.manifest.digest
        skopeo("copy", source, f"dir:{tmp_path / 'copy'}")


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_archives_that_skopeo_writes(tmp_path: Path, kind: str) -> None:
    sample = make_sample()
    layout = write_layout(tmp_path / "layout", sample)
    skopeo("copy", f"oci:{layout}", f"{kind}:{tmp_path / 'image.tar'}:example/image:v1")
    assert pulled(f"{kind}:{tmp_path / 'image.tar'}:example/image:v1")[2] == sample.tars
    assert pulled(f"{kind}:{tmp_path / 'image.tar'}")[2] == sample.tars


def test_umoci_unpacks_the_layouts_that_we_write(tmp_path: Path) -> None:
    program = need("umoci", "umoci")
    sample = make_sample()
    writer = LayoutWriter(tmp_path / "layout")
    for blob in sample.blobs.values():
        writer.put_blob(blob, mediatypes.OCI_LAYER)
    writer.put_image(sample.manifest, tag="v1")
    arguments = ["unpack", "--rootless", "--image", f"{tmp_path / 'layout'}:v1", str(tmp_path / "bundle")]
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bundle" / "rootfs" / "etc" / "name").read_bytes() == b"first"


def tls_options(certificate: Path) -> RegistryOptions:
    """A registry whose own CA stands in a directory of certificates, and a user of it."""
    directory = certificate.parent / "certs"
    directory.mkdir(exist_ok=True)
    (directory / "ca.crt").write_bytes(certificate.read_bytes())
    config = parse_certificate_directory(["ca.crt"], directory=directory)
    return RegistryOptions(find_credential=lambda _: Credential("user", "s3cret"), find_hosts=lambda _: config)


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 64 << 20], ids=["chunks", "one request"])
def test_push_with_tls_and_password_and_pull_back(tmp_path: Path, chunk_bytes: int) -> None:
    sample = make_sample([make_tar({"big": os.urandom(3_000_000)}), make_tar({"small": b"x"})])
    layout = write_layout(tmp_path / "layout", sample)
    certificate = write_certificate(tmp_path / "server.pem")
    with real_registry(tmp_path, users={"user": "s3cret"}, certificate=certificate) as host:
        options = tls_options(certificate)
        with open_registry(options) as client, open_image(f"oci:{layout}") as image:
            target = Reference.parse(f"{host}/team/image:v1")
            writer = RegistryWriter(client, target, chunk_bytes=chunk_bytes)
            for layer in sample.layers:
                blob = sample.blobs[layer.digest]
                assert writer.copy_blob(layer, lambda blob=blob: contextlib.closing(io.BytesIO(blob)))  # type: ignore[misc]
            assert copy_image(image, client, target).digest == sample.manifest.digest
            # What is in one repository of the registry is mounted into another one.
            other = RegistryWriter(client, Reference.parse(f"{host}/team/other:v1"))
            assert not other.has_blob(sample.layers[0])
            assert not other.copy_blob(sample.layers[0], no_stream, mount_from="team/image")
        assert pulled(f"docker://{host}/team/image:v1", SourceOptions(registry=options))[2] == sample.tars
        told = skopeo("inspect", "--tls-verify=false", "--creds", "user:s3cret", f"docker://{host}/team/image:v1")
    assert json.loads(told)["Digest"] == sample.manifest.digest


@contextlib.contextmanager
def no_stream() -> Iterator[io.BytesIO]:
    """For blobs that must not be sent; opening costs nothing."""
    yield io.BytesIO()
