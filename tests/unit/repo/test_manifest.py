"""The manifest: the stock server's file parsed, and signed again to the same bytes."""

import re
from dataclasses import replace

import pytest
from tests.support.catalogs import some_digest
from tests.support.fixture import Fixture, stock_fixture

from mica.digest import Algorithm, digest_of
from mica.errors import IntegrityError
from mica.repo.manifest import Manifest, format_manifest, is_fqrn, parse_manifest, sign_manifest
from mica.repo.sealed import format_sealed
from mica.repo.signing import (
    manifest_signature_holds,
    new_certificate,
    new_key,
    parse_certificate,
    parse_private_key,
    sign_manifest_text,
)
from mica.repo.whitelist import VALIDITY_DAYS

MANIFEST = Manifest(
    root_catalog=some_digest("catalog"), root_catalog_size=123, ttl_s=240, revision=7, fqrn="a.example.org",
    certificate=some_digest("certificate"), published_at=1_700_000_000,
)  # fmt: skip


@pytest.fixture(scope="module")
def stock() -> Fixture:
    return stock_fixture()


def sealed(text: bytes) -> bytes:
    """An envelope whose digest is right, with a signature that nobody looks at here."""
    return format_sealed(text, digest_of(text), b"signature")


def test_the_stock_manifest_is_signed_again_to_the_same_bytes(stock: Fixture) -> None:
    data = (stock.storage / ".cvmfspublished").read_bytes()
    manifest, _ = parse_manifest(data, "it")
    assert (manifest.fqrn, manifest.revision, manifest.garbage_collectable) == ("test.example.org", 11, True)
    assert sign_manifest(manifest, parse_private_key(stock.key("key"), "key")) == data


def test_the_stock_signature_holds(stock: Fixture) -> None:
    _, envelope = parse_manifest((stock.storage / ".cvmfspublished").read_bytes(), "it")
    certificate = parse_certificate(stock.key("crt"), "it")
    assert manifest_signature_holds(certificate, envelope.signed_text, envelope.signature)
    assert not manifest_signature_holds(certificate, envelope.signed_text + b"\n", envelope.signature)
    assert not manifest_signature_holds(certificate, envelope.signed_text, envelope.signature + b"\0")
    assert not manifest_signature_holds(certificate, envelope.signed_text, b"")


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_manifests_come_back(algorithm: Algorithm) -> None:
    digest = digest_of(b"x", algorithm)
    full = replace(
        MANIFEST, root_catalog=digest, history=digest, metainfo=digest, reflog=digest, garbage_collectable=True,
        alternative_paths=True,
    )  # fmt: skip
    key = new_key()
    for manifest in (full, replace(MANIFEST, root_catalog=digest)):
        data = sign_manifest(manifest, key)
        assert len(data) < 4096
        parsed, envelope = parse_manifest(data, "it")
        assert parsed == manifest
        assert envelope.digest.algorithm is algorithm
        assert envelope.signature == sign_manifest_text(key, envelope.digest.text.encode())


def test_unknown_keys_are_ignored_and_absent_ones_have_defaults() -> None:
    text = format_manifest(MANIFEST).replace(b"B123\n", b"").replace(b"T1700000000\n", b"?what\nZ\nWx\n\n")
    manifest, _ = parse_manifest(sealed(text), "it")
    assert (manifest.root_catalog_size, manifest.published_at) == (0, 0)


@pytest.mark.parametrize("byte", [b"\r", b"\v", b"\f", b"\x1c", b"\x1d", b"\x1e"])
def test_only_a_newline_ends_a_record(byte: bytes) -> None:
    """The stock client reads it so: two clients must not see two manifests in one signed text."""
    text = format_manifest(MANIFEST) + b"Zx" + byte + b"S99\n"
    assert parse_manifest(sealed(text), "it")[0].revision == MANIFEST.revision


@pytest.mark.parametrize("value", [b"Yes", b"true", b"1", b"", b"yes "])
def test_only_yes_means_yes(value: bytes) -> None:
    text = format_manifest(MANIFEST).replace(b"Gno\n", b"G" + value + b"\n")
    assert not parse_manifest(sealed(text), "it")[0].garbage_collectable


@pytest.mark.parametrize("key", [b"C", b"R", b"D", b"S", b"N", b"X"])
def test_incomplete_manifests_are_refused(key: bytes) -> None:
    text = re.sub(rb"(?m)^" + key + rb".*\n", b"", format_manifest(MANIFEST))
    with pytest.raises(IntegrityError, match="it is not a complete manifest"):
        parse_manifest(sealed(text), "it")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"S7", b"S-7"),
        (b"S7", b"S"),
        (b"S7", b"S7.5"),
        (b"S7", b"S" + b"9" * 19),
        (b"S7", "S٧".encode()),  # noqa: RUF001 - a digit that is none
        (b"Rd41d", b"Rd41e"),
        (b"Na.example.org", b"N../../etc"),
        (b"Na.example.org", b"Na..b"),
        (b"Na.example.org", b"N"),
        (b"Na.example.org", b"N" + b"a" * 61),
    ],
)
def test_malformed_fields_are_refused(old: bytes, new: bytes) -> None:
    with pytest.raises(IntegrityError, match="it is not a complete manifest"):
        parse_manifest(sealed(format_manifest(MANIFEST).replace(old, new)), "it")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "not signed"),
        (b"Cabc\n", "not signed"),
        (b"Cabc\n--\n", "no digest line"),
        (b"Cabc\n--\n" + b"a" * 40, "no digest line"),
        (b"Cabc\n--\n" + b"a" * 40 + b"\n", "no digest line"),
        (b"Cabc\n--\n" + b"a" * 400 + b"\nsignature", "no digest line"),
        (b"Cabc\n--\nnot a digest\nsignature", "states a malformed digest"),
        (b"Cabc\n--\n\xff\xfe\nsignature", "states a malformed digest"),
        (b"Cabc\n--\n" + b"a" * 40 + b"\nsignature", "was changed"),
        (b"x" * 4097, "more than a manifest can have"),
    ],
)
def test_broken_envelopes_are_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(IntegrityError, match=sentence):
        parse_manifest(data, "it")


def test_the_first_separator_counts() -> None:
    text = b"Cabc\n"
    data = sealed(text) + b"\n--\nmore"
    with pytest.raises(IntegrityError, match="complete manifest"):
        parse_manifest(data, "it")


@pytest.mark.parametrize("name", ["a", "a.b", "A-1_x.org", "a" * 60])
def test_names(name: str) -> None:
    assert is_fqrn(name)


@pytest.mark.parametrize("name", ["", ".a", "-a", "a..b", "a/b", "a b", "a\n", "ä.org", "a" * 61, "a\0"])
def test_no_names(name: str) -> None:
    assert not is_fqrn(name)


def test_certificates_cut_long_names() -> None:
    import datetime

    key = new_key()
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    short = parse_certificate(new_certificate(key, "a.example.org", now), "it")
    assert short.subject.rfc4514_string() == "CN=a.example.org CernVM-FS Release Managers"
    long = parse_certificate(new_certificate(key, "a" * 31, now), "it")
    assert long.subject.rfc4514_string() == f"CN={'a' * 30}[...] CernVM-FS Release Managers"
    assert (long.not_valid_after_utc - now).days == 365 > VALIDITY_DAYS
