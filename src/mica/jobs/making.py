"""Has the layers of a conversion made through the queue: by workers, and by the conversion itself while it waits.

So it goes on without any worker, and a layer that several conversions ask for is made once, on whatever machine. The
caller's thread, and those of a worker.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from mica.convert.layerbuilder import ConversionLimits, StoppedError
from mica.convert.making import Made
from mica.convert.plan import LayerState, Observer, Plan, PlannedLayer
from mica.convert.staging import StagedLayer, is_stored
from mica.jobs.committer import waiting_layers
from mica.jobs.queue import JobQueue
from mica.jobs.tables import RowState
from mica.jobs.wishes import Wish, wish_for
from mica.jobs.worker import LayerWorker, Task
from mica.oci.image import ImageSource, LayerSource
from mica.publish.manager import ReleaseManager

SCRATCH_DIRECTORY: Final = "jobs"
"""Its name in a repository's directory (`ReleaseManager.directory`)."""
_LOOK_S: Final = 0.2
_ASK_AGAIN_S: Final = 5.0


class QueueMaker:
    """A LayerMaker for one repository. `jobs`: how many layers at a time this process makes; 0: workers make them."""

    def __init__(self, queue: JobQueue, manager: ReleaseManager, limits: ConversionLimits, *, jobs: int) -> None:
        self._queue = queue
        self._manager = manager
        self._limits = limits
        self._jobs = jobs

    def find_staged(self, digests: Collection[str]) -> Collection[str]:
        rows = self._queue.layers.rows(self._manager.fqrn, digests)
        return {digest for digest, row in rows.items() if row.state is RowState.STAGED}

    def make(self, plan: Plan, observer: Observer, stop: threading.Event) -> Made:
        wanted = [one for one in plan.layers if one.state is not LayerState.PUBLISHED]
        if not wanted:
            return Made({})
        asking = _Asking(self._queue, self._manager, plan.source, wanted, plan.revision)
        asking.ask()
        task = _own_task(self._manager, asking, wanted, observer)
        worker = LayerWorker(
            self._queue, task, self._manager.directory(SCRATCH_DIRECTORY), jobs=self._jobs, limits=self._limits
        )
        with _working(worker, is_idle=not self._jobs) as broken:
            layers = asking.wait(stop, broken)
        return Made(layers, worker.new_objects, worker.stored_bytes)

    def waiting(self) -> Sequence[StagedLayer]:
        return waiting_layers(self._queue.layers, self._manager.fqrn, self._manager.store)

    def settle(self, digests: Collection[str], revision: int) -> None:
        self._queue.layers.settle(self._manager.fqrn, digests, revision)


class _Asking:
    """The layers that a conversion waits for."""

    def __init__(
        self, queue: JobQueue, manager: ReleaseManager, source: str, wanted: Iterable[PlannedLayer], revision: int
    ) -> None:
        self._queue = queue
        self._manager = manager
        self._revision = revision
        self._wishes = {one.layer.digest: wish_for(manager.fqrn, source, one.image, one.layer) for one in wanted}
        self._open = set(self._wishes)
        self._next_s = 0.0

    def ask(self) -> None:
        """Ask for what is still open, or make sure that it is asked for."""
        self._next_s = time.monotonic() + _ASK_AGAIN_S
        wishes = [wish for digest, wish in self._wishes.items() if digest in self._open]
        self._queue.ask(wishes, seen_revision=self._revision)

    def queues(self) -> list[str]:
        """Where the jobs of open layers are, also of those that others asked for first."""
        return self._queue.queues_of(self._manager.fqrn, list(self._open))

    def wait(self, stop: threading.Event, broken: Callable[[], BaseException | None]) -> Mapping[str, StagedLayer]:
        """Until all layers are finished; without those that are published by then. Raises what the first one failed
        with, what `broken` tells, or StoppedError once `stop` is set."""
        found: dict[str, StagedLayer] = {}
        while self._open:
            if stop.is_set():
                raise StoppedError
            if (error := broken()) is not None:
                raise error
            found |= self._look()
            # A layer that was forgotten is asked for again, and so is one that a process asked for and did not live to
            # put into the queue.
            if self._open and time.monotonic() >= self._next_s:
                self.ask()
            elif self._open:
                stop.wait(_LOOK_S)
        return {digest: found[digest] for digest in self._wishes if digest in found}

    def _look(self) -> dict[str, StagedLayer]:
        """Layers that are finished now; they are open no longer."""
        table, fqrn = self._queue.layers, self._manager.fqrn
        rows = table.rows(fqrn, self._open)
        for row in rows.values():
            if row.state is RowState.FAILED:
                assert row.error is not None
                raise row.error
        staged = {digest for digest, row in rows.items() if row.state is RowState.STAGED}
        layers = {layer.digest: layer for layer in table.staged(fqrn, staged) if is_stored(layer, self._manager.store)}
        if lost := staged - layers.keys():
            # Published in this moment, or not to be used: its objects are gone, or another version finished it.
            table.forget(fqrn, lost)
        published = {
            digest for digest, row in rows.items()
            if row.state is RowState.PUBLISHED and (row.revision or 0) > self._revision
        }  # fmt: skip
        self._open -= layers.keys() | published
        return layers


def _own_task(manager: ReleaseManager, asking: _Asking, wanted: Sequence[PlannedLayer], observer: Observer) -> Task:
    """A worker's task: the layers that are waited for, from images that are open already."""
    planned = {one.layer.digest: (number, one) for number, one in enumerate(wanted, 1)}

    @contextlib.contextmanager
    def open_layer(wish: Wish) -> Iterator[tuple[ImageSource, LayerSource]]:
        _, one = planned[wish.digest]
        yield one.image, one.layer

    @contextlib.contextmanager
    def progress(wish: Wish) -> Iterator[Callable[[int], None]]:
        number, one = planned[wish.digest]
        with observer.layer(number, len(planned), one.layer) as told:
            yield told

    return Task(asking.queues, lambda _: contextlib.nullcontext(manager), open_layer, progress)


@contextlib.contextmanager
def _working(worker: LayerWorker, *, is_idle: bool) -> Iterator[Callable[[], BaseException | None]]:
    """A worker beside the block, whose value tells what it ended with. When the block ends it finishes what it has
    under way, unless the block was interrupted: then it gives that back."""
    errors: list[BaseException] = []
    end, finish = threading.Event(), threading.Event()

    def work() -> None:
        try:
            worker.run(end, finish=finish)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="worker")
    if not is_idle:
        thread.start()
    try:
        yield lambda: errors[0] if errors else None
        finish.set()
    except Exception as error:
        (end if isinstance(error, StoppedError) else finish).set()
        raise
    except BaseException:
        end.set()
        raise
    finally:
        if not is_idle:
            thread.join()
