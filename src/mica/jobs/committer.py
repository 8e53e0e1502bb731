"""The committer: attaches all finished layers that wait, several in one revision. It makes none.

Whoever holds the repository's lock is the committer: a worker with `--commit`, or a conversion that publishes its
image.
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mica.convert.attaching import attach_layer
from mica.convert.staging import StagedLayer, is_stored
from mica.errors import MicaError, TemporaryError, in_one_line
from mica.jobs.layertable import LayerTable
from mica.jobs.queue import JobQueue
from mica.logs import logger
from mica.publish.manager import ReleaseManager
from mica.publish.settings import published_here, read_settings
from mica.store.base import ObjectStore

_LOOK_S: Final = 0.2
_LOCK_S: Final = 10.0
"""How long a committer waits for the lock of a repository before it looks at the others."""
_TROUBLE_S: Final = 30.0
"""How long what does not work is left alone."""
_LOG = logger(__name__)


class Committer:
    """Commits into the repositories whose keys are here. `only` some repositories, or all."""

    def __init__(self, queue: JobQueue, state: Path, only: Sequence[str] = ()) -> None:
        self._table = queue.layers
        self._state = state
        self._only = only
        self._rests: dict[str, float] = {}

    def run(self, end: threading.Event) -> None:
        """Until `end` is set. A failure is logged and tried again: the layers stay staged."""
        while not end.wait(_LOOK_S):
            try:
                waiting = self._table.repositories_with_staged()
            except TemporaryError as error:
                _LOG.warning("%s", in_one_line(error))
                end.wait(_TROUBLE_S)
                continue
            for fqrn in waiting:
                self._commit(fqrn)

    def _commit(self, fqrn: str) -> None:
        if fqrn not in (self._only or published_here(self._state)) or time.monotonic() < self._rests.get(fqrn, 0):
            return
        try:
            settings = read_settings(self._state, fqrn)
            if settings.key_path("key").exists():
                with ReleaseManager(self._state, settings) as manager:
                    commit_waiting(manager, self._table, wait_s=_LOCK_S)
        except MicaError as error:
            _LOG.warning("%s Finished layers of %s wait.", in_one_line(error), fqrn)
            self._rests[fqrn] = time.monotonic() + (_LOOK_S if isinstance(error, TemporaryError) else _TROUBLE_S)


def waiting_layers(table: LayerTable, repository: str, store: ObjectStore) -> list[StagedLayer]:
    """The finished layers of a repository that are in no revision. One whose objects are gone is forgotten."""
    layers = table.staged(repository)
    gone = [layer.digest for layer in layers if not is_stored(layer, store)]
    if gone:
        table.forget(repository, gone)
    return [layer for layer in layers if layer.digest not in gone]


def commit_waiting(manager: ReleaseManager, table: LayerTable, *, wait_s: float) -> list[str]:
    """Publish the waiting layers as one revision; the digests of those that are new in it. Raises TemporaryError if
    somebody else publishes for longer than `wait_s`, or from another machine at the same time: then they wait on."""
    if not table.staged(manager.fqrn):
        return []
    with manager.transaction(wait_s=wait_s) as transaction:
        layers = waiting_layers(table, manager.fqrn, manager.store)
        attached = [layer.digest for layer in layers if attach_layer(layer, transaction)]
        if not attached:
            transaction.give_up()
    assert transaction.published is not None
    table.settle(manager.fqrn, [layer.digest for layer in layers], transaction.published.revision)
    return attached
