"""The queue that hands out layers: firm's tables and rules, in words of ours.

A worker registers itself and renews its registration all the time. A job that it has taken is given back if it says so,
or if its registration is older than the lease: whoever looks first puts the jobs of dead workers back. A job that is
done by a worker that lost it meanwhile is still the other's. Any thread.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Self

from firm._core import process as processes
from firm._core.process import HeartbeatPoller, ProcessInfo
from firm.queue import schema
from firm.queue.claim import claim_ready
from firm.queue.dispatcher import dispatch_once
from firm.queue.enqueue import enqueue
from firm.queue.job import Job, RetryPolicy
from firm.queue.maintenance import discard_job
from firm.queue.recovery import recover_orphaned_claims
from firm.queue.registry import REGISTRY
from firm.queue.results import execute_claimed
from sqlalchemy import select

from mica.errors import TemporaryError
from mica.jobs.database import Database
from mica.jobs.layertable import LayerTable
from mica.jobs.wishes import Wish, queue_name

DEFAULT_LEASE_S: Final = 60.0
_BEATS: Final = 4
"""Heartbeats in a lease."""
_CLASS: Final = "mica.layer"
_RETRIES: Final = RetryPolicy(max_attempts=100, backoff_base=2.0)
"""After 2, 4, 8, … seconds. Whoever makes layers knows when it is enough."""

Perform = Callable[[str, str, int], None]
"""Gets repository, digest and the number of the job."""
_performing = threading.local()


def _perform(repository: str, digest: str) -> None:
    perform, job_id = _performing.now
    perform(repository, digest, job_id)


def _job(queue: str) -> Job:
    return Job(_perform, class_name=_CLASS, queue_name=queue, priority=0, retry_policy=_RETRIES)


REGISTRY.register(_CLASS, _job(""))


class Registration:
    """A living worker. `is_lost` is set once others take it for dead: what it has taken is theirs."""

    def __init__(self, process_id: int) -> None:
        self.process_id = process_id
        self.is_lost = threading.Event()


class JobQueue:
    """Use as a context manager, or close it. A worker that is silent for `lease_s` counts as dead."""

    def __init__(self, url: str, *, lease_s: float = DEFAULT_LEASE_S) -> None:
        """Raises what opening the database raises."""
        self.lease_s = lease_s
        self._database = Database(url)
        self._runtime = self._database.runtime
        self.layers = LayerTable(self._database)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def where(self) -> str:
        return self._database.where

    def ask(self, wishes: Sequence[Wish], *, seen_revision: int) -> None:
        """Ask for layers; see `LayerTable.want`."""
        for wish in wishes:
            if self.layers.want(wish, seen_revision=seen_revision):
                with self._database.explained():
                    job_id = enqueue(_job(queue_name(wish)), (wish.repository, wish.digest), {}, runtime=self._runtime)
                assert job_id is not None
                if not self.layers.put(wish.repository, wish.digest, job_id):
                    with self._database.explained():
                        discard_job(self._runtime, job_id)

    @contextlib.contextmanager
    def registered(self, name: str) -> Iterator[Registration]:
        """Be a living worker for a block. What it has taken and not given back by its end goes to others."""
        with self._database.explained():
            info = ProcessInfo("Worker", name, os.getpid(), socket.gethostname())
            registration = Registration(processes.register(self._runtime.engine, info))
        heartbeat = HeartbeatPoller(
            self._runtime.engine, registration.process_id, self.lease_s / _BEATS,
            on_error=lambda _error: None, on_evicted=registration.is_lost.set,
        )  # fmt: skip
        heartbeat.start()
        try:
            yield registration
        finally:
            heartbeat.stop()
            # Whoever does not reach the queue now is found by the lease.
            with contextlib.suppress(TemporaryError), self._database.explained():
                processes.deregister(self._runtime.engine, registration.process_id)
                recover_orphaned_claims(self._runtime, [registration.process_id])

    def take(self, queues: Sequence[str], limit: int, registration: Registration) -> list[int]:
        """Take at most `limit` jobs of queues, which are names or patterns with a star at their end."""
        if not queues or not self._has_ready():
            return []
        with self._database.explained():
            engine, dialect = self._runtime.engine, self._runtime.dialect
            return claim_ready(engine, dialect, list(queues), limit, registration.process_id)

    def queues_of(self, repository: str, digests: Sequence[str]) -> list[str]:
        """The names of the queues that have the jobs of some layers."""
        job_ids = self.layers.job_ids(repository, digests)
        with self._database.reading() as connection:
            statement = select(schema.jobs.c.queue_name).where(schema.jobs.c.id.in_(job_ids))
            return [row.queue_name for row in connection.execute(statement)]

    def run(self, job_id: int, registration: Registration, perform: Perform) -> bool:
        """Do a job that was taken; False if `perform` raised: then the job comes again later, unless it was given back
        or lost."""
        _performing.now = perform, job_id
        with self._database.explained():
            return execute_claimed(self._runtime, job_id, registration.process_id)

    def give_back(self, registration: Registration) -> None:
        """Give all jobs back that this worker has taken, for others at once. What it still does of them is in vain."""
        with self._database.explained():
            recover_orphaned_claims(self._runtime, [registration.process_id])

    def keep_house(self) -> None:
        """What some worker has to do now and then: jobs of dead workers go back to the queue, and so do jobs that wait
        for another try and are due."""
        with self._database.explained():
            processes.prune_dead(self._runtime.engine, self.lease_s)
            # All claims without a living process: a worker that pruned the process may have died before this.
            recover_orphaned_claims(self._runtime)
            dispatch_once(self._runtime)

    def _has_ready(self) -> bool:
        """Whether there is anything at all: taking jobs needs a lock, looking does not."""
        with self._database.reading() as connection:
            return connection.execute(select(schema.ready_executions.c.id).limit(1)).first() is not None
