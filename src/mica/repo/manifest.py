"""The manifest `.cvmfspublished` names the parts of a repository's newest revision (docs/format/manifest.md). Pure."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mica.digest import Algorithm, Digest, Suffix, digest_of
from mica.errors import IntegrityError, explain_parse_error
from mica.repo.sealed import Sealed, format_sealed, parse_sealed

if TYPE_CHECKING:  # commands that only read manifests need not load cryptography
    from cryptography.hazmat.primitives.asymmetric import rsa

NAME = ".cvmfspublished"
SIZE_LIMIT = 4096
READ_LIMIT = 64 << 10
"""Most bytes to read where a manifest is expected. What is between the two limits is refused when it is parsed."""
"""Bytes of the whole file with its signature: servers read it in one piece of this size."""

ROOT_PATH_MD5 = "d41d8cd98f00b204e9800998ecf8427e"
_NUMBER = re.compile(r"[0-9]{1,18}")
_FQRN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Fields in the order of the file. Sizes in bytes, times in seconds since 1970; no digest carries a suffix."""

    root_catalog: Digest
    root_catalog_size: int
    ttl_s: int
    revision: int
    fqrn: str
    certificate: Digest
    published_at: int
    history: Digest | None = None
    metainfo: Digest | None = None
    reflog: Digest | None = None
    garbage_collectable: bool = False
    alternative_paths: bool = False

    @property
    def algorithm(self) -> Algorithm:
        """The repository's algorithm is that of its root catalog."""
        return self.root_catalog.algorithm

    @property
    def objects(self) -> dict[Suffix, Digest]:
        """The objects that it names, by their class. The reflog is none: it lies beside the manifest."""
        named = {
            Suffix.CATALOG: self.root_catalog,
            Suffix.CERTIFICATE: self.certificate,
            Suffix.HISTORY: self.history,
            Suffix.METAINFO: self.metainfo,
        }
        return {suffix: digest for suffix, digest in named.items() if digest is not None}


def format_manifest(manifest: Manifest) -> bytes:
    """The text that gets signed."""
    lines: list[tuple[str, str | None]] = [
        ("C", manifest.root_catalog.text),
        ("B", str(manifest.root_catalog_size)),
        ("R", ROOT_PATH_MD5),
        ("D", str(manifest.ttl_s)),
        ("S", str(manifest.revision)),
        ("G", "yes" if manifest.garbage_collectable else "no"),
        ("A", "yes" if manifest.alternative_paths else "no"),
        ("N", manifest.fqrn),
        ("X", manifest.certificate.text),
        ("H", _text(manifest.history)),
        ("T", str(manifest.published_at)),
        ("M", _text(manifest.metainfo)),
        ("Y", _text(manifest.reflog)),
    ]
    return "".join(f"{key}{value}\n" for key, value in lines if value is not None).encode("ascii")


def sign_manifest(manifest: Manifest, key: "rsa.RSAPrivateKey") -> bytes:
    """The whole file."""
    from mica.repo.signing import sign_manifest_text

    text = format_manifest(manifest)
    digest = digest_of(text, manifest.algorithm)
    sealed = format_sealed(text, digest, sign_manifest_text(key, digest.text.encode("ascii")))
    assert len(sealed) < SIZE_LIMIT, "names and digests are bounded"
    return sealed


def parse_manifest(data: bytes, what: str) -> tuple[Manifest, Sealed]:
    """Raises IntegrityError naming `what` if it is incomplete or malformed. The signature is not checked here."""
    if len(data) > SIZE_LIMIT:
        raise IntegrityError(f"{what} has {len(data)} bytes, more than a manifest can have.")
    sealed = parse_sealed(data, what)
    try:
        return _manifest_from(_fields(sealed.text)), sealed
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"{what} is not a complete manifest: {explain_parse_error(error)}.") from error


def is_fqrn(text: str) -> bool:
    """Whether a text can be the name of a repository: letters, digits, `-_.`, at most 60, no leading dot or dash."""
    return _FQRN.fullmatch(text) is not None and ".." not in text


def _fields(text: bytes) -> dict[str, str]:
    lines = text.decode("ascii").split("\n")
    return {line[0]: line[1:] for line in lines if line}


def _manifest_from(fields: dict[str, str]) -> Manifest:
    if fields["R"] != ROOT_PATH_MD5:
        raise ValueError("its root path is not the root")
    if not is_fqrn(fields["N"]):
        raise ValueError("its name is not that of a repository")
    return Manifest(
        root_catalog=Digest.parse(fields["C"]),
        root_catalog_size=_number(fields.get("B", "0")),
        ttl_s=_number(fields["D"]),
        revision=_number(fields["S"]),
        fqrn=fields["N"],
        certificate=Digest.parse(fields["X"]),
        published_at=_number(fields.get("T", "0")),
        history=_digest(fields.get("H")),
        metainfo=_digest(fields.get("M")),
        reflog=_digest(fields.get("Y")),
        garbage_collectable=fields.get("G") == "yes",
        alternative_paths=fields.get("A") == "yes",
    )


def _number(text: str) -> int:
    if _NUMBER.fullmatch(text) is None:
        raise ValueError(f"{text[:20]!r} is not a number")
    return int(text)


def _digest(text: str | None) -> Digest | None:
    return Digest.parse(text) if text else None


def _text(digest: Digest | None) -> str | None:
    return None if digest is None else digest.text
