"""The key files of a repository, in the directory `keys` of its settings (docs/format/manifest.md).

    <fqrn>.masterkey    signs the whitelist; may be on another machine
    <fqrn>.pub          its public half, which clients have
    <fqrn>.next.pub     the public half of the next master key, while clients are to accept both
    <fqrn>.key .crt     signs manifests, and its certificate
    <fqrn>.next.key     the next key and its certificate in one file, until a whitelist with it is published

Each file is read when it is asked for. Called by the release manager and by `resigning`. One thread.
"""

import datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from mica.errors import NotFoundError, UserError
from mica.files import mapped_os_errors, replace_file
from mica.publish.settings import RepositorySettings
from mica.repo.signing import (
    fingerprint,
    key_belongs_to,
    new_certificate,
    new_key,
    parse_certificate,
    parse_private_key,
    parse_public_key,
    private_pem,
    public_pem,
)
from mica.repo.signingrequest import name_of_key

SECRET_MODE = 0o400
PUBLIC_MODE = 0o444


class Signer(NamedTuple):
    """A key that signs manifests, and its certificate."""

    key: rsa.RSAPrivateKey
    certificate_pem: bytes

    @property
    def certificate(self) -> x509.Certificate:
        return parse_certificate(self.certificate_pem, "The certificate")

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate)


class KeyFiles:
    """Raises NotFoundError for a file that is missing, UserError or IntegrityError for one that is no key."""

    def __init__(self, settings: RepositorySettings) -> None:
        self._settings = settings
        self._fqrn = settings.fqrn

    def path(self, kind: str) -> Path:
        return self._settings.key_path(kind)

    def make_missing(self) -> None:
        """Make the pairs that are not there. The directory exists."""
        for private, public in (("masterkey", "pub"), ("key", "crt")):
            if self.path(private).exists() and self.path(public).exists():
                continue
            key = new_key()
            document = public_pem(key) if public == "pub" else new_certificate(key, self._fqrn, _now())
            replace_file(self.path(private), private_pem(key), mode=SECRET_MODE)
            replace_file(self.path(public), document, mode=PUBLIC_MODE)

    def public_keys(self) -> list[rsa.RSAPublicKey]:
        """The public master keys that clients accept: the present one first, perhaps the next one."""
        keys = [parse_public_key(self._bytes("pub"), f"The public key of {self._fqrn}")]
        if self.path("next.pub").exists():
            keys.append(parse_public_key(self._bytes("next.pub"), f"The next public key of {self._fqrn}"))
        return keys

    def master_key(self, file: Path | None = None) -> rsa.RSAPrivateKey:
        """The one in a file; else the one that is here. Raises UserError for a key that no client would accept."""
        path = file or self.path("masterkey")
        if file is None and not path.exists():
            raise NotFoundError(
                f"The master key of {self._fqrn} is not on this machine ({path}).",
                hint="Give it with --master-key FILE, or have the whitelist signed where it is: --request FILE.",
            )
        key = read_private_key(path, f"The master key {path}")
        if name_of_key(key.public_key()) not in map(name_of_key, self.public_keys()):
            raise UserError(
                f"The master key {path} does not belong to the public key of {self._fqrn}.",
                hint=f"Clients have {self.path('pub')}.",
            )
        return key

    def signer(self) -> Signer:
        """Raises UserError for a key that nobody could verify."""
        key = parse_private_key(self._bytes("key"), f"The key of {self._fqrn}")
        certificate = self._bytes("crt")
        if not key_belongs_to(key, parse_certificate(certificate, f"Certificate of {self._fqrn}")):
            is_changing = self.path("next.key").exists()
            raise UserError(
                f"The key {self.path('key')} does not belong to its certificate.",
                hint=f"A change of the key was interrupted. Go on with it: mica repo resign {self._fqrn}"
                if is_changing
                else f"{self.path('crt')} has to be made with it.",
            )
        return Signer(key, certificate)

    def next_signer(self) -> Signer | None:
        """The key that is to follow, if there is one."""
        if not self.path("next.key").exists():
            return None
        data = self._bytes("next.key")
        what = f"The next key of {self._fqrn}"
        key = parse_private_key(data, what)
        start = data.find(b"-----BEGIN CERTIFICATE-----")
        certificate = data[start:] if start >= 0 else b""
        if not key_belongs_to(key, parse_certificate(certificate, what)):
            raise UserError(f"{what} does not belong to its certificate ({self.path('next.key')}).")
        return Signer(key, certificate)

    def make_next_signer(self) -> None:
        """Make a key that follows the present one; does nothing if there is one already. The caller holds the lock."""
        if self.path("next.key").exists():
            return
        key = new_key()
        with mapped_os_errors(f"write {self.path('next.key')}"):
            replace_file(
                self.path("next.key"), private_pem(key) + new_certificate(key, self._fqrn, _now()), mode=SECRET_MODE
            )

    def take_next_signer(self) -> None:
        """The next key becomes the present one. When killed, it is done again by the next call."""
        following = self.next_signer()
        assert following is not None
        with mapped_os_errors(f"replace {self.path('key')}"):
            replace_file(self.path("crt"), following.certificate_pem, mode=PUBLIC_MODE)
            replace_file(self.path("key"), private_pem(following.key), mode=SECRET_MODE)
            self.path("next.key").unlink()

    def announce_master_key(self, file: Path) -> None:
        """Clients are to accept this public master key too from now on. Raises UserError for the present one."""
        with mapped_os_errors(f"read the public key {file}"):
            data = file.read_bytes()
        name = name_of_key(parse_public_key(data, f"The public key {file}"))
        if name == name_of_key(self.public_keys()[0]):
            raise UserError(f"{file} is the public key that clients of {self._fqrn} have already.")
        with mapped_os_errors(f"write {self.path('next.pub')}"):
            replace_file(self.path("next.pub"), data, mode=PUBLIC_MODE)

    def take_next_master_key(self, signed_by: rsa.RSAPublicKey) -> bool:
        """The next master key becomes the present one if it has signed; True if it did."""
        keys = self.public_keys()
        if name_of_key(signed_by) == name_of_key(keys[0]):
            return False
        with mapped_os_errors(f"replace {self.path('pub')}"):
            self.path("next.pub").replace(self.path("pub"))
        return True

    def _bytes(self, kind: str) -> bytes:
        path = self.path(kind)
        with mapped_os_errors(f"read the key file {path}"):
            try:
                return path.read_bytes()
            except FileNotFoundError as error:
                raise NotFoundError(f"The key file {path} of {self._fqrn} is missing.") from error


def read_private_key(path: Path, what: str) -> rsa.RSAPrivateKey:
    """Raises UserError."""
    with mapped_os_errors(f"read {what[0].lower()}{what[1:]}"):
        return parse_private_key(path.read_bytes(), what)


def make_master_key(path: Path, public: Path) -> rsa.RSAPrivateKey:
    """A new master key in two files. Raises UserError and changes nothing if one of them exists."""
    key = new_key()
    for target in (path, public):
        if target.exists():
            raise UserError(f"{target} exists already.", hint="Choose another name: a lost key cannot be had back.")
    with mapped_os_errors(f"write {path}"):
        replace_file(path, private_pem(key), mode=SECRET_MODE)
        replace_file(public, public_pem(key), mode=PUBLIC_MODE)
    return key


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
