"""What a worker process does: every layer of the repositories that are known on this machine."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mica.jobs.wishes import Wish, readable_here
from mica.jobs.worker import Task, layer_opener
from mica.oci.source import SourceOptions
from mica.publish.manager import ReleaseManager
from mica.publish.settings import published_here


def worker_task(state: Path, only: Sequence[str], source: SourceOptions) -> Task:
    """`only` some repositories, or all; one that is made meanwhile is found. Each comes first in its turn."""
    turns = itertools.count()

    def queues() -> list[str]:
        names = list(only) or published_here(state)
        first = next(turns) % len(names) if names else 0
        return [pattern for name in names[first:] + names[:first] for pattern in readable_here(name)]

    return Task(queues, lambda fqrn: ReleaseManager.open(state, fqrn), layer_opener(source), _no_progress)


@contextlib.contextmanager
def _no_progress(_: Wish) -> Iterator[Callable[[int], None]]:
    yield lambda _done: None
