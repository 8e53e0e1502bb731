"""Names, documents, challenges, layers and archives changed at random: refused with a sentence or read, and bounded."""

import gzip
import io
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.oci.samples import compressed, digest_of, docker_archive_files, make_sample, make_tar, read_all

from mica.errors import MicaError
from mica.oci.auth import Challenge, parse_challenges, parse_token, plan_token_request
from mica.oci.credentials import DockerCredentials
from mica.oci.decoders import FrameWalker
from mica.oci.dockerarchive import open_docker_archive
from mica.oci.layerstream import open_layer
from mica.oci.models import Descriptor, parse_config, parse_image_document
from mica.oci.nextpage import next_page
from mica.oci.origins import parse_origin
from mica.oci.platforms import Platform
from mica.oci.reference import Reference
from mica.oci.refusalreasons import parse_reason
from mica.oci.registriesconf import parse_registries_conf

TAR = make_tar({"a": bytes(range(256)) * 8, "b": bytes(5000)})
SAMPLE = make_sample([TAR], kind="")
LIMIT = 1 << 20
PLACE: dict[str, Any] = {"repository": "a", "registry": "r.example", "is_plain_http": True}
BLOBS = [
    compressed(TAR, "gzip"),
    compressed(TAR[:1000], "gzip") + compressed(TAR[1000:], "gzip"),
    compressed(TAR, "zstd"),
    zstandard.ZstdCompressor(write_checksum=True).compress(TAR) + b"\x50\x2a\x4d\x18\x02\0\0\0xx",
    TAR,
]
ARCHIVE = make_tar(docker_archive_files(SAMPLE, tags=["a:1"]))
ARCHIVES = [ARCHIVE, gzip.compress(ARCHIVE, mtime=0)]

NAMES = ["config", "layers", "manifests", "mediaType", "digest", "size", "platform", "rootfs", "diff_ids", "Env"]
NAMES += ["history", "Labels", "Healthcheck", "auths", "auth", "username", "credsStore", "annotations", "urls"]
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=10), st.just(SAMPLE.manifest.digest)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=5), st.sampled_from(NAMES)), inner, max_size=5),
    ),
    max_leaves=12,
)


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with a few bytes changed, taken out or put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        # Headers are where the decisions are.
        start = draw(st.sampled_from([start, start % 512, start % 20]))
        data[start : start + draw(st.sampled_from([0, 1, 8, 600]))] = draw(st.binary(max_size=12))
    return bytes(data)


def refused_or_done(act: Callable[[], object]) -> None:
    try:
        act()
    except MicaError as error:
        message = str(error)
    else:
        return
    assert 0 < len(message) < 2000


@given(st.one_of(st.text(max_size=80), st.from_regex(r"[a-zA-Z0-9._:/@\[\]-]{0,60}", fullmatch=True)))
def test_names(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except MicaError:
        return
    assert Reference.parse(reference.text) == reference
    assert ".." not in reference.repository.split("/")


@given(st.text(max_size=40))
def test_platforms(text: str) -> None:
    refused_or_done(lambda: Platform.parse(text).level)


@given(st.one_of(json_values.map(lambda value: json.dumps(value).encode()), st.binary(max_size=60)))
def test_documents(data: bytes) -> None:
    refused_or_done(lambda: parse_image_document(data, what="x"))
    refused_or_done(lambda: parse_config(data, what="x"))
    refused_or_done(lambda: parse_token(data, what="x"))


@given(st.dictionaries(st.sampled_from(["auths", "credHelpers", "credsStore"]), json_values))
def test_credentials(config: dict[str, object]) -> None:
    refused_or_done(lambda: DockerCredentials(config, run_helper=lambda *_: b"{}").find("reg.example"))


@given(st.one_of(st.text(max_size=200), st.from_regex(r'([A-Za-z]{1,8} ?([a-z]+="?[^"]{0,8}"?[, ]*){0,3}){0,3}')))
def test_challenges(header: str) -> None:
    for challenge in parse_challenges(header):
        refused_or_done(partial(plan_token_request, challenge, None, **PLACE))


LINKS = st.one_of(
    st.text(max_size=200),
    st.from_regex(r"""(, ?<[a-z:/\\@?%.]{0,20}>(; ?[rel]{3}="?(next|prev)?"?){0,3}){0,3}""", fullmatch=True),
)


@given(LINKS)
def test_links_never_leave_their_server(header: str) -> None:
    here = "https://reg.example:5000/v2/a/tags/list?n=1"
    found: list[str] = []
    refused_or_done(lambda: found.append(next_page(header, here)))
    assert all(parse_origin(url, what="x") == parse_origin(here, what="x") for url in found if url)


@given(st.one_of(st.binary(max_size=200), json_values.map(lambda value: json.dumps({"errors": value}).encode())))
def test_reasons_are_one_short_line(body: bytes) -> None:
    reason = parse_reason(body)
    assert len(reason) <= 200
    assert reason.isprintable()


REGISTRIES_CONF = b"""unqualified-search-registries = ["one.example"]
short-name-mode = "permissive"
[[registry]]
prefix = "*.example"
location = "all.org/cache"
mirror-by-digest-only = true
[[registry.mirror]]
location = "m.org"
insecure = true
[[registry]]
location = "a.example/b"
blocked = false
[aliases]
app = "a.example/team/app"
"""


@given(damaged([REGISTRIES_CONF]), st.sampled_from(["a.example/b/c:1", "x.a.example/y:1", "debian:12"]))
def test_registries_conf(data: bytes, name: str) -> None:
    def ask() -> None:
        conf = parse_registries_conf(data, what="registries.conf")
        conf.hosts_of(Reference.parse(name), lambda _: None)
        conf.names(name)

    refused_or_done(ask)


@given(st.text(max_size=60))
def test_realms(realm: str) -> None:
    challenge = Challenge("bearer", {"realm": realm})
    refused_or_done(partial(plan_token_request, challenge, None, **PLACE))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(damaged(BLOBS), st.sampled_from([None, digest_of(TAR)]))
def test_layers(blob: bytes, diff_id: str | None) -> None:
    def unpack() -> None:
        descriptor = Descriptor("", digest_of(blob), len(blob))
        with open_layer(io.BytesIO(blob), descriptor, diff_id, max_bytes=LIMIT) as stream:
            data = read_all(stream)
        assert len(data) <= LIMIT
        assert diff_id is None or data == TAR

    refused_or_done(unpack)


@given(damaged(BLOBS[2:4]), st.integers(1, 50))
def test_zstd_frames_do_not_depend_on_the_pieces(blob: bytes, size: int) -> None:
    def walk(step: int) -> bool | str:
        walker = FrameWalker()
        try:
            for start in range(0, len(blob), step):
                walker.feed(blob[start : start + step])
        except ValueError as error:
            return str(error)
        return walker.at_boundary

    assert walk(size) == walk(len(blob) or 1)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(damaged(ARCHIVES))
def test_archives(data: bytes) -> None:
    def read() -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            with open_docker_archive(Path(file.name)) as image:
                for layer in image.layers:
                    with image.open_layer(layer, LIMIT) as stream:
                        assert digest_of(read_all(stream)) == layer.diff_id

    refused_or_done(read)
