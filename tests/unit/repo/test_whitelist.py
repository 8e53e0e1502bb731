"""The whitelist: the stock server's file signed again to the same bytes, and when it ends."""

import datetime

import pytest
from tests.support.fixture import Fixture, stock_fixture

from mica.digest import Algorithm, digest_of
from mica.errors import IntegrityError
from mica.repo.sealed import format_sealed
from mica.repo.signing import (
    fingerprint,
    fingerprint_algorithm,
    key_belongs_to,
    new_key,
    parse_certificate,
    parse_private_key,
    whitelist_signature_holds,
)
from mica.repo.whitelist import Whitelist, format_whitelist, parse_whitelist, sign_whitelist

UTC = datetime.UTC
PRINT = ":".join(["AB"] * 20)
GOOD = f"20260101000000\nE20260131123000\nNa.example.org\n{PRINT}\n"


@pytest.fixture(scope="module")
def stock() -> Fixture:
    return stock_fixture()


def sealed(text: str) -> bytes:
    data = text.encode("latin-1")
    return format_sealed(data, digest_of(data), b"signature")


def parsed(text: str) -> Whitelist:
    return parse_whitelist(sealed(text), "it")[0]


@pytest.mark.parametrize("place", ["published", "30days"])
def test_stock_whitelists_are_signed_again_to_the_same_bytes(stock: Fixture, place: str) -> None:
    data = (
        (stock.storage / ".cvmfswhitelist").read_bytes()
        if place == "published"
        else stock.extra("cvmfswhitelist.30days")
    )
    whitelist, envelope = parse_whitelist(data, "it")
    assert whitelist.fqrn == "test.example.org"
    assert sign_whitelist(whitelist, parse_private_key(stock.key("masterkey"), "key")) == data
    assert whitelist_signature_holds(stock.master_key, envelope.signed_text, envelope.signature)
    assert not whitelist_signature_holds(stock.master_key, envelope.signed_text + b"\n", envelope.signature)
    assert not whitelist_signature_holds(stock.master_key, envelope.signed_text, envelope.signature[:-1])
    assert not whitelist_signature_holds(new_key().public_key(), envelope.signed_text, envelope.signature)


def test_the_stock_certificate_is_on_it(stock: Fixture) -> None:
    whitelist, _ = parse_whitelist(stock.extra("cvmfswhitelist.30days"), "it")
    certificate = parse_certificate(stock.key("crt"), "it")
    assert whitelist.fingerprints == (fingerprint(certificate),)
    assert key_belongs_to(parse_private_key(stock.key("key"), "key"), certificate)
    assert not key_belongs_to(parse_private_key(stock.key("masterkey"), "key"), certificate)


@pytest.mark.parametrize(
    ("now", "expired"),
    [
        ((2026, 11, 24, 0, 0, 0), False),
        ((2026, 12, 23, 17, 59, 59), False),
        ((2026, 12, 23, 18, 0, 0), True),
        ((2026, 12, 23, 18, 11, 30), True),
        ((2026, 12, 24, 0, 0, 0), True),
        ((2027, 1, 1, 0, 0, 0), True),
        ((2020, 12, 31, 23, 0, 0), False),
    ],
)
def test_it_ends_when_its_hour_begins(stock: Fixture, now: tuple[int, ...], expired: bool) -> None:
    """The file says 2026-12-23 18:11:31."""
    whitelist, _ = parse_whitelist(stock.extra("cvmfswhitelist.30days"), "it")
    assert whitelist.expires == datetime.datetime(2026, 12, 23, 18, 11, 31, tzinfo=UTC)
    assert whitelist.is_expired(datetime.datetime(*now, tzinfo=UTC)) is expired  # type: ignore[misc]


def test_whitelists_come_back() -> None:
    fingerprints = (PRINT, PRINT + "-RMD160", PRINT + "-SHAKE128")
    created = datetime.datetime(2026, 1, 1, tzinfo=UTC)
    whitelist = Whitelist("a.example.org", created, created + datetime.timedelta(days=30), fingerprints)
    for algorithm in Algorithm:
        data = sign_whitelist(whitelist, new_key(), algorithm)
        again, envelope = parse_whitelist(data, "it")
        assert again == whitelist
        assert envelope.digest.algorithm is algorithm
    assert format_whitelist(whitelist).decode().splitlines()[:3] == [
        "20260101000000",
        "E20260131000000",
        "Na.example.org",
    ]


def test_comments_and_other_lines_are_skipped() -> None:
    text = GOOD + f"# comment\n\n{PRINT} trailing\n{PRINT}#x\n{PRINT}\tx\n{PRINT.lower()}\n{PRINT}:AB\nWcachain\n"
    assert parsed(text).fingerprints == (PRINT,) * 4


def test_a_creation_time_of_another_length_is_ignored() -> None:
    assert parsed(GOOD.replace("20260101000000", "2026")).created is None


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("E2026", "2026", "second line is not an expiry time"),
        ("E20260131123000", "E2026013112300", "second line is not an expiry time"),
        ("E20260131123000", "E202601311230000", "second line is not an expiry time"),
        ("E20260131123000", "E20261331123000", "not a complete whitelist"),
        ("E20260131123000", "Ennnnnnnnnnnnnn", "not a complete whitelist"),
        ("Na.example", "a.example", "third line does not name a repository"),
        (f"{PRINT}", "Vpkcs7", "PKCS#7, which no client supports"),
    ],
)
def test_malformed_whitelists_are_refused(old: str, new: str, sentence: str) -> None:
    with pytest.raises(IntegrityError, match=sentence):
        parsed(GOOD.replace(old, new))


@pytest.mark.parametrize("text", ["\n", "20260101000000\n", "20260101000000\nE20260131123000\n"])
def test_incomplete_whitelists_are_refused(text: str) -> None:
    with pytest.raises(IntegrityError, match="not a complete whitelist"):
        parsed(text)


def test_a_huge_whitelist_is_refused() -> None:
    with pytest.raises(IntegrityError, match="more than a whitelist can have"):
        parsed(GOOD + "x" * 70_000)


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        (PRINT, Algorithm.SHA1),
        (PRINT + "-RMD160", Algorithm.RIPEMD160),
        (PRINT + "-SHAKE128", Algorithm.SHAKE128),
        (PRINT[:-3], None),
        (PRINT + "-SHA256", None),
        (PRINT + "-rmd160", None),
        ("", None),
    ],
)
def test_fingerprints_name_their_algorithm(text: str, algorithm: Algorithm | None) -> None:
    assert fingerprint_algorithm(text) is algorithm


def test_lines_that_revoke_revisions() -> None:
    whitelist = parsed(GOOD + "<a.example.org 5\n<other.example.org 9\n<a.example.org 3 # before\n")
    assert (whitelist.oldest_revision, whitelist.fingerprints) == (5, (PRINT,))
    assert parsed(GOOD).oldest_revision == 0
    again, _ = parse_whitelist(sign_whitelist(whitelist, new_key()), "it")
    assert again == whitelist
    with pytest.raises(IntegrityError, match="a line that revokes revisions is malformed"):
        parsed(GOOD + "<a.example.org five\n")
