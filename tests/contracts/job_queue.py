"""What every database behind the queue has to do. A module subclasses this and provides `queue`, empty."""

import threading
import time
from collections.abc import Callable

import pytest
from firm._core import process as processes
from firm._core.process import ProcessInfo
from tests.support.stagedlayers import staged_layer

from mica.errors import IntegrityError, TemporaryError, UserError
from mica.jobs.queue import JobQueue, Registration
from mica.jobs.tables import RowState
from mica.jobs.wishes import Wish, readable_here

FQRN = "queue.example.org"
ALL = readable_here(FQRN)


def wish(number: int = 1, source: str = "docker://registry.example.org/team/image@sha256:00") -> Wish:
    return Wish(FQRN, f"sha256:{number:064x}", f"sha256:{number + 1000:064x}", source)


def ask(queue: JobQueue, *wishes: Wish, seen_revision: int = 1) -> None:
    queue.ask(wishes, seen_revision=seen_revision)


def state_of(queue: JobQueue, one: Wish) -> RowState:
    return queue.layers.rows(FQRN, [one.digest])[one.digest].state


def make(queue: JobQueue, registration: Registration, worker: str = "w") -> Callable[[str, str, int], None]:
    """Makes layers at once."""

    def perform(repository: str, digest: str, job_id: int) -> None:
        if queue.layers.begin(repository, digest, job_id=job_id, worker=worker):
            queue.layers.finish(repository, staged_layer(digest))

    return perform


def work(queue: JobQueue) -> int:
    """Take and make everything that is there; returns how many jobs that were."""
    done = 0
    with queue.registered("worker") as registration:
        while taken := queue.take(ALL, 10, registration):
            for job_id in taken:
                assert queue.run(job_id, registration, make(queue, registration))
            done += len(taken)
    return done


def dead_worker(queue: JobQueue) -> Registration:
    """One that has registered itself, and does nothing any more."""
    return Registration(processes.register(queue._runtime.engine, ProcessInfo("Worker", "dead", 1, "elsewhere")))


