"""Signals that are waited for, in processes of their own."""

import signal
import subprocess
import sys

import pytest

WAITER = """
import sys, threading
from mica.signals import EndSignals, exit_program
lock = threading.Lock()
with EndSignals() as end:
    assert not end.has_come()
    print("up", flush=True)
    with lock:
        assert end.wait()
    assert end.has_come() and end.wait(60)
print("down", flush=True)
sys.stdin.readline()
exit_program(7)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_wait_and_raises_nothing(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.stdout.readline() == "down\n"
        process.send_signal(number)  # what comes later changes nothing
        process.communicate("go\n", timeout=60)
        assert process.returncode == 7


def test_a_second_signal_may_end_at_once() -> None:
    program = WAITER.replace("EndSignals()", "EndSignals(second_ends=True)").replace(
        "    assert end.has_come()",
        "    print('asked', flush=True); threading.Event().wait()\n    assert end.has_come()",
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


def test_threads_that_are_left_are_not_waited_for() -> None:
    program = """
import threading
from mica.signals import exit_program
threading.Thread(target=threading.Event().wait).start()
print("said")
exit_program(130)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (130, "said\n")
