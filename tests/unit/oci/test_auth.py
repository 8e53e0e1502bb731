"""Challenges, token requests and credentials; no network."""

import base64
import contextlib
import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from mica.errors import UserError
from mica.oci.auth import (
    Challenge,
    Credential,
    TokenRequest,
    basic_header,
    bearer_header,
    parse_challenges,
    parse_token,
    plan_token_request,
)
from mica.oci.credentials import DockerCredentials, no_credentials, run_credential_helper

USER = Credential("user", "pa:ss")
BEARER = Challenge("bearer", {"realm": "https://auth.example/token", "service": "reg.example"})


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        ("", ()),
        ("Basic", (Challenge("basic", {}),)),
        ('Basic realm="a b"', (Challenge("basic", {"realm": "a b"}),)),
        (
            'Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"',
            (Challenge("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push"}),),
        ),
        (
            'BEARER Realm = "r" , error=invalid_token, Basic realm=b',
            (Challenge("bearer", {"realm": "r", "error": "invalid_token"}), Challenge("basic", {"realm": "b"})),
        ),
        (r'Basic realm="a\"b\\c"', (Challenge("basic", {"realm": r'a"b\c'}),)),
        ('Basic realm="open', (Challenge("basic", {}),)),
        ("=,=", ()),
        ("Negotiate, Basic", (Challenge("negotiate", {}), Challenge("basic", {}))),
    ],
)
def test_challenges(header: str, challenges: tuple[Challenge, ...]) -> None:
    assert parse_challenges(header) == challenges


def plan(challenge: Challenge, credential: Credential | None, *, is_plain_http: bool = False) -> TokenRequest:
    return plan_token_request(
        challenge, credential, repository="a/b", registry="reg.example", is_plain_http=is_plain_http
    )


def test_anonymous_token_request() -> None:
    request = plan(BEARER, None)
    assert (request.headers, request.secrets) == ({}, {})
    assert request.body is None
    assert parse_qs(urlsplit(request.url).query) == {"service": ["reg.example"], "scope": ["repository:a/b:pull"]}


def test_token_request_with_a_password_and_a_query_in_the_realm() -> None:
    challenge = Challenge("bearer", {"realm": "https://auth.example/token?x=1", "scope": "repository:c:pull"})
    request = plan(challenge, USER)
    assert request.secrets == {"Authorization": f"Basic {encoded('user:pa:ss')}"}
    assert request.url == "https://auth.example/token?x=1&scope=repository%3Ac%3Apull"


def test_token_request_with_an_identity_token_is_a_post() -> None:
    request = plan(BEARER, Credential(identity_token="secret"))
    assert request.body is not None
    assert parse_qs(request.body.decode())["refresh_token"] == ["secret"]
    assert "secret" not in request.url


@pytest.mark.parametrize(
    "realm", ["", "auth", "file:///etc/passwd", "ftp://a/b", "https://", "https://a/\r\nX: y", "http://["]
)
def test_unusable_realms_are_refused(realm: str) -> None:
    with pytest.raises(UserError, match=r"reg\.example names no usable token server"):
        plan(Challenge("bearer", {"realm": realm}), None)


def test_password_goes_over_plain_http_only_where_the_registry_does() -> None:
    challenge = Challenge("bearer", {"realm": "http://auth.example/token"})
    with pytest.raises(UserError, match="plain HTTP"):
        plan(challenge, USER)
    assert plan(challenge, None).secrets == {}
    assert plan(challenge, USER, is_plain_http=True).secrets


@pytest.mark.parametrize(
    ("registry", "realm", "is_sent"),
    [
        ("127.0.0.1:5000", "http://localhost:5001/token", True),
        ("reg.example", "http://auth.example/token", True),
        ("reg.example", "http://[::1]/token", True),
        ("localhost", "http://auth.example/token", False),
        ("127.0.0.1:5000", "http://127.0.0.1.example/token", False),
        ("127.0.0.1:5000", "http://127.0.0.1:5001@auth.example/token", False),
        ("127.0.0.1:5000", "http://auth.example\\@127.0.0.1/token", False),
    ],
)
def test_password_does_not_leave_this_machine_in_plain_http(registry: str, realm: str, is_sent: bool) -> None:
    """That the way to a registry of this machine is safe says nothing of the way to its token server."""
    with contextlib.nullcontext() if is_sent else pytest.raises(UserError, match="plain HTTP"):
        plan_token_request(
            Challenge("bearer", {"realm": realm}), USER, repository="a", registry=registry, is_plain_http=True
        )


@pytest.mark.parametrize("answer", [b'{"token":"t"}', b'{"access_token":"t"}', b'{"token":"t","access_token":"u"}'])
def test_token_answers(answer: bytes) -> None:
    assert bearer_header(parse_token(answer, what="x")) == "Bearer t"


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"token":1}', b'{"token":"a\\r\\nb"}', b'{"token":"\xc3\xbc"}']
)
def test_bad_token_answers_are_refused(answer: bytes) -> None:
    with pytest.raises(UserError):
        parse_token(answer, what="The answer")


