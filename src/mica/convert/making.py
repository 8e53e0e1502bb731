"""Makes the layers of a plan that are not published, or has them made.

`LayerMaker` is what a conversion asks. `ProcessMaker` makes them in this process: each once, also where several
processes of this machine want it. The other one (`jobs/`) hands them out to workers. The caller's thread and one for
each layer under way.
"""

import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import NamedTuple, Protocol

from mica.convert.layerbuilder import DEFAULT_LIMITS, ConversionLimits, LayerBuilder
from mica.convert.plan import LayerState, Observer, Plan, PlannedLayer
from mica.convert.staging import STAGING_DIRECTORY, StagedLayer, Staging
from mica.publish.manager import ReleaseManager
from mica.thin.layout import layer_path

DEFAULT_JOBS = 2
_GRACE_S = 1.0
"""How long an interrupted conversion waits for its layers to end in good order."""


class Made(NamedTuple):
    """Staged layers by digest, in the plan's order. `new_objects` and `stored_bytes` count what was stored here."""

    layers: Mapping[str, StagedLayer]
    new_objects: int = 0
    stored_bytes: int = 0


class LayerMaker(Protocol):
    """The layers of one repository."""

    def find_staged(self, digests: Collection[str]) -> Collection[str]:
        """Which of these layers are finished and in no revision yet."""

    def make(self, plan: Plan, observer: Observer, stop: threading.Event) -> Made:
        """All layers of a plan that are not published; without those that turn out to be published by now.

        Raises the error of the first layer that failed; layers that were finished or under way by then stay staged.
        `stop`: once set, it ends the work by StoppedError.
        """

    def waiting(self) -> Sequence[StagedLayer]:
        """Layers that are finished and that nobody else is sure to attach: whoever holds the repository's lock does."""

    def settle(self, digests: Collection[str], revision: int) -> None:
        """These layers are in a revision now."""


class ProcessMaker:
    """Makes layers in this process."""

    def __init__(
        self, manager: ReleaseManager, limits: ConversionLimits = DEFAULT_LIMITS, *, jobs: int = DEFAULT_JOBS
    ) -> None:
        self._manager = manager
        self._limits = limits
        self._jobs = jobs
        self._staging = Staging(manager.directory(STAGING_DIRECTORY), manager.store)

    def find_staged(self, digests: Collection[str]) -> Collection[str]:
        return {digest for digest in digests if self._staging.has(digest)}

    def make(self, plan: Plan, observer: Observer, stop: threading.Event) -> Made:
        builder = LayerBuilder(
            self._manager.store, self._manager.settings.objects, self._limits, jobs=self._jobs, stop=stop
        )
        return _Making(self._manager, self._staging, builder, observer, plan.layers).run(self._jobs)

    def waiting(self) -> Sequence[StagedLayer]:
        return ()

    def settle(self, digests: Collection[str], revision: int) -> None:  # noqa: ARG002
        for digest in digests:
            self._staging.forget(digest)


class _Making:
    """The layers of a plan that are not published, made in parallel."""

    def __init__(
        self,
        manager: ReleaseManager,
        staging: Staging,
        builder: LayerBuilder,
        observer: Observer,
        planned: Sequence[PlannedLayer],
    ) -> None:
        self._manager = manager
        self._staging = staging
        self._builder = builder
        self._observer = observer
        self._planned = planned

    def run(self, jobs: int) -> Made:
        pool = ThreadPoolExecutor(jobs, thread_name_prefix="layer")
        futures: dict[str, Future[StagedLayer | None]] = {}
        try:
            for number, planned in enumerate(self._planned, 1):
                if planned.state is not LayerState.PUBLISHED:
                    futures[planned.layer.digest] = pool.submit(self._make, number, planned)
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        except BaseException:
            # Ctrl-C. A thread that still waits for a registry ends with the process.
            self._builder.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            wait([future for future in futures.values() if not future.cancelled()], timeout=_GRACE_S)
            raise
        # After a failure layers under way are finished and stay staged; waiting ones are not begun.
        pool.shutdown(wait=True, cancel_futures=True)
        failed = (future for future in futures.values() if not future.cancelled() and future.exception() is not None)
        for future in failed:
            future.result()
        layers = {digest: layer for digest, future in futures.items() if (layer := future.result()) is not None}
        return Made(layers, self._builder.new_objects, self._builder.stored_bytes)

    def _make(self, number: int, planned: PlannedLayer) -> StagedLayer | None:
        digest = planned.layer.digest
        with self._staging.making(digest) as work:
            if staged := self._staging.find(digest, work):
                return staged
            # Another conversion may have published it while this one waited.
            with self._manager.snapshot() as catalogs:
                if catalogs.find(layer_path(digest)) is not None:
                    return None
            with self._observer.layer(number, len(self._planned), planned.layer) as progress:
                layer = self._builder.build(planned.image, planned.layer, work, progress)
            self._staging.keep(layer)
            return layer
