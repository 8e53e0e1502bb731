"""Whether a server honours conditions: found out by races, because some accept the headers and ignore them.

Several threads put the same key at the same moment, first "only if it is not there", then "only if it still has this
ETag". A server is trusted if in every race exactly one of them is told that it won, and the object is its. One race
that ends otherwise is enough for leases (s3lease.py) ever after. A server that breaks the rule only rarely cannot be
told from one that keeps it; races of real connections at least find those that compare first and write later.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from mica.errors import MicaError
from mica.store.s3client import S3Client, UnansweredError, UnmetConditionError

_ROUNDS: Final = 4
_THREADS: Final = 6
_HEADERS: Final = {"Content-Type": "application/octet-stream", "Cache-Control": "no-store"}
_DOING: Final = "try whether conditions are honoured"


def honours_conditions(client: S3Client) -> bool:
    """Raises MicaError if the bucket cannot be written."""
    key = f".cvmfsprobe-{os.urandom(12).hex()}"
    client.put(key, b"", _HEADERS, doing=_DOING)
    try:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="s3-probe") as pool:
            return all(_is_won_by_one(client, key, pool, absent=number % 2 == 0) for number in range(_ROUNDS))
    finally:
        client.delete([key], doing=_DOING)


def _is_won_by_one(client: S3Client, key: str, pool: ThreadPoolExecutor, *, absent: bool) -> bool:
    etag = None
    if absent:
        client.delete([key], doing=_DOING)
    else:
        head = client.head(key, doing=_DOING)
        if head is None or not head.etag:
            return False
        etag = head.etag
    together = threading.Barrier(_THREADS)

    def put(content: bytes) -> bool | None:
        """Whether it won; None if nobody knows."""
        together.wait()
        try:
            client.put_if(key, content, _HEADERS, etag=etag, doing=_DOING)
        except UnmetConditionError:
            return False
        except (UnansweredError, MicaError):
            return None
        return True

    contents = [os.urandom(16) for _ in range(_THREADS)]
    results = list(pool.map(put, contents))
    found = client.read(key, limit=100, doing=_DOING)
    winners = [content for content, won in zip(contents, results, strict=True) if won]
    return None not in results and len(winners) == 1 and found is not None and found[0] == winners[0]
