"""The command `mica`, also `python -m mica`.

What `mica run` waits for most besides the network are imports, so the process that serves its layers is begun before
anything else is known (`node/earlyservice.py`); one that turns out not to be needed ends at once.
"""

import contextlib
import sys


def main() -> None:
    """Entry point of the console script."""
    with contextlib.ExitStack() as stack:
        early = None
        if sys.argv[1:2] == ["run"]:
            from mica.node.earlyservice import EarlyService

            early = stack.enter_context(EarlyService())
        from mica.cli.main import run_command

        code = run_command(sys.argv[1:], early)
    sys.exit(code)


if __name__ == "__main__":
    main()
