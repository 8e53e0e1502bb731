"""The whitelist `.cvmfswhitelist` names the certificates that may sign manifests (docs/format/manifest.md). Pure.

The caller gives `now`, in UTC: tests have a clock of their own.
"""

import datetime
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import rsa

from mica.digest import Algorithm, digest_of
from mica.errors import IntegrityError, explain_parse_error
from mica.repo.blacklist import fingerprint_of_line, parse_revision_line
from mica.repo.sealed import Sealed, format_sealed, parse_sealed
from mica.repo.signing import fingerprint_algorithm, sign_whitelist_text

NAME = ".cvmfswhitelist"
SIZE_LIMIT = 64 << 10
VALIDITY_DAYS = 30
_STAMP = "%Y%m%d%H%M%S"
_STAMP_LENGTH = 14


@dataclass(frozen=True, slots=True)
class Whitelist:
    """Fingerprints as written in the file: upper-case hex pairs, with the text id of their algorithm if not SHA-1.
    `oldest_revision` is the first that its owner has not revoked, 0 if none is."""

    fqrn: str
    created: datetime.datetime | None
    expires: datetime.datetime
    fingerprints: tuple[str, ...]
    oldest_revision: int = 0

    def is_expired(self, now: datetime.datetime) -> bool:
        """Expiry counts in hours: in the hour of expiry the whitelist is expired already."""
        return _hour(now) >= _hour(self.expires)


def format_whitelist(whitelist: Whitelist) -> bytes:
    created = whitelist.created or whitelist.expires
    lines = [
        created.strftime(_STAMP),
        "E" + whitelist.expires.strftime(_STAMP),
        "N" + whitelist.fqrn,
        *whitelist.fingerprints,
        *([f"<{whitelist.fqrn} {whitelist.oldest_revision}"] if whitelist.oldest_revision else []),
    ]
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def sign_whitelist(whitelist: Whitelist, key: rsa.RSAPrivateKey, algorithm: Algorithm = Algorithm.SHA1) -> bytes:
    """The whole file, signed with the master key."""
    text = format_whitelist(whitelist)
    digest = digest_of(text, algorithm)
    return format_sealed(text, digest, sign_whitelist_text(key, digest.text.encode("ascii")))


def parse_whitelist(data: bytes, what: str) -> tuple[Whitelist, Sealed]:
    """Raises IntegrityError naming `what`. The signature is not checked here."""
    if len(data) > SIZE_LIMIT:
        raise IntegrityError(f"{what} has {len(data)} bytes, more than a whitelist can have.")
    sealed = parse_sealed(data, what)
    try:
        return parse_whitelist_text(sealed.text.decode("ascii", "replace")), sealed
    except (IndexError, ValueError) as error:
        raise IntegrityError(f"{what} is not a complete whitelist: {explain_parse_error(error)}.") from error


def parse_whitelist_text(text: str) -> Whitelist:
    """The part that is signed, without the signature. Raises IndexError, ValueError."""
    lines = text.split("\n")[:-1]
    expiry, name, rest = lines[1], lines[2], lines[3:]
    if not expiry.startswith("E") or len(expiry) != _STAMP_LENGTH + 1:
        raise ValueError("its second line is not an expiry time")
    if not name.startswith("N"):
        raise ValueError("its third line does not name a repository")
    if any(line.startswith("Vpkcs7") for line in rest[:1]):
        raise ValueError("it asks for PKCS#7, which no client supports")
    fingerprints = map(fingerprint_of_line, rest)
    return Whitelist(
        fqrn=name[1:],
        created=_time(lines[0]) if len(lines[0]) == _STAMP_LENGTH else None,
        expires=_time(expiry[1:]),
        fingerprints=tuple(text for text in fingerprints if fingerprint_algorithm(text) is not None),
        oldest_revision=max((_oldest_revision(line, name[1:]) for line in rest if line.startswith("<")), default=0),
    )


def _oldest_revision(line: str, fqrn: str) -> int:
    """The number in a line that revokes revisions; the stock client skips such lines."""
    found = parse_revision_line(line)
    if found is None:
        raise ValueError("a line that revokes revisions is malformed")
    return found[1] if found[0] == fqrn else 0


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.strptime(text, _STAMP).replace(tzinfo=datetime.UTC)


def _hour(time: datetime.datetime) -> tuple[int, int, int, int]:
    return time.year, time.month, time.day, time.hour
