"""In a bucket objects are refreshed or deleted for their age, but never both at the same moment.

    <prefix>/.cvmfsturn/refresh-<random name>     somebody gives old objects a new time
    <prefix>/.cvmfsturn/delete-<random name>      somebody looks at the times of objects, and deletes the old ones

A server of S3 cannot look at an object's time and delete it in one step. So whoever begins puts a claim, then lists
those of the other kind. Whoever wants to refresh keeps its claim, and waits until there are none: that is a second or
two. Whoever wants to delete and sees a claim to refresh takes its own back, waits, and begins anew: publishers come
first. Of two who begin at the same time the one that lists last sees the other.

What this rests on is what leases rest on (s3lease.py): listings that show all that was put before, and claims that live
for LIFE_S by the server's clock. A request to delete begins within a sixth of that, is repeated for three minutes at
most, and arrives two minutes later or never. Any thread; the threads of a process share one claim to refresh.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from mica.errors import TemporaryError
from mica.store.s3client import S3Client

DIRECTORY: Final = ".cvmfsturn"
LIFE_S: Final = 600.0
PATIENCE_S: Final = 2 * LIFE_S
_HOLD_S: Final = 5.0
"""How old a claim to refresh becomes before its threads take a new one, so that deleting has its turn."""
_LOOK_S: Final = 0.2
_HEADERS: Final = {"Content-Type": "text/plain", "Cache-Control": "no-store"}
_REFRESH: Final = "refresh"
_DELETE: Final = "delete"


class Turns:
    """Of one process in one bucket."""

    def __init__(self, client: S3Client, *, life_s: float = LIFE_S) -> None:
        self._client = client
        self._life_s = life_s
        self._lock = threading.Condition()
        self._claim = ""
        self._claimed_at = 0.0
        self._is_claiming = False
        self._users = 0

    @contextlib.contextmanager
    def refreshing(self) -> Iterator[None]:
        """For the block nothing is deleted for its age. Raises TemporaryError if that takes too long to begin."""
        self._join()
        try:
            yield
        finally:
            self._leave()

    @contextlib.contextmanager
    def deleting(self) -> Iterator[Callable[[], None]]:
        """For the block nothing is refreshed. The value is called right before deleting: it raises TemporaryError if
        too much time has passed. After an error the claim stays until it expires, because nobody knows what arrives."""
        began, claim = self._claim_to_delete()

        def check() -> None:
            if time.monotonic() > began + self._life_s / 6:
                raise TemporaryError(f"Deleting objects in {self._client.where} takes too long.", hint="Try again.")

        yield check
        self._remove(claim)

    def _join(self) -> None:
        with self._lock:
            while True:
                is_fresh = self._claim and time.monotonic() < self._claimed_at + _HOLD_S
                if is_fresh:
                    self._users += 1
                    return
                if not self._is_claiming and not self._users:
                    self._is_claiming = True
                    break
                self._lock.wait()
        former, claim, claimed_at = self._claim, "", 0.0
        try:
            if former:
                self._remove(former)
            claim = self._claim_to_refresh()
            claimed_at = time.monotonic()
        finally:
            with self._lock:
                self._claim = claim
                self._claimed_at = claimed_at
                self._is_claiming = False
                self._users += bool(claim)
                self._lock.notify_all()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            claim = "" if self._users else self._claim
            if claim:
                self._claim = ""
            self._lock.notify_all()
        if claim:
            self._remove(claim)

    def _claim_to_refresh(self) -> str:
        claim = self._put(_REFRESH)
        deadline = time.monotonic() + PATIENCE_S
        try:
            while self._living(_DELETE):
                self._wait(_DELETE, deadline)
        except BaseException:
            self._remove(claim)
            raise
        return claim

    def _claim_to_delete(self) -> tuple[float, str]:
        """When it was put, and its name."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            began = time.monotonic()
            claim = self._put(_DELETE)
            if not self._living(_REFRESH):
                return began, claim
            self._remove(claim)
            self._wait(_REFRESH, deadline)

    def _wait(self, kind: str, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise TemporaryError(
                f"Others {kind} objects in {self._client.where} for {PATIENCE_S:.0f} seconds.",
                hint=f"Their claims are the objects below {DIRECTORY}/.",
            )
        time.sleep(_LOOK_S)

    def _living(self, kind: str) -> bool:
        """Whether there is a claim of this kind that has not expired."""
        claims = list(self._client.list(f"{DIRECTORY}/", doing="look who else changes objects"))
        if not any(one.path.startswith(f"{DIRECTORY}/{kind}-") for one in claims):
            return False
        # Ages are differences between times of one server: this claim is put now.
        now_claim = self._put("now")
        listed = list(self._client.list(f"{DIRECTORY}/", doing="look who else changes objects"))
        self._remove(now_claim)
        now = max((one.changed_at for one in listed if one.path == now_claim), default=0.0)
        return any(
            one.path.startswith(f"{DIRECTORY}/{kind}-") and one.changed_at > now - self._life_s for one in listed
        )

    def _put(self, kind: str) -> str:
        key = f"{DIRECTORY}/{kind}-{os.urandom(16).hex()}"
        self._client.put(key, b"", _HEADERS, doing=f"claim a turn to {kind} objects")
        return key

    def _remove(self, claim: str) -> None:
        self._client.delete([claim], doing="give a turn back")
