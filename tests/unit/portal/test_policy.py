"""Names at the portal, and the files of who may ask."""

import pytest

from mica.errors import UserError
from mica.portal.policy import AccessList, ForbiddenError, Policy, parse_tokens, parse_users

POLICY = Policy(("docker.io/library/*", "here/*", "bad/*"), {"here": "127.0.0.1:5001"})


@pytest.mark.parametrize(
    ("name", "upstream"),
    [
        ("docker.io/library/debian", "docker.io/library/debian"),
        ("here/a/b", "127.0.0.1:5001/a/b"),
    ],
)
def test_names_that_are_allowed(name: str, upstream: str) -> None:
    assert POLICY.upstream_of(name).name == upstream


@pytest.mark.parametrize("name", ["docker.io/other/x", "ghcr.io/library/x", "library/debian", "", "docker.io/library"])
def test_names_that_are_not(name: str) -> None:
    with pytest.raises(ForbiddenError):
        POLICY.upstream_of(name)


@pytest.mark.parametrize("name", ["bad/x", "here/..", "here//x", "here/"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UserError):
        POLICY.upstream_of(name)


def test_files_of_secrets() -> None:
    assert parse_users(b"# who\nann:a:b\n\nbob:c\n", "f") == {"ann": "a:b", "bob": "c"}
    assert parse_tokens(b"0123456789abcdef\n", "f") == {"0123456789abcdef"}
    assert AccessList({}, frozenset()).allows("")
    for parse, data, words in (
        (parse_users, b"ann:x\ns3cret", "Line 2 of f is not"),
        (parse_users, b"\xff", "not text"),
        (parse_tokens, b"s3cret", "fewer than 16"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            parse(data, "f")  # type: ignore[operator]
        assert "s3cret" not in str(caught.value)
