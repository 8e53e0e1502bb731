"""The file in which server side jobs leave their times, as stock tools write and read it."""

import datetime
import json
import subprocess

import pytest

from mica.errors import IntegrityError
from mica.repo.statusfile import ServerJobs, parse_status, updated_status

TIME = datetime.datetime(2024, 10, 3, 14, 5, 6, tzinfo=datetime.UTC)


@pytest.mark.parametrize("text", ["Thu Oct  3 14:05:06 UTC 2024", "Thu Oct 03 02:05:06 PM UTC 2024"])
def test_times_as_date_prints_them(text: str) -> None:
    data = json.dumps({"last_gc": text, "check_status": "succeeded", "other": 1}).encode()
    assert parse_status(data, "it") == ServerJobs(last_gc=TIME, check_succeeded=True)


def test_date_reads_what_is_written() -> None:
    document = json.loads(updated_status(None, "it", last_gc=TIME))
    command = ["date", "--utc", "--date", document["last_gc"], "+%s"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == TIME.timestamp()


def test_what_others_wrote_stays() -> None:
    former = json.dumps({"last_snapshot": "x", "mine": [1], "last_gc": "old"}).encode()
    data = updated_status(former, "it", last_gc=TIME, last_check=TIME)
    assert json.loads(data) | {"last_gc": 0, "last_check": 0} == {
        "last_snapshot": "x", "mine": [1], "last_gc": 0, "last_check": 0,
    }  # fmt: skip
    assert parse_status(data, "it") == ServerJobs(None, TIME, TIME)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"1"])
def test_damage_is_named(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"^it is damaged: "):
        parse_status(data, "it")


@pytest.mark.parametrize("value", [None, 7, "", "yesterday", []])
def test_a_time_that_is_none_is_not_known(value: object) -> None:
    assert parse_status(json.dumps({"last_gc": value}).encode(), "it") == ServerJobs()
