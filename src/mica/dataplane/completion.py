"""Completion: bringing the rest of an image into the cache while it is in use, slowly and with the lowest priority.

Off unless the configuration switches it on. Content comes in the order of the metadata images, top layer first, never
faster than a rate, and not while programs wait for content themselves. A thread of the service for each image held.
"""

import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from mica.cache.cache import Cache
from mica.cache.partfiles import local_name_bytes
from mica.dataplane.messages import Kind, Question, Result
from mica.logs import logger
from mica.metaimage.reader import read_image
from mica.repo.localname import LocalName

_log = logger(__name__)
_STEP_BYTES = 1 << 20
_QUIET_S = 0.5
"""Completion goes on when no program has waited for content for this long."""


_PATIENCE_S = 2.0
"""How long a download under way is waited for at the end."""


class Completion:
    """`supply` brings content into the cache; `last_asked` returns when a program last asked it for content
    (time.monotonic).

    A block, which ends all that it began; the cache has to outlive it.
    """

    def __init__(
        self, cache: Cache, supply: Callable[[Question], Result], last_asked: Callable[[], float], bytes_per_s: int
    ) -> None:
        self._cache = cache
        self._supply = supply
        self._last_asked = last_asked
        self._bytes_per_s = bytes_per_s
        self._running: dict[threading.Thread, threading.Event] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        running = list(self._running.items())
        for _thread, ended in running:
            ended.set()
        for thread, _ended in running:
            thread.join(max(0.0, deadline - time.monotonic()))

    def start(self, images: Sequence[Path], repository: int) -> threading.Event:
        """Begin to complete these images, top first; set the event to end it."""
        ended = threading.Event()

        def run() -> None:
            try:
                self.run(images, repository, ended)
            finally:
                del self._running[thread]

        thread = threading.Thread(target=run, name="completion", daemon=True)
        self._running[thread] = ended
        thread.start()
        return ended

    def run(self, images: Sequence[Path], repository: int, ended: threading.Event) -> None:
        """Runs until everything is here, the cache is full, something fails, or the event is set."""
        for name in _contents(images):
            for offset, size in _steps(self._cache, name):
                while (quiet_s := self._last_asked() + _QUIET_S - time.monotonic()) > 0:
                    if ended.wait(quiet_s):
                        return
                if not self._cache.quota.fits(size):
                    _log.info("completion ends: the cache is full")
                    return
                began = time.monotonic()
                kind = Kind.RANGE if name.in_chunks else Kind.OBJECT
                result = self._supply(Question(kind, 0, repository, name, offset, size))
                if result.errno:
                    _log.warning("completion ends: %s", errno.errorcode.get(result.errno, result.errno))
                    return
                if ended.wait(max(0.0, size / self._bytes_per_s - (time.monotonic() - began))):
                    return


def _contents(images: Sequence[Path]) -> Iterator[LocalName]:
    for image in images:
        with image.open("rb") as file:
            for _, inode in read_image(file, str(image)):
                if inode.content is not None:
                    yield inode.content


def _steps(cache: Cache, name: LocalName) -> Iterator[tuple[int, int]]:
    """Ranges to ask for, none if the content is here."""
    if local_name_bytes(cache, name) == name.size:
        return
    if not name.in_chunks:
        yield 0, name.size
        return
    for offset in range(0, name.size, _STEP_BYTES):
        yield offset, min(_STEP_BYTES, name.size - offset)
