"""How queues are opened: their URLs, their files, and several processes at once."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.queues import sqlite_url

from mica.errors import TemporaryError, UserError
from mica.jobs.database import Database


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nonsense", "cannot be read"),
        ("redis://localhost/0", "kind 'redis'"),
        ("mysql+pymysql://u:secret@localhost/x", "kind 'mysql"),
        ("sqlite://", "names no database"),
        ("sqlite:///relative.db", "names no database"),
        ("postgresql://localhost", "names no database"),
    ],
)
def test_a_wrong_url_is_refused_in_a_sentence(url: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        Database(url)
    assert "secret" not in str(raised.value)
    assert "sqlite:///PATH" in raised.value.hint


def test_the_file_is_its_users_alone(tmp_path: Path) -> None:
    with Database(sqlite_url(tmp_path / "new")):
        assert stat.S_IMODE((tmp_path / "new/queue.db").stat().st_mode) == 0o600


def test_a_file_that_is_no_database_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "queue.db").write_bytes(b"something else" * 1000)
    with pytest.raises(TemporaryError, match=r"^The queue sqlite:////.*queue\.db cannot be used now: file is not a"):
        Database(sqlite_url(tmp_path))


def test_processes_that_start_at_once_make_the_tables_once(tmp_path: Path) -> None:
    code = f"from mica.jobs.database import Database; Database({sqlite_url(tmp_path)!r}).close()"
    started = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(5)]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
