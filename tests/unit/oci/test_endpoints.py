"""hosts.toml and directories of certificates; mirrors in front of a registry."""

from pathlib import Path

import pytest
from tests.support.registry import Reply, ScriptedRegistry, scripted_registry
from tests.unit.oci.samples import make_sample, read_all

from mica.errors import NotFoundError, TemporaryError, UserError
from mica.oci import mediatypes
from mica.oci.auth import Credential
from mica.oci.endpoints import (
    ALL_USES,
    NO_CONFIG,
    PULL_USES,
    Endpoint,
    HostConfig,
    Use,
    endpoint_of,
    parse_certificate_directory,
    parse_hosts_toml,
)
from mica.oci.reference import Reference
from mica.oci.registry import RegistryClient, open_registry
from mica.oci.session import RegistryOptions
from mica.oci.transport import TransportOptions, Trust

FAST = TransportOptions(attempts=2, backoff_s=0.001, connect_timeout_s=5, read_timeout_s=5)
HERE = Path("/certs/reg.example")
SAMPLE = make_sample()


def parse(text: str) -> HostConfig:
    return parse_hosts_toml(text.encode(), directory=HERE, what="hosts.toml")


def test_everything_that_hosts_toml_says() -> None:
    config = parse("""
        server = "https://reg.example"
        ca = "own.crt"
        [host."https://mirror.example:5000/v2/proxy"]
        capabilities = ["pull"]
        ca = ["a.crt", "/etc/b.crt"]
        client = [["c.cert", "c.key"]]
        override_path = true
        [host."https://mirror.example:5000/v2/proxy".header]
        X-Site = "here"
        [host."http://second.example"]
        skip_verify = true
    """)
    first, second = config.mirrors
    trust = Trust((HERE / "a.crt", Path("/etc/b.crt")), HERE / "c.cert", HERE / "c.key")
    assert first == Endpoint(
        "https://mirror.example:5000/v2/proxy", "mirror.example:5000", trust, frozenset({Use.PULL}), {"X-Site": "here"}
    )
    assert (second.api, second.uses) == ("http://second.example/v2", frozenset({Use.PULL, Use.RESOLVE}))
    assert not second.trust.is_verified
    assert config.server == Endpoint("https://reg.example/v2", "reg.example", Trust((HERE / "own.crt",)), ALL_USES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server = 5", "'5' is not the address"),
        ("servers = 'x'", "unknown key 'servers'"),
        ("[host.'https://a']\nmagic = true", "unknown key 'magic' for 'https://a'"),
        ("[host.'https://a']\ncapabilities = ['dance']", "dance"),
        ("[host.'ftp://a']", "not the address"),
        ("host = 3", "'host' is not a table"),
        ("skip_verify = 'no'\nserver = 'https://a'", "not true or false"),
        ("ca = [1]", "'ca' is not a text"),
        ("= broken", "hosts.toml is wrong"),
    ],
)
def test_bad_files_are_one_sentence(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse(text)


def test_directory_of_certificates() -> None:
    names = ["ca.crt", "other.crt", "client.cert", "client.key", "README"]
    expected = Trust((HERE / "ca.crt", HERE / "other.crt"), HERE / "client.cert", HERE / "client.key")
    assert parse_certificate_directory(names, directory=HERE) == HostConfig(trust=expected)
    assert parse_certificate_directory([], directory=HERE) == NO_CONFIG
    with pytest.raises(UserError, match=r"client certificate a\.cert and no a\.key"):
        parse_certificate_directory(["a.cert"], directory=HERE)


def fill(registry: ScriptedRegistry) -> None:
    registry.add_blobs(SAMPLE.blobs)
    registry.add_manifest("v1", mediatypes.OCI_MANIFEST, SAMPLE.blobs[SAMPLE.manifest.digest])


def mirrored(mirror: ScriptedRegistry, **changes: object) -> RegistryOptions:
    uses = frozenset({Use.PULL, Use.RESOLVE})
    config = HostConfig((Endpoint(f"http://{mirror.host}/v2", mirror.host, uses=uses),))
    return RegistryOptions(find_hosts=lambda _: config, transport=FAST, **changes)  # type: ignore[arg-type]


def pull(client: RegistryClient, host: str) -> list[bytes]:
    tars = []
    image = client.image(Reference.parse(f"{host}/team/image:v1"))
    for layer in image.layers:
        with image.open_layer(layer, 1 << 30) as stream:
            tars.append(read_all(stream))
    return tars


def test_mirror_is_asked_and_the_registry_is_not() -> None:
    with scripted_registry() as mirror, scripted_registry() as registry, open_registry(mirrored(mirror)) as client:
        fill(mirror)
        assert pull(client, registry.host) == SAMPLE.tars
        assert not registry.paths("team/image")


def test_mirror_that_lacks_something_is_gone_past() -> None:
    with scripted_registry() as mirror, scripted_registry() as registry, open_registry(mirrored(mirror)) as client:
        fill(registry)
        fill(mirror)
        mirror.script[f"blobs/{SAMPLE.layers[0].digest}"] = [Reply(404)]
        assert pull(client, registry.host) == SAMPLE.tars
        assert len(registry.paths("team/image")) == 1


def test_mirror_that_is_down_is_left_alone() -> None:
    with scripted_registry() as mirror, scripted_registry() as registry, open_registry(mirrored(mirror)) as client:
        fill(registry)
        mirror.script["manifests/v1"] = [Reply(503)] * 9
        assert pull(client, registry.host) == SAMPLE.tars
        assert len(mirror.requests) == FAST.attempts


def test_password_of_the_registry_is_not_shown_to_the_mirror() -> None:
    asked = []

    def find(place: str) -> Credential | None:
        host = place.partition("/")[0]
        asked.append(host)
        return Credential("user", "s3cret") if host == registry.host else None

    with scripted_registry() as mirror, scripted_registry() as registry:
        fill(registry)
        fill(mirror)
        registry.password = mirror.password = ("user", "s3cret")
        with open_registry(mirrored(mirror, find_credential=find)) as client:
            assert pull(client, registry.host) == SAMPLE.tars
    assert not [one for one in mirror.requests if "authorization" in one.headers]
    assert set(asked) == {mirror.host, registry.host}


def test_registry_has_the_last_word() -> None:
    with scripted_registry() as mirror, scripted_registry() as registry, open_registry(mirrored(mirror)) as client:
        with pytest.raises(NotFoundError, match=registry.host):
            pull(client, registry.host)
        registry.script["manifests/v1"] = [Reply(503)] * 9
        with pytest.raises(TemporaryError, match=registry.host):
            pull(client, registry.host)


def test_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nonsense")
    for name, words in (("ca.crt", "not one in PEM form"), ("none.crt", "Cannot read the CA file")):
        config = HostConfig(trust=Trust((tmp_path / name,)))
        options = RegistryOptions(find_hosts=lambda _, config=config: config)  # type: ignore[misc]
        with open_registry(options) as client, pytest.raises(UserError, match=words):
            client.manifest(Reference.parse("127.0.0.1:1/x:1"))


def test_hub_is_one_registry_under_all_its_names() -> None:
    for name in ("docker.io", "index.docker.io", "registry-1.docker.io"):
        server = parse(f"server = 'https://{name}'").server
        assert server is not None
        assert server.api == "https://registry-1.docker.io/v2"
        assert endpoint_of(name).api == server.api


def test_other_place_is_asked_by_its_own_name_with_its_own_password_and_written_to_by_nobody() -> None:
    """As `location` of registries.conf has it."""
    asked: list[str] = []

    def find(place: str) -> Credential | None:
        asked.append(place)
        return Credential("user", "s3cret")

    with scripted_registry() as other:
        fill(other)
        other.needs_token, other.password = True, ("user", "s3cret")
        server = endpoint_of(other.host, "deep/image", uses=PULL_USES, is_insecure=True)
        options = RegistryOptions(find_credential=find, find_hosts=lambda _: HostConfig(server=server), transport=FAST)
        with open_registry(options) as client:
            assert pull(client, "reg.example") == SAMPLE.tars
            target = client.session.target(Reference.parse("reg.example/team/image:v1"))
        assert set(asked) == {f"{other.host}/deep/image"}
        assert set(other.paths("team/image")) == set()
        assert set(other.paths("/v2/deep/")) == set(other.paths("/v2/deep/image/"))
        assert "repository%3Adeep%2Fimage%3Apull" in other.paths("/token")[0]
    assert (target.api, target.repository) == ("https://reg.example/v2", "")


@pytest.mark.parametrize("is_insecure", [True, False])
def test_plain_http_is_spoken_only_where_it_is_allowed(monkeypatch: pytest.MonkeyPatch, is_insecure: bool) -> None:
    monkeypatch.setattr("mica.oci.endpoints.is_local", lambda _: False)
    with scripted_registry() as mirror:
        fill(mirror)
        config = HostConfig(server=endpoint_of(mirror.host, is_insecure=is_insecure))
        options = RegistryOptions(find_hosts=lambda _: config, transport=FAST)
        with open_registry(options) as client:
            if is_insecure:
                assert pull(client, "reg.example") == SAMPLE.tars
            else:
                with pytest.raises(TemporaryError, match="no TLS"):
                    pull(client, "reg.example")
        assert bool(mirror.requests) is is_insecure
