"""Whether the process that waits for an answer is about to end. Linux's /proc; any thread; used by `dispatch`."""

import os
import signal

_SIGNALS_TO_END = {signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGABRT}
# Bit n-1 stands for signal n (proc_pid_status(5)).
_ENDING = sum(1 << (number - 1) for number in _SIGNALS_TO_END)


def wants_to_end(thread: int) -> bool:
    """True if the process is gone, or if a signal is pending that ends it, or that asks it to end and is caught. False
    for a caller that we cannot see: EINTR could break it, and a union would turn EINTR into an I/O error.

    The kernel turns a deadly signal into SIGKILL pending for every thread (complete_signal in kernel/signal.c),
    whatever its number was, unless it dumps core.
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
    fields = dict(line.split(b":", 1) for line in status.split(b"\n") if b":" in line)
    pending, shared, blocked = (int(fields.get(key, b"0"), 16) for key in (b"SigPnd", b"ShdPnd", b"SigBlk"))
    return bool((pending | shared) & ~blocked & _ENDING)
