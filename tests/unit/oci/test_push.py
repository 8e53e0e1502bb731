"""Pushing: what goes up, how often, and what a bad line or a bad registry does to it."""

import contextlib
import io
from collections.abc import Iterator

import pytest
from tests.support.registry import Reply, ScriptedRegistry, scripted_registry
from tests.unit.oci.samples import digest_of, make_sample

from mica.errors import IntegrityError, TemporaryError, UserError
from mica.oci import mediatypes
from mica.oci.auth import Credential
from mica.oci.models import Descriptor
from mica.oci.push import RegistryWriter, copy_image
from mica.oci.reference import Reference
from mica.oci.registry import open_registry
from mica.oci.session import RegistryOptions
from mica.oci.transport import TransportOptions

FAST = TransportOptions(attempts=3, backoff_s=0.001, connect_timeout_s=5, read_timeout_s=5, longest_wait_s=2)
SAMPLE = make_sample()
DATA = bytes(range(256)) * 100
BLOB = Descriptor(mediatypes.OCI_LAYER, digest_of(DATA), len(DATA))


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with scripted_registry() as registry:
        yield registry


@contextlib.contextmanager
def opened(
    registry: ScriptedRegistry, *, chunk_bytes: int = 10_000, name: str = "team/copy:v2", **options: object
) -> Iterator[RegistryWriter]:
    with open_registry(RegistryOptions(transport=FAST, **options)) as client:  # type: ignore[arg-type]
        yield RegistryWriter(client, Reference.parse(f"{registry.host}/{name}"), chunk_bytes=chunk_bytes)


def copy(writer: RegistryWriter, *, descriptor: Descriptor = BLOB, mount_from: str = "") -> bool:
    return writer.copy_blob(descriptor, lambda: contextlib.closing(io.BytesIO(DATA)), mount_from=mount_from)


def methods(registry: ScriptedRegistry) -> list[str]:
    return [one.method for one in registry.requests if one.path != "/v2/"]


def test_small_blob_goes_up_in_one_request(registry: ScriptedRegistry) -> None:
    with opened(registry, chunk_bytes=len(DATA)) as writer:
        assert copy(writer)
        assert registry.blobs == {BLOB.digest: DATA}
        assert methods(registry) == ["HEAD", "POST", "PUT"]
        assert not copy(writer)
    assert methods(registry)[3:] == ["HEAD"]


@pytest.mark.parametrize("status", [405, 501])
def test_registry_that_knows_no_head_gets_every_blob(registry: ScriptedRegistry, status: int) -> None:
    registry.script[f"blobs/{BLOB.digest}"] = [Reply(status)]
    with opened(registry) as writer:
        assert copy(writer)
    assert registry.blobs == {BLOB.digest: DATA}


def test_large_blob_goes_up_in_chunks(registry: ScriptedRegistry) -> None:
    with opened(registry) as writer:
        assert copy(writer)
    assert registry.blobs == {BLOB.digest: DATA}
    assert methods(registry) == ["HEAD", "POST", "PATCH", "PATCH", "PATCH", "PUT"]


def test_blob_of_a_neighbour_is_mounted(registry: ScriptedRegistry) -> None:
    registry.script[f"blobs/{BLOB.digest}"] = [Reply(404)]
    registry.blobs[BLOB.digest] = DATA
    with opened(registry) as writer:
        assert not copy(writer, mount_from="team/image")
    (post,) = registry.paths("mount=")
    assert "from=team%2Fimage" in post


@pytest.mark.parametrize("drop_every", [3, 4])
def test_dropped_connections_do_not_matter(registry: ScriptedRegistry, drop_every: int) -> None:
    registry.drop_every = drop_every
    with opened(registry, chunk_bytes=5_000) as writer:
        assert copy(writer)
    assert registry.blobs == {BLOB.digest: DATA}


