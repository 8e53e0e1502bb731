"""What runc's errors become."""

from pathlib import Path

import pytest

from mica.run.runc import Bundle, explain_failure

START = "runc run failed: unable to start container process: "


@pytest.mark.parametrize(
    ("reason", "says", "code"),
    [
        (f'{START}exec: "R": executable file not found in $PATH', "R: executable file not found in $PATH.", 127),
        (f'{START}exec: "/x": stat /x: no such file or directory', "/x: no such file or directory.", 127),
        (f'{START}exec: "a\\"b": executable file not found in $PATH', 'a"b: executable file not found in $PATH.', 127),
        (f'{START}exec: "/x": permission denied', "/x: permission denied.", 126),
        (
            f"{START}error during container init: odd",
            "Cannot start the container: error during container init: odd.",
            125,
        ),
    ],
)
def test_one_sentence_and_dockers_code(reason: str, says: str, code: int) -> None:
    error = explain_failure(reason)
    assert (str(error), error.exit_code) == (says, code)


def test_arguments() -> None:
    bundle = Bundle(runc="/usr/sbin/runc", id="i", directory=Path("/r/x"))
    assert bundle.arguments()[-6:] == ["run", "--bundle", "/r/x", "--pid-file", "/r/x/pid", "i"]
    assert "--rootless" not in bundle.arguments()
