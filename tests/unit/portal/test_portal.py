"""The portal: what is asked for is made once, served at once afterwards, and served on when upstream is down."""

import contextlib
import dataclasses
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.registry import Reply, ScriptedRegistry, scripted_registry
from tests.support.repositories import Repository, findings, make_repository
from tests.support.waiting import PATIENCE_S, eventually
from tests.unit.oci.samples import Sample, make_sample, make_tar

from mica.convert.converter import Converter, ConverterOptions, Platforms
from mica.httpbase import serving
from mica.oci import mediatypes
from mica.oci.blobdigest import blob_digest
from mica.oci.registry import open_registry
from mica.oci.session import RegistryOptions
from mica.oci.source import SourceOptions, open_image
from mica.oci.transport import TransportOptions
from mica.portal.answers import Answer, Portal
from mica.portal.policy import AccessList, Policy
from mica.portal.server import PortalServer
from mica.portal.shelf import Shelf, ShelvedTag
from mica.portal.thinimages import ThinImages, Timing
from mica.thin.image import require_thin

FAST = TransportOptions(attempts=2, backoff_s=0.001, connect_timeout_s=5, read_timeout_s=5, longest_wait_s=2)
SAMPLE = make_sample([make_tar({"etc/name": b"first"}), make_tar({"usr/x": b"x" * 50_000})])
NAME = "here/team/image"
ALWAYS_CHECKED = Timing(recheck_s=0)


@dataclasses.dataclass
class Site:
    """A portal over a repository, and the registry upstream, which it knows as `here`."""

    upstream: ScriptedRegistry
    repository: Repository
    shelf: Path
    stack: contextlib.ExitStack

    def portal(
        self,
        *,
        timing: Timing = ALWAYS_CHECKED,
        access: AccessList | None = None,
        shelf: Shelf | None = None,
        **limits: Any,
    ) -> Portal:
        registry = RegistryOptions(transport=FAST)
        manager = self.stack.enter_context(self.repository.manager())
        client = self.stack.enter_context(open_registry(registry))
        options = ConverterOptions(SourceOptions(registry=registry), wait_s=60, **limits)
        images = ThinImages(
            Policy(("here/team/*",), {"here": self.upstream.host}),
            shelf or Shelf(self.shelf),
            client,
            Converter(manager, options),
            platforms=Platforms(),
            timing=timing,
        )
        return Portal(images, access or AccessList({}, frozenset()))

    def add(self, tag: str, sample: Sample = SAMPLE) -> None:
        self.upstream.add_blobs(sample.blobs)
        self.upstream.add_manifest(tag, mediatypes.OCI_MANIFEST, sample.blobs[sample.manifest.digest])
        self.upstream.tags = sorted({*self.upstream.tags, tag})


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with scripted_registry() as upstream, contextlib.ExitStack() as stack:
        site = Site(upstream, make_repository(tmp_path), tmp_path / "thin", stack)
        site.add("1")
        yield site


def manifest(portal: Portal, version: str = "1", name: str = NAME) -> Answer:
    return portal.answer(f"/v2/{name}/manifests/{version}", "")


def code(answer: Answer) -> str:
    (error,) = json.loads(answer.body)["errors"]
    return str(error["code"])


def test_image_is_made_when_it_is_asked_for(site: Site, tmp_path: Path) -> None:
    portal = site.portal()
    answer = manifest(portal)
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == mediatypes.OCI_MANIFEST
    assert answer.headers["Docker-Content-Digest"] == blob_digest(answer.body)
    document = json.loads(answer.body)
    for descriptor in (document["config"], *document["layers"]):
        blob = portal.answer(f"/v2/{NAME}/blobs/{descriptor['digest']}", "")
        assert (blob.status, blob_digest(blob.body)) == (200, descriptor["digest"])
    assert manifest(portal, blob_digest(answer.body)) == answer
    assert not findings(site.repository, tmp_path)


def test_it_is_served_at_once_afterwards_and_by_another_portal(site: Site) -> None:
    first = manifest(site.portal())
    site.upstream.requests.clear()
    portal = site.portal(timing=Timing(recheck_s=1000))
    assert manifest(portal) == first
    assert [request.method for request in site.upstream.requests if "manifests" in request.path] == ["HEAD"]
    site.upstream.requests.clear()
    assert manifest(portal) == first
    assert not site.upstream.requests, "a tag that was just looked at is not asked for"