def test_no_secret_in_a_repr() -> None:
    credential = Credential("user", "hidden-1", "hidden-2")
    texts = [
        repr(credential),
        repr([credential]),
        repr(plan(BEARER, credential)),
        repr(plan(BEARER, Credential("u", "hidden-3"))),
    ]
    assert not any("hidden" in text for text in texts)
    assert encoded("u:hidden-3") not in texts[3]
    assert basic_header(USER) == f"Basic {encoded('user:pa:ss')}"


def test_auths_of_docker() -> None:
    config = {
        "auths": {
            "https://index.docker.io/v1/": {"auth": encoded("hub:pw:1")},
            "reg.example:5000": {"username": "u", "password": "p"},
            "https://other.example/v2/": {"auth": encoded("<token>:x"), "identitytoken": "idt"},
            "empty.example": {},
        }
    }
    find = DockerCredentials(config).find
    assert find("docker.io") == Credential("hub", "pw:1")
    assert find("reg.example:5000") == Credential("u", "p")
    assert find("other.example") == Credential(identity_token="idt")
    assert find("empty.example") is None
    assert find("reg.example") is None
    assert no_credentials("reg.example") is None


def test_logins_by_namespace() -> None:
    """The longest key counts, by whole components (containers-auth.json(5)); a URL stands for its host."""
    keys = ("reg.example", "reg.example/ana", "reg.example/ana/deep", "https://url.example/ana", "index.docker.io/team")
    config = {"auths": {key: {"username": key, "password": "p"} for key in keys} | {"reg.example/none": {}}}
    find = DockerCredentials(config).find

    def user(place: str) -> str | None:
        found = find(place)
        return None if found is None else found.username

    assert user("reg.example/ana/x") == "reg.example/ana"
    assert user("reg.example/ana") == "reg.example/ana"
    assert user("reg.example/ana/deep/x") == "reg.example/ana/deep"
    assert user("reg.example/anabel/x") == "reg.example"
    assert user("reg.example/none/x") == "reg.example"
    assert user("reg.example:5000/ana/x") is None
    assert user("url.example/other") == "https://url.example/ana"
    assert user("registry-1.docker.io/team/x") == user("docker.io/team/x") == "index.docker.io/team"
    assert user("docker.io/other/x") is None


def test_helper_of_a_registry_is_asked_where_no_namespace_has_a_login() -> None:
    config = {"auths": {"reg.example/ana": {"auth": encoded("ana:1")}}, "credHelpers": {"reg.example": "x"}}
    find = DockerCredentials(config, run_helper=lambda *_: b'{"Username": "helped", "Secret": "p"}').find
    assert find("reg.example/ana/x") == Credential("ana", "1")
    assert find("reg.example/bob/x") == Credential("helped", "p")


@pytest.mark.parametrize("entry", [3, {"auth": "not base64 s3cret"}, {"auth": encoded("x")[:-1] + "\xff"}, {"auth": 5}])
def test_broken_entries_are_refused_without_their_content(entry: object) -> None:
    with pytest.raises(UserError, match=r"reg\.example") as caught:
        DockerCredentials({"auths": {"reg.example": entry}}).find("reg.example")
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_helpers_come_before_auths() -> None:
    asked = []

    def helper(name: str, server: str) -> bytes:
        asked.append((name, server))
        if server == "id.example":
            return b'{"Username": "<token>", "Secret": "idt"}'
        return b'{"Username": "u", "Secret": "p"}' if name == "special" else b""

    config = {
        "auths": {"old.example": {"auth": encoded("a:b")}},
        "credHelpers": {"reg.example": "special"},
        "credsStore": "all",
    }
    find = DockerCredentials(config, run_helper=helper).find
    assert find("reg.example") == Credential("u", "p")
    assert find("old.example") == Credential("a", "b")
    assert find("docker.io") is None
    assert find("id.example") == Credential(identity_token="idt")
    assert asked == [
        ("special", "reg.example"),
        ("all", "old.example"),
        ("all", "https://index.docker.io/v1/"),
        ("all", "id.example"),
    ]


def write_helper(directory: Path, body: str) -> None:
    path = directory / "docker-credential-test"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_real_helper_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    write_helper(tmp_path, 'read server; echo "{\\"Username\\": \\"$1\\", \\"Secret\\": \\"$server\\"}"')
    config = {"credsStore": "test"}
    assert DockerCredentials(config).find("reg.example") == Credential("get", "reg.example")
    write_helper(tmp_path, "echo credentials not found in native keychain; exit 1")
    assert DockerCredentials(config).find("reg.example") is None
    write_helper(tmp_path, "echo my s3cret; echo s3cret >&2; exit 3")
    with pytest.raises(UserError, match="failed with status 3") as caught:
        DockerCredentials(config).find("reg.example")
    assert "s3cret" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize("name", ["../../bin/sh", "a b", "", "-x", "missing-helper-of-the-test"])
def test_helpers_with_wrong_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="credential helper"):
        run_credential_helper(name, "reg.example")