def test_chunk_that_arrived_without_an_answer_is_not_sent_again(registry: ScriptedRegistry) -> None:
    real = registry.answer
    lost = []

    def answer(request: object) -> Reply:
        reply = real(request)  # type: ignore[arg-type]
        if request.method == "PATCH" and not lost:  # type: ignore[attr-defined]
            lost.append(request)
            return Reply(is_lost=True)
        return reply

    registry.answer = answer  # type: ignore[method-assign]
    with opened(registry) as writer:
        assert copy(writer)
    assert methods(registry) == ["HEAD", "POST", "PATCH", "GET", "PATCH", "PATCH", "PUT"]


def test_tokens_that_expire_between_chunks_are_fetched_again(registry: ScriptedRegistry) -> None:
    registry.needs_token, registry.token_uses = True, 2
    registry.password = ("user", "s3cret")
    with opened(registry, find_credential=lambda _: Credential("user", "s3cret")) as writer:
        assert copy(writer)
    assert registry.blobs == {BLOB.digest: DATA}
    assert len(registry.tokens) > 2
    assert "repository%3Ateam%2Fcopy%3Apull%2Cpush" in registry.paths("/token")[0]


def test_stream_that_is_not_the_blob_is_never_finished(registry: ScriptedRegistry) -> None:
    wrong = Descriptor(BLOB.media_type, digest_of(b"other"), BLOB.size)
    with opened(registry) as writer, pytest.raises(IntegrityError, match="was not pushed"):
        copy(writer, descriptor=wrong)
    assert not registry.blobs


def test_registry_that_takes_nothing_is_named_with_its_reason(registry: ScriptedRegistry) -> None:
    registry.script["manifests/v2"] = [Reply(400, body=b'{"errors": [{"code": "X", "message": "too new"}]}')]
    with opened(registry) as writer:
        manifest = writer.put_blob(SAMPLE.blobs[SAMPLE.manifest.digest], mediatypes.OCI_MANIFEST)
        with pytest.raises(UserError, match=r"answers HTTP 400 for the manifest v2 of .*, saying: too new\."):
            writer.put_image(manifest)


@pytest.mark.parametrize("status", [401, 403])
def test_push_without_permission_is_one_sentence(registry: ScriptedRegistry, status: int) -> None:
    body = b'{"errors": [{"code": "DENIED", "message": "quota is used up"}]}'
    registry.script["blobs/uploads/"] = [Reply(status, body=body)] * 3
    with opened(registry) as writer, pytest.raises(UserError, match=r"does not let you write .* quota is used up"):
        copy(writer)


def test_registry_that_forgets_uploads_gets_the_blob_from_the_beginning(registry: ScriptedRegistry) -> None:
    registry.script["upload-0"] = [None, Reply(is_lost=True), Reply(503), Reply(503), Reply(503)]
    with opened(registry) as writer:
        assert copy(writer)
    assert registry.blobs == {BLOB.digest: DATA}
    assert len(registry.uploads) == 2


def test_registry_that_breaks_for_good_is_temporary(registry: ScriptedRegistry) -> None:
    registry.script["blobs/uploads/"] = [Reply(503)] * 20
    with opened(registry) as writer, pytest.raises(TemporaryError, match="HTTP 503"):
        copy(writer)


def test_image_is_copied_byte_for_byte(registry: ScriptedRegistry) -> None:
    with scripted_registry() as source:
        source.add_blobs(SAMPLE.blobs)
        source.add_manifest("v1", mediatypes.OCI_MANIFEST, SAMPLE.blobs[SAMPLE.manifest.digest])
        with open_registry(RegistryOptions(transport=FAST)) as client:
            image = client.image(Reference.parse(f"{source.host}/team/image:v1"))
            manifest = copy_image(image, client, Reference.parse(f"{registry.host}/team/copy:v2"))
    assert manifest.digest == SAMPLE.manifest.digest
    assert registry.manifests["v2"] == (mediatypes.OCI_MANIFEST, SAMPLE.blobs[SAMPLE.manifest.digest])
    assert registry.blobs == {d: b for d, b in SAMPLE.blobs.items() if d != SAMPLE.manifest.digest}
