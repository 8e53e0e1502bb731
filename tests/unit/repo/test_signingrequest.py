"""Requests and answers between a release manager and the machine with the master key."""

import datetime
import json
from collections.abc import Callable
from typing import Any

import pytest

from mica.digest import Algorithm
from mica.errors import MicaError, UserError
from mica.repo.signing import new_key, whitelist_signature_holds
from mica.repo.signingrequest import (
    SignedAnswer,
    SigningRequest,
    format_answer,
    format_request,
    name_of_key,
    parse_answer,
    parse_request,
    sign_request,
)
from mica.repo.whitelist import Whitelist, parse_whitelist

FQRN = "images.example.org"
KEY = new_key()
NOW = datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
FINGERPRINTS = ("AB:" * 19 + "CD", "01:" * 19 + "23-SHAKE128")


def whitelist(*, seconds: int = 0, fingerprints: tuple[str, ...] = FINGERPRINTS[:1], fqrn: str = FQRN) -> Whitelist:
    created = NOW + datetime.timedelta(seconds=seconds)
    return Whitelist(fqrn, created, created + datetime.timedelta(days=30), fingerprints, 7)


REQUEST = SigningRequest(
    FQRN,
    (whitelist(fingerprints=FINGERPRINTS), whitelist(seconds=1)),
    (name_of_key(KEY.public_key()),),
    Algorithm.SHAKE128,
)


def test_a_request_comes_back_as_it_was_and_can_be_read_by_people() -> None:
    data = format_request(REQUEST)
    assert parse_request(data, "it") == REQUEST
    for text in (FQRN, *FINGERPRINTS, "E20300201030405", "mica key sign"):
        assert text in data.decode()
    assert b"PRIVATE" not in data


def test_an_answer_has_whitelists_that_the_master_key_signed() -> None:
    answer = sign_request(REQUEST, KEY, "The key")
    assert parse_answer(format_answer(answer), "it") == answer
    for data, wanted in zip(answer.whitelists, REQUEST.whitelists, strict=True):
        found, sealed = parse_whitelist(data, "it")
        assert found == wanted
        assert sealed.digest.algorithm is Algorithm.SHAKE128
        assert whitelist_signature_holds(KEY.public_key(), sealed.signed_text, sealed.signature)


def test_a_key_that_no_client_has_signs_nothing() -> None:
    with pytest.raises(UserError) as refused:
        sign_request(REQUEST, new_key(), "The master key x")
    assert str(refused.value) == (
        f"The master key x is not a master key of {FQRN}: no client would accept its signature."
    )


def changed(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(data)
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.update(format="other"), "it is not a signing request."),
        (lambda d: d.pop("whitelists"), "it is a damaged signing request: 'whitelists' is missing."),
        (lambda d: d.update(whitelists=[]), "it is a damaged signing request: it has 0 whitelists."),
        (lambda d: d.update(whitelists=d["whitelists"] * 2), "it is a damaged signing request: it has 4 whitelists."),
        (lambda d: d.update(whitelists=["x"]), "it is a damaged signing request: it ends too early."),
        (lambda d: d["whitelists"][0].append("Wcachain"), "it has a line that does not belong into a whitelist."),
        (lambda d: d["whitelists"][0].append(d["whitelists"][0][0] + "\nX"), "it has a line that does not belong"),
        (lambda d: d["whitelists"][0].insert(4, "ü"), "it has a line that does not belong"),
        (lambda d: d.update(repository="other.example.org"), "it is for other.example.org and has a whitelist of"),
        (lambda d: d.update(hash="md4"), "it is a damaged signing request: 'md4' is missing."),
        (lambda d: d.update(master_keys=[]), "it is a damaged signing request"),
        (lambda d: d.update(whitelists=7), "it is a damaged signing request: a value is of the wrong kind."),
    ],
)
def test_a_request_that_is_none_is_refused(change: Callable[[dict[str, Any]], object], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_request(changed(format_request(REQUEST), change), "it")
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", bytes(300_000)])
def test_other_files_are_neither(data: bytes) -> None:
    for parse in (parse_request, parse_answer):
        with pytest.raises(UserError, match="it "):
            parse(data, "it")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.update(whitelists=[]), "it is damaged: it has 0 whitelists."),
        (lambda d: d.update(whitelists=["ü"]), "it is damaged"),
        (lambda d: d.update(whitelists=["AAAA"]), "A whitelist in it is not signed"),
        (lambda d: d.update(repository="other.example.org"), "it is for other.example.org and has a whitelist of"),
    ],
)
def test_a_damaged_answer_is_refused(change: Callable[[dict[str, Any]], object], sentence: str) -> None:
    answer = sign_request(REQUEST, KEY, "The key")
    with pytest.raises(MicaError) as refused:
        parse_answer(changed(format_answer(answer), change), "it")
    assert str(refused.value).startswith(sentence)


def test_a_request_is_no_answer() -> None:
    with pytest.raises(UserError, match="is not an answer to a signing request"):
        parse_answer(format_request(REQUEST), "it")
    with pytest.raises(UserError, match="is not a signing request"):
        parse_request(format_answer(SignedAnswer(FQRN, (b"",))), "it")
