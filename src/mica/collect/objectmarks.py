"""Which objects are needed, and for what: a set that grows on disk, whatever the size of the repository.

    <directory>/00 … ff      records of the objects whose digest begins with this byte
    record                   21 bytes: kind of the object, its digest; 4 bytes: who needs it

Writers append, so an object that several need has several records; a file that has grown to twice its size is written
again without them. A reader loads one file at a time. So a repository of a million objects takes some megabytes of
memory, and 25 MB of disk for each million of records. Any thread.
"""

import re
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mica.digest import DIGEST_SIZE, Algorithm, Digest, Suffix
from mica.files import mapped_os_errors

PARTS: Final = 256
_KEY_BYTES: Final = 1 + DIGEST_SIZE
_RECORD: Final = struct.Struct(f">{_KEY_BYTES}sI")
_BUFFERED_BYTES: Final = 4 << 20
_READ_BYTES: Final = _RECORD.size << 14
_TIDY_FROM_BYTES: Final = 4 << 20
_PATH: Final = re.compile(
    r"data/(?P<first>[0-9a-f]{2})/(?P<rest>[0-9a-f]{38})(?P<algorithm>-rmd160|-shake128)?(?P<suffix>[A-Z]?)"
)
_BY_CLASS: Final = {
    (algorithm, suffix): bytes([algorithm << 4 | number])
    for algorithm in Algorithm
    for number, suffix in enumerate(Suffix)
}
_BY_TEXT: Final = {(algorithm.text_id, str(suffix)): kind for (algorithm, suffix), kind in _BY_CLASS.items()}


def key_of_path(path: str) -> bytes | None:
    """How the object at a path is called here; None for a path that no object of ours can have."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    kind = _BY_TEXT.get((match["algorithm"] or "", match["suffix"]))
    return None if kind is None else kind + bytes.fromhex(match["first"] + match["rest"])


def key_of(digest: Digest, suffix: Suffix) -> bytes:
    return _BY_CLASS[digest.algorithm, suffix] + digest.raw


class ObjectMarks:
    """`directory` is there, and empty. Those who need objects are numbers from 0; the lowest one counts."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._buffers = [bytearray() for _ in range(PARTS)]
        self._buffered = 0
        self._tidy_at = [_TIDY_FROM_BYTES] * PARTS

    def add(self, owner: int, digest: Digest, suffix: Suffix) -> None:
        self.add_many(owner, [(digest, suffix)])

    def add_many(self, owner: int, objects: Iterable[tuple[Digest, Suffix]]) -> None:
        """Raises UserError where the disk is full."""
        end = owner.to_bytes(4, "big")
        with self._lock:
            buffers = self._buffers
            for (raw, algorithm), suffix in objects:
                buffers[raw[0]] += _BY_CLASS[algorithm, suffix] + raw + end
                self._buffered += _RECORD.size
            if self._buffered >= _BUFFERED_BYTES:
                self._flush()

    def load(self, part: int) -> dict[bytes, int]:
        """Who needs the objects whose digests begin with this byte."""
        with self._lock:
            self._write(part)
            return self._load(part)

    def _load(self, part: int) -> dict[bytes, int]:
        owners: dict[bytes, int] = {}
        path = self._path(part)
        with mapped_os_errors(f"read {path}"):
            if not path.exists():
                return owners
            with path.open("rb") as file:
                while block := file.read(_READ_BYTES):
                    for key, owner in _RECORD.iter_unpack(block):
                        if owners.setdefault(key, owner) > owner:
                            owners[key] = owner
        return owners

    def _flush(self) -> None:
        for part in range(PARTS):
            self._write(part)
        self._buffered = 0

    def _write(self, part: int) -> None:
        buffer = self._buffers[part]
        if not buffer:
            return
        path = self._path(part)
        with mapped_os_errors(f"write {path}", when_full="nothing was removed"), path.open("ab") as file:
            file.write(buffer)
            size = file.tell()
        self._buffered -= len(buffer)
        self._buffers[part] = bytearray()
        if size >= self._tidy_at[part]:
            self._tidy(part)

    def _tidy(self, part: int) -> None:
        owners = self._load(part)
        path = self._path(part)
        with mapped_os_errors(f"write {path}", when_full="nothing was removed"), path.open("wb") as file:
            file.writelines(_RECORD.pack(key, owner) for key, owner in owners.items())
            self._tidy_at[part] = max(_TIDY_FROM_BYTES, 2 * file.tell())

    def _path(self, part: int) -> Path:
        return self._directory / f"{part:02x}"
