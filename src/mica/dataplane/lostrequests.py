"""Requests that a killed session took and did not answer, where the kernel cannot send them again (before Linux 6.9).

Such a request is never answered, and the program that made it cannot even be killed. Which requests were lost cannot be
known, only that some were: the kernel says how many wait for an answer, and this session knows of none. Then the
connection has to be aborted, and every program that waits or comes later gets an error. A session that is told to end
answers everything first (`answer_all`), so an upgrade always works; a kill is harmless while no request waits.
"""

import errno
import os
import time
from collections.abc import Callable, Collection
from typing import Final, Protocol

from mica.dataplane.messages import Question

_LOOKS: Final = 5
_PATIENCE_S: Final = 10.0
_PAUSE_S: Final = 0.05


class Session(Protocol):
    def taken(self) -> tuple[int, int]:
        """How many requests were taken so far, and on how many of them a thread is working."""
        ...

    def complete(self, unique: int, outcome: OSError, /) -> object:
        """Answer a request whose answer was put off."""
        ...


class LostRequests:
    """Looks for lost requests from time to time. `put_off`: the requests that wait for the service. `unanswered`: how
    many requests wait for an answer, as the kernel says."""

    def __init__(
        self, session: Session, put_off: Callable[[], Collection[Question]], unanswered: Callable[[], int]
    ) -> None:
        self._session = session
        self._put_off = put_off
        self._unanswered = unanswered
        self._taken = -1
        self._looks = 0
        self._is_settled = False

    def are_there(self) -> bool:
        """Whether requests were certainly lost: look after look there are unanswered ones that we do not know."""
        if self._is_settled:
            return False
        before, busy = self._session.taken()
        if busy or self._put_off() or before != self._taken:
            self._taken, self._looks = before, 0
            return False
        if not self._unanswered():
            self._is_settled = True
            return False
        self._looks += 1
        return self._looks >= _LOOKS


def answer_all(
    session: Session, put_off: Callable[[], Collection[Question]], *, patience_s: float = _PATIENCE_S
) -> None:
    """Answer everything, since a successor could not be given it: wait a while for the service, then answer errors."""
    until = time.monotonic() + patience_s
    while put_off() or session.taken()[1]:
        if time.monotonic() > until:
            for question in put_off():
                session.complete(question.ticket, OSError(errno.EIO, os.strerror(errno.EIO)))
            return
        time.sleep(_PAUSE_S)
