"""Trust: from bytes of unknown origin to a verified revision, in the only legal order (docs/format/manifest.md).

    trust = RevisionTrust(fqrn, master_keys, known=known, blacklist=blacklist)
    manifest = trust.take_manifest(bytes)          # parsed, right repository, neither older than `known` nor refused
    trust.take_certificate(stored object bytes)    # hash of `X`, PEM with an RSA key; manifest signature holds
    trust.take_whitelist(bytes, now)               # signed by a master key, right repository, not expired
    revision = trust.verified()                    # fingerprint of the certificate is on the whitelist, and not refused

It never opens a file or a socket; `fetch/` downloads. Every refusal is an IntegrityError that names the
object and the place it came from. A step out of order is a bug and raises StepError. One thread.
"""

import contextlib
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from mica.errors import IntegrityError
from mica.repo.blacklist import Blacklist
from mica.repo.manifest import Manifest, parse_manifest
from mica.repo.objects import unpack
from mica.repo.sealed import Sealed
from mica.repo.signing import (
    is_listed,
    manifest_signature_holds,
    parse_certificate,
    whitelist_signature_holds,
)
from mica.repo.whitelist import Whitelist, parse_whitelist
from mica.texts import format_time

CERTIFICATE_LIMIT = 1 << 20
_Taken = TypeVar("_Taken")


class StepError(RuntimeError):
    """A step of `RevisionTrust` was called out of order."""


@dataclass(frozen=True, slots=True)
class TrustedRevision:
    """A manifest whose chain of signatures was followed up to a master key."""

    manifest: Manifest
    whitelist_expires: datetime.datetime


class KnownRevision(NamedTuple):
    """The newest revision that was verified before: the time of its publication (seconds), its number, its whitelist,
    and for messages the file of this record, or what else helps if an older one is right. Neither of a repository's two
    numbers ever becomes smaller."""

    published_at: int = 0
    revision: int = 0
    whitelist: bytes = b""
    where: str = ""
    remedy: str = ""

    @property
    def hint(self) -> str:
        advice = f"Only if the repository was made again, remove {self.where}." if self.where else self.remedy
        return f"A proxy or mirror may serve old content. {advice}".rstrip()


NOTHING_KNOWN: Final = KnownRevision()
_NOTHING_REFUSED: Final = Blacklist()