class JobQueueContract:
    """The tests."""

    def test_a_layer_goes_through_its_states(self, queue: JobQueue) -> None:
        one = wish()
        ask(queue, one)
        assert state_of(queue, one) is RowState.WANTED
        with queue.registered("worker") as registration:
            (job_id,) = queue.take(ALL, 10, registration)
            begun = queue.layers.begin(FQRN, one.digest, job_id=job_id, worker="w")
            assert begun is not None
            assert (begun.wish, begun.tries) == (one, 1)
            row = queue.layers.rows(FQRN, [one.digest])[one.digest]
            assert (row.state, row.worker, row.tries) == (RowState.MAKING, "w", 1)
            assert abs(row.since_s - time.time()) < 60
            assert queue.run(job_id, registration, make(queue, registration))
        assert queue.layers.staged(FQRN) == [staged_layer(one.digest)]
        assert queue.layers.repositories_with_staged() == [FQRN]
        queue.layers.settle(FQRN, [one.digest], 7)
        row = queue.layers.rows(FQRN, [one.digest])[one.digest]
        assert (row.state, row.revision) == (RowState.PUBLISHED, 7)
        assert not queue.layers.staged(FQRN)
        assert queue.layers.counts(FQRN) == {RowState.PUBLISHED: 1}

    def test_a_layer_that_many_ask_for_at_once_is_one_job(self, queue: JobQueue) -> None:
        wishes = [wish(number) for number in range(5)]
        threads = [threading.Thread(target=ask, args=(queue, *wishes)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert work(queue) == 5
        assert work(queue) == 0

    def test_a_job_is_taken_once(self, queue: JobQueue) -> None:
        ask(queue, *(wish(number) for number in range(20)))
        taken: list[int] = []

        def take() -> None:
            with queue.registered("worker") as registration:
                while some := queue.take(ALL, 1, registration):
                    taken.extend(some)
                    for job_id in some:
                        queue.run(job_id, registration, make(queue, registration))

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == len(set(taken)) == 20
        assert queue.layers.counts(FQRN) == {RowState.STAGED: 20}

    def test_the_oldest_wish_comes_first(self, queue: JobQueue) -> None:
        for number in (3, 1, 2):
            ask(queue, wish(number))
            time.sleep(0.002)
        done: list[str] = []

        def perform(_repository: str, digest: str, _job_id: int) -> None:
            done.append(digest)

        with queue.registered("worker") as registration:
            while taken := queue.take(ALL, 1, registration):
                queue.run(taken[0], registration, perform)
        assert done == [wish(number).digest for number in (3, 1, 2)]

    def test_workers_take_only_what_they_can_read(self, queue: JobQueue) -> None:
        here, elsewhere, daemon = wish(1, "oci:/images/a"), wish(2), wish(3, "docker-daemon:app:1")
        other = Wish("other.example.org", *wish(4)[1:])
        ask(queue, here, daemon, other)
        with queue.registered("worker") as registration:
            assert len(queue.take(readable_here(FQRN), 10, registration)) == 1
            ask(queue, elsewhere)
            assert len(queue.take(readable_here(FQRN), 10, registration)) == 1
            assert not queue.take(readable_here(FQRN), 10, registration)
            own = queue.queues_of(FQRN, [daemon.digest])
            assert len(queue.take(own, 10, registration)) == 1

    def test_jobs_of_a_worker_that_died_are_taken_again(self, queue: JobQueue) -> None:
        one = wish()
        ask(queue, one)
        registration = dead_worker(queue)
        (job_id,) = queue.take(ALL, 10, registration)
        assert queue.layers.begin(FQRN, one.digest, job_id=job_id, worker="dead")
        queue.keep_house()
        with queue.registered("other") as other:
            assert not queue.take(ALL, 10, other)
            deadline_s = time.monotonic() + 30
            while not (taken := queue.take(ALL, 10, other)):
                assert time.monotonic() < deadline_s
                queue.keep_house()
                time.sleep(0.1)
            assert taken == [job_id]
            begun = queue.layers.begin(FQRN, one.digest, job_id=job_id, worker="other")
            assert begun is not None
            assert begun.tries == 2
            # The dead one was only slow: it has lost the job, and what it says of it counts no more.
            queue.layers.fail(FQRN, one.digest, worker="dead", error=UserError("too late"))
            assert queue.run(job_id, registration, lambda *_: None) is False
            assert state_of(queue, one) is RowState.MAKING
            assert queue.run(job_id, other, make(queue, other))
        assert state_of(queue, one) is RowState.STAGED

    def test_a_worker_that_counts_as_dead_is_told(self, queue: JobQueue) -> None:
        with queue.registered("worker") as registration:
            processes.deregister(queue._runtime.engine, registration.process_id)
            assert registration.is_lost.wait(30)

    def test_what_is_given_back_is_taken_at_once(self, queue: JobQueue) -> None:
        one = wish()
        ask(queue, one)
        with queue.registered("first") as first, queue.registered("second") as second:
            (job_id,) = queue.take(ALL, 10, first)
            assert queue.layers.begin(FQRN, one.digest, job_id=job_id, worker="first")
            queue.layers.put_back(FQRN, one.digest, worker="first")
            queue.give_back(first)
            assert queue.take(ALL, 10, second) == [job_id]
            begun = queue.layers.begin(FQRN, one.digest, job_id=job_id, worker="second")
            assert begun is not None
            assert begun.tries == 1, "giving back is no try"

    def test_a_worker_that_ends_leaves_its_jobs_to_others(self, queue: JobQueue) -> None:
        ask(queue, wish())
        with queue.registered("first") as first:
            taken = queue.take(ALL, 10, first)
        with queue.registered("second") as second:
            assert queue.take(ALL, 10, second) == taken != []

    def test_a_temporary_failure_is_tried_again_later(self, queue: JobQueue) -> None:
        one = wish()
        ask(queue, one)

        def fail(repository: str, digest: str, job_id: int) -> None:
            queue.layers.begin(repository, digest, job_id=job_id, worker="w")
            error = TemporaryError("The registry does not answer.", hint="Wait.")
            queue.layers.put_back(repository, digest, worker="w", error=error)
            raise error

        with queue.registered("worker") as registration:
            (job_id,) = queue.take(ALL, 10, registration)
            assert not queue.run(job_id, registration, fail)
            row = queue.layers.rows(FQRN, [one.digest])[one.digest]
            assert (row.state, row.tries, str(row.error)) == (RowState.WANTED, 1, "The registry does not answer.")
            assert isinstance(row.error, TemporaryError)
            assert not queue.take(ALL, 10, registration)
            deadline_s = time.monotonic() + 30
            while not (taken := queue.take(ALL, 10, registration)):
                assert time.monotonic() < deadline_s
                queue.keep_house()
                time.sleep(0.1)
            assert queue.run(taken[0], registration, make(queue, registration))
        row = queue.layers.rows(FQRN, [one.digest])[one.digest]
        assert (row.state, row.tries, row.error) == (RowState.STAGED, 2, None)

    def test_a_failed_layer_says_why_and_is_made_when_it_is_asked_for_again(self, queue: JobQueue) -> None:
        one = wish()
        ask(queue, one)

        def fail(repository: str, digest: str, job_id: int) -> None:
            queue.layers.begin(repository, digest, job_id=job_id, worker="w")
            queue.layers.fail(
                repository, digest, worker="w", error=IntegrityError("Wrong bytes.", hint="Push it again.")
            )

        with queue.registered("worker") as registration:
            (job_id,) = queue.take(ALL, 10, registration)
            assert queue.run(job_id, registration, fail)
        (row,) = queue.layers.all_rows([FQRN], [RowState.FAILED])
        assert isinstance(row.error, IntegrityError)
        assert (str(row.error), row.error.hint) == ("Wrong bytes.", "Push it again.")
        assert work(queue) == 0
        ask(queue, one)
        assert work(queue) == 1
        assert state_of(queue, one) is RowState.STAGED

    @pytest.mark.parametrize(("seen_revision", "is_again"), [(4, False), (5, True), (6, True)])
    def test_a_published_layer_is_made_again_only_when_it_is_gone(
        self, queue: JobQueue, seen_revision: int, is_again: bool
    ) -> None:
        """Who saw an older revision than the one with the layer knows nothing of it."""
        one = wish()
        ask(queue, one)
        work(queue)
        queue.layers.settle(FQRN, [one.digest], 5)
        ask(queue, one, seen_revision=seen_revision)
        assert (state_of(queue, one) is RowState.WANTED) is is_again

    def test_a_layer_whose_asker_died_too_early_is_put_into_the_queue_later(
        self, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = wish()
        assert queue.layers.want(one, seen_revision=1)
        ask(queue, one)
        assert work(queue) == 0, "it may still be on its way"
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 60)
        ask(queue, one)
        assert work(queue) == 1
        assert state_of(queue, one) is RowState.STAGED

    def test_a_staged_layer_that_is_old_is_made_again(self, queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
        one = wish()
        ask(queue, one)
        work(queue)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 86400)
        assert not queue.layers.staged(FQRN), "its objects may be garbage by now"
        ask(queue, one)
        assert state_of(queue, one) is RowState.WANTED

    def test_staged_layers_can_be_forgotten(self, queue: JobQueue) -> None:
        first, second = wish(1), wish(2)
        ask(queue, first, second)
        work(queue)
        queue.layers.forget(FQRN, [first.digest])
        assert [layer.digest for layer in queue.layers.staged(FQRN)] == [second.digest]
        queue.layers.forget(FQRN)
        assert not queue.layers.all_rows()
        ask(queue, first)
        assert work(queue) == 1

    def test_old_published_rows_go(self, queue: JobQueue) -> None:
        first, second = wish(1), wish(2)
        ask(queue, first, second)
        work(queue)
        queue.layers.settle(FQRN, [first.digest], 2)
        queue.layers.forget_published(before_s=time.time() - 100)
        assert len(queue.layers.all_rows()) == 2
        queue.layers.forget_published(before_s=time.time() + 100)
        assert [row.digest for row in queue.layers.all_rows()] == [second.digest]
