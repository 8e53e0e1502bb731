"""SIGTERM and SIGINT as a descriptor that can be waited for, and the end of an interrupted program.

A signal's handler runs between any two instructions of the main thread: in an import, in a library, while a lock is
held. A handler that raises there leaves work half done, and a handler that takes a lock, as `Event.set` does, may wait
for itself. So here the handler does nothing, and the number of the signal goes into a pipe. Use it in the main thread.
"""

import os
import select
import signal
import sys
import threading
from types import FrameType
from typing import Final, Never, Self

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


class EndSignals:
    """Use as a context manager. After the block both signals are ignored, because the program is ending. With
    `second_ends` the second signal ends the program at once; that is for work that may take long and may be killed."""

    def __init__(self, *, second_ends: bool = False) -> None:
        self._handler = _give_back if second_ends else _pass

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in _ENDING:
            signal.signal(number, self._handler)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        """Readable from the first signal on."""
        return self._reader

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until a signal comes or the time is over. Returns whether one has come."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))

    def has_come(self) -> bool:
        return self.wait(0)


def _pass(_signal: int, _frame: FrameType | None) -> None:
    """The number of the signal is in the pipe already."""


def _give_back(_signal: int, _frame: FrameType | None) -> None:
    """The same, and the next signal ends the program, as by default."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_DFL)


def exit_program(code: int) -> Never:
    """End with this code. Threads that a command left after Ctrl-C are not waited for, because they may wait for a
    server that never answers. Their work is as safe as after SIGKILL."""
    if threading.active_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
