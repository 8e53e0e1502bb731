"""What only HTTPS shows: whose certificate is believed, and that nothing falls back to plain HTTP."""

import dataclasses
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.support.certificates import write_certificate
from tests.support.registry import Reply, ScriptedRegistry, scripted_registry
from tests.unit.oci.samples import make_sample

from mica.errors import UserError
from mica.oci.proxies import Proxies
from mica.oci.registry import open_registry
from mica.oci.session import RegistryOptions
from mica.oci.source import SourceOptions, open_image
from mica.oci.transport import NO_TRUST, USUAL_TRUST, Transport, TransportOptions, UnreachableError, read_body

FAST = TransportOptions(attempts=2, backoff_s=0.001, connect_timeout_s=5, read_timeout_s=5)


@contextmanager
def tls_registry(certificate: Path) -> Iterator[ScriptedRegistry]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with scripted_registry(tls=context) as registry:
        yield registry


def get(transport: Transport, url: str, *, verify: bool = True) -> bytes:
    trust = USUAL_TRUST if verify else NO_TRUST
    response = transport.send("GET", url, {}, what="x", secrets={"Authorization": "Bearer t"}, trust=trust)
    return read_body(response, 1000, host="h", what="x")


def test_certificate_must_be_trusted(tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path / "tls.pem")
    trusting = dataclasses.replace(FAST, ca_file=certificate)
    with tls_registry(certificate) as registry:
        registry.script["/x"] = [Reply(body=b"content")] * 4
        with closing(Transport(trusting)) as transport:
            assert get(transport, f"https://{registry.host}/x") == b"content"
        with closing(Transport(FAST)) as transport:
            with pytest.raises(UserError, match="certificate that is not trusted"):
                get(transport, f"https://{registry.host}/x")
            assert get(transport, f"https://{registry.host}/x", verify=False) == b"content"


def test_no_redirect_from_https_to_http(tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path / "tls.pem")
    options = dataclasses.replace(FAST, ca_file=certificate)
    with tls_registry(certificate) as registry, scripted_registry() as plain:
        plain.script["/x"] = [Reply(body=b"content")] * 2
        registry.script["/x"] = [Reply(302, {"Location": f"http://{plain.host}/x"})] * 2
        with (
            closing(Transport(options)) as transport,
            pytest.raises(UserError, match="redirects x to plain HTTP, which is refused"),
        ):
            get(transport, f"https://{registry.host}/x")
        assert plain.requests == []
        with closing(Transport(dataclasses.replace(options, insecure=True))) as transport:
            assert get(transport, f"https://{registry.host}/x") == b"content"
        assert "authorization" not in plain.requests[0].headers


def test_registry_of_this_machine_is_asked_over_https_first(tmp_path: Path) -> None:
    sample = make_sample([])
    with tls_registry(write_certificate(tmp_path / "tls.pem")) as registry:
        registry.add_blobs(sample.blobs)
        registry.add_manifest("v1", sample.manifest.media_type, sample.blobs[sample.manifest.digest])
        options = SourceOptions(registry=RegistryOptions(transport=FAST))
        with open_image(f"docker://{registry.host}/image:v1", options=options) as image:
            assert image.manifest_digest == sample.manifest.digest


def test_nothing_falls_back_to_http_elsewhere() -> None:
    with scripted_registry() as registry, closing(Transport(FAST)) as transport:
        with pytest.raises(UnreachableError, match="no TLS"):
            get(transport, f"https://{registry.host}/v2/")
        assert registry.requests == []


def test_proxy_password_is_in_no_repr() -> None:
    url = "http://user:s3cret@proxy.example"
    options = dataclasses.replace(FAST, proxies=Proxies(url, url))
    assert "s3cret" not in repr(RegistryOptions(transport=options))
    with open_registry(RegistryOptions(transport=options)) as client:
        assert "s3cret" not in repr(client)
