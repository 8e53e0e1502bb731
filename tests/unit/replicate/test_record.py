"""What a host keeps of the replicas that it makes."""

from pathlib import Path

import pytest

from mica.errors import IntegrityError, TemporaryError
from mica.replicate.record import (
    ReplicaHome,
    ReplicaRecord,
    Unfinished,
    boot_id,
    format_record,
    parse_record,
    read_records,
)

RECORD = ReplicaRecord("a.example.org", "http://host/cvmfs/a.example.org", "/srv/a", 5, 100, Unfinished(12.5, "boot"))


@pytest.mark.parametrize("record", [RECORD, ReplicaRecord("a.example.org", "", "s3://b/a", has_conditions=False)])
def test_records_are_read_back(record: ReplicaRecord) -> None:
    assert parse_record(format_record(record), "record") == record


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"repository": 1}'])
def test_damage_is_an_error(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="record of a replica is damaged: r"):
        parse_record(data, "r")


def test_two_destinations_have_two_homes(tmp_path: Path) -> None:
    one, other = (ReplicaHome(tmp_path, "a.example.org", place) for place in ("/srv/a", "/srv/b"))
    assert one.read() is None
    with one.locked(), other.locked():
        one.write(RECORD)
        other.write(ReplicaRecord("a.example.org", "", "/srv/b"))
    assert one.read() == RECORD
    assert [record.destination for record in read_records(tmp_path)] == ["/srv/a", "/srv/b"]
    assert read_records(tmp_path / "elsewhere") == []


def test_a_destination_is_replicated_by_one_at_a_time(tmp_path: Path) -> None:
    home = ReplicaHome(tmp_path, "a.example.org", "/srv/a")
    with home.locked(), pytest.raises(TemporaryError, match="replica /srv/a is in use by"), home.locked():
        pytest.fail("two have it")


def test_a_directory_is_replicated_into_by_one_of_all_states(tmp_path: Path) -> None:
    place = tmp_path / "replica"
    place.mkdir()
    one, other = (ReplicaHome(tmp_path / state, "a.example.org", str(place)) for state in ("one", "other"))
    with one.locked(), pytest.raises(TemporaryError, match="in use by another process"), other.locked():
        pytest.fail("two have it")
    with other.locked():
        pass


def test_the_work_of_a_killed_one_is_removed(tmp_path: Path) -> None:
    home = ReplicaHome(tmp_path, "a.example.org", "/srv/a")
    home.work.mkdir(parents=True)
    (home.work / "0.stored").write_bytes(b"left")
    with home.locked():
        assert list(home.work.iterdir()) == []
    assert not home.work.exists()


def test_the_kernel_names_its_run() -> None:
    assert len(boot_id()) == 36
