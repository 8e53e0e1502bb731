"""The interface of a stream of bytes. No implementation."""

from typing import Protocol


class Readable(Protocol):
    """`read` gives at most `size` bytes, and none only at the end."""

    def read(self, size: int, /) -> bytes: ...
