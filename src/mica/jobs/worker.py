"""A worker: takes layers from the queue, makes them, and stages them in the table. It publishes nothing.

A thread for each layer under way, the heartbeat's, and the caller's, which takes jobs. A worker that loses the
database, or that others took for dead, drops what it has under way and registers itself again.
"""

import contextlib
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple

from mica.convert.layerbuilder import DEFAULT_LIMITS, ConversionLimits, LayerBuilder, StoppedError
from mica.errors import MicaError, NotFoundError, TemporaryError, UserError, in_one_line
from mica.files import locked_in_turn, mapped_os_errors
from mica.jobs.layertable import Begun
from mica.jobs.queue import JobQueue, Registration
from mica.jobs.wishes import Wish
from mica.logs import logger
from mica.oci.image import ImageSource, LayerSource
from mica.oci.source import SourceOptions, open_choice
from mica.publish.manager import ReleaseManager

POLL_S: Final = 0.2
TRIES_MAX: Final = 10
"""A layer that was begun so often ends every worker that begins it."""
_TEMPORARY_TRIES_MAX: Final = 5
_END_S: Final = 2.0
"""How long a worker that ends waits for threads that drop their layers."""
_PURGE_S: Final = 3600.0
_KEPT_S: Final = 30 * 86400.0
"""How long the table tells of layers that were published."""
_LOG = logger(__name__)

OpenLayer = Callable[[Wish], AbstractContextManager[tuple[ImageSource, LayerSource]]]
Progress = Callable[[Wish], AbstractContextManager[Callable[[int], None]]]


class Task(NamedTuple):
    """What a worker does. `queues` tells what it may take now; `open_repository` raises NotFoundError for a repository
    that it does not know."""

    queues: Callable[[], Sequence[str]]
    open_repository: Callable[[str], AbstractContextManager[ReleaseManager]]
    open_layer: OpenLayer
    progress: Progress


class LayerWorker:
    """`scratch` is a directory for the scratch files of workers of this machine."""

    def __init__(
        self, queue: JobQueue, task: Task, scratch: Path, *, jobs: int, limits: ConversionLimits = DEFAULT_LIMITS
    ) -> None:
        self.name = f"{socket.gethostname()[:64]}:{os.getpid()}:{secrets.token_hex(3)}"
        self.new_objects = 0
        self.stored_bytes = 0
        self._queue = queue
        self._task = task
        self._scratch = scratch
        self._jobs = jobs
        self._limits = limits

    def run(self, end: threading.Event, *, finish: threading.Event | None = None) -> None:
        """Until `end` is set: then what is under way is given back at once. With `finish` set nothing more is taken,
        and what is under way is finished. Raises TemporaryError if the queue cannot be reached at the start."""
        finish = finish or threading.Event()
        with _scratch_directory(self._scratch) as scratch:
            is_first = True
            while not end.is_set():
                try:
                    with self._queue.registered(self.name) as registration:
                        is_first = False
                        if _Shift(self._queue, self._task, self, registration, scratch).work(end, finish):
                            return
                except TemporaryError as error:
                    if is_first:
                        raise
                    _LOG.warning("%s The worker tries again.", in_one_line(error))
                    end.wait(min(self._queue.lease_s / 4, 5.0))

    def count(self, builder: LayerBuilder) -> None:
        self.new_objects += builder.new_objects
        self.stored_bytes += builder.stored_bytes

    @property
    def jobs(self) -> int:
        return self._jobs

    @property
    def limits(self) -> ConversionLimits:
        return self._limits


