"""What a host knows of a repository: kept for good, moved from a cache of before, never guessed."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.catalogs import some_digest
from tests.support.repositories import FQRN

from mica.digest import digest_of
from mica.errors import IntegrityError, UserError
from mica.fetch.documents import Documents
from mica.fetch.trustrecord import TrustRecord
from mica.repo.manifest import Manifest, format_manifest
from mica.repo.sealed import format_sealed


def documents(revision: int, *, published_at: int = 100, fqrn: str = FQRN, whitelist: bytes = b"w") -> Documents:
    manifest = Manifest(
        some_digest("catalog"), 123, 240, revision, fqrn, some_digest("certificate"), published_at=published_at
    )
    text = format_manifest(manifest)
    return Documents(format_sealed(text, digest_of(text), b"signature"), b"c", whitelist)


@pytest.fixture
def record(tmp_path: Path) -> TrustRecord:
    return TrustRecord(tmp_path / "state/trust", FQRN, former=tmp_path / "former")


def test_nothing_is_known_at_first(record: TrustRecord) -> None:
    assert record.read() is None
    assert record.known()[:2] == (0, 0)
    assert not record.path.parent.exists()


def test_what_was_verified_is_known(record: TrustRecord) -> None:
    record.keep(documents(5))
    assert record.read() == documents(5)
    assert record.known()[:4] == (100, 5, b"w", str(record.path))
    assert record.path.stat().st_mode & 0o777 == 0o600
    assert record.path.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(record.path.parent) == [FQRN]


def test_who_comes_late_with_an_older_one_changes_nothing(record: TrustRecord) -> None:
    record.keep(documents(5))
    for older in (documents(4), documents(6, published_at=99)):
        record.keep(older)
        assert record.read() == documents(5)
    record.keep(documents(5, whitelist=b"renewed"))
    assert record.known().whitelist == b"renewed"


def test_many_at_once_leave_the_newest(record: TrustRecord) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(record.keep, [documents(number % 32) for number in range(64)]))
    assert record.known().revision == 31


def test_nothing_is_written_when_nothing_is_new(record: TrustRecord) -> None:
    record.keep(documents(5))
    before = record.path.stat().st_ino
    record.keep(documents(5))
    assert record.path.stat().st_ino == before


def test_what_an_earlier_version_kept_in_the_cache_moves(record: TrustRecord, tmp_path: Path) -> None:
    former = tmp_path / "former"
    former.write_text(json.dumps({name: part.hex() for name, part in documents(5)._asdict().items()}))
    assert record.known().revision == 5
    assert not former.exists()
    assert record.read() == documents(5)
    former.write_text("{")
    assert record.known().revision == 5


def test_a_damaged_one_of_an_earlier_version_is_an_error_too(record: TrustRecord, tmp_path: Path) -> None:
    (tmp_path / "former").write_text("{")
    with pytest.raises(IntegrityError, match=f"is damaged: {tmp_path}/former"):
        record.known()
    assert not record.path.exists()


@given(st.binary(max_size=200))
def test_any_bytes_are_an_error_and_never_nothing(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    record = TrustRecord(tmp_path_factory.getbasetemp() / "trust", FQRN, former=Path("/nowhere"))
    record.path.parent.mkdir(exist_ok=True)
    record.path.write_bytes(data)
    for look in (record.read, record.known, lambda: record.keep(documents(5))):
        with pytest.raises(IntegrityError, match="is damaged"):
            look()


@pytest.mark.parametrize("change", ["manifest", "other name", "cut", "missing"])
def test_damage(record: TrustRecord, change: str) -> None:
    record.keep(documents(5))
    values = json.loads(record.path.read_text())
    if change == "manifest":
        values["manifest"] = values["manifest"].replace("35", "36", 1)
    elif change == "other name":
        values["manifest"] = documents(5, fqrn="other.example.org").manifest.hex()
    elif change == "missing":
        del values["whitelist"]
    text = json.dumps(values)
    record.path.write_text(text[:-9] if change == "cut" else text)
    with pytest.raises(IntegrityError, match="is damaged"):
        record.known()


def test_a_place_that_cannot_be_read_is_an_error(record: TrustRecord) -> None:
    record.path.mkdir(parents=True)
    with pytest.raises(UserError, match=f"Cannot read what is known of {FQRN}"):
        record.known()
    record.path.rmdir()
    record.path.parent.rmdir()
    record.path.parent.touch()
    with pytest.raises(UserError, match=f"Cannot read what is known of {FQRN}"):
        record.known()
