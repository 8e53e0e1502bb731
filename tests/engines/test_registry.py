"""Real registry, real pusher: what skopeo pushes is what we pull, byte for byte."""

import base64
import contextlib
import dataclasses
import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.certificates import write_certificate
from tests.support.noise import noise
from tests.support.podmans import podman_in
from tests.support.proxy import recording_proxy
from tests.support.registry import Reply, Request, real_registry, scripted_registry
from tests.support.tools import need
from tests.unit.oci.samples import make_sample, make_tar, read_all, write_layout
from tests.unit.oci.test_proxies import NO_PROXY_TABLE
from tests.unit.oci.test_registriesconf import ALIASES, PREFIX_TABLE, blocked, rule

from mica.cli.registries import Access
from mica.errors import MicaError, UserError
from mica.oci import mediatypes
from mica.oci.auth import Credential, basic_header
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
    sample = make_sample([make_tar({"big": noise(3_000_000)}), make_tar({"small": b"x"})], kind=kind)
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
    sample = make_sample([make_tar({"big": noise(3_000_000)}), make_tar({"small": b"x"})])
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


def test_skopeo_takes_the_same_exceptions_from_proxies(tmp_path: Path) -> None:
    """Names that do not exist: what is not asked of the proxy is asked of nobody. Skopeo reads no IPv6 addresses."""
    program = need("skopeo", "skopeo")
    for no_proxy, host, expected in (one for one in NO_PROXY_TABLE if "[" not in one[1]):
        with recording_proxy("127.0.0.1:1") as proxy:
            proxy.status = 502
            environment = {"HTTPS_PROXY": f"http://{proxy.host}", "NO_PROXY": no_proxy, "HOME": str(tmp_path)}
            arguments = ["--command-timeout=3s", "inspect", f"docker://{host}/team/image:v1"]
            done = subprocess.run([program, *arguments], capture_output=True, env=environment, timeout=60)
            assert done.returncode != 0
            assert bool(proxy.asked) is expected, (no_proxy, host)


def skopeo_by(conf: Path, name: str, home: Path) -> str:
    """What skopeo says of an image that it is to look for by a registries.conf; the network is closed to it."""
    program = need("skopeo", "skopeo")
    with recording_proxy("127.0.0.1:1") as proxy:
        proxy.status = 502
        environment = {"HTTPS_PROXY": f"http://{proxy.host}", "HTTP_PROXY": f"http://{proxy.host}", "HOME": str(home)}
        arguments = ["--registries-conf", str(conf), "--command-timeout=20s", "inspect", "--raw", f"docker://{name}"]
        done = subprocess.run([program, *arguments], capture_output=True, text=True, env=environment, timeout=60)
    return done.stderr


def test_skopeo_blocks_the_same_names(tmp_path: Path) -> None:
    for prefix, name, expected in PREFIX_TABLE:
        (tmp_path / "registries.conf").write_text(blocked(prefix))
        told = skopeo_by(tmp_path / "registries.conf", name, tmp_path)
        assert ("blocked" in told) is expected, (prefix, name, told)