class _Shift:
    """What a worker does under one registration."""

    def __init__(
        self, queue: JobQueue, task: Task, worker: LayerWorker, registration: Registration, scratch: Path
    ) -> None:
        self._queue = queue
        self._task = task
        self._worker = worker
        self._registration = registration
        self._scratch = scratch
        self._drop = threading.Event()
        self._making: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._running: set[Future[None]] = set()
        self._next_round_s = 0.0
        self._next_purge_s = 0.0

    def work(self, end: threading.Event, finish: threading.Event) -> bool:
        """Whether the worker is at its end; otherwise it has lost its registration."""
        pool = ThreadPoolExecutor(self._worker.jobs, thread_name_prefix="layer")
        try:
            while not end.is_set() and not self._registration.is_lost.is_set():
                if not finish.is_set():
                    self._keep_house()
                    self._take(pool)
                elif not self._running:
                    return True
                self._collect(end)
            return end.is_set()
        finally:
            self._give_up(pool)

    def _take(self, pool: ThreadPoolExecutor) -> None:
        if free := self._worker.jobs - len(self._running):
            for job_id in self._queue.take(self._task.queues(), free, self._registration):
                self._running.add(pool.submit(self._run, job_id))

    def _collect(self, end: threading.Event) -> None:
        """Wait a little, and take what is done off the list. Raises what a job raised: its claim may hang."""
        if self._running:
            done, self._running = wait(self._running, timeout=POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
        else:
            end.wait(POLL_S)

    def _keep_house(self) -> None:
        if time.monotonic() >= self._next_round_s:
            self._next_round_s = time.monotonic() + min(self._queue.lease_s / 4, 2.0)
            self._queue.keep_house()
        if time.monotonic() >= self._next_purge_s:
            self._next_purge_s = time.monotonic() + _PURGE_S
            self._queue.layers.forget_published(before_s=time.time() - _KEPT_S)

    def _give_up(self, pool: ThreadPoolExecutor) -> None:
        """Give back what is under way. Its threads notice when they read the next piece of their layer."""
        if self._running:
            with contextlib.suppress(TemporaryError):
                with self._lock:
                    making = list(self._making)
                for repository, digest in making:
                    self._queue.layers.put_back(repository, digest, worker=self._worker.name)
                self._queue.give_back(self._registration)
        self._drop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        # A thread that waits for a registry ends with the process.
        wait([future for future in self._running if not future.cancelled()], timeout=_END_S)

    def _run(self, job_id: int) -> None:
        self._queue.run(job_id, self._registration, self._perform)

    def _perform(self, repository: str, digest: str, job_id: int) -> None:
        table, name = self._queue.layers, self._worker.name
        begun = table.begin(repository, digest, job_id=job_id, worker=name)
        if begun is None:
            return
        with self._lock:
            self._making.add((repository, digest))
        try:
            self._make(begun)
        except TemporaryError as error:
            if begun.tries < _TEMPORARY_TRIES_MAX:
                table.put_back(repository, digest, worker=name, error=error)
                raise
            table.fail(repository, digest, worker=name, error=error)
        except MicaError as error:
            table.fail(repository, digest, worker=name, error=error)
        except StoppedError:
            raise
        except Exception as error:
            _LOG.exception("Layer %s of %s cannot be made.", digest, repository)
            message = f"Layer {digest} cannot be made, because of an error in mica: {type(error).__name__}: {error}."
            table.fail(repository, digest, worker=name, error=UserError(message))
            raise
        finally:
            with self._lock:
                self._making.discard((repository, digest))

    def _make(self, begun: Begun) -> None:
        wish = begun.wish
        if begun.tries > TRIES_MAX:
            raise UserError(
                f"Layer {wish.digest} was begun {TRIES_MAX} times, and no worker lived to finish it.",
                hint="Does making it take more memory than the workers have?",
            )
        with (
            self._task.open_repository(wish.repository) as manager,
            self._task.open_layer(wish) as (image, layer),
            self._task.progress(wish) as progress,
            tempfile.TemporaryDirectory(dir=self._scratch) as work,
        ):
            builder = LayerBuilder(
                manager.store, manager.settings.objects, self._worker.limits, jobs=self._worker.jobs, stop=self._drop
            )
            staged = builder.build(image, layer, Path(work), progress)
            manager.store.sync()
            self._worker.count(builder)
        self._queue.layers.finish(wish.repository, staged)
        _LOG.info("Layer %s of %s is finished.", wish.digest, wish.repository)


def layer_opener(options: SourceOptions) -> OpenLayer:
    """Opens layers from where their wishes say."""

    @contextlib.contextmanager
    def opened(wish: Wish) -> Iterator[tuple[ImageSource, LayerSource]]:
        with open_choice(wish.source, options=options) as choice:
            found = wish.find_in(one.image for one in choice.every())
            if found is None:
                raise NotFoundError(f"{wish.source} has no layer {wish.digest} any more.")
            yield found

    return opened


@contextlib.contextmanager
def _scratch_directory(place: Path) -> Iterator[Path]:
    """A directory of this worker; those of dead workers are removed."""
    with contextlib.ExitStack() as stack, mapped_os_errors(f"make a scratch directory in {place}"):
        place.mkdir(parents=True, exist_ok=True)
        with locked_in_turn(place):
            own = Path(tempfile.mkdtemp(dir=place))
            stack.enter_context(locked_in_turn(own))
            for other in place.iterdir():
                with locked_in_turn(other, wait=False) as is_dead:
                    if is_dead:
                        shutil.rmtree(other, ignore_errors=True)
        held = stack.pop_all()
    with held:
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)
