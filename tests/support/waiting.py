"""Waiting for what happens in another process or thread: as long as a busy machine may need."""

import time
from collections.abc import Callable
from typing import Final

PATIENCE_S: Final = 60.0


def eventually(is_true: Callable[[], object], *, patience_s: float = PATIENCE_S) -> bool:
    """Whether it became true in time. Never the way to see that something does not happen."""
    deadline_s = time.monotonic() + patience_s
    while not is_true():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True
