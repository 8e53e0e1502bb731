"""Content digests of a repository: 20 bytes and the algorithm that made them.

Text form: lower-case hex, then nothing (SHA-1), `-rmd160` or `-shake128`; object path: `data/` + first two hex digits
+ `/` + the rest + one letter for the class of the object (docs/format/objects.md). Pure values; any thread.
"""

import enum
import hashlib
import re
import struct
from typing import NamedTuple, Protocol

DIGEST_SIZE = 20


class Algorithm(enum.IntEnum):
    """Content hash algorithms, numbered as the format does (catalog flags bits 8-10 hold this number less one)."""

    SHA1 = 1
    RIPEMD160 = 2
    SHAKE128 = 3

    @property
    def text_id(self) -> str:
        return _TEXT_IDS[self]

    @property
    def config_name(self) -> str:
        """The name in configuration files: sha1, rmd160 or shake128."""
        return _TEXT_IDS[self].lstrip("-") or "sha1"


_TEXT_IDS = {Algorithm.SHA1: "", Algorithm.RIPEMD160: "-rmd160", Algorithm.SHAKE128: "-shake128"}
_BY_TEXT_ID = {text: algorithm for algorithm, text in _TEXT_IDS.items()}
_DIGEST_TEXT = re.compile(r"([0-9a-f]{40})(-rmd160|-shake128)?")
_OBJECT_PATH = re.compile(r"data/([0-9a-f]{2})/([0-9a-f]{38}(?:-rmd160|-shake128)?)([A-Z]?)")


class Suffix(enum.StrEnum):
    """Class of an object: the last letter of its path; never written into catalogs or manifests."""

    FILE = ""
    CHUNK = "P"
    CATALOG = "C"
    HISTORY = "H"
    CERTIFICATE = "X"
    METAINFO = "M"


class Digest(NamedTuple):
    """Digest of an object's stored (usually compressed) bytes. Two digests are equal if their bytes and algorithms
    are."""

    raw: bytes
    algorithm: Algorithm

    @property
    def text(self) -> str:
        return self.raw.hex() + _TEXT_IDS[self.algorithm]

    def __str__(self) -> str:
        return self.text

    def object_path(self, suffix: Suffix) -> str:
        text = self.text
        return f"data/{text[:2]}/{text[2:]}{suffix}"

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """Read the text form. Raises ValueError for anything else."""
        match = _DIGEST_TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"not a content digest: {text[:80]!r}")
        return cls(bytes.fromhex(match[1]), _BY_TEXT_ID[match[2] or ""])


def parse_object_path(path: str) -> tuple[Digest, Suffix] | None:
    """Digest and class of the object at a path (`Digest.object_path`); None for any other path."""
    match = _OBJECT_PATH.fullmatch(path)
    if match is None:
        return None
    try:
        return Digest.parse(match[1] + match[2]), Suffix(match[3])
    except ValueError:
        return None


class Hasher(Protocol):
    """A digest being computed."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def finish(self) -> Digest: ...


class _Hasher:
    __slots__ = ("_algorithm", "_state", "update")

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        if algorithm is Algorithm.SHA1:
            self._state = hashlib.sha1(usedforsecurity=False)
        elif algorithm is Algorithm.RIPEMD160:
            self._state = hashlib.new("ripemd160", usedforsecurity=False)
        else:
            self._state = hashlib.shake_128(usedforsecurity=False)
        self.update = self._state.update

    def finish(self) -> Digest:
        if self._algorithm is Algorithm.SHAKE128:
            return Digest(self._state.digest(DIGEST_SIZE), self._algorithm)  # type: ignore[call-arg]
        return Digest(self._state.digest(), self._algorithm)


def new_hasher(algorithm: Algorithm) -> Hasher:
    return _Hasher(algorithm)


def digest_of(data: bytes | bytearray | memoryview, algorithm: Algorithm = Algorithm.SHA1) -> Digest:
    hasher = _Hasher(algorithm)
    hasher.update(data)
    return hasher.finish()


class PathHash(NamedTuple):
    """MD5 of an absolute path inside the repository as two signed little-endian 64-bit halves (the catalog's key)."""

    md5path_1: int
    md5path_2: int


_HALVES = struct.Struct("<qq")
NULL_PATH_HASH = PathHash(0, 0)


def path_hash(path: bytes) -> PathHash:
    """Key of a path: `b""` is the root, all others begin with a slash and do not end with one."""
    return PathHash._make(_HALVES.unpack(hashlib.md5(path, usedforsecurity=False).digest()))
