"""The registry client (registry.py, transport.py, blobstream.py) against a registry that misbehaves on command."""

import dataclasses
import threading
from collections.abc import Iterator

import pytest
from tests.support.registry import Reply, Request, ScriptedRegistry, hanging_up_server, scripted_registry
from tests.unit.oci.samples import digest_of, make_sample, read_all

from mica.errors import IntegrityError, MicaError, NotFoundError, TemporaryError, UserError
from mica.oci import mediatypes
from mica.oci.auth import Credential
from mica.oci.models import Descriptor, Manifest, format_index
from mica.oci.origins import is_local
from mica.oci.platforms import Platform
from mica.oci.reference import Reference
from mica.oci.registry import RegistryClient, open_registry
from mica.oci.session import RegistryOptions
from mica.oci.source import SourceOptions, open_image
from mica.oci.transport import TransportOptions

FAST = TransportOptions(attempts=3, backoff_s=0.001, connect_timeout_s=5, read_timeout_s=5, longest_wait_s=2)
SAMPLE = make_sample()
LAYER = SAMPLE.layers[1]
BLOB = SAMPLE.blobs[LAYER.digest]
USER = Credential("user", "s3cret")


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with scripted_registry() as registry:
        registry.add_blobs(SAMPLE.blobs)
        registry.add_manifest("v1", mediatypes.OCI_MANIFEST, SAMPLE.blobs[SAMPLE.manifest.digest])
        yield registry


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    with open_registry(RegistryOptions(transport=FAST)) as client:
        yield client


def reference(registry: ScriptedRegistry, version: str = "team/image:v1") -> Reference:
    return Reference.parse(f"{registry.host}/{version}")


def options(credential: Credential | None = None, **changes: object) -> SourceOptions:
    transport = dataclasses.replace(FAST, **changes)  # type: ignore[arg-type]
    return SourceOptions(registry=RegistryOptions(find_credential=lambda _: credential, transport=transport))


def pull(
    registry: ScriptedRegistry, version: str = "team/image:v1", credential: Credential | None = None
) -> list[bytes]:
    with open_image(f"docker://{registry.host}/{version}", options=options(credential)) as image:
        tars = []
        for layer in image.layers:
            with image.open_layer(layer, 1 << 30) as stream:
                tars.append(read_all(stream))
        return tars


def read_blob(client: RegistryClient, registry: ScriptedRegistry, descriptor: Descriptor = LAYER) -> bytes:
    with client.open_blob(reference(registry), descriptor) as stream:
        return read_all(stream, 10_000)


def test_image_is_pulled_over_plain_http_from_this_machine(registry: ScriptedRegistry) -> None:
    assert pull(registry) == SAMPLE.tars
    with open_image(f"docker://{registry.host}/team/image:v1", options=options()) as image:
        assert image.reference == reference(registry)
        assert image.manifest_digest == SAMPLE.manifest.digest
        assert image.name == f"{registry.host}/team/image:v1"


def test_image_by_digest(registry: ScriptedRegistry) -> None:
    assert pull(registry, f"team/image@{SAMPLE.manifest.digest}") == SAMPLE.tars


