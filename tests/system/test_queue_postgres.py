"""The queue with a real PostgreSQL server."""

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import text
from tests.contracts.job_queue import JobQueueContract
from tests.support.queues import postgres_server

from mica.errors import TemporaryError
from mica.jobs.queue import JobQueue

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture
def queue(url: str) -> Iterator[JobQueue]:
    with JobQueue(url, lease_s=2.0) as queue:
        yield queue
        with queue._database.changing() as connection:
            tables = connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).scalars()
            for name in list(tables):
                connection.execute(text(f'DROP TABLE "{name}" CASCADE'))


class TestPostgresQueue(JobQueueContract):
    """`queue` is above."""


def test_workers_that_start_at_once_make_the_tables_once(url: str, queue: JobQueue) -> None:
    with queue._database.changing() as connection:
        connection.execute(text("DROP TABLE mica_layers"))
    errors: list[Exception] = []

    def start() -> None:
        try:
            JobQueue(url).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_server_that_is_away_is_a_sentence_without_the_password() -> None:
    with pytest.raises(
        TemporaryError, match=r"^The queue postgresql.*:\*\*\*@127\.0\.0\.1:1/x cannot be used now"
    ) as raised:
        JobQueue("postgresql://mica:secret@127.0.0.1:1/x")
    assert "secret" not in str(raised.value) + raised.value.hint
