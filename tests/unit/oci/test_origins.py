"""What is for one server is shown to no other: passwords, tokens, headers with keys, our certificate."""

import base64
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.registry import Reply, ScriptedRegistry, scripted_registry
from tests.unit.oci.samples import digest_of, make_sample, read_all

from mica.errors import UserError
from mica.oci import mediatypes
from mica.oci.auth import Credential
from mica.oci.endpoints import Endpoint, HostConfig
from mica.oci.models import Descriptor
from mica.oci.push import RegistryWriter
from mica.oci.reference import Reference
from mica.oci.registry import RegistryClient, open_registry
from mica.oci.session import RegistryOptions
from mica.oci.transport import NO_TRUST, Transport, TransportOptions, Trust

FAST = TransportOptions(attempts=2, backoff_s=0.001, connect_timeout_s=5, read_timeout_s=5)
SAMPLE = make_sample()
LAYER = SAMPLE.layers[0]
USER = Credential("alice", "s3cret")
DATA = bytes(range(256)) * 100
BLOB = Descriptor(mediatypes.OCI_LAYER, digest_of(DATA), len(DATA))
KEY = {"X-Api-Key": "s3cret"}


class Pair:
    """A registry with a password, and a server that it leads to and that wants one too."""

    def __init__(self, registry: ScriptedRegistry, other: ScriptedRegistry, client: RegistryClient) -> None:
        self.registry = registry
        self.other = other
        self.client = client

    def pull(self) -> bytes:
        reference = Reference.parse(f"{self.registry.host}/team/image:v1")
        with self.client.open_blob(reference, LAYER) as stream:
            return read_all(stream)

    def push(self) -> bool:
        target = Reference.parse(f"{self.registry.host}/team/image:v1")
        writer = RegistryWriter(self.client, target, chunk_bytes=10_000)
        return writer.copy_blob(BLOB, lambda: contextlib.closing(io.BytesIO(DATA)))

    def redirect_blob(self) -> None:
        target = f"http://{self.other.host}/v2/store/blobs/{LAYER.digest}"
        self.registry.script[f"team/image/blobs/{LAYER.digest}"] = [None] + [Reply(307, {"Location": target})] * 3

    def lead_uploads_away(self) -> None:
        target = f"http://{self.other.host}/v2/store/blobs/uploads/upload-0"
        self.registry.script["blobs/uploads/"] = [Reply(202, {"Location": target})] * 9


@pytest.fixture
def pair() -> Iterator[Pair]:
    with scripted_registry() as registry, scripted_registry() as other:
        registry.add_blobs(SAMPLE.blobs)
        registry.password = other.password = ("alice", "s3cret")
        endpoint = Endpoint(f"http://{registry.host}/v2", registry.host, headers=KEY)
        options = RegistryOptions(
            find_credential=lambda _: USER, find_hosts=lambda _: HostConfig(server=endpoint), transport=FAST
        )
        with open_registry(options) as client:
            yield Pair(registry, other, client)


def secrets_of(registry: ScriptedRegistry) -> list[str]:
    """Everything in what a server was sent that tells a secret."""
    basic = base64.b64encode(b"alice:s3cret").decode()
    texts = [f"{one.path} {one.headers} {one.body!r}" for one in registry.requests]
    return [text for text in texts if "s3cret" in text or basic in text or "authorization" in text]


@pytest.mark.parametrize("scheme", ["basic", "bearer", "bearer elsewhere"])
def test_target_of_a_redirect_that_wants_a_login_gets_none(pair: Pair, scheme: str) -> None:
    pair.redirect_blob()
    pair.other.needs_token = scheme != "basic"
    pair.other.realm = f"http://{pair.registry.host}/token" if scheme == "bearer elsewhere" else ""
    with pytest.raises(UserError, match=f"{pair.registry.host} leads to {pair.other.host} for blob .*asks for a login"):
        pair.pull()
    assert pair.other.requests
    assert not secrets_of(pair.other)
    assert not pair.other.paths("/token")
    assert not pair.registry.paths("/token")


def test_target_of_a_redirect_that_wants_none_is_read(pair: Pair) -> None:
    pair.redirect_blob()
    pair.other.password = None
    pair.other.add_blobs(SAMPLE.blobs)
    assert pair.pull() == SAMPLE.blobs[LAYER.digest]
    assert pair.other.requests
    assert not secrets_of(pair.other)
    assert len(secrets_of(pair.registry)) == len(pair.registry.paths("team/image"))