def test_index_leads_to_the_platform(registry: ScriptedRegistry, client: RegistryClient) -> None:
    index = format_index((dataclasses.replace(SAMPLE.manifest, platform=Platform("linux", "amd64")),))
    registry.add_manifest("multi", mediatypes.OCI_INDEX, index)
    image = client.image(reference(registry, "team/image:multi"), platform=Platform("linux", "amd64"))
    assert image.manifest_digest == SAMPLE.manifest.digest
    with pytest.raises(UserError, match="not made for linux/s390x"):
        client.image(reference(registry, "team/image:multi"), platform=Platform("linux", "s390x"))


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (Reply(401), UserError, "does not let you read"),
        (Reply(403), UserError, "does not let you read"),
        (Reply(404), NotFoundError, "does not have"),
        (Reply(410), UserError, "HTTP 410"),
        (Reply(403, body=b'{"errors": [{"message": "no\\nsuch  plan."}]}'), UserError, r"v1, saying: no such plan\.$"),
        (Reply(404, body=b'{"errors": [{"code": "UNKNOWN"}, {"message": "b"}]}'), NotFoundError, "saying: UNKNOWN; b"),
        (Reply(400, body=b'{"details": "first pay"}'), UserError, "HTTP 400 .*, saying: first pay"),
        (Reply(400, body=b"<html>s3cret</html>"), UserError, r"v1\.$"),
        (Reply(400, body=b'{"message": "\\u001b[31mred"}'), UserError, r"v1\.$"),
        (Reply(400, body=b'{"errors": 3}'), UserError, r"v1\.$"),
        (Reply(400, body=b'{"errors": [{"message": "%s"}]}' % (b"x" * 70_000)), UserError, r"v1\.$"),
        (Reply(400, body=b'{"errors": [{"message": "%s"}]}' % (b"x" * 9_000)), UserError, r"saying: x{200}\.$"),
        (Reply(400, body=b'{"message": "cut', length=100), UserError, r"v1\.$"),
        (Reply(200, body=b"no json"), UserError, "not JSON"),
        (Reply(200, body=b"[]"), UserError, "not a JSON object"),
        (Reply(200, body=b'{"a":' * 100_000), UserError, "nested too deeply"),
        (Reply(200, body=b" " * ((4 << 20) + 1)), UserError, "more than 4194304 bytes"),
        (Reply(200, {"Docker-Content-Digest": digest_of(b"x")}, b"{}"), IntegrityError, "another digest"),
        (Reply(200, {"Content-Type": mediatypes.DOCKER_SCHEMA1}, b"{}"), UserError, "retired format"),
        (Reply(302, {"Location": "/v2/team/image/manifests/v1"}), UserError, "redirects without end"),
        (Reply(302, {"Location": "file:///etc/passwd"}), UserError, "no web address"),
        (Reply(302, {"Location": "http://[/"}), UserError, "no"),
    ],
)
def test_bad_answers_become_sentences_that_name_host_and_image(
    registry: ScriptedRegistry, client: RegistryClient, reply: Reply, error: type[MicaError], words: str
) -> None:
    registry.script["manifests/v1"] = [reply] * 10
    with pytest.raises(error, match=words) as caught:
        client.manifest(reference(registry))
    assert type(caught.value) is error
    assert "team/image" in str(caught.value)
    if words != "no web address":
        assert registry.host in str(caught.value)


def test_manifest_by_digest_must_have_it(registry: ScriptedRegistry, client: RegistryClient) -> None:
    wanted = digest_of(b"other")
    registry.manifests[wanted] = (mediatypes.OCI_MANIFEST, SAMPLE.blobs[SAMPLE.manifest.digest])
    with pytest.raises(IntegrityError, match="another digest"):
        client.manifest(reference(registry, f"team/image@{wanted}"))


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_overloaded_registry_is_asked_again(registry: ScriptedRegistry, client: RegistryClient, status: int) -> None:
    registry.script["manifests/v1"] = [Reply(status), Reply(status, {"Retry-After": "0"})]
    assert isinstance(client.manifest(reference(registry)), Manifest)
    assert len(registry.paths("manifests")) == 3


@pytest.mark.parametrize("status", [429, 500])
def test_overloaded_registry_is_not_asked_for_ever(
    registry: ScriptedRegistry, client: RegistryClient, status: int
) -> None:
    registry.script["manifests/v1"] = [Reply(status, body=b'{"errors": [{"message": "too much"}]}')] * 10
    with pytest.raises(TemporaryError, match=f"{registry.host} .*team/image:v1 .HTTP {status}., saying: too much"):
        client.manifest(reference(registry))
    assert len(registry.paths("manifests")) == FAST.attempts


def test_long_retry_after_is_told_and_not_waited_for(registry: ScriptedRegistry, client: RegistryClient) -> None:
    registry.script["manifests/v1"] = [Reply(429, {"Retry-After": "3600"})]
    with pytest.raises(TemporaryError) as caught:
        client.manifest(reference(registry))
    assert "3600 s" in caught.value.hint
    assert len(registry.paths("manifests")) == 1


@pytest.mark.parametrize("value", ["soon", "-5", "Wed, 21 Oct 2015 07:28:00 GMT", "٣", "9" * 500])
def test_odd_retry_after_is_ignored(registry: ScriptedRegistry, client: RegistryClient, value: str) -> None:
    registry.script["manifests/v1"] = [Reply(503, {"Retry-After": value.encode().decode("latin-1")})]
    assert isinstance(client.manifest(reference(registry)), Manifest)


