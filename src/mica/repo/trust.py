"""Trust: from bytes of unknown origin to a verified revision, in the only legal order (docs/format/manifest.md).

    trust = RevisionTrust(fqrn, master_keys)
    manifest = trust.take_manifest(bytes)          # parsed, right repository, not older than what is known
    trust.take_certificate(stored object bytes)    # hash of `X`, PEM with an RSA key; manifest signature holds
    trust.take_whitelist(bytes, now)               # signed by a master key, right repository, not expired
    revision = trust.verified()                    # fingerprint of the certificate is on the whitelist

It never opens a file or a socket; what downloads is somewhere else. Every refusal is an IntegrityError that names the
object and the place it came from; a step out of order is a bug. One thread.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from mica.errors import IntegrityError
from mica.repo.manifest import Manifest, parse_manifest
from mica.repo.objects import unpack
from mica.repo.sealed import Sealed
from mica.repo.signing import (
    fingerprint,
    fingerprint_algorithm,
    manifest_signature_holds,
    parse_certificate,
    whitelist_signature_holds,
)
from mica.repo.whitelist import Whitelist, parse_whitelist

CERTIFICATE_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class TrustedRevision:
    """A manifest whose chain of signatures was followed up to a master key."""

    manifest: Manifest
    whitelist_expires: datetime.datetime


class RevisionTrust:
    def __init__(
        self,
        fqrn: str,
        master_keys: Sequence[rsa.RSAPublicKey],
        *,
        where: str = "",
        oldest: int = 0,
        blacklist: frozenset[str] = frozenset(),
    ) -> None:
        """`where` is the host for messages; `oldest` the publishing time (seconds) below which a manifest is outdated;
        `blacklist` holds fingerprints that are refused."""
        self._fqrn = fqrn
        self._master_keys = master_keys
        self._where = f" from {where}" if where else ""
        self._oldest = oldest
        self._blacklist = blacklist
        self._manifest: Manifest | None = None
        self._sealed: Sealed | None = None
        self._certificate: x509.Certificate | None = None
        self._whitelist: Whitelist | None = None

    def take_manifest(self, data: bytes) -> Manifest:
        assert self._manifest is None, "one manifest for each trust"
        what = f"The manifest of {self._fqrn}{self._where}"
        manifest, sealed = parse_manifest(data, what)
        if manifest.fqrn != self._fqrn:
            raise IntegrityError(f"{what} belongs to another repository, {manifest.fqrn}.")
        if manifest.published_at < self._oldest:
            raise IntegrityError(
                f"{what} was published at {manifest.published_at}, before the one already known ({self._oldest}).",
                hint="A proxy or mirror may serve old content.",
            )
        self._manifest, self._sealed = manifest, sealed
        return manifest

    def take_certificate(self, stored: bytes) -> None:
        assert self._manifest is not None
        assert self._sealed is not None
        what = f"The certificate {self._manifest.certificate} of {self._fqrn}{self._where}"
        try:
            pem = unpack(stored, self._manifest.certificate, limit=CERTIFICATE_LIMIT)
        except IntegrityError as error:
            raise IntegrityError(f"{what} is not what the manifest names: {error}") from error
        certificate = parse_certificate(pem, what)
        if not manifest_signature_holds(certificate, self._sealed.signed_text, self._sealed.signature):
            raise IntegrityError(f"The manifest of {self._fqrn}{self._where} has a wrong signature.")
        self._certificate = certificate

    def take_whitelist(self, data: bytes, now: datetime.datetime) -> None:
        assert self._certificate is not None
        what = f"The whitelist of {self._fqrn}{self._where}"
        whitelist, sealed = parse_whitelist(data, what)
        if not any(whitelist_signature_holds(key, sealed.signed_text, sealed.signature) for key in self._master_keys):
            raise IntegrityError(
                f"{what} is not signed by any of the {len(self._master_keys)} keys given for it.",
                hint="Check that the public key (.pub) is the one of this repository.",
            )
        if whitelist.fqrn != self._fqrn:
            raise IntegrityError(f"{what} belongs to another repository, {whitelist.fqrn}.")
        if whitelist.is_expired(now):
            raise IntegrityError(
                f"{what} expired at {whitelist.expires:%Y-%m-%d %H:%M} UTC.",
                hint="The repository's owner renews it with `mica repo resign`; also check this machine's clock.",
            )
        self._whitelist = whitelist

    def verified(self) -> TrustedRevision:
        assert self._manifest is not None
        assert self._certificate is not None
        assert self._whitelist is not None
        if not any(self._matches(text, self._certificate) for text in self._whitelist.fingerprints):
            raise IntegrityError(
                f"The certificate that signed the manifest of {self._fqrn}{self._where} is not on its whitelist."
            )
        if any(self._matches(text, self._certificate) for text in self._blacklist):
            raise IntegrityError(
                f"The certificate that signed the manifest of {self._fqrn}{self._where} is on the local blacklist."
            )
        return TrustedRevision(self._manifest, self._whitelist.expires)

    @staticmethod
    def _matches(text: str, certificate: x509.Certificate) -> bool:
        algorithm = fingerprint_algorithm(text)
        return algorithm is not None and fingerprint(certificate, algorithm) == text
