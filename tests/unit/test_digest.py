"""Digests, their text, object paths and path hashes, against vectors computed elsewhere."""

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mica.digest import (
    NULL_PATH_HASH,
    Algorithm,
    Digest,
    PathHash,
    Suffix,
    digest_of,
    new_hasher,
    parse_object_path,
    path_hash,
)

EMPTY_OBJECT = bytes.fromhex("789c030000000001")


@pytest.mark.parametrize(
    ("algorithm", "text"),
    [
        (Algorithm.SHA1, "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
        (Algorithm.RIPEMD160, "9c1185a5c5e9fc54612808977ee8f548b2258d31-rmd160"),
        (Algorithm.SHAKE128, "7f9c2ba4e88f827d616045507605853ed73b8093-shake128"),
    ],
)
def test_digest_of_nothing(algorithm: Algorithm, text: str) -> None:
    digest = digest_of(b"", algorithm)
    assert digest.text == str(digest) == text
    assert Digest.parse(text) == digest


def test_vectors_of_the_format() -> None:
    assert digest_of(EMPTY_OBJECT).object_path(Suffix.FILE) == "data/e8/ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78"
    shake = digest_of(EMPTY_OBJECT, Algorithm.SHAKE128)
    assert shake.text == "28d94b83b7229b331fc601362b8e272e02665122-shake128"
    hello = bytes.fromhex("789ccb48cdc9c95728cf2fca49e102001e720467")
    assert digest_of(hello).text == "ff049c626904064d641feca0e9936e5b211807c6"


def test_object_paths_carry_text_id_and_suffix() -> None:
    digest = Digest.parse("12345678901234567890123456789012345678ab-rmd160")
    assert digest.object_path(Suffix.CHUNK) == "data/12/345678901234567890123456789012345678ab-rmd160P"
    assert [suffix.value for suffix in Suffix] == ["", "P", "C", "H", "X", "M"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "da39a3ee5e6b4b0d3255bfef95601890afd8070",
        "da39a3ee5e6b4b0d3255bfef95601890afd807090",
        "DA39A3EE5E6B4B0D3255BFEF95601890AFD80709",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709C",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709-sha256",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709\n",
        "../../../../../../../../../../../etc/pass",
        "d41d8cd98f00b204e9800998ecf8427e",
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a content digest"):
        Digest.parse(text)


@given(st.binary(min_size=20, max_size=20), st.sampled_from(Algorithm))
def test_text_comes_back(raw: bytes, algorithm: Algorithm) -> None:
    digest = Digest(raw, algorithm)
    assert Digest.parse(digest.text) == digest


def test_same_bytes_of_another_algorithm_are_another_digest() -> None:
    assert Digest(bytes(20), Algorithm.SHA1) != Digest(bytes(20), Algorithm.RIPEMD160)


@given(st.lists(st.binary(max_size=50)), st.sampled_from(Algorithm))
def test_pieces_hash_like_the_whole(pieces: list[bytes], algorithm: Algorithm) -> None:
    hasher = new_hasher(algorithm)
    for piece in pieces:
        hasher.update(piece)
    assert hasher.finish() == digest_of(b"".join(pieces), algorithm)


@pytest.mark.parametrize(
    ("path", "halves"),
    [
        (b"", (338333539836370388, 9098107892288553193)),
        (b"/a", (-2906336618250618618, -744252105585281751)),
        (b"/a/b", (-79414819578584146, 8517581007188477988)),
        (b"/new_repository", (8193369706472672701, 4868506713845114430)),
    ],
)
def test_path_hashes(path: bytes, halves: tuple[int, int]) -> None:
    assert path_hash(path) == PathHash(*halves)
    assert struct.pack("<qq", *path_hash(path)) == hashlib.md5(path).digest()


def test_the_null_hash_is_that_of_no_path() -> None:
    assert path_hash(b"") != NULL_PATH_HASH == (0, 0)


def test_configuration_names() -> None:
    assert [algorithm.config_name for algorithm in Algorithm] == ["sha1", "rmd160", "shake128"]


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("suffix", Suffix)
def test_object_paths_are_read_back(algorithm: Algorithm, suffix: Suffix) -> None:
    digest = digest_of(b"content", algorithm)
    assert parse_object_path(digest.object_path(suffix)) == (digest, suffix)


@pytest.mark.parametrize(
    "path", ["", "data/", "data/txn/pointers.lock", ".cvmfspublished", "data/ab/cd", f"data/aa/{'0' * 38}Z"]
)
def test_other_paths_are_no_objects(path: str) -> None:
    assert parse_object_path(path) is None
    found = parse_object_path(digest_of(b"").object_path(Suffix.FILE))
    assert found is not None
    assert isinstance(found[0], Digest)


@pytest.mark.parametrize(
    ("path", "suffix"),
    [
        (f"data/{'ab' * 20}"[:7] + "/" + "ab" * 19, Suffix.FILE),
        ("data/ab/" + "ab" * 19 + "C", Suffix.CATALOG),
        ("data/ab/" + "ab" * 19 + "-shake128P", Suffix.CHUNK),
    ],
)
def test_paths_of_objects(path: str, suffix: Suffix) -> None:
    found = parse_object_path(path)
    assert found is not None
    assert (found[1], found[0].object_path(suffix)) == (suffix, path)


@pytest.mark.parametrize(
    "path", [".cvmfsreflog", "data/ab/xyz", "data/ab/" + "ab" * 19 + "Z", "data/ab/" + "ab" * 19 + "-md5", "data/txn/x"]
)
def test_paths_of_other_files(path: str) -> None:
    assert parse_object_path(path) is None
