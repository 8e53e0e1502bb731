"""Refusals of S3 servers as sentences."""

import pytest

from mica.errors import MicaError, NotFoundError, TemporaryError, UserError
from mica.store.s3errors import Failure, explain, parse_failure


def text(status: int, code: str) -> str:
    """As obstore has it."""
    body = f"<?xml ...?><Error><Code>{code}</Code><Message>secret words of a server</Message></Error>" if code else ""
    return (
        f"Object at location a not found: Error performing PUT http://server/bucket/a in 1ms - Server returned "
        f"non-2xx status code: {status} Something: {body}\n\nDebug source:\nNotFound {{ status: {status}, }}"
    )


def told(failure: Failure) -> MicaError:
    return explain(
        failure, "store object a", where="s3://bucket/p", server="http://server", origin="the environment", region="r"
    )


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (404, "NoSuchBucket", UserError, "there is no bucket of that name at http://server"),
        (403, "InvalidAccessKeyId", UserError, "does not know the access key"),
        (403, "SignatureDoesNotMatch", UserError, "refuses the secret key"),
        (400, "ExpiredToken", UserError, "the credentials have expired"),
        (403, "RequestTimeTooSkewed", UserError, "the clock of this machine"),
        (403, "AccessDenied", UserError, "Read-only or closed for these credentials (AccessDenied)"),
        (403, "", UserError, "Read-only or closed for these credentials."),
        (301, "PermanentRedirect", UserError, "the bucket is not in region r"),
        (400, "AuthorizationHeaderMalformed", UserError, "the bucket is not in region r"),
        (507, "XMinioStorageFull", UserError, "No space left at http://server (XMinioStorageFull)"),
        (403, "QuotaExceeded", UserError, "No space left at http://server (QuotaExceeded)"),
        (404, "NoSuchKey", NotFoundError, "it is not there"),
        (404, "", NotFoundError, "it is not there"),
        (503, "SlowDown", TemporaryError, "http://server is overloaded (SlowDown)"),
        (429, "", TemporaryError, "http://server is overloaded."),
        (500, "InternalError", TemporaryError, "http://server answers 500 (InternalError)"),
        (400, "Strange", UserError, "http://server refuses it, 400 (Strange)"),
    ],
)
def test_sentences(status: int, code: str, kind: type[MicaError], words: str) -> None:
    failure = parse_failure(text(status, code))
    assert failure == (status, code, "")
    error = told(failure)
    assert type(error) is kind
    assert str(error).startswith("Cannot store object a in s3://bucket/p: ")
    assert words in str(error)
    assert "secret words" not in str(error) + error.hint


@pytest.mark.parametrize(
    ("kind", "words"),
    [("Connect", "cannot be reached"), ("Timeout", "does not answer in time"), ("Request", "hangs up")],
)
def test_no_answer(kind: str, words: str) -> None:
    failure = parse_failure(f"Generic S3 error: HTTP error: error sending request HttpError {{ kind: {kind}, ")
    assert failure == (0, "", kind)
    assert failure.is_unanswered
    error = told(failure)
    assert type(error) is TemporaryError
    assert words in str(error)


def test_a_redirect_to_nowhere_is_another_region() -> None:
    failure = parse_failure("Generic S3 error: Received redirect without LOCATION, this normally indicates ...")
    assert "the bucket is not in region r" in str(told(failure))


def test_what_may_have_been_carried_out() -> None:
    assert {status for status in (400, 403, 404, 408, 412, 429, 500, 503) if Failure(status, "", "").is_unanswered} == {
        408, 500, 503,
    }  # fmt: skip
    assert Failure(412, "", "").is_unmet_condition
    assert Failure(409, "ConditionalRequestConflict", "").is_unmet_condition
    assert not Failure(409, "", "").is_unmet_condition
    assert not Failure(404, "NoSuchBucket", "").is_missing_key
