"""Which runs are found, and which of them nobody runs any more."""

import os
from pathlib import Path

import pytest

from mica.run.runrecords import NO_RECORD, RECORD, RunRecord, find_runs, format_record, parse_record
from mica.run.scratch import open_run_directory, sweep

RUN = RunRecord("docker.io/library/debian:12", "", "/c", 7)


def test_a_record_is_read_as_it_was_written() -> None:
    assert parse_record(format_record(RUN).encode()) == RUN


@pytest.mark.parametrize("data", [b"", b"[]", b'{"pid": 1}', b'{"image": "", "node": "", "cache": "", "pid": "1"}'])
def test_what_is_no_record(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"Expecting value|not the record"):
        parse_record(data)


def test_a_run_is_found_while_it_lives_and_after_it_was_killed(tmp_path: Path) -> None:
    assert find_runs(tmp_path / "missing") == []
    with open_run_directory(tmp_path, "one", RUN) as directory:
        (found,) = find_runs(tmp_path)
        assert (found.path, found.is_running, found.is_mounted) == (directory.path, True, False)
        assert found.record == RunRecord(RUN.image, "", "/c", os.getpid())
    assert find_runs(tmp_path) == []
    for name, record in (("dead", format_record(RUN)), ("odd", "nonsense")):
        (tmp_path / name).mkdir()
        (tmp_path / name / RECORD).write_text(record)
    (tmp_path / "early").mkdir()
    (tmp_path / "link").symlink_to("dead")
    assert [(one.path.name, one.record, one.is_running) for one in find_runs(tmp_path)] == [
        ("dead", RUN, False), ("early", NO_RECORD, False), ("odd", NO_RECORD, False),
    ]  # fmt: skip
    sweep(tmp_path)
    assert find_runs(tmp_path) == []