def test_manifest_cut_half_way_is_temporary(registry: ScriptedRegistry, client: RegistryClient) -> None:
    registry.script["manifests/v1"] = [Reply(body=SAMPLE.blobs[SAMPLE.manifest.digest], cut_after=20)]
    with pytest.raises(TemporaryError, match="broke off"):
        client.manifest(reference(registry))


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_blob_goes_on_where_the_connection_broke(
    registry: ScriptedRegistry, client: RegistryClient, knows_ranges: bool
) -> None:
    registry.knows_ranges = knows_ranges
    middle = len(BLOB) // 2
    registry.script[LAYER.digest] = [Reply(body=BLOB, cut_after=middle)]
    if knows_ranges:
        registry.script[LAYER.digest] += [None, None]
    assert read_blob(client, registry) == BLOB
    ranges = [one.headers.get("range") for one in registry.requests if LAYER.digest in one.path]
    assert ranges[0] is None
    assert ranges[1] is not None


def test_blob_that_always_breaks_is_temporary(registry: ScriptedRegistry, client: RegistryClient) -> None:
    registry.knows_ranges = False
    registry.script[LAYER.digest] = [Reply(body=BLOB, cut_after=100)] * 100
    with pytest.raises(TemporaryError, match=f"{registry.host} broke off blob {LAYER.digest} of .*team/image:v1"):
        read_blob(client, registry)
    assert len(registry.paths(LAYER.digest)) < 20


@pytest.mark.parametrize(
    ("reply", "size", "words"),
    [
        (Reply(body=BLOB + b"x"), LAYER.size, "bytes instead of"),
        (Reply(body=BLOB), LAYER.size + 1, "bytes instead of"),
        (Reply(206, {"Content-Range": "bytes 5-9/10"}, BLOB), LAYER.size, "another part"),
        (Reply(206, {}, BLOB), LAYER.size, "another part"),
        (Reply(416), LAYER.size, "shorter than"),
    ],
)
def test_blob_of_another_length_is_an_integrity_error(
    registry: ScriptedRegistry, client: RegistryClient, reply: Reply, size: int, words: str
) -> None:
    registry.script[LAYER.digest] = [reply]
    with pytest.raises(IntegrityError, match=words):
        read_blob(client, registry, dataclasses.replace(LAYER, size=size))


def test_blob_without_a_length_that_ends_early_is_an_integrity_error(
    registry: ScriptedRegistry, client: RegistryClient
) -> None:
    registry.blobs[LAYER.digest] = BLOB[:-10]
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BLOB) - 10, BLOB[:-10])
    registry.script[LAYER.digest] = [Reply(200, {"Transfer-Encoding": "chunked"}, chunk)]
    with pytest.raises(IntegrityError, match="shorter than"):
        read_blob(client, registry)


def test_wrong_bytes_of_the_right_length_are_an_integrity_error(registry: ScriptedRegistry) -> None:
    registry.blobs[LAYER.digest] = BLOB[:-1] + bytes([BLOB[-1] ^ 1])
    with pytest.raises(IntegrityError, match=rf"Layer {LAYER.digest} of {registry.host}/team/image:v1"):
        pull(registry)


@pytest.mark.parametrize("drop_every", [3, 4])
def test_registry_that_drops_every_third_connection(registry: ScriptedRegistry, drop_every: int) -> None:
    registry.drop_every = drop_every
    assert pull(registry) == SAMPLE.tars


