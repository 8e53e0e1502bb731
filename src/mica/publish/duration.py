"""How long a publication may take: what it stored at its beginning must still be young when its manifest is replaced.

Garbage collection leaves objects alone that were put within its grace period, and knows nothing else of publications
(docs/design/garbage-collection.md). Time is that of the store's clock, which stamps the objects: so a clock that was
put forward or back meanwhile counts too. One thread.
"""

from typing import Final

from mica.errors import TemporaryError
from mica.store.base import ObjectStore

LONGEST_PUBLICATION_S: Final = 2 * 86400.0
LONGEST_MAKING_S: Final = 86400.0
"""Of a layer: it may be staged for half a day before another publication takes it (convert/staging.py)."""
_BACK_S: Final = 60.0
"""A clock that is kept right goes back by less."""


class PublicationTimer:
    """Begins when it is made, before the first object is stored."""

    def __init__(self, store: ObjectStore, limit_s: float = LONGEST_PUBLICATION_S) -> None:
        self._store = store
        self._limit_s = limit_s
        self._began = store.clock()

    def check(self) -> None:
        """Raises TemporaryError if the publication took too long, or its objects have times that say nothing."""
        took_s = self._store.clock() - self._began
        if took_s > self._limit_s:
            raise TemporaryError(
                f"The publication took {took_s / 86400:.1f} days by the clock of {self._store.where}: its first objects"
                " may be gone when it ends.",
                hint="Nothing was published. Try again: what is stored is used again, and takes no time.",
            )
        if took_s < -_BACK_S:
            raise TemporaryError(
                f"The clock of {self._store.where} went back by {-took_s:.0f} s during the publication.",
                hint="Nothing was published. Try again when the clock is right.",
            )