class RevisionTrust:
    def __init__(
        self,
        fqrn: str,
        master_keys: Sequence[rsa.RSAPublicKey],
        *,
        where: str = "",
        known: KnownRevision = NOTHING_KNOWN,
        blacklist: Blacklist = _NOTHING_REFUSED,
    ) -> None:
        """`where` is the host for messages. A revision that is older than `known` or on `blacklist` is refused."""
        self._fqrn = fqrn
        self._master_keys = master_keys
        self._where = f" from {where}" if where else ""
        self._known = known
        self._blacklist = blacklist
        self._manifest: Manifest | None = None
        self._sealed: Sealed | None = None
        self._certificate: x509.Certificate | None = None
        self._whitelist: Whitelist | None = None

    def take_manifest(self, data: bytes) -> Manifest:
        if self._manifest is not None:
            # The certificate may have proved the first one already; the second would count as proved unseen.
            raise StepError("A trust takes only one manifest.")
        what = f"The manifest of {self._fqrn}{self._where}"
        manifest, sealed = parse_manifest(data, what)
        if manifest.fqrn != self._fqrn:
            raise IntegrityError(f"{what} belongs to another repository, {manifest.fqrn}.")
        if manifest.published_at < self._known.published_at:
            raise IntegrityError(
                f"{what} was published at {format_time(manifest.published_at)}, before the one already known "
                f"({format_time(self._known.published_at)}).",
                hint=self._known.hint,
            )
        if manifest.revision < self._known.revision:
            raise IntegrityError(
                f"{what} is of revision {manifest.revision}, and revision {self._known.revision} is already known.",
                hint=self._known.hint,
            )
        if manifest.revision < self._blacklist.oldest(self._fqrn):
            raise IntegrityError(
                f"{what} is of revision {manifest.revision}; the blacklist refuses all below "
                f"{self._blacklist.oldest(self._fqrn)}."
            )
        self._manifest, self._sealed = manifest, sealed
        return manifest

    def take_certificate(self, stored: bytes) -> None:
        manifest, sealed = _taken(self._manifest, "manifest"), _taken(self._sealed, "manifest")
        what = f"The certificate {manifest.certificate} of {self._fqrn}{self._where}"
        try:
            pem = unpack(stored, manifest.certificate, limit=CERTIFICATE_LIMIT)
        except IntegrityError as error:
            raise IntegrityError(f"{what} is not what the manifest names: {error}") from error
        certificate = parse_certificate(pem, what)
        if not manifest_signature_holds(certificate, sealed.signed_text, sealed.signature):
            raise IntegrityError(f"The manifest of {self._fqrn}{self._where} has a wrong signature.")
        self._certificate = certificate

    @property
    def certificate(self) -> x509.Certificate:
        """The one that signed the manifest, on the whitelist or not."""
        return _taken(self._certificate, "certificate")

    def take_whitelist(self, data: bytes, now: datetime.datetime) -> bytes:
        """Returns the whitelist that counts: a known one that was written later, which revokes all it does not name."""
        _taken(self._certificate, "certificate")
        what = f"The whitelist of {self._fqrn}{self._where}"
        whitelist = self._signed_whitelist(data, what)
        newer = self._newer_whitelist(whitelist)
        if newer is not None:
            what, whitelist, data = f"The newest whitelist known of {self._fqrn}", newer, self._known.whitelist
        if whitelist.is_expired(now):
            raise IntegrityError(
                f"{what} expired at {whitelist.expires:%Y-%m-%d %H:%M} UTC.",
                hint="The repository's owner renews it with `mica repo resign`; also check this machine's clock.",
            )
        self._whitelist = whitelist
        return data

    def _signed_whitelist(self, data: bytes, what: str) -> Whitelist:
        whitelist, sealed = parse_whitelist(data, what)
        if not any(whitelist_signature_holds(key, sealed.signed_text, sealed.signature) for key in self._master_keys):
            raise IntegrityError(
                f"{what} is not signed by any of the {len(self._master_keys)} keys given for it.",
                hint="Check that the public key (.pub) is the one of this repository.",
            )
        if whitelist.fqrn != self._fqrn:
            raise IntegrityError(f"{what} belongs to another repository, {whitelist.fqrn}.")
        return whitelist

    def _newer_whitelist(self, whitelist: Whitelist) -> Whitelist | None:
        """The known one, if it was written later and is signed by one of today's master keys."""
        if not self._known.whitelist or whitelist.created is None:
            return None
        with contextlib.suppress(IntegrityError):
            known = self._signed_whitelist(self._known.whitelist, "The known whitelist")
            if known.created is not None and known.created > whitelist.created:
                return known
        return None

    def verified(self) -> TrustedRevision:
        manifest, certificate = _taken(self._manifest, "manifest"), _taken(self._certificate, "certificate")
        whitelist = _taken(self._whitelist, "whitelist")
        if not is_listed(certificate, whitelist.fingerprints):
            raise IntegrityError(
                f"The certificate that signed the manifest of {self._fqrn}{self._where} is not on its whitelist."
            )
        if is_listed(certificate, self._blacklist.fingerprints):
            raise IntegrityError(
                f"The certificate that signed the manifest of {self._fqrn}{self._where} is on the blacklist."
            )
        if manifest.revision < whitelist.oldest_revision:
            raise IntegrityError(
                f"Revision {manifest.revision} of {self._fqrn}{self._where} is revoked by the whitelist, as all "
                f"below {whitelist.oldest_revision}."
            )
        return TrustedRevision(manifest, whitelist.expires)


def _taken(value: _Taken | None, what: str) -> _Taken:
    """Raises StepError for a document that has not been taken yet."""
    if value is None:
        raise StepError(f"The {what} is taken first.")
    return value
