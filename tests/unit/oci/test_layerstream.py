"""Layers as streams: what comes out, what is refused, and when."""

import gzip
import io
import random
import tracemalloc

import pytest
import zstandard
from tests.support.noise import noise
from tests.unit.oci.samples import compressed, digest_of, make_tar, read_all

from mica.errors import IntegrityError, MicaError, NotFoundError, TemporaryError, UserError
from mica.oci.layerstream import open_layer
from mica.oci.models import Descriptor

TAR = make_tar({"a": random.Random(1).randbytes(300_000), "b": bytes(200_000)})
KINDS = ["", "gzip", "zstd"]
SKIPPABLE = b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"index"


def describe(blob: bytes) -> Descriptor:
    return Descriptor("application/octet-stream", digest_of(blob), len(blob))


def unpack(blob: bytes, *, tar: bytes | None = TAR, max_bytes: int = 1 << 30) -> bytes:
    diff_id = None if tar is None else digest_of(tar)
    with open_layer(io.BytesIO(blob), describe(blob), diff_id, max_bytes=max_bytes) as stream:
        return read_all(stream)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1 << 20, 512, 1000, 131072])
def test_every_compression_and_read_size_gives_the_tar(kind: str, size: int) -> None:
    blob = compressed(TAR, kind)
    with open_layer(io.BytesIO(blob), describe(blob), digest_of(TAR), max_bytes=len(TAR)) as stream:
        pieces = list(iter(lambda: stream.read(size), b""))
    assert b"".join(pieces) == TAR
    assert all(len(piece) == size for piece in pieces[:-1])
    assert stream.size == len(TAR)


def test_raw_stream_may_give_one_byte_at_a_time() -> None:
    blob = compressed(TAR[:5000], "gzip")
    trickle = io.BytesIO(blob)

    class Trickle:
        def read(self, size: int, /) -> bytes:
            return trickle.read(min(size, 1))

    with open_layer(Trickle(), describe(blob), digest_of(TAR[:5000]), max_bytes=1 << 20) as stream:
        assert read_all(stream) == TAR[:5000]


def test_several_gzip_members_are_one_layer() -> None:
    members = [TAR[:1000], b"", TAR[1000:1001], TAR[1001:]]
    assert unpack(b"".join(gzip.compress(one) for one in members)) == TAR
    assert unpack(gzip.compress(TAR) + bytes(512)) == TAR


def test_zstd_frames_and_skippable_ones_are_one_layer() -> None:
    parts = [zstandard.compress(TAR[:1000]), SKIPPABLE, zstandard.compress(b""), zstandard.compress(TAR[1000:])]
    assert unpack(b"".join([*parts, SKIPPABLE])) == TAR
    checked = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(TAR)
    assert unpack(SKIPPABLE + checked) == TAR


def test_sha512_digests_count_as_well() -> None:
    import hashlib

    blob = compressed(TAR, "gzip")
    descriptor = Descriptor("", f"sha512:{hashlib.sha512(blob).hexdigest()}", len(blob))
    diff_id = f"sha512:{hashlib.sha512(TAR).hexdigest()}"
    with open_layer(io.BytesIO(blob), descriptor, diff_id, max_bytes=1 << 30) as stream:
        assert read_all(stream) == TAR
    with pytest.raises(IntegrityError), open_layer(io.BytesIO(blob), descriptor, diff_id[:-1] + "g", max_bytes=1 << 30):
        pass


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("cut", [1, 3, 4, 5, 9, 100, 200_000])
def test_truncated_compression_is_an_integrity_error_even_without_a_diff_id(kind: str, cut: int) -> None:
    with pytest.raises(IntegrityError, match=r"Layer sha256:.* ends in the middle"):
        unpack(compressed(TAR, kind)[:-cut], tar=None)


def test_every_cut_of_a_zstd_stream_is_found() -> None:
    blob = (
        zstandard.compress(b"x" * 50) + SKIPPABLE + zstandard.ZstdCompressor(write_checksum=True).compress(b"y" * 300)
    )
    boundaries = {len(zstandard.compress(b"x" * 50)), len(zstandard.compress(b"x" * 50)) + len(SKIPPABLE), len(blob)}
    for end in range(4, len(blob) + 1):
        if end in boundaries:
            unpack(blob[:end], tar=None)
            continue
        with pytest.raises(IntegrityError):
            unpack(blob[:end], tar=None)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("garbage", [b"g", b"garbage and more of it", noise(3000)])
def test_trailing_garbage_is_an_integrity_error(kind: str, garbage: bytes) -> None:
    with pytest.raises(IntegrityError, match="Layer sha256:"):
        unpack(compressed(TAR, kind) + garbage)