def test_changed_tag_is_converted_again(site: Site) -> None:
    portal = site.portal()
    first = manifest(portal)
    site.add("1", make_sample([make_tar({"etc/name": b"first"}), make_tar({"new": b"new"})]))
    second = manifest(portal)
    assert second.status == 200
    assert second.body != first.body
    assert manifest(portal, blob_digest(first.body)) == first, "the old one can still be had by digest"


def test_upstream_down_keeps_serving_what_is_known(site: Site) -> None:
    portal = site.portal()
    first = manifest(portal)
    site.upstream.script["manifests/1"] = [Reply(503)] * 9
    assert manifest(portal) == first
    site.upstream.script["manifests/2"] = [Reply(503)] * 9
    unknown = manifest(portal, "2")
    assert (unknown.status, code(unknown)) == (503, "UNAVAILABLE")
    assert "Retry-After" in unknown.headers


def test_tag_that_upstream_no_longer_has_is_gone(site: Site) -> None:
    portal = site.portal()
    assert manifest(portal).status == 200
    site.upstream.manifests.clear()
    assert (manifest(portal).status, code(manifest(portal))) == (404, "MANIFEST_UNKNOWN")


def test_ten_clients_at_once_are_one_conversion(site: Site) -> None:
    layers = {layer.digest for layer in SAMPLE.layers}
    portal = site.portal()
    barrier = threading.Barrier(10)
    answers: list[Answer] = []

    def ask() -> None:
        barrier.wait()
        answers.append(manifest(portal))

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 10
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].status == 200
    asked = [path.rpartition("/")[2] for path in site.upstream.paths("/blobs/")]
    assert sorted(digest for digest in asked if digest in layers) == sorted(layers)


def test_impatient_client_is_told_to_come_back_and_the_conversion_goes_on(site: Site) -> None:
    gate = threading.Event()
    real = site.upstream.answer

    def slow(request: Any) -> Reply:
        if "/blobs/" in request.path:
            gate.wait(PATIENCE_S)
        return real(request)

    site.upstream.answer = slow  # type: ignore[method-assign]
    portal = site.portal(timing=Timing(patience_s=0.05))
    answer = manifest(portal)
    assert (answer.status, code(answer)) == (429, "TOOMANYREQUESTS")
    assert answer.headers["Retry-After"].isdecimal()
    gate.set()
    assert eventually(lambda: manifest(portal).status != 429)
    assert manifest(portal).status == 200
    assert len(site.upstream.paths(SAMPLE.layers[0].digest)) == 1


