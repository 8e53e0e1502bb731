"""Keys, certificates and the two signatures of a repository (docs/format/manifest.md). Bytes in, bytes out; any thread.

Manifest: RSASSA-PKCS1-v1_5 with SHA-1 over the ASCII digest text. Whitelist: PKCS#1 type 1 padding directly over the
ASCII digest text, without a DigestInfo. The two differ for historical reasons.
"""

import datetime
import re
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils
from cryptography.x509.oid import NameOID

from mica.digest import Algorithm, digest_of
from mica.errors import IntegrityError, UserError

KEY_BITS = 2048
CERTIFICATE_DAYS = 365
_COMMON_NAME_LIMIT = 30
SEPARATOR = b"--\n"
_PROBE = b"a key that is whole signs this"


def new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)


def private_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def parse_private_key(pem: bytes, what: str) -> rsa.RSAPrivateKey:
    """Raises UserError naming `what` (never quoting the key).

    The key is the site's own, so a damaged one is to be found and not a forged one: what it signs has to hold. The
    library's own check also proves that the factors are primes, which takes 40 ms for each key of each command.
    """
    try:
        key = serialization.load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)
        if isinstance(key, rsa.RSAPrivateKey):
            key.public_key().verify(sign_manifest_text(key, _PROBE), _PROBE, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise UserError(f"{what} is not an unencrypted PEM private key.") from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise UserError(f"{what} is not an RSA key.")
    return key


def parse_public_key(pem: bytes, what: str) -> rsa.RSAPublicKey:
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{what} is not a PEM public key.") from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise UserError(f"{what} is not an RSA key.")
    return key


def parse_certificate(pem: bytes, what: str) -> x509.Certificate:
    """Raises IntegrityError: a certificate comes from the network. Its dates are not looked at (docs/format)."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IntegrityError(f"{what} is not a PEM certificate.") from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise IntegrityError(f"{what} does not hold an RSA key.")
    return certificate


def new_certificate(key: rsa.RSAPrivateKey, fqrn: str, now: datetime.datetime) -> bytes:
    """PEM of a self-signed certificate; trust comes from its fingerprint on the whitelist only."""
    cut = fqrn if len(fqrn) <= _COMMON_NAME_LIMIT else fqrn[:_COMMON_NAME_LIMIT] + "[...]"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{cut} CernVM-FS Release Managers")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_DAYS))
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate: x509.Certificate, algorithm: Algorithm = Algorithm.SHA1) -> str:
    """Upper-case hex pairs of the DER digest, divided by colons, then the algorithm's text id in upper case."""
    digest = digest_of(certificate.public_bytes(serialization.Encoding.DER), algorithm)
    return ":".join(f"{byte:02X}" for byte in digest.raw) + algorithm.text_id.upper()


_FINGERPRINT = re.compile(r"[0-9A-F]{2}(?::[0-9A-F]{2}){19}(-RMD160|-SHAKE128)?")


def fingerprint_algorithm(text: str) -> Algorithm | None:
    """The algorithm of a fingerprint; None for a text that is not a fingerprint."""
    match = _FINGERPRINT.fullmatch(text)
    if match is None:
        return None
    return {None: Algorithm.SHA1, "-RMD160": Algorithm.RIPEMD160, "-SHAKE128": Algorithm.SHAKE128}[match[1]]


def is_listed(certificate: x509.Certificate, fingerprints: Iterable[str]) -> bool:
    """Whether one of the fingerprints is the certificate's, each by its own algorithm."""
    return any(
        (algorithm := fingerprint_algorithm(text)) is not None and fingerprint(certificate, algorithm) == text
        for text in fingerprints
    )


def sign_manifest_text(key: rsa.RSAPrivateKey, text: bytes) -> bytes:
    return key.sign(text, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303 - the format's choice


def manifest_signature_holds(certificate: x509.Certificate, text: bytes, signature: bytes) -> bool:
    key = certificate.public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        return False
    try:
        key.verify(signature, text, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303
    except InvalidSignature:
        return False
    return True


def sign_whitelist_text(key: rsa.RSAPrivateKey, text: bytes) -> bytes:
    return key.sign(text, padding.PKCS1v15(), utils.NoDigestInfo())


def whitelist_signature_holds(key: rsa.RSAPublicKey, text: bytes, signature: bytes) -> bool:
    try:
        return key.recover_data_from_signature(signature, padding.PKCS1v15(), None) == text
    except (InvalidSignature, ValueError):
        return False


def key_belongs_to(key: rsa.RSAPrivateKey, certificate: x509.Certificate) -> bool:
    public = certificate.public_key()
    return isinstance(public, rsa.RSAPublicKey) and public.public_numbers() == key.public_key().public_numbers()
