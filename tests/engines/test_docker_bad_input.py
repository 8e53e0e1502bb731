"""What is wrong ends in one sentence of the engine's, leaves nothing, and the engine goes on."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.dockers import (
    Docker,
    Host,
    add_member,
    base_layers,
    image_archive,
    running_host,
    short_directory,
    thin_archive,
)
from tests.support.tars import by_tarfile
from tests.support.tools import need_root
from tests.support.webserver import Answer

pytestmark = pytest.mark.engines
ORDINARY = "base/ordinary:1"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    need_root()
    with short_directory() as work, running_host(work) as host:
        host.docker("load", stdin=image_archive(base_layers(), ORDINARY))
        yield host


def layers_of(host: Host) -> list[str]:
    return sorted(path.name for path in (host.docker.data / host.plugin.stem).iterdir())


def changed(descriptor: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**descriptor, "layers": [{**descriptor["layers"][0], **changes}]}


DESCRIPTORS = {
    "no JSON": (lambda _: b"{nonsense", "is not JSON"),
    "empty": (lambda _: b"", "is not JSON"),
    "a list": (lambda _: b"[]", "it is not an object"),
    "another version": (lambda good: {**good, "version": "2.0"}, "version '2.0' is not one of 1.x"),
    "no layers": (lambda good: {**good, "layers": []}, "it names no layers"),
    "too many layers": (lambda good: {**good, "layers": good["layers"] * 5000}, "more than an image descriptor"),
    "more layers than a union": (lambda good: {**good, "layers": good["layers"] * 251}, "a union can have 500"),
    "a file": (lambda good: changed(good, url="file:///etc"), "is not a cvmfs:// URL"),
    "http": (lambda good: changed(good, url="http://127.0.0.1/x"), "is not a cvmfs:// URL"),
    "dots": (lambda good: changed(good, url="cvmfs://node.example.org/../../etc"), "is not a plain path"),
    "dots for a name": (lambda good: changed(good, url="cvmfs://../etc"), "is not a cvmfs:// URL"),
    "a stranger": (
        lambda good: changed(good, url="cvmfs://other.example.org/x"), "other.example.org are not allowed here"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_descriptors(host: Host, name: str) -> None:
    make, sentence = DESCRIPTORS[name]
    before = layers_of(host)
    failure = host.docker.fails("load", stdin=thin_archive(make(host.image.publication.descriptor)))
    assert sentence in failure.stderr
    assert len(failure.stderr.strip().splitlines()) == 1
    assert layers_of(host) == before
    assert host.docker.run(ORDINARY, "echo", "on") == "on"


def test_a_descriptor_in_an_ordinary_image_is_a_file(host: Host) -> None:
    host.docker("load", stdin=thin_archive(b"any", more={"other": b"file"}, tag="odd:1"))
    (container,) = host.docker("create", "--network", "none", "odd:1", "x").splitlines()
    assert host.docker.binary("cp", f"{container}:/thin.json", "-")
    host.docker("rm", container)
    host.docker("rmi", "odd:1")


def test_a_layer_that_the_repository_has_not(host: Host) -> None:
    descriptor = changed(host.image.publication.descriptor, url="cvmfs://node.example.org/.layers/00/00/layerfs")
    host.docker("load", stdin=thin_archive(descriptor, tag="absent:1"))
    failure = host.docker.fails("create", "absent:1", "true")
    assert "There is no layer" in failure.sentence
    assert [name for name in layers_of(host) if name.endswith("-init")] == []
    host.docker("rmi", "absent:1")


def test_no_server_of_the_repository(host: Host) -> None:
    """Metadata of another layer is asked for while nobody answers; what runs already goes on."""
    descriptor = changed(host.image.publication.descriptor, url="cvmfs://node.example.org/.layers/11/11/layerfs")
    host.docker("load", stdin=thin_archive(descriptor, tag="far:1"))
    host.image.server.default = Answer(status=503)
    try:
        failure = host.docker.fails("create", "far:1", "true")
        assert failure.sentence.endswith(".")
        assert "Traceback" not in failure.stderr
    finally:
        host.image.server.default = Answer()
    host.docker("rmi", "far:1")
    assert host.docker.run(ORDINARY, "echo", "on") == "on"


def test_options_of_a_container(host: Host) -> None:
    failure = host.docker.fails("create", "--storage-opt", "size=1G", ORDINARY, "true")
    assert "Storage option 'size' of a container is not supported" in failure.sentence


def test_layers_that_cannot_be_unpacked(host: Host) -> None:
    before = layers_of(host)
    for name in ("../escape", "a/../../escape"):
        archive = image_archive([by_tarfile(lambda tar, name=name: add_member(tar, name))], "bad:1")
        assert "has '..' in its path" in host.docker.fails("load", stdin=archive).stderr
    device = by_tarfile(lambda tar: add_member(tar, "x", tarfile.CHRTYPE))
    assert "character device 0:0" in host.docker.fails("load", stdin=image_archive([device], "bad:1")).stderr
    assert layers_of(host) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--storage-opt", "mica.union=aufs"], "This kernel has no aufs"),
        (["--storage-opt", "mica.nonsense=1"], "is no storage option of mica"),
        (["--storage-opt", "mica.cache=/elsewhere"], "but the node's cache is"),
    ],
    ids=["aufs", "unknown option", "another cache"],
)
def test_starts_that_are_refused(host: Host, options: list[str], sentence: str) -> None:
    if "mica.union=aufs" in options and "aufs" in Path("/proc/filesystems").read_text():
        options = ["--storage-opt", "mica.union=unionfs"]
        sentence = "not one of overlay, aufs"
    with short_directory() as work:
        assert sentence in Docker(work, host.plugin.stem, *options).refused()
    assert host.docker.run(ORDINARY, "echo", "on") == "on"


def test_a_start_with_user_ids_shifted_is_refused(host: Host) -> None:
    with short_directory() as work:
        work.chmod(0o711)
        (work / "ids").write_text("nobody:100000:65536\nnogroup:100000:65536\n")
        # Its own view of the files that say whose ids are shifted.
        script = 'for name in subuid subgid; do mount --bind "$0" /etc/$name; done; exec "$@"'
        inside = ("unshare", "--mount", "--propagation=private", "sh", "-c", script, str(work / "ids"))
        docker = Docker(work, host.plugin.stem, "--userns-remap=nobody:nogroup", before=inside)
        assert "cannot shift user ids" in docker.refused()
    assert host.docker.run(ORDINARY, "echo", "on") == "on"


def test_a_second_engine_on_one_driver_is_refused(host: Host) -> None:
    with short_directory() as work:
        assert "mica serves another engine already" in Docker(work, host.plugin.stem).refused()
    assert host.docker.run(ORDINARY, "echo", "on") == "on"


def test_upload_without_a_portal(tmp_path: Path) -> None:
    with short_directory() as work, running_host(work, "--storage-opt", "mica.commit=upload") as host:
        docker = host.docker
        docker("load", stdin=thin_archive(host.image.publication.descriptor, tag="thin:1"))
        docker("load", stdin=image_archive(base_layers(), ORDINARY))
        for image in ("thin:1", ORDINARY):
            docker("create", "--name", image.split(":")[0].replace("/", "-"), "--network", "none", image, "sh")
        assert "no portal is configured" in docker.fails("commit", "thin", "never:1").sentence
        docker("commit", "base-ordinary", "stays:1")
        assert json.loads(docker("inspect", "stays:1"))
