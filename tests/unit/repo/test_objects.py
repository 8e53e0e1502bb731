"""Objects: packing, and unpacking what nobody should have packed."""

import hashlib
import io
import random
import zlib

import deflate
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mica.digest import Algorithm, digest_of
from mica.errors import IntegrityError
from mica.repo.objects import LEVEL, Compression, inflate, pack, pack_stock, pack_stream, packings, unpack

ALGORITHMS = list(Algorithm)


@given(st.binary(max_size=5000), st.sampled_from(ALGORITHMS), st.sampled_from(Compression))
def test_content_comes_back(plain: bytes, algorithm: Algorithm, compression: Compression) -> None:
    packed = pack(plain, algorithm, compression)
    assert packed.digest == digest_of(packed.stored, algorithm)
    assert unpack(packed.stored, packed.digest, limit=len(plain), compression=compression) == plain


@given(st.binary(max_size=5000), st.sampled_from(ALGORITHMS))
def test_content_that_is_packed_piece_by_piece_comes_back(plain: bytes, algorithm: Algorithm) -> None:
    stored = io.BytesIO()
    digest = pack_stream(io.BytesIO(plain), stored.write, algorithm)
    assert digest == digest_of(stored.getvalue(), algorithm)
    assert unpack(stored.getvalue(), digest, limit=len(plain)) == plain


def test_large_content_is_packed_piece_by_piece() -> None:
    plain = random.Random(7).randbytes(500_000) * 9
    pieces: list[bytes] = []
    digest = pack_stream(io.BytesIO(plain), pieces.append, Algorithm.SHA1)
    assert max(map(len, pieces)) < 2 << 20
    assert unpack(b"".join(pieces), digest, limit=len(plain)) == plain


@given(st.binary(max_size=5000))
def test_any_zlib_reader_can_read_it(plain: bytes) -> None:
    assert zlib.decompress(pack(plain, Algorithm.SHA1, Compression.ZLIB).stored) == plain


def test_the_digest_is_that_of_the_stored_bytes() -> None:
    packed = pack(b"hello world\n", Algorithm.SHA1, Compression.ZLIB)
    assert packed.digest.raw == hashlib.sha1(packed.stored).digest()
    assert pack(b"plain", Algorithm.SHA1, Compression.NONE).stored == b"plain"


def test_vectors_of_the_format() -> None:
    assert pack_stock(b"", Algorithm.SHA1).stored.hex() == "789c030000000001"
    assert pack(b"", Algorithm.SHA1, Compression.ZLIB).stored.hex() == "789c030000000001"
    hello = pack_stock(b"hello world\n", Algorithm.SHA1)
    assert hello.stored.hex() == "789ccb48cdc9c95728cf2fca49e102001e720467"
    assert hello.digest.text == "ff049c626904064d641feca0e9936e5b211807c6"


def test_stock_packing_is_what_replicas_make_again() -> None:
    document = b'{"administrator": "nobody"}' * 50
    assert pack_stock(document, Algorithm.SHA1).stored == zlib.compress(document)


def test_levels_and_strategies_of_others_are_read() -> None:
    plain = bytes(range(256)) * 100
    for level in range(10):
        stored = zlib.compress(plain, level)
        assert unpack(stored, digest_of(stored), limit=len(plain)) == plain


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_content_is_refused(algorithm: Algorithm) -> None:
    packed = pack(b"content", algorithm, Compression.ZLIB)
    for index in range(len(packed.stored)):
        changed = bytearray(packed.stored)
        changed[index] ^= 1
        with pytest.raises(IntegrityError, match=packed.digest.text):
            unpack(bytes(changed), packed.digest, limit=100)


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        (zlib.compress(b"x" * 100)[:-1], "does not end where it should"),
        (zlib.compress(b"x" * 100)[:-5], "does not end where it should"),
        (zlib.compress(b"x" * 100)[:2], "does not end where it should"),
        (b"", "does not end where it should"),
        (zlib.compress(b"x" * 100) + b"\0", "does not end where it should"),
        (zlib.compress(b"x" * 50) + zlib.compress(b"x" * 50), "does not end where it should"),
        (b"not a stream at all", "is not a zlib stream"),
        (zlib.compress(b"x" * 100)[2:-4], "is not a zlib stream"),
        (zlib.compress(b"x" * 100)[:-4] + b"\0\0\0\0", "is not a zlib stream"),
        (b"\x1f\x8b" + zlib.compress(b"x"), "is not a zlib stream"),
    ],
)
def test_broken_streams_are_refused(stored: bytes, sentence: str) -> None:
    with pytest.raises(IntegrityError, match=sentence):
        unpack(stored, digest_of(stored), limit=1000)


