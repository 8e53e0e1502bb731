"""The command `mica`, also `python -m mica`.

Besides the network, `mica run` waits longest for imports. So the process that serves its layers starts first, before
anything else is known (`daemon/earlyservice.py`). If the command does not need it, it ends at once.
"""

import contextlib
import signal
import sys


def main() -> None:
    """Entry point of the console script."""
    _end_by_interrupts()
    with contextlib.ExitStack() as stack:
        early = None
        if sys.argv[1:2] == ["run"]:
            from mica.daemon.earlyservice import EarlyService

            early = stack.enter_context(EarlyService())
        from mica.cli.main import run_command
        from mica.signals import exit_program

        code = run_command(sys.argv[1:], early)
    exit_program(code)


def _end_by_interrupts() -> None:
    """Let Ctrl-C end the program at once until a command runs: an exception in the middle of an import looks like a
    bug."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
