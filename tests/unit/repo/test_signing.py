"""Keys and certificates from elsewhere."""

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tests.support.tools import need

from mica.errors import IntegrityError, UserError
from mica.repo.signing import (
    new_key,
    parse_certificate,
    parse_private_key,
    parse_public_key,
    private_pem,
    public_pem,
    sign_manifest_text,
    sign_whitelist_text,
)

KEY = new_key()
TEXT = b"0123456789012345678901234567890123456789"


def other_kind(*, public: bool) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    if public:
        return key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def test_keys_come_back() -> None:
    assert parse_private_key(private_pem(KEY), "it").private_numbers() == KEY.private_numbers()
    assert parse_public_key(public_pem(KEY), "it").public_numbers() == KEY.public_key().public_numbers()


def test_openssl_agrees_with_both_signatures(tmp_path: Path) -> None:
    """The manifest's has a DigestInfo of SHA-1, the whitelist's is the bare text."""
    openssl = need("openssl", "openssl")
    (tmp_path / "pub").write_bytes(public_pem(KEY))
    for name, signature in (("manifest", sign_manifest_text(KEY, TEXT)), ("whitelist", sign_whitelist_text(KEY, TEXT))):
        (tmp_path / name).write_bytes(signature)
    (tmp_path / "text").write_bytes(TEXT)
    run = {"cwd": tmp_path, "capture_output": True, "check": True}
    subprocess.run([openssl, "dgst", "-sha1", "-verify", "pub", "-signature", "manifest", "text"], **run)  # type: ignore[call-overload]
    command = [openssl, "pkeyutl", "-verifyrecover", "-pubin", "-inkey", "pub", "-in", "whitelist"]
    assert subprocess.run(command, **run).stdout == TEXT  # type: ignore[call-overload]


@pytest.mark.parametrize("pem", [b"", b"nonsense", public_pem(KEY), other_kind(public=False)])
def test_other_private_keys_are_refused_without_quoting_them(pem: bytes) -> None:
    with pytest.raises(UserError, match=r"^The key of x is not an? .*\.$"):
        parse_private_key(pem, "The key of x")


def test_encrypted_keys_are_refused() -> None:
    pem = KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    with pytest.raises(UserError, match="not an unencrypted PEM private key"):
        parse_private_key(pem, "The key of x")


@pytest.mark.parametrize("pem", [b"", private_pem(KEY), other_kind(public=True)])
def test_other_public_keys_are_refused(pem: bytes) -> None:
    with pytest.raises(UserError, match=r"It is not an? .*\.$"):
        parse_public_key(pem, "It")


@pytest.mark.parametrize(
    "pem", [b"", b"nonsense", public_pem(KEY), b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_other_certificates_are_refused(pem: bytes) -> None:
    with pytest.raises(IntegrityError, match="It is not a PEM certificate"):
        parse_certificate(pem, "It")


def test_a_private_key_that_signs_for_another_public_one_is_refused() -> None:
    numbers = KEY.private_numbers()
    public = rsa.RSAPublicNumbers(numbers.public_numbers.e ^ 512, numbers.public_numbers.n)
    damaged = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, numbers.d, numbers.dmp1, numbers.dmq1, numbers.iqmp, public
    ).private_key(unsafe_skip_rsa_key_validation=True)
    with pytest.raises(UserError, match=r"^The key of x is not an? .*\.$"):
        parse_private_key(private_pem(damaged), "The key of x")
