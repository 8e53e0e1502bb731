"""A queue in a file, and layers to hand out."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.queues import sqlite_url

from mica.jobs.queue import JobQueue


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    with JobQueue(sqlite_url(tmp_path), lease_s=2.0) as queue:
        yield queue
