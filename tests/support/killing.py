"""Programs that kill themselves at a chosen step: this text goes before theirs, for `Zygote.run_script`.

CHILD = KILLING + "… steps = kill_at(n, {'open', 'os.rename'}, is_step) … print(steps())"
"""

from typing import Final

KILLING: Final = """
import os, signal, sys, threading

def kill_at(n, events, is_step):
    # Counts steps by the interpreter's audit events, and kills this process at the n-th. With n = 0 it only counts.
    lock, seen = threading.Lock(), 0
    def hook(event, arguments):
        nonlocal seen
        if event not in events:
            return
        paths = [os.fsdecode(a) for a in arguments if isinstance(a, (str, bytes))]
        if not is_step(event, arguments, paths):
            return
        with lock:
            seen += 1
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    return lambda: seen
"""
