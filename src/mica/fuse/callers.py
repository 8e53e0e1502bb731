"""Whether the process that waits for an answer is about to end. Linux's /proc; any thread; used by `fuse_dispatch`."""

import os
import signal

_SIGNALS_TO_END = {signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGABRT}
# Bit n-1 stands for signal n (proc_pid_status(5)).
_ENDING = sum(1 << (number - 1) for number in _SIGNALS_TO_END)


def wants_to_end(thread: int) -> bool:
    """True if a signal is pending that ends the process, or that asks it to and is caught; also if it is gone. Of a
    caller whom we cannot see nothing is known: EINTR would break it, and a union would make an I/O error of that.

    A deadly signal is turned by the kernel into SIGKILL pending for every thread (complete_signal in
    kernel/signal.c), whatever its number was, unless it dumps core.
    """
    if thread == 0:  # of another pid namespace than ours
        return False
    try:
        fd = os.open(f"/proc/{thread}/status", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        status = os.read(fd, 4096)
    except OSError:  # ESRCH: it ended just now
        return True
    finally:
        os.close(fd)
    return is_ending(status)


def is_ending(status: bytes) -> bool:
    fields = dict(line.split(b":", 1) for line in status.splitlines() if b":" in line)
    pending, shared, blocked = (int(fields.get(key, b"0"), 16) for key in (b"SigPnd", b"ShdPnd", b"SigBlk"))
    return bool((pending | shared) & ~blocked & _ENDING)