@pytest.mark.parametrize("position", [12, 500, 200_000])
def test_damaged_gzip_is_an_integrity_error(position: int) -> None:
    blob = bytearray(gzip.compress(TAR))
    blob[position] ^= 0x55
    with pytest.raises(IntegrityError):
        unpack(bytes(blob), tar=None)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_digest_size_or_diff_id_is_found_at_the_end_of_the_block(kind: str) -> None:
    blob = compressed(TAR, kind)
    right = describe(blob)
    wrong = [
        (Descriptor("", digest_of(b"other"), len(blob)), digest_of(TAR), "does not have the digest"),
        (Descriptor("", right.digest, len(blob) + 1), digest_of(TAR), "bytes instead of"),
        (Descriptor("", right.digest, len(blob) - 1), digest_of(TAR), "longer than"),
        (right, digest_of(b"other"), "diff id"),
    ]
    for descriptor, diff_id, message in wrong:
        with (
            pytest.raises(IntegrityError, match=message),
            open_layer(io.BytesIO(blob), descriptor, diff_id, max_bytes=1 << 30),
        ):
            pass


def test_reader_that_stops_early_still_has_the_rest_checked() -> None:
    blob = compressed(TAR, "gzip")
    with open_layer(io.BytesIO(blob), describe(blob), digest_of(TAR), max_bytes=1 << 30) as stream:
        assert stream.read(10) == TAR[:10]
        stream.finish()
        stream.finish()
        assert stream.read(10) == b""
    with (
        pytest.raises(IntegrityError, match="diff id"),
        open_layer(io.BytesIO(blob), describe(blob), digest_of(b"other"), max_bytes=1 << 30) as stream,
    ):
        stream.read(10)


def test_exception_of_the_reader_passes_unchanged() -> None:
    blob = compressed(TAR, "gzip")
    with (
        pytest.raises(KeyError, match="mine"),
        open_layer(io.BytesIO(blob), describe(blob), digest_of(b"other"), max_bytes=1 << 30),
    ):
        raise KeyError("mine")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_that_looks_like_a_refused_layer_is_told_as_damage(kind: str) -> None:
    blob = compressed(TAR, kind)
    for whole, expected in ((b"x" + blob[1:], IntegrityError), (blob, UserError)):
        with pytest.raises(expected) as caught, open_layer(io.BytesIO(whole), describe(blob), None, max_bytes=1 << 30):
            raise UserError("refused")
        assert ("does not have the digest" in str(caught.value)) == (expected is IntegrityError)


def test_what_is_no_refusal_reads_no_more() -> None:
    blob = compressed(TAR, "")
    full = UserError("full")
    full.__cause__ = OSError(28, "full")
    for error in (full, NotFoundError("gone")):
        raw = io.BytesIO(b"x" + blob[1:])
        with pytest.raises(UserError) as caught, open_layer(raw, describe(blob), None, max_bytes=1 << 30):
            raise error
        assert caught.value is error
        assert raw.tell() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_layer_larger_than_the_limit_is_refused(kind: str) -> None:
    assert unpack(compressed(TAR, kind), max_bytes=len(TAR)) == TAR
    with pytest.raises(UserError, match=f"unpacks to more than {len(TAR) - 1} bytes"):
        unpack(compressed(TAR, kind), max_bytes=len(TAR) - 1)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_bomb_takes_little_memory(kind: str) -> None:
    blob = compressed(bytes(1 << 28), kind)
    assert len(blob) < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="unpacks to more than"):
            unpack_quietly(blob, max_bytes=1 << 27)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def unpack_quietly(blob: bytes, *, max_bytes: int) -> None:
    with open_layer(io.BytesIO(blob), describe(blob), None, max_bytes=max_bytes):
        pass


@pytest.mark.parametrize(("magic", "kind"), [(b"BZh91AY&SY", "bzip2"), (b"\xfd7zXZ\x00\x00\x04", "xz")])
def test_other_compressions_are_refused_by_name(magic: bytes, kind: str) -> None:
    with pytest.raises(UserError, match=f"compressed with {kind}"):
        unpack(magic + bytes(1000), tar=None)


def test_zstd_that_wants_a_huge_window_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = compressor.compress(b"x" * 1000) + compressor.flush()
    with pytest.raises(IntegrityError, match="too much memory"):
        unpack(blob, tar=None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [TemporaryError("Gone."), OSError(5, "Input/output error")])
def test_errors_of_the_raw_stream_come_out_as_ours(kind: str, error: Exception) -> None:
    blob = compressed(TAR, kind)
    first = [blob[:200_000]]

    class Broken:
        def read(self, size: int, /) -> bytes:
            if first:
                return first.pop()[:size]
            raise error

    with (
        pytest.raises(MicaError) as caught,
        open_layer(Broken(), describe(blob), digest_of(TAR), max_bytes=1 << 30) as stream,
    ):
        read_all(stream)
    assert caught.value is error or "Cannot read layer" in str(caught.value) or "read Layer" in str(caught.value)


def test_empty_blob_is_an_empty_tar() -> None:
    assert unpack(b"", tar=b"") == b""
