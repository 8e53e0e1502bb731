"""The queue that hands out layers, as options and the configuration say."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mica.errors import UsageError, UserError

if TYPE_CHECKING:
    from mica.convert.layerbuilder import ConversionLimits
    from mica.convert.making import LayerMaker
    from mica.jobs.queue import JobQueue
    from mica.publish.manager import ReleaseManager

_HINT = 'Add to the configuration: [workers] with queue = "sqlite:////var/lib/mica/queue.db"'


@contextlib.contextmanager
def opened_queue(config: Path | None) -> "Iterator[JobQueue | None]":
    """The queue of the configuration; None if there is none. Raises the errors of opening it."""
    from mica.config import load_config

    settings = load_config(config).workers
    if settings is None:
        yield None
        return
    # Late: without a queue no command loads a database's library.
    try:
        from mica.jobs.queue import JobQueue
    except ModuleNotFoundError as error:
        raise UserError(
            f"The configuration names a queue, and the Python package {error.name} for it is not installed.",
            hint="pip install 'mica[workers]'",
        ) from error
    with JobQueue(settings.queue, lease_s=settings.lease_s) as queue:
        yield queue


@contextlib.contextmanager
def required_queue(config: Path | None) -> "Iterator[JobQueue]":
    """Raises UserError if the configuration has none."""
    with opened_queue(config) as queue:
        if queue is None:
            raise UserError("The configuration names no queue.", hint=_HINT)
        yield queue


def maker_of(
    queue: "JobQueue | None", limits: "ConversionLimits", *, jobs: int
) -> "Callable[[ReleaseManager], LayerMaker] | None":
    """Who makes layers: None without a queue. Raises UsageError if nobody would."""
    if queue is None:
        if not jobs:
            raise UsageError("--jobs 0 leaves all layers to workers, and the configuration names no queue.", hint=_HINT)
        return None
    from mica.jobs.making import QueueMaker

    return lambda manager: QueueMaker(queue, manager, limits, jobs=jobs)
