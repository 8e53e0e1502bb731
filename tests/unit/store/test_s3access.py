"""Places and credentials of S3, from settings, variables and files."""

from pathlib import Path

import pytest

from mica.errors import UserError
from mica.store.s3access import (
    Credentials,
    S3Options,
    bucket_url,
    endpoint_url,
    find_credentials,
    parse_place,
    region_name,
)

PLACE = parse_place("s3://bucket/images.example.org")
SECRET = "a-secret-that-nobody-may-see"
KEYS = {"AWS_ACCESS_KEY_ID": "ID", "AWS_SECRET_ACCESS_KEY": SECRET}


@pytest.mark.parametrize(
    ("text", "bucket", "prefix"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://my.bucket-1/a/b.c_d", "my.bucket-1", "a/b.c_d"),
        ("s3://bucket/a/", "bucket", "a"),
    ],
)
def test_places(text: str, bucket: str, prefix: str) -> None:
    place = parse_place(text)
    assert place == (bucket, prefix)
    assert parse_place(place.text) == place


@pytest.mark.parametrize(
    "text",
    ["s3://", "s3:///a", "s3://B", "s3://ab", "S3://bucket", "s3://bucket//a", "s3://bucket/a b", "s3://bucket/../x",
     "s3://bucket/a/./b", "s3://bucket?x", "s3://user:pw@bucket/a", "http://bucket/a", "s3://bucket/a#b"],
)  # fmt: skip
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(UserError, match="is no storage on S3"):
        parse_place(text)


def test_credentials_from_the_environment() -> None:
    found = find_credentials(PLACE, S3Options(), KEYS)
    assert found == Credentials("ID", SECRET, "", "the environment")
    assert find_credentials(PLACE, S3Options(), {**KEYS, "AWS_SESSION_TOKEN": "token"}).token == "token"
    assert SECRET not in repr(found)


def test_half_of_the_credentials_is_not_enough() -> None:
    for name in KEYS:
        with pytest.raises(UserError, match="only one is set") as caught:
            find_credentials(PLACE, S3Options(), {name: SECRET})
        assert SECRET not in str(caught.value) + caught.value.hint


def test_no_credentials(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There are no credentials for s3://bucket/images") as caught:
        find_credentials(PLACE, S3Options(), {"HOME": str(tmp_path)})
    assert "--s3-credentials" in caught.value.hint


def credentials_file(directory: Path, section: str = "default") -> Path:
    path = directory / "credentials"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"[{section}]\naws_access_key_id = FILE\naws_secret_access_key = {SECRET}%\n")
    return path


def test_the_file_of_the_settings_comes_first(tmp_path: Path) -> None:
    path = credentials_file(tmp_path)
    found = find_credentials(PLACE, S3Options(credentials=path), KEYS)
    assert found == Credentials("FILE", f"{SECRET}%", "", f"the file {path}")


def test_the_file_that_all_programs_share_comes_last(tmp_path: Path) -> None:
    path = credentials_file(tmp_path / ".aws")
    assert find_credentials(PLACE, S3Options(), {"HOME": str(tmp_path)}).key_id == "FILE"
    assert find_credentials(PLACE, S3Options(), {"AWS_SHARED_CREDENTIALS_FILE": str(path)}).key_id == "FILE"
    assert find_credentials(PLACE, S3Options(), {**KEYS, "HOME": str(tmp_path)}).key_id == "ID"


def test_a_profile_is_a_section(tmp_path: Path) -> None:
    options = S3Options(credentials=credentials_file(tmp_path, "site"))
    assert find_credentials(PLACE, options, {"AWS_PROFILE": "site"}).key_id == "FILE"
    with pytest.raises(UserError, match=r"in a section \[default\]"):
        find_credentials(PLACE, options, {})


@pytest.mark.parametrize("content", [f"{SECRET}\n", f"[default]\n{SECRET}\n", "\0", "[default]\naws_access_key_id=x\n"])
def test_a_broken_file_is_named_and_not_quoted(tmp_path: Path, content: str) -> None:
    path = tmp_path / "credentials"
    path.write_text(content)
    with pytest.raises(UserError, match=str(path)) as caught:
        find_credentials(PLACE, S3Options(credentials=path), {})
    assert SECRET not in str(caught.value) + caught.value.hint
    assert caught.value.__cause__ is None
    with pytest.raises(UserError, match="Cannot read the credentials file"):
        find_credentials(PLACE, S3Options(credentials=tmp_path / "none"), {})


def test_endpoints() -> None:
    assert endpoint_url(S3Options(), {}) == ""
    assert endpoint_url(S3Options(endpoint="http://a:1/"), {"AWS_ENDPOINT_URL": "http://b"}) == "http://a:1"
    assert endpoint_url(S3Options(), {"AWS_ENDPOINT_URL": "http://b"}) == "http://b"
    assert endpoint_url(S3Options(), {"AWS_ENDPOINT_URL_S3": "http://c", "AWS_ENDPOINT_URL": "http://b"}) == "http://c"
    for wrong in ("host:9000", "ftp://a", "http://a/path", "http://user:pw@a", "http://a b"):
        with pytest.raises(UserError, match="is no URL of an S3 server"):
            endpoint_url(S3Options(endpoint=wrong), {})


def test_urls_of_buckets() -> None:
    path, virtual = S3Options(endpoint="http://s3:9000"), S3Options(endpoint="http://s3:9000", addressing="virtual")
    assert bucket_url(PLACE, path, {}) == "http://s3:9000/bucket/images.example.org"
    assert bucket_url(PLACE, virtual, {}) == "http://bucket.s3:9000/images.example.org"
    assert bucket_url(parse_place("s3://bucket"), path, {}) == "http://s3:9000/bucket"
    aws = S3Options(region="eu-west-1", addressing="virtual")
    assert bucket_url(PLACE, aws, {}) == "https://bucket.s3.eu-west-1.amazonaws.com/images.example.org"


def test_regions() -> None:
    assert region_name(S3Options(), {}) == "us-east-1"
    assert region_name(S3Options(), {"AWS_DEFAULT_REGION": "a"}) == "a"
    assert region_name(S3Options(), {"AWS_DEFAULT_REGION": "a", "AWS_REGION": "b"}) == "b"
    assert region_name(S3Options(region="c"), {"AWS_REGION": "b"}) == "c"
