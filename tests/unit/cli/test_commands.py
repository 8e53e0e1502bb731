"""Names that are no command: what is suggested, and that it exists."""

import os
import subprocess
import sys

import pytest

from mica.cli.commands import OTHER_WORDS, describe_unknown
from mica.cli.main import run_app
from mica.files import owned_fd

KNOWN = ("convert", "push", "run", "status", "mount", "umount")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("psuh", "push"), ("stats", "status"), ("rum", None), ("ps", "status"), ("pull", "convert"),
        ("unmount", "umount"), ("xyz", None), ("", None),
    ],
)  # fmt: skip
def test_what_is_suggested(name: str, meant: str | None) -> None:
    suggestion = f" Did you mean {meant!r}?" if meant else ""
    assert describe_unknown(name, KNOWN) == f"No such command {name!r}.{suggestion}"


def test_two_letters_in_common_are_too_few() -> None:
    assert describe_unknown("ps", ("push", "pull")) == "No such command 'ps'."


@pytest.mark.parametrize("meant", sorted(set(OTHER_WORDS.values())))
def test_what_is_suggested_exists(meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app([*meant.split(), "--help"]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ps"], "No such command 'ps'. Did you mean 'status'?"),
        (["repo", "sl"], "No such command 'sl'."),
        (["cache", "ps"], "No such command 'ps'."),
        (["cache", "verfy"], "No such command 'verfy'. Did you mean 'verify'?"),
    ],
)
def test_every_group_says_it(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(arguments) == 2
    assert sentence in capsys.readouterr().err


def test_a_command_imports_no_other_command() -> None:
    script = "import sys; from mica.cli.main import run_app; run_app(['umount', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert "mica.cli.mount" in modules
    assert not {"mica.cli.run", "mica.cli.repo", "mica.cli.convert", "mica.cli.worker"} & {*modules}


def test_a_reader_that_has_gone_away_ends_a_command_as_the_signal_would() -> None:
    script = "import sys; from mica.cli.main import run_app; sys.exit(run_app(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    with owned_fd(writer):
        done = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (141, b"")
