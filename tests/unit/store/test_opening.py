"""Which store the text of a storage means."""

from pathlib import Path

import pytest

from mica.errors import UserError
from mica.store.local import LocalStore
from mica.store.opening import local_directory, open_store, parse_storage, probe_storage
from mica.store.s3access import S3Options


def test_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_storage("one/../two") == f"{tmp_path}/two"
    assert local_directory(parse_storage("two")) == tmp_path / "two"
    with open_store(parse_storage("two")) as store:
        assert isinstance(store, LocalStore)
        assert store.where == f"{tmp_path}/two"
    assert not (tmp_path / "two").exists()
    assert probe_storage(str(tmp_path)) == S3Options()


def test_a_bucket(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    storage = parse_storage("s3://bucket/images.example.org/")
    assert storage == "s3://bucket/images.example.org"
    assert local_directory(storage) is None
    with open_store(storage, S3Options(endpoint="http://127.0.0.1:9", credentials=credentials)) as store:
        assert store.where == storage


@pytest.mark.parametrize("text", ["http://server/bucket", "file:///srv", "S3://bucket"])
def test_what_is_no_storage(text: str) -> None:
    with pytest.raises(UserError, match="is no storage"):
        parse_storage(text)