def test_a_bomb_ends_at_the_limit() -> None:
    bomb = zlib.compress(bytes(64 << 20), 9)
    assert len(bomb) < 100_000
    with pytest.raises(IntegrityError, match="unpacks to more than the 1000 bytes"):
        unpack(bomb, digest_of(bomb), limit=1000)


def test_limits_hold_for_plain_objects() -> None:
    assert inflate(b"12345", limit=5, compression=Compression.NONE, name="it") == b"12345"
    with pytest.raises(IntegrityError, match="larger than the 4 bytes"):
        inflate(b"12345", limit=4, compression=Compression.NONE, name="it")


def test_configuration_names() -> None:
    assert [compression.config_name for compression in Compression] == ["zlib", "none"]


def weights(count: int) -> bytes:
    """Numbers of two bytes as models have them: all mantissas, few exponents."""
    chooser = random.Random(count)
    data = bytearray(2 * count)
    data[0::2] = chooser.randbytes(count)
    data[1::2] = bytes(0x30 + (byte & -byte).bit_length() for byte in chooser.randbytes(count))
    return bytes(data)


PLAINS = {
    "text": b"".join(b"%d squared is %d\n" % (number, number * number) for number in range(20_000)),
    "weights": weights(150_000),
    "compressed": random.Random(1).randbytes(300_000),
    "zeros": bytes(300_000),
    "compressed, but for its end": random.Random(2).randbytes(200_000) + bytes(200_000),
}


@pytest.mark.parametrize("plain", PLAINS.values(), ids=PLAINS)
def test_large_content_is_packed_well_and_comes_back(plain: bytes) -> None:
    packed = pack(plain, Algorithm.SHA1, Compression.ZLIB)
    assert unpack(packed.stored, packed.digest, limit=len(plain)) == plain == zlib.decompress(packed.stored)
    assert pack(memoryview(plain), Algorithm.SHA1, Compression.ZLIB) == packed
    thorough = bytes(deflate.zlib_compress(plain, LEVEL))
    assert len(packed.stored) < 1.01 * len(thorough)
    assert [one.stored for one in packings(plain, Algorithm.SHA1)] == list(dict.fromkeys([packed.stored, thorough]))


def test_what_gains_nothing_is_not_searched_for_repetitions() -> None:
    """These digests may change with the compressors' versions, and the versions stand in docs/format/objects.md."""
    digests = {name: pack(plain, Algorithm.SHA1, Compression.ZLIB).digest.text for name, plain in PLAINS.items()}
    thorough = {name: digest_of(deflate.zlib_compress(plain, LEVEL)).text for name, plain in PLAINS.items()}
    assert {name for name in PLAINS if digests[name] != thorough[name]} == {"weights", "compressed"}
    assert digests["weights"] == "82d1c655f68d2a38e0b76084058ba8752219e66b"
    assert digests["compressed"] == "14094030ed0f30549138ae8a4aa4728c894b0ea6"


def test_small_content_is_packed_as_ever() -> None:
    plain = random.Random(3).randbytes(200_000)
    assert pack(plain, Algorithm.SHA1, Compression.ZLIB).stored == deflate.zlib_compress(plain, LEVEL)
