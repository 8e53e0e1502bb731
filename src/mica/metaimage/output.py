"""The bytes of an image on their way into a file: in order, counted, hashed, the first block last."""

import hashlib
from typing import BinaryIO

from mica.metaimage.erofs_abi import BLOCK_BYTES, SLOT_BYTES, UUID_BYTES, UUID_OFFSET, pad_to

_FLUSH_BYTES = 1 << 20
_PADDING = [bytes(size) for size in range(SLOT_BYTES)]


class ImageOutput:
    """`position` is the place of the next byte. `first` is the first block, which can be changed until `finish`."""

    def __init__(self, file: BinaryIO) -> None:
        """`file` is empty and can seek."""
        self._file = file
        self._hash = hashlib.sha256()
        self._parts: list[bytes | bytearray] = []
        self._waiting = 0
        self.position = 0
        self.first = bytearray()

    def put(self, data: bytes | bytearray) -> None:
        self._parts.append(data)
        size = len(data)
        self.position += size
        self._waiting += size
        if self._waiting >= _FLUSH_BYTES:
            self.flush()

    def put_slots(self, data: bytes) -> int:
        """Put bytes, filled up with zeros to the end of a slot, and return their place."""
        place = self.position
        self.put(data + _PADDING[-len(data) % SLOT_BYTES])
        return place

    def skip_to(self, position: int) -> None:
        self.put(bytes(position - self.position))

    def align(self) -> None:
        """Go to the beginning of a block."""
        self.put(bytes(pad_to(self.position, BLOCK_BYTES)))

    def flush(self) -> None:
        data = b"".join(self._parts)
        self._parts = []
        self._waiting = 0
        missing = BLOCK_BYTES - len(self.first)
        if missing:
            self.first += data[:missing]
            self._file.write(bytes(min(missing, len(data))))
            data = data[missing:]
        self._hash.update(data)
        self._file.write(data)

    def finish(self) -> None:
        """Write the first block with a UUID that is computed from all bytes."""
        self.flush()
        self.first[UUID_OFFSET : UUID_OFFSET + UUID_BYTES] = bytes(UUID_BYTES)
        self._hash.update(self.first)
        self.first[UUID_OFFSET : UUID_OFFSET + UUID_BYTES] = self._hash.digest()[:UUID_BYTES]
        self._file.seek(0)
        self._file.write(self.first)
        self._file.seek(self.position)