@pytest.mark.parametrize(
    ("path", "status", "expected"),
    [
        ("/v2/docker.io/library/debian/manifests/12", 403, "DENIED"),
        ("/v2/here/other/image/manifests/1", 403, "DENIED"),
        (f"/v2/{NAME}/manifests/none", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/{NAME}/manifests/sha256:{'0' * 64}", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/{NAME}/manifests/sha256:../../x", 404, "NAME_UNKNOWN"),
        (f"/v2/{NAME}/manifests/.hidden", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/{NAME}/blobs/sha256:{'0' * 64}", 404, "BLOB_UNKNOWN"),
        (f"/v2/{NAME}/blobs/..", 404, "BLOB_UNKNOWN"),
        (f"/v2/{NAME}/tags/other", 404, "NAME_UNKNOWN"),
        ("/v2/_catalog", 404, "NAME_UNKNOWN"),
        ("/v1/x", 404, "NAME_UNKNOWN"),
        ("/", 404, "NAME_UNKNOWN"),
        ("/v2/here/team/../../../etc/manifests/passwd", 403, "DENIED"),
    ],
)
def test_what_is_not_to_be_had(site: Site, path: str, status: int, expected: str) -> None:
    answer = site.portal().answer(path, "")
    assert (answer.status, code(answer)) == (status, expected)
    assert not site.upstream.paths("/blobs/")


def test_blob_of_another_repository_is_not_shown(site: Site) -> None:
    portal = site.portal()
    digest = json.loads(manifest(portal).body)["config"]["digest"]
    assert portal.answer(f"/v2/{NAME}/blobs/{digest}", "").status == 200
    assert portal.answer(f"/v2/here/team/other/blobs/{digest}", "").status == 404


def test_limits_are_told(site: Site) -> None:
    answer = manifest(site.portal(max_image_bytes=100))
    assert (answer.status, code(answer)) == (403, "DENIED")
    assert b"more than the 100 allowed" in answer.body


def test_registry_that_lies_is_a_bad_gateway(site: Site) -> None:
    digest = SAMPLE.layers[0].digest
    site.upstream.blobs[digest] = bytes(len(SAMPLE.blobs[digest]))
    answer = manifest(site.portal())
    assert answer.status == 502
    assert not site.portal().answer(f"/v2/{NAME}/tags/list?n=0", "").body.count(b"1")


def test_tags_are_upstream_s_in_pages(site: Site) -> None:
    for tag in ("2", "3"):
        site.add(tag)
    portal = site.portal()
    first = portal.answer(f"/v2/{NAME}/tags/list?n=2", "")
    assert json.loads(first.body) == {"name": NAME, "tags": ["1", "2"]}
    assert first.headers["Link"] == f'</v2/{NAME}/tags/list?n=2&last=2>; rel="next"'
    second = portal.answer(f"/v2/{NAME}/tags/list?n=2&last=2", "")
    assert json.loads(second.body)["tags"] == ["3"]
    assert "Link" not in second.headers
    manifest(portal)
    site.upstream.script["tags/list"] = [Reply(503)] * 9
    assert json.loads(portal.answer(f"/v2/{NAME}/tags/list", "").body)["tags"] == ["1"]


def test_who_may_ask(site: Site) -> None:
    portal = site.portal(access=AccessList({"user": "s3cret"}, frozenset({"t" * 20})))
    for header in ("", "Basic dXNlcjp3cm9uZw==", "Basic !", "Bearer x", "Digest x", "Bearer"):
        answer = portal.answer("/v2/", header)
        assert (answer.status, code(answer)) == (401, "UNAUTHORIZED")
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    for header in ("Basic dXNlcjpzM2NyZXQ=", f"Bearer {'t' * 20}"):
        assert portal.answer("/v2/", header).status == 200


def test_damaged_shelf_is_filled_again(site: Site) -> None:
    first = manifest(site.portal())
    for path in site.shelf.glob("*/tags/*.json"):
        path.write_bytes(b"\xff")
    assert manifest(site.portal()) == first
    for path in site.shelf.glob("*/blobs/sha256/*"):
        path.unlink()
    assert manifest(site.portal()) == first


class LosingShelf(Shelf):
    """Somebody removes the images when their tag was just looked up."""

    def tag(self, name: str, tag: str) -> ShelvedTag | None:
        found = super().tag(name, tag)
        for path in self._root.glob("*/blobs/sha256/*"):
            path.unlink()
        return found


def test_image_that_is_removed_while_it_is_asked_for_is_asked_for_again(site: Site) -> None:
    first = manifest(site.portal())
    answer = manifest(site.portal(shelf=LosingShelf(site.shelf)))
    assert (answer.status, b"was removed while it was asked for" in answer.body) == (503, True)
    assert manifest(site.portal()) == first


def test_server_speaks_http(site: Site) -> None:
    server = PortalServer(("127.0.0.1", 0), site.portal(), None)
    with serving(server):
        host = server.url.removeprefix("http://")
        with contextlib.closing(http.client.HTTPConnection(host, timeout=20)) as connection:
            connection.request("HEAD", f"/v2/{NAME}/manifests/1")
            head = connection.getresponse()
            assert (head.status, head.read()) == (200, b"")
            connection.request("GET", f"/v2/{NAME}/manifests/1")
            body = connection.getresponse().read()
            assert len(body) == int(head.headers["Content-Length"])
            connection.request("PUT", f"/v2/{NAME}/manifests/1", body=b"x")
            refused = connection.getresponse()
            assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")
            refused.read()
        with open_image(f"docker://{host}/{NAME}:1") as image:
            descriptor = require_thin(image)
    assert [layer.digest for layer in descriptor.layers] == [layer.digest[7:] for layer in SAMPLE.layers]
    assert descriptor.origin == f"{site.upstream.host}/team/image:1"
