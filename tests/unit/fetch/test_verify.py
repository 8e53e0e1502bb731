"""The check of an object while it arrives: digest, length, and what it may unpack to."""

import io
import zlib

import pytest
from tests.support.noise import noise

from mica.digest import Algorithm, Suffix, digest_of
from mica.errors import IntegrityError
from mica.fetch.verify import copy_verified
from mica.repo.objectname import ObjectName
from mica.repo.objects import Compression


def verified(stored: bytes, **changes: object) -> bytes:
    name = ObjectName(digest_of(stored), Suffix.FILE, Compression.ZLIB, None, 1000)._replace(**changes)  # type: ignore[arg-type]
    sink = io.BytesIO()
    copy_verified(io.BytesIO(stored), sink, name)
    return sink.getvalue()


def test_streams_are_unpacked_while_they_are_hashed() -> None:
    plain = noise(600_000) + bytes(2_000_000)
    assert verified(zlib.compress(plain), size=len(plain)) == plain
    assert verified(plain, compression=Compression.NONE, size=len(plain)) == plain
    assert verified(zlib.compress(b"")) == b""
    digest = digest_of(zlib.compress(b"x"), Algorithm.SHAKE128)
    assert verified(zlib.compress(b"x"), digest=digest) == b"x"


@pytest.mark.parametrize(
    ("stored", "changes", "sentence"),
    [
        (zlib.compress(b"x" * 100)[:-1], {}, "is cut short"),
        (zlib.compress(b"x" * 100)[:1], {}, "is cut short"),
        (b"", {}, "is cut short"),
        (zlib.compress(b"x") + b"y", {}, "is followed by other bytes"),
        (zlib.compress(b"x" * 300_000) + b"y", {"size": 300_000}, "is followed by other bytes"),
        (b"no stream", {}, "is not a zlib stream"),
        (zlib.compress(b"x" * 1001), {}, "unpacks to more than the 1000 bytes"),
        (zlib.compress(bytes(64 << 20)), {}, "unpacks to more than the 1000 bytes"),
        (zlib.compress(b"x" * 5), {"size": 6}, "unpacks to 5 bytes and not to 6"),
        (zlib.compress(b"x" * 5), {"size": 4}, "unpacks to more than the 4 bytes"),
        (zlib.compress(b"x"), {"size": 0}, "unpacks to more than the 0 bytes"),
        (b"12345", {"compression": Compression.NONE, "size": 4}, "unpacks to more than the 4 bytes"),
        (b"123", {"compression": Compression.NONE, "size": 4}, "unpacks to 3 bytes and not to 4"),
        (b"other", {"digest": digest_of(b"content")}, "has other content: its bytes hash to"),
    ],
)
def test_wrong_streams_are_refused(stored: bytes, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(IntegrityError, match=sentence):
        verified(stored, **changes)


def test_the_sink_never_gets_more_than_allowed() -> None:
    got: list[int] = []

    class Sink:
        def write(self, data: bytes, /) -> None:
            got.append(len(data))

    bomb = zlib.compress(bytes(32 << 20))
    name = ObjectName(digest_of(bomb), Suffix.FILE, Compression.ZLIB, 70_000)
    with pytest.raises(IntegrityError):
        copy_verified(io.BytesIO(bomb), Sink(), name)
    assert sum(got) <= 70_000