def test_secrets_do_not_come_back_by_way_of_another_server(pair: Pair) -> None:
    pair.redirect_blob()
    back = f"http://{pair.registry.host}/v2/other/blobs/{LAYER.digest}"
    pair.other.script[f"blobs/{LAYER.digest}"] = [Reply(307, {"Location": back})]
    with pytest.raises(UserError, match="does not let you read"):
        pair.pull()
    sent = [one.headers for one in pair.registry.requests if "/v2/other/" in one.path]
    assert sent
    assert not any("authorization" in headers or "x-api-key" in headers for headers in sent)


@pytest.mark.parametrize("needs_token", [False, True])
def test_address_of_an_upload_that_wants_a_login_gets_none(pair: Pair, needs_token: bool) -> None:
    pair.lead_uploads_away()
    pair.other.needs_token = needs_token
    pair.other.uploads["upload-0"] = bytearray()
    with pytest.raises(UserError, match=f"{pair.registry.host} leads to {pair.other.host} for blob .*asks for a login"):
        pair.push()
    assert pair.other.requests
    assert not secrets_of(pair.other)
    assert not pair.other.paths("/token")


def test_address_of_an_upload_that_wants_none_is_written_to(pair: Pair) -> None:
    pair.lead_uploads_away()
    pair.other.password = None
    pair.other.uploads["upload-0"] = bytearray()
    assert pair.push()
    assert pair.other.blobs == {BLOB.digest: DATA}
    assert not secrets_of(pair.other)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://a.example/x", "mailto:a@b.example", "http://[/"])
def test_address_of_an_upload_that_is_none_is_refused(pair: Pair, address: str) -> None:
    pair.registry.script["blobs/uploads/"] = [Reply(202, {"Location": address})] * 9
    with pytest.raises(UserError, match=f"{pair.registry.host} .*blob {BLOB.digest}"):
        pair.push()


def test_token_server_that_leads_elsewhere_does_not_take_the_password_along(pair: Pair) -> None:
    pair.registry.needs_token = True
    pair.registry.script["/token"] = [Reply(307, {"Location": f"http://{pair.other.host}/token"})]
    with pytest.raises(UserError, match="leads to"):
        pair.pull()
    assert pair.other.requests
    assert not secrets_of(pair.other)


def test_identity_token_is_not_sent_on(pair: Pair) -> None:
    options = RegistryOptions(find_credential=lambda _: Credential(identity_token="s3cret"), transport=FAST)
    pair.registry.needs_token = True
    pair.registry.script["/token"] = [Reply(307, {"Location": f"http://{pair.other.host}/token"})]
    with open_registry(options) as client, pytest.raises(UserError, match="answers HTTP 307"):
        client.manifest(Reference.parse(f"{pair.registry.host}/team/image:v1"))
    assert not pair.other.requests


def test_certificate_of_ours_is_for_one_server() -> None:
    trust = Trust((Path("ca.crt"),), Path("c.cert"), Path("c.key"), is_verified=False)
    transport = Transport(FAST)
    assert transport.trust_elsewhere(trust, "https://auth.example/token") == Trust((Path("ca.crt"),))
    assert transport.trust_elsewhere(trust, "https://localhost:5001/token") == NO_TRUST
    assert Transport(TransportOptions(insecure=True)).trust_elsewhere(trust, "https://auth.example/token") == NO_TRUST


def test_password_is_asked_for_by_who_wants_it() -> None:
    """A mirror of the Hub, or the Hub as a mirror of another registry: each has a password of its own."""
    asked: list[str] = []

    def find(place: str) -> None:
        asked.append(place)

    with scripted_registry() as mirror, scripted_registry() as registry:
        registry.password = mirror.password = ("alice", "s3cret")
        config = HostConfig((Endpoint(f"http://{mirror.host}/v2", mirror.host),))
        options = RegistryOptions(find_credential=find, find_hosts=lambda _: config, transport=FAST)
        with open_registry(options) as client, pytest.raises(UserError, match="does not let you read"):
            client.manifest(Reference.parse(f"{registry.host}/team/image:v1"))
        assert asked == [f"{mirror.host}/team/image", f"{registry.host}/team/image"]
