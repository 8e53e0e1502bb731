r"""The envelope of manifest and whitelist: text, a line `--`, the digest of the text, and a signature.

    <text, ends with a newline> "--\n" <digest text> "\n" <signature bytes up to the end>

What the signature is over and by which key differs; see `manifest.py` and `whitelist.py`. Pure; any thread.
"""

from typing import NamedTuple

from mica.digest import Digest, digest_of
from mica.errors import IntegrityError

_SEPARATOR = b"\n--\n"
_LONGEST_DIGEST_LINE = 64


class Sealed(NamedTuple):
    """A parsed envelope whose text has the digest it states; the signature is not checked yet."""

    text: bytes
    digest: Digest
    signature: bytes

    @property
    def signed_text(self) -> bytes:
        """The bytes that are signed: the digest line without its newline."""
        return self.digest.text.encode("ascii")


def parse_sealed(data: bytes, what: str) -> Sealed:
    """Cut at the first separator. Raises IntegrityError naming `what`."""
    cut = data.find(_SEPARATOR)
    if cut < 0:
        raise IntegrityError(f"{what} is not signed: it has no line '--'.")
    text, rest = data[: cut + 1], data[cut + len(_SEPARATOR) :]
    line, newline, signature = rest.partition(b"\n")
    if not newline or len(line) > _LONGEST_DIGEST_LINE or not signature:
        raise IntegrityError(f"{what} has no digest line and signature after '--'.")
    try:
        digest = Digest.parse(line.decode("ascii"))
    except (UnicodeDecodeError, ValueError) as error:
        raise IntegrityError(f"{what} states a malformed digest.") from error
    if digest_of(text, digest.algorithm) != digest:
        raise IntegrityError(f"{what} was changed: its text does not have the digest it states.")
    return Sealed(text, digest, signature)


def format_sealed(text: bytes, digest: Digest, signature: bytes) -> bytes:
    return text + b"--\n" + digest.text.encode("ascii") + b"\n" + signature