DIGEST = make_sample([]).manifest.digest
MIRROR = "[[registry.mirror]]\nlocation = 'HOST/%s'\ninsecure = true\n"
REWRITES = [
    (rule(prefix="a.example", location="HOST/deep", insecure=True), "a.example/team/x:v1"),
    (rule(prefix="a.example/team", location="HOST", insecure=True), f"a.example/team/x@{DIGEST}"),
    (rule(prefix="*.example", location="HOST/cache", insecure=True), "b.a.example/x:v1"),
    (rule(prefix="*.example") + MIRROR % "m", "a.example/x:v1"),
    (rule(prefix="a.example", location="HOST/own", insecure=True) + MIRROR % "one" + MIRROR % "two", "a.example/x:v1"),
    (
        rule(prefix="a.example", location="HOST/own", insecure=True)
        + MIRROR % "digests" + "pull-from-mirror = 'digest-only'\n"
        + MIRROR % "tags" + "pull-from-mirror = 'tag-only'\n",
        "a.example/x:v1",
    ),
    (
        rule(prefix="a.example", location="HOST/own", insecure=True)
        + MIRROR % "digests" + "pull-from-mirror = 'digest-only'\n"
        + MIRROR % "tags" + "pull-from-mirror = 'tag-only'\n",
        f"a.example/x@{DIGEST}",
    ),
    (
        rule(prefix="a.example", location="HOST/own", insecure=True, mirror_by_digest_only=True) + MIRROR % "one",
        "a.example/x:v1",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name"), REWRITES)
def test_skopeo_asks_the_same_places_in_the_same_order(tmp_path: Path, text: str, name: str) -> None:
    """Nobody has the image, so that everybody who might is asked."""
    conf = tmp_path / "registries.conf"
    with scripted_registry() as registry:
        conf.write_text(text.replace("HOST", registry.host))
        skopeo_by(conf, name, tmp_path)
        theirs = registry.paths("/manifests/")
        registry.requests.clear()
        environment = {"CONTAINERS_REGISTRIES_CONF": str(conf), "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
        options = Access(certs=tmp_path).options({**environment, "HTTPS_PROXY": "http://127.0.0.1:1"})
        transport = dataclasses.replace(options.transport, attempts=1)
        with (
            open_registry(dataclasses.replace(options, transport=transport)) as client,
            pytest.raises(MicaError),
        ):
            client.manifest(Reference.parse(name))
        assert registry.paths("/manifests/") == theirs != []


def test_skopeo_takes_the_same_logins_by_namespace(tmp_path: Path) -> None:
    """Who asks is seen by the header; nobody is let in."""
    program = need("skopeo", "skopeo")
    with scripted_registry() as registry:
        registry.password = ("nobody", "x")
        keys = ("", "/ana", "/ana/deep", "/bob/x")
        auths = {f"{registry.host}{key}": {"auth": base64.b64encode(f"u{key}:p".encode()).decode()} for key in keys}
        (tmp_path / "auth.json").write_text(json.dumps({"auths": auths}))
        find = Access(authfile=tmp_path / "auth.json").options({"HOME": str(tmp_path)}).find_credential
        for repository in ("x", "ana/x", "ana/deep/x", "anabel/x", "bob/x", "bob/xy", "bob/x/y"):
            registry.requests.clear()
            arguments = ["inspect", "--tls-verify=false", "--authfile", str(tmp_path / "auth.json"), "--raw"]
            name = f"docker://{registry.host}/{repository}:1"
            subprocess.run([program, *arguments, name], capture_output=True, timeout=60)
            sent = {one.headers["authorization"] for one in registry.requests if "authorization" in one.headers}
            ours = find(f"{registry.host}/{repository}")
            assert ours is not None
            assert sent == {basic_header(ours)}, repository


@pytest.mark.parametrize("server", ["", "http://internal.example:8080"], ids=["as it is", "a proxy's inside"])
def test_skopeo_finds_the_same_tags(server: str) -> None:
    with scripted_registry() as registry:
        registry.tags = [f"v{number}" for number in range(7)]
        real = registry.answer

        def answer(request: Request) -> Reply:
            reply = real(request)
            link = reply.headers.get("Link", "")
            return dataclasses.replace(reply, headers={"Link": link.replace("<", f"<{server}")}) if link else reply

        registry.answer = answer  # type: ignore[method-assign]
        name = f"{registry.host}/team/image"
        theirs = json.loads(skopeo("list-tags", "--tls-verify=false", f"docker://{name}"))["Tags"]
        with open_registry() as client:
            assert client.tags(Reference.parse(name)) == theirs == registry.tags


def test_podman_makes_the_same_of_short_names(tmp_path: Path) -> None:
    """No registry can be reached; podman says whom it tries."""
    conf = tmp_path / "registries.conf"
    environment = {"CONTAINERS_REGISTRIES_CONF": str(conf), "HOME": str(tmp_path)}
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"}
    with podman_in(tmp_path) as podman:
        for mode, name in (("permissive", "team/app:1"), ("permissive", "app:1"), ("enforcing", "b/c")):
            conf.write_text(f"short-name-mode = '{mode}'\n{ALIASES}")
            ours = [Reference.parse(one).text for one in Access().options(environment).find_names(name)]
            assert podman.tried(name, **environment, **nowhere) == ours, name
        with pytest.raises(UserError, match="has no registry in front"):
            Access().options(environment).find_names("team/app:1")
        assert podman.tried("team/app:1", **environment, **nowhere) == []
        conf.write_text("")
        assert podman.tried("team/app:1", **environment, **nowhere) == []
        assert Access().options(environment).find_names("team/app:1") == ()
