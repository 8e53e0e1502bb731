"""The queue with SQLite in a file."""

from tests.contracts.job_queue import JobQueueContract


class TestSqliteQueue(JobQueueContract):
    """`queue` is in conftest.py."""
