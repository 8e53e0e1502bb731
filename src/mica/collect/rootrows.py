"""The end of every collection: rows of the reflog whose objects are gone, and the time in the status file.

Used for a repository that is published here and for replicas. One thread.
"""

import datetime

from mica.digest import Digest
from mica.errors import IntegrityError
from mica.repo.history import SUFFIX_OF_KIND, Reflog
from mica.repo.statusfile import NAME as STATUS
from mica.repo.statusfile import SIZE_LIMIT as STATUS_LIMIT
from mica.repo.statusfile import updated_status
from mica.store.base import ObjectStore, read_pointer


def gone_rows(store: ObjectStore, reflog: Reflog) -> dict[Digest, tuple[int, int]]:
    """Rows of objects that the store does not have; those of unknown kinds stay."""
    return {
        digest: row
        for digest, row in reflog.refs.items()
        if row[0] in SUFFIX_OF_KIND and not store.has(digest.object_path(SUFFIX_OF_KIND[row[0]]))
    }


def tell_status(store: ObjectStore) -> None:
    """Put the present time into the stock tools' file, for monitoring; one that is damaged begins again. Raises
    LostRaceError if another process replaces it meanwhile."""
    former = read_pointer(store, STATUS, STATUS_LIMIT)
    now = datetime.datetime.now(datetime.UTC)
    try:
        data = updated_status(former, STATUS, last_gc=now)
    except IntegrityError:
        data = updated_status(None, STATUS, last_gc=now)
    store.replace(STATUS, data, expected=former)
