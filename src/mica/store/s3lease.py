"""Mutual exclusion on a bucket whose server does not honour conditions, by objects that claim it.

    <prefix>/.cvmfslease/<random name>      the claim of one writer; its content says who

Whoever wants the lease puts a claim of its own, then lists all. It has the lease if there is no other living claim;
otherwise it removes its own, waits for a random time and begins anew. Of two who put their claims at the same time the
one that lists last sees both: perhaps both give up, never do both go on.

What this rests on:
- a listing shows all objects that were put before it began (S3, Ceph, MinIO and SeaweedFS promise that);
- a claim lives for LIFE_S by the server's clock: ages are differences between the times in one listing, in which the
  own claim was just put. No clock of a release manager counts, only that its seconds are as long as the server's;
- the holder begins its last request within LIFE_S / 3 after it put its claim, by its own monotonic clock, and no
  request reaches the server more than LIFE_S / 3 after it was given up. A holder that does not know whether a request
  was carried out lets its claim expire instead of removing it.

The lease is held for one comparison and one PUT. Any thread.
"""

import contextlib
import json
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Final

from mica.errors import TemporaryError
from mica.store.s3client import S3Client, UnansweredError

DIRECTORY: Final = ".cvmfslease"
LIFE_S: Final = 300.0
PATIENCE_S: Final = 2 * LIFE_S
_PAUSE_S: Final = (0.05, 0.5)
_HEADERS: Final = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class Lease:
    """`check` of it raises TemporaryError if the time for beginning another request is over."""

    def __init__(self, until: float, where: str) -> None:
        self._until = until
        self._where = where

    def check(self) -> None:
        if time.monotonic() > self._until:
            raise TemporaryError(f"Replacing a file in {self._where} takes too long.", hint="Try again.")


@contextlib.contextmanager
def held_lease(client: S3Client, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[Lease]:
    """Raises TemporaryError if another writer has it for PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        key = f"{DIRECTORY}/{os.urandom(16).hex()}"
        began = time.monotonic()
        client.put(key, _claim(), _HEADERS, doing="claim the right to replace files")
        try:
            is_held = _is_alone(client, key)
        except BaseException:
            _remove(client, key)
            raise
        if is_held:
            break
        _remove(client, key)
        if time.monotonic() > deadline:
            raise TemporaryError(
                f"Another release manager has claimed {client.where} for {PATIENCE_S:.0f} seconds.",
                hint=f"Claims are the objects below {DIRECTORY}/.",
            )
        sleep(random.uniform(*_PAUSE_S))  # noqa: S311 - no secret
    try:
        yield Lease(began + LIFE_S / 3, client.where)
    except UnansweredError:
        raise
    except BaseException:
        _remove(client, key)
        raise
    else:
        _remove(client, key)


def _is_alone(client: S3Client, key: str) -> bool:
    claims = {claim.path: claim.changed_at for claim in client.list(f"{DIRECTORY}/", doing="list claims")}
    own = claims.pop(key, None)
    if own is None:  # somebody took it for dead, so it took very long to put it
        return False
    dead = [path for path, changed_at in claims.items() if own - changed_at > LIFE_S]
    if dead:
        client.delete(dead, doing="remove claims that have expired")
    return len(dead) == len(claims)


def _remove(client: S3Client, key: str) -> None:
    client.delete([key], doing="give back a claim")


def _claim() -> bytes:
    return json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode() + b"\n"
