"""Proxies in front of registries: whom they are asked for, how, and what goes wrong with them."""

import base64
import dataclasses
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.certificates import write_certificate
from tests.support.proxy import recording_proxy
from tests.support.registry import ScriptedRegistry, scripted_registry
from tests.unit.oci.samples import make_sample

from mica.errors import MicaError, TemporaryError, UserError
from mica.oci import mediatypes
from mica.oci.endpoints import Endpoint, HostConfig
from mica.oci.proxies import NO_PROXIES, Proxies, parse_no_proxy, parse_proxies
from mica.oci.reference import Reference
from mica.oci.registry import open_registry
from mica.oci.session import RegistryOptions
from mica.oci.transport import TransportOptions, Trust

FAST = TransportOptions(attempts=1, backoff_s=0.001, connect_timeout_s=5, read_timeout_s=5)
SAMPLE = make_sample()
NAMES = ("HTTP_PROXY", "HTTPS_PROXY")
NO_PROXY_TABLE = [
    ("", "reg.example", True),
    ("*", "reg.example", False),
    ("reg.example", "reg.example", False),
    ("example", "reg.example", False),
    ("xample", "reg.example", True),
    (".example", "reg.example", False),
    (".reg.example", "reg.example", True),
    ("*.example", "reg.example", False),
    ("*.reg.example", "reg.example", True),
    ("REG.example", "reg.example", False),
    ("other, reg.example ,", "reg.example", False),
    ("reg.example:443", "reg.example", False),
    ("reg.example:5000", "reg.example", True),
    ("reg.example:5000", "reg.example:5000", False),
    ("reg.example", "reg.example:5000", False),
    ("192.0.2.1", "192.0.2.1:5000", False),
    ("192.0.2.1:80", "192.0.2.1:5000", True),
    ("192.0.2.0/24", "192.0.2.77", False),
    ("192.0.3.0/24", "192.0.2.77", True),
    ("192.0.2.0/x", "192.0.2.77", True),
    ("2001:db8::/32", "[2001:db8::1]:5000", False),
    ("2001:db8::1", "[2001:db8::1]:5000", False),
    ("[2001:db8::1]:5000", "[2001:db8::1]:5000", False),
    ("[2001:db8::1]:5001", "[2001:db8::1]:5000", True),
    (":5000", "reg.example:5000", True),
    ("", "127.0.0.1:5000", False),
    ("", "127.8.8.8", False),
    ("", "localhost:5000", False),
    ("", "[::1]", False),
    ("", "localhost.example", True),
]


@pytest.mark.parametrize(("no_proxy", "host", "expected"), NO_PROXY_TABLE)
def test_exceptions(no_proxy: str, host: str, expected: bool) -> None:
    """tests/engines/test_registry.py asks skopeo the same."""
    proxies = Proxies("http://a", "http://b", parse_no_proxy(no_proxy))
    assert (proxies.proxy_of(f"https://{host}/v2/") == "http://b") is expected
    assert (proxies.proxy_of(f"https://{host}/v2/") == "") is not expected


def test_scheme_of_the_registry_decides() -> None:
    proxies = parse_proxies("plain.example:3128", "", "", names=NAMES)
    assert proxies.proxy_of("http://reg.example/v2/") == "http://plain.example:3128"
    assert proxies.proxy_of("https://reg.example/v2/") == ""
    assert NO_PROXIES.proxy_of("http://reg.example/v2/") == ""


@pytest.mark.parametrize(
    "text", ["socks5://u:s3cret@a:1", "http://u:s3cret@[a", "http://u:s3cret@:80", "http://", "http://a:0"]
)
def test_proxies_that_are_none_are_named_without_their_password(text: str) -> None:
    with pytest.raises(UserError, match="HTTPS_PROXY is not the address of a proxy") as caught:
        parse_proxies("", text, "", names=NAMES)
    assert "s3cret" not in f"{caught.value}{caught.value.hint}{caught.value.__cause__}"


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with scripted_registry() as registry:
        fill(registry)
        yield registry


def fill(registry: ScriptedRegistry) -> None:
    registry.add_blobs(SAMPLE.blobs)
    registry.add_manifest("v1", mediatypes.OCI_MANIFEST, SAMPLE.blobs[SAMPLE.manifest.digest])


def digest(host: str, proxies: Proxies, *, scheme: str = "http", trust: Trust | None = None, **changes: object) -> str:
    """What is found under `<host>/team/image:v1`."""
    endpoint = Endpoint(f"{scheme}://{host}/v2", host, trust or Trust())
    transport = dataclasses.replace(FAST, proxies=proxies, **changes)  # type: ignore[arg-type]
    options = RegistryOptions(find_hosts=lambda _: HostConfig(server=endpoint), transport=transport)
    with open_registry(options) as client:
        return client.image(Reference.parse(f"{host}/team/image:v1")).manifest_digest


def test_plain_registry_through_a_proxy(registry: ScriptedRegistry) -> None:
    with recording_proxy(registry.host) as proxy:
        proxies = Proxies(http=f"http://{proxy.host}")
        assert digest("registry.site.example:5000", proxies) == SAMPLE.manifest.digest
        assert set(proxy.asked) == {"GET registry.site.example:5000"}
        assert registry.requests[0].headers["host"] == "registry.site.example:5000"
        proxy.asked.clear()
        assert digest(registry.host, proxies) == SAMPLE.manifest.digest
        assert not proxy.asked, "this machine is never asked through a proxy"


def test_tls_registry_through_a_proxy(tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path / "tls.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with scripted_registry(tls=context) as registry, recording_proxy(registry.host) as proxy:
        fill(registry)
        proxies = Proxies(https=f"http://us%40er:p%3Aw@{proxy.host}")
        trust = Trust(is_verified=False)
        assert digest("registry.site.example", proxies, scheme="https", trust=trust) == SAMPLE.manifest.digest
        assert set(proxy.asked) == {"CONNECT registry.site.example:443"}
        assert set(proxy.authorizations) == {f"Basic {base64.b64encode(b'us@er:p:w').decode()}"}
        assert not any("proxy-authorization" in one.headers for one in registry.requests)
        with pytest.raises(UserError, match="certificate that is not trusted"):
            digest("registry.site.example", proxies, scheme="https", ca_file=certificate)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [(407, UserError, "the proxy asks for a login"), (502, TemporaryError, "HTTP 502")],
)
def test_proxy_that_does_not_let_through(
    registry: ScriptedRegistry, scheme: str, status: int, kind: type[MicaError], words: str
) -> None:
    with recording_proxy(registry.host) as proxy:
        proxy.status = status
        url = f"http://user:s3cret@{proxy.host}"
        with pytest.raises(kind, match=words) as caught:
            digest("registry.site.example", Proxies(url, url), scheme=scheme)
    assert "registry.site.example" in str(caught.value)
    assert "s3cret" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_that_is_not_there_is_named(scheme: str) -> None:
    with scripted_registry() as gone:
        place = gone.host
    with pytest.raises(TemporaryError, match=rf"registry\.site\.example through {place} could not be asked"):
        digest("registry.site.example", Proxies(f"http://{place}", f"http://{place}"), scheme=scheme)