def test_tokens_that_expire_in_the_middle_of_a_layer(registry: ScriptedRegistry, client: RegistryClient) -> None:
    """A token is good for two requests, the blob needs many more; the pieces are what the registry breaks off at."""
    registry.needs_token, registry.token_uses = True, 2
    real, cut = registry.answer, []

    def answer(request: Request) -> Reply:
        reply = real(request)
        if LAYER.digest in request.path and reply.status in {200, 206} and len(cut) < 7:
            cut.append(request)
            return dataclasses.replace(reply, cut_after=len(BLOB) // 9)
        return reply

    registry.answer = answer  # type: ignore[method-assign]
    assert read_blob(client, registry) == BLOB
    assert len(registry.tokens) >= 4


def test_large_blob_may_break_off_as_often_as_it_must(registry: ScriptedRegistry, client: RegistryClient) -> None:
    data = bytes(64) * (1 << 20)
    large = Descriptor(mediatypes.OCI_LAYER, digest_of(data), len(data))
    registry.add_blobs({large.digest: data})
    real = registry.answer
    registry.answer = lambda request: dataclasses.replace(real(request), cut_after=5 << 20)  # type: ignore[method-assign]
    with client.open_blob(reference(registry), large) as stream:
        assert read_all(stream, 1 << 20) == data
    assert len(registry.paths(large.digest)) == 13


def test_foreign_layer_is_asked_of_the_registry_first(registry: ScriptedRegistry, client: RegistryClient) -> None:
    foreign = dataclasses.replace(LAYER, media_type=mediatypes.DOCKER_FOREIGN_LAYER + ".gzip")
    assert read_blob(client, registry, foreign) == BLOB
    for urls in ((), (f"http://{registry.host}/elsewhere",), ("file:///etc/passwd",)):
        missing = dataclasses.replace(foreign, digest=digest_of(b"none"), urls=urls)
        with pytest.raises(NotFoundError, match="names no HTTPS address"):
            read_blob(client, registry, missing)
    assert not registry.paths("elsewhere")


def test_digest_of_a_tag_is_asked_with_head(registry: ScriptedRegistry, client: RegistryClient) -> None:
    assert client.digest_of(reference(registry)) == SAMPLE.manifest.digest
    assert {request.method for request in registry.requests if "manifests" in request.path} == {"HEAD"}
    registry.script["manifests/v1"] = [Reply(200)]
    assert client.digest_of(reference(registry)) == SAMPLE.manifest.digest


@pytest.mark.parametrize("status", [400, 403, 404, 405, 501])
def test_registry_that_knows_no_head_is_asked_with_get(
    registry: ScriptedRegistry, client: RegistryClient, status: int
) -> None:
    real = registry.answer
    registry.answer = lambda one: Reply(status) if one.method == "HEAD" else real(one)  # type: ignore[method-assign]
    assert client.digest_of(reference(registry)) == SAMPLE.manifest.digest
    with pytest.raises(NotFoundError, match=r"does not have the manifest of .*:none"):
        client.digest_of(reference(registry, "team/image:none"))


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_login_leads_to_where_logins_come_from(registry: ScriptedRegistry, status: int) -> None:
    for logins, hint in (
        ("", f"docker login {registry.host}"),
        ("/x/auth.json", "Only the logins in /x/auth.json count"),
    ):
        registry.script["manifests/v1"] = [Reply(status)]
        options = RegistryOptions(transport=FAST, logins=logins)
        with open_registry(options) as client, pytest.raises(UserError, match="does not let you read") as caught:
            client.image(reference(registry))
        assert hint in caught.value.hint
        assert ("docker login" in caught.value.hint) == (not logins)


def test_head_that_is_temporarily_not_answered_is_no_reason_for_get(
    registry: ScriptedRegistry, client: RegistryClient
) -> None:
    registry.script["manifests/v1"] = [Reply(503)] * FAST.attempts
    with pytest.raises(TemporaryError):
        client.digest_of(reference(registry))
    assert {one.method for one in registry.requests if "manifests" in one.path} == {"HEAD"}


def test_missing_blob_is_named(registry: ScriptedRegistry) -> None:
    del registry.blobs[LAYER.digest]
    with pytest.raises(NotFoundError, match=LAYER.digest):
        pull(registry)


def test_basic_login(registry: ScriptedRegistry) -> None:
    registry.password = ("user", "s3cret")
    assert pull(registry, credential=USER) == SAMPLE.tars
    with pytest.raises(UserError, match="does not let you read"):
        pull(registry)
    with pytest.raises(UserError) as caught:
        pull(registry, credential=Credential("user", "wr0ng"))
    assert "wr0ng" not in f"{caught.value}{caught.value.hint}"


def test_token_login_and_refresh(registry: ScriptedRegistry, client: RegistryClient) -> None:
    registry.needs_token = True
    assert isinstance(client.manifest(reference(registry)), Manifest)
    assert read_blob(client, registry) == BLOB
    assert registry.tokens == ["token-0"]
    assert "scope=repository%3Ateam%2Fimage%3Apull" in registry.paths("/token")[0]
    registry.valid_tokens.clear()
    assert read_blob(client, registry) == BLOB
    assert registry.tokens == ["token-0", "token-1"]


def test_token_that_is_not_accepted_is_not_fetched_for_ever(registry: ScriptedRegistry, client: RegistryClient) -> None:
    registry.needs_token = True
    registry.script["/token"] = [Reply(body=b'{"token": "useless"}')] * 100
    with pytest.raises(UserError, match="does not let you read"):
        client.manifest(reference(registry))
    assert len(registry.paths("/token")) == 1


def test_token_with_a_password(registry: ScriptedRegistry) -> None:
    registry.needs_token, registry.password = True, ("user", "s3cret")
    assert pull(registry, credential=USER) == SAMPLE.tars
    with pytest.raises(UserError, match="does not let you read"):
        pull(registry)
    with pytest.raises(UserError, match="does not accept the password") as caught:
        pull(registry, credential=Credential("user", "wr0ng"))
    assert "wr0ng" not in f"{caught.value}{caught.value.hint}"


def test_identity_token_is_posted(registry: ScriptedRegistry) -> None:
    registry.needs_token = True
    assert pull(registry, credential=Credential(identity_token="idt")) == SAMPLE.tars
    request = next(one for one in registry.requests if one.path == "/token")
    assert (request.method, b"refresh_token=idt" in request.body) == ("POST", True)


@pytest.mark.parametrize("body", [b"", b"{}", b"[" * 100_000, b" " * ((1 << 20) + 1)])
def test_bad_token_servers_are_refused(registry: ScriptedRegistry, client: RegistryClient, body: bytes) -> None:
    registry.needs_token = True
    registry.script["/token"] = [Reply(body=body)]
    with pytest.raises(UserError, match="token"):
        client.manifest(reference(registry))


def test_redirect_to_another_host_carries_no_authorization(registry: ScriptedRegistry) -> None:
    registry.password = ("user", "s3cret")
    with scripted_registry() as storage:
        storage.script["/signed"] = [Reply(body=BLOB)]
        target = f"http://{storage.host}/signed?signature=abc"
        registry.script[f"blobs/{LAYER.digest}"] = [None, Reply(307, {"Location": target})]
        with open_registry(RegistryOptions(find_credential=lambda _: USER, transport=FAST)) as client:
            assert read_blob(client, registry) == BLOB or read_blob(client, registry) == BLOB
        assert [one.path for one in storage.requests] == ["/signed?signature=abc"]
        assert all("authorization" not in one.headers for one in storage.requests)
    assert any("authorization" in one.headers for one in registry.requests)


def test_redirect_on_the_same_host_keeps_authorization(registry: ScriptedRegistry) -> None:
    registry.password = ("user", "s3cret")
    other = f"/v2/elsewhere/blobs/{LAYER.digest}"
    registry.script[f"team/image/blobs/{LAYER.digest}"] = [None, Reply(307, {"Location": other})]
    with open_registry(RegistryOptions(find_credential=lambda _: USER, transport=FAST)) as client:
        assert read_blob(client, registry) == BLOB
    assert all("authorization" in one.headers for one in registry.requests if one.path == other)
    assert other in registry.paths()


def test_failing_storage_does_not_show_its_signature(registry: ScriptedRegistry, client: RegistryClient) -> None:
    with scripted_registry() as storage:
        storage.script["/signed"] = [Reply(503)] * 10
        target = f"http://{storage.host}/signed?signature=s3cret"
        registry.script[LAYER.digest] = [Reply(307, {"Location": target})]
        with pytest.raises(TemporaryError) as caught:
            read_blob(client, registry)
    assert "s3cret" not in str(caught.value)
    assert storage.host in str(caught.value)


def test_several_threads_share_a_client(registry: ScriptedRegistry, client: RegistryClient) -> None:
    registry.needs_token = True
    image = client.image(reference(registry))
    read: list[bytes] = []

    def read_layers() -> None:
        for layer in image.layers:
            with image.open_layer(layer, 1 << 30) as stream:
                read.append(read_all(stream))

    threads = [threading.Thread(target=read_layers) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read) == sorted(SAMPLE.tars * 6)


def test_nobody_there_is_temporary(client: RegistryClient) -> None:
    with scripted_registry() as gone:
        name = reference(gone)
    with pytest.raises(
        TemporaryError, match=f"{name.registry} could not be asked for the manifest of .*: no connection"
    ):
        client.manifest(name)


def test_unknown_host_is_temporary(client: RegistryClient) -> None:
    with pytest.raises(TemporaryError, match=r"registry\.invalid could not be asked .*: the name is not known"):
        client.manifest(Reference.parse("registry.invalid/x"))


def test_server_that_hangs_up_is_temporary(client: RegistryClient) -> None:
    with hanging_up_server() as host, pytest.raises(TemporaryError, match="broke off"):
        client.manifest(Reference.parse(f"{host}/x"))


def test_silent_server_runs_into_the_time_out(registry: ScriptedRegistry) -> None:
    patient = RegistryOptions(transport=dataclasses.replace(FAST, read_timeout_s=0.1, attempts=1))
    manifest = SAMPLE.blobs[SAMPLE.manifest.digest]
    registry.script["manifests/v1"] = [Reply(body=manifest, length=len(manifest) + 1)]
    with open_registry(patient) as client, pytest.raises(TemporaryError):
        client.manifest(reference(registry))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.9.8.7", True),
        ("[::1]:5000", True),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("10.0.0.1", False),
        ("docker.io", False),
    ],
)
def test_local_registries(host: str, expected: bool) -> None:
    assert is_local(host) is expected
